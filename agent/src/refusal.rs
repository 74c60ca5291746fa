//! Why a request or connection was not served: one closed set of reasons, the same word in log, metric and docs.

/// Who has to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The caller sent something that cannot be served.
    Caller,
    /// A policy, or the lack of one, says no.
    Policy,
    /// What the request was for does not answer properly.
    Upstream,
    /// The mesh itself cannot serve: identity, configuration, overload.
    Mesh,
}

/// Where on its way a call ended: the words of `inbound.rs` and `outbound.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before or while a connection was taken.
    Accept,
    /// In the handshake.
    Tls,
    /// While the request was read and made canonical.
    Request,
    /// In the decision.
    Policy,
    /// While the way was chosen.
    Route,
    /// At the other end, or on the way there.
    Upstream,
    /// Under way: bytes of the call were passing.
    Stream,
}

impl Stage {
    /// The word used in access log, metrics and docs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Tls => "tls",
            Self::Request => "request",
            Self::Policy => "policy",
            Self::Route => "route",
            Self::Upstream => "upstream",
            Self::Stream => "stream",
        }
    }
}

/// Which agents of a call can give a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sides {
    /// The one beside the callee.
    Inbound,
    /// The one beside the caller.
    Outbound,
    /// Each of the two.
    Both,
}

impl Sides {
    /// The word used in docs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
            Self::Both => "both",
        }
    }
}

impl Blame {
    /// The word used in docs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Policy => "policy",
            Self::Upstream => "upstream",
            Self::Mesh => "mesh",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $reason:literal, $blame:ident, $status:literal, $stage:ident, $sides:ident;)*) => {
        /// A refusal without its details.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word used in access log, metrics and docs.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $reason,)* }
            }

            /// Who has to act.
            pub fn blame(self) -> Blame {
                match self { $(Self::$name => Blame::$blame,)* }
            }

            /// HTTP status the caller sees, if it can still see one.
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// Where on its way the call ended.
            pub fn stage(self) -> Stage {
                match self { $(Self::$name => Stage::$stage,)* }
            }

            /// Which agents give this reason.
            pub fn sides(self) -> Sides {
                match self { $(Self::$name => Sides::$sides,)* }
            }
        }
    };
}

