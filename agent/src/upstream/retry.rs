//! Whether a request that failed is tried again. Pure: what is known goes in, what to do comes out.

use std::time::Duration;

use smallvec::SmallVec;

use crate::{
    http::{Body, Response},
    refusal::{Reason, Refusal},
};

/// Field with which the agent of a callee tells the agent of the caller about a failure. It is removed before the caller's
/// program sees the response; from outside of the mesh it is not believed.
pub const FIELD: &str = "x-outrider-retry";
/// The program has seen nothing of the request.
pub const UNSENT: &[u8] = b"unsent";
/// The failure came from further down, where it was tried again already, or deliberately not.
pub const FURTHER_DOWN: &[u8] = b"no";

/// Tries of a request that no route says anything about.
const TRIES: u32 = 3;
/// Pause before a second try at a service, doubled for each further one.
const BACKOFF: Duration = Duration::from_millis(25);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(1);

/// How a route wants its requests sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sending {
    /// Time for a response to begin, all tries together; none for the agent's own bound.
    pub timeout: Option<Duration>,
    /// The same for a single try.
    pub try_timeout: Option<Duration>,
    /// Most tries, the first one counted.
    pub tries: u32,
    /// Statuses that are tried again, when the method is idempotent.
    pub codes: SmallVec<[u16; 4]>,
    /// Least pause before a second try; none for the default.
    pub backoff: Option<Duration>,
}

impl Default for Sending {
    fn default() -> Self {
        Self { timeout: None, try_timeout: None, tries: TRIES, codes: SmallVec::new(), backoff: None }
    }
}

/// A try that brought no response.
#[derive(Debug)]
pub(super) struct Failure {
    /// Why.
    pub(super) refusal: Refusal,
    /// The body, when nothing of the request was acted on.
    pub(super) unsent: Option<Box<Body>>,
}

impl Failure {
    /// The request was on its way.
    pub(super) fn sent(refusal: Refusal) -> Self {
        Self { refusal, unsent: None }
    }

    /// Nothing was acted on.
    pub(super) fn unsent(refusal: Refusal, body: Body) -> Self {
        Self { refusal, unsent: Some(Box::new(body)) }
    }

    /// Whether it speaks against the endpoint.
    pub(super) fn is_endpoints(&self) -> bool {
        matches!(
            self.refusal.reason(),
            Reason::ConnectFailed | Reason::PeerIdentity | Reason::UpstreamFailed | Reason::UpstreamTimeout
        )
    }
}

/// What is known when a try is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Tries so far, at least 1.
    pub(super) tries: u32,
    /// Whether doing it twice is as good as once.
    pub(super) idempotent: bool,
    /// Whether there is another endpoint that was not tried.
    pub(super) another: bool,
}

/// What to do after a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// That was it.
    End,
    /// At once at another endpoint: nobody has seen the request.
    Elsewhere,
    /// After a pause, if the budget has room.
    Again(Duration),
}

impl Sending {
    /// After a try without response. The caller has the body to send again.
    pub(super) fn after_failure(&self, failure: &Failure, known: Known) -> Next {
        if known.tries >= self.tries.max(TRIES) {
            return Next::End;
        }
        match failure.refusal.reason() {
            Reason::ConnectFailed | Reason::PeerIdentity if failure.unsent.is_some() && known.another => Next::Elsewhere,
            Reason::ConnectFailed if failure.unsent.is_some() && known.tries < self.tries && !self.codes.is_empty() => {
                Next::Again(self.pause(known.tries))
            }
            Reason::UpstreamFailed if known.tries < self.tries && (known.idempotent || failure.unsent.is_some()) => {
                Next::Again(self.pause(known.tries))
            }
            // A route that retries on 504 means its own time-out for a try too.
            Reason::UpstreamTimeout if known.tries < self.tries && known.idempotent && self.codes.contains(&504) => {
                Next::Again(self.pause(known.tries))
            }
            _ => Next::End,
        }
    }