// `docs/reasons.md` lists them; a test below compares.
reasons! {
    /// Not HTTP, or HTTP that could be read in two ways.
    Malformed = "malformed", Caller, 400, Request, Both;
    /// The path has an ambiguous or forbidden form.
    AmbiguousPath = "ambiguous_path", Caller, 400, Request, Both;
    /// Missing, repeated or malformed host.
    BadHost = "bad_host", Caller, 400, Request, Both;
    /// The request's head did not arrive in time.
    HeadTimeout = "head_timeout", Caller, 408, Request, Both;
    /// Head too large or too many header fields.
    HeadTooLarge = "head_too_large", Caller, 431, Request, Both;
    /// A body larger than the listener takes.
    BodyTooLarge = "body_too_large", Caller, 413, Request, Both;
    /// An expectation other than `100-continue`.
    UnknownExpectation = "unknown_expectation", Caller, 417, Request, Both;
    /// A method that this listener does not serve.
    MethodNotServed = "method_not_served", Caller, 405, Request, Both;
    /// The request names another service than its connection.
    Misdirected = "misdirected", Caller, 421, Request, Inbound;
    /// The caller sends its body, or takes the response, too slowly.
    SlowCaller = "slow_caller", Caller, 408, Stream, Both;
    /// The caller went away before it was served.
    CallerGone = "caller_gone", Caller, 499, Stream, Both;
    /// More frames that carry nothing than a connection may send.
    ControlFlood = "control_flood", Caller, 429, Stream, Both;
    /// No rule allows it, or a rule denies it.
    PolicyDenied = "policy_denied", Policy, 403, Policy, Inbound;
    /// No policy applies to the destination, or none could be put in force.
    NoPolicy = "no_policy", Policy, 403, Policy, Inbound;
    /// A caller in plaintext, where the policy wants mutual TLS.
    PlaintextRefused = "plaintext_refused", Policy, 403, Policy, Inbound;
    /// More requests than the policy's limit lets through.
    RateLimited = "rate_limited", Caller, 429, Policy, Inbound;
    /// The destination is not in the mesh and no egress rule allows it.
    EgressDenied = "egress_denied", Policy, 403, Route, Outbound;
    /// A policy change ended a stream under way.
    PolicyRevoked = "policy_revoked", Policy, 403, Stream, Both;
    /// The other side's certificate or identity was revoked.
    PeerRevoked = "peer_revoked", Policy, 403, Tls, Both;
    /// No such service, or no such port of it.
    UnknownService = "unknown_service", Caller, 404, Route, Both;
    /// Routes are attached to the service, and none of them is for this request.
    NoRoute = "no_route", Caller, 404, Route, Outbound;
    /// The service's port does not speak what the caller wants to speak.
    ProtocolMismatch = "protocol_mismatch", Caller, 400, Route, Both;
    /// The service has no endpoint.
    NoEndpoint = "no_endpoint", Upstream, 503, Route, Outbound;
    /// No connection to the upstream could be made.
    ConnectFailed = "connect_failed", Upstream, 503, Upstream, Both;
    /// The peer at the other end did not prove the identity expected of it.
    PeerIdentity = "peer_identity", Upstream, 502, Tls, Both;
    /// The upstream broke the connection or its protocol.
    UpstreamFailed = "upstream_failed", Upstream, 502, Upstream, Both;
    /// The upstream did not answer in time.
    UpstreamTimeout = "upstream_timeout", Upstream, 504, Upstream, Both;
    /// The request took longer in all than a request may.
    RequestTimeout = "request_timeout", Upstream, 504, Stream, Both;
    /// This agent holds no valid certificate.
    NoIdentity = "no_identity", Mesh, 503, Tls, Both;
    /// A limit of this agent is reached.
    Overloaded = "overloaded", Mesh, 503, Accept, Both;
    /// A connection to a capture port that no capture rule sent there.
    NotRedirected = "not_redirected", Caller, 400, Accept, Both;
    /// A captured connection that leads back to this agent.
    CaptureLoop = "capture_loop", Mesh, 503, Route, Outbound;
    /// The agent is leaving.
    Draining = "draining", Mesh, 503, Stream, Both;
    /// A fault of the agent itself, which ends what it happened to and nothing else.
    InternalFault = "internal_fault", Mesh, 500, Stream, Both;
}

/// A refusal with what operators need to know. Callers see the status and the request id only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", reason.as_str())]
pub struct Refusal {
    reason: Reason,
    detail: String,
    retry_after: Option<u32>,
}

impl Refusal {
    /// A refusal for `reason`; `detail` goes to the record, never to the caller.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), retry_after: None }
    }

    /// A refusal for `reason`, caused by `error`.
    pub fn caused(reason: Reason, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(reason, outrider_runtime::tasks::chain(error))
    }

    /// The same, with the number of seconds after which the caller may come again.
    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// Seconds after which the caller may come again, if that is known.
    pub fn seconds_to_wait(&self) -> Option<u32> {
        self.retry_after
    }

    /// The reason.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Who has to act.
    pub fn blame(&self) -> Blame {
        self.reason.blame()
    }

    /// HTTP status the caller sees.
    pub fn status(&self) -> u16 {
        self.reason.status()
    }

    /// Where on its way the call ended.
    pub fn stage(&self) -> Stage {
        self.reason.stage()
    }

    /// What operators need to know.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_distinct_words_with_error_statuses() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::ALL.len());
        assert!(Reason::ALL.iter().all(|reason| (400..600).contains(&reason.status())));
    }
    #[test]
    fn the_page_lists_exactly_the_reasons_that_there_are() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reasons.md")).unwrap();
        let rows: Vec<Vec<&str>> = page
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect())
            .collect();
        let listed: Vec<&[&str]> = rows.iter().map(|row| &row[..5]).collect();
        let status = |reason: Reason| reason.status().to_string();
        let all: Vec<(Reason, String)> = Reason::ALL.iter().map(|reason| (*reason, status(*reason))).collect();
        let expected: Vec<[&str; 5]> = all
            .iter()
            .map(|(reason, status)| {
                [reason.as_str(), reason.stage().as_str(), reason.sides().as_str(), reason.blame().as_str(), status]
            })
            .collect();
        assert_eq!(listed, expected);
        assert!(rows.iter().all(|row| row.len() == 6 && row[5].len() > 10), "each says what it means");
    }
}