    /// After a response.
    pub(super) fn after_response(&self, response: &Response, known: Known) -> Next {
        let said = response.fields.single(FIELD);
        if response.status < 400 || known.tries >= self.tries || said == Some(FURTHER_DOWN) {
            return Next::End;
        }
        let unseen = said == Some(UNSENT) && response.status >= 500;
        let wanted = known.idempotent && self.codes.contains(&response.status);
        if unseen || wanted { Next::Again(self.pause(known.tries)) } else { Next::End }
    }

    /// The pause after this many tries, before jitter.
    fn pause(&self, tries: u32) -> Duration {
        let first = self.backoff.unwrap_or(BACKOFF);
        first.saturating_mul(1 << tries.saturating_sub(1).min(6)).min(LONGEST.max(first))
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;
    use crate::http::Fields;

    const FIRST: Known = Known { tries: 1, idempotent: true, another: true };

    fn response(status: u16, said: Option<&[u8]>) -> Response {
        let mut fields = Fields::default();
        if let Some(said) = said {
            fields.push(FIELD.as_bytes(), said);
        }
        Response { status, fields, body: Body::Empty, tenure: None, switched: None }
    }

    fn failure(reason: Reason, unsent: bool) -> Failure {
        Failure { refusal: Refusal::new(reason, ""), unsent: unsent.then(|| Box::new(Body::Empty)) }
    }

    #[test]
    fn nothing_that_may_have_been_done_is_done_twice_unless_it_may() {
        let sending = Sending::default();
        let post = Known { idempotent: false, ..FIRST };
        let again = |next| matches!(next, Next::Again(_));
        assert!(again(sending.after_failure(&failure(Reason::UpstreamFailed, false), FIRST)));
        assert_eq!(sending.after_failure(&failure(Reason::UpstreamFailed, false), post), Next::End);
        assert!(again(sending.after_failure(&failure(Reason::UpstreamFailed, true), post)), "nothing was acted on");
        assert_eq!(sending.after_failure(&failure(Reason::ConnectFailed, true), post), Next::Elsewhere);
        assert_eq!(sending.after_failure(&failure(Reason::ConnectFailed, true), Known { another: false, ..post }), Next::End);
        assert_eq!(sending.after_failure(&failure(Reason::UpstreamTimeout, false), FIRST), Next::End);
        for reason in [Reason::NoIdentity, Reason::Overloaded, Reason::Malformed, Reason::NoEndpoint] {
            assert_eq!(sending.after_failure(&failure(reason, true), FIRST), Next::End, "{reason:?}");
        }
    }

    #[test]
    fn responses_are_tried_again_where_the_route_says_so_and_never_above_who_tried() {
        let (plain, route) = (Sending::default(), Sending { codes: smallvec![503, 504], ..Sending::default() });
        assert_eq!(plain.after_response(&response(503, None), FIRST), Next::End);
        assert!(matches!(route.after_response(&response(503, None), FIRST), Next::Again(_)));
        assert_eq!(route.after_response(&response(500, None), FIRST), Next::End);
        assert_eq!(route.after_response(&response(503, Some(FURTHER_DOWN)), FIRST), Next::End);
        assert_eq!(route.after_response(&response(503, None), Known { idempotent: false, ..FIRST }), Next::End);
        let unsent = response(503, Some(UNSENT));
        assert!(matches!(plain.after_response(&unsent, Known { idempotent: false, ..FIRST }), Next::Again(_)));
        assert_eq!(plain.after_response(&unsent, Known { tries: 3, ..FIRST }), Next::End);
        assert_eq!(plain.after_response(&response(200, Some(UNSENT)), FIRST), Next::End);
    }

    #[test]
    fn pauses_double_up_to_a_bound() {
        let sending = Sending::default();
        assert_eq!([1, 2, 3].map(|tries| sending.pause(tries)), [25, 50, 100].map(Duration::from_millis));
        assert_eq!(sending.pause(40), LONGEST);
    }
}
