//! How long a connection to somebody may be used.

use std::{ops::ControlFlow, rc::Rc, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Standing, Trust};
use crate::{
    alarm,
    identity::Peer,
    refusal::{Reason, Refusal},
};

/// When somebody looks again who waits for a change only.
const FAR: Duration = Duration::from_secs(3600);

/// A connection may be used until its certificates end, and for as long as its peer is believed.
#[derive(Clone, Debug)]
pub struct Tenure {
    until: Instant,
    of: Option<(Arc<Trust>, Rc<Peer>)>,
}

impl Tenure {
    /// To the own program, which has no certificate.
    pub fn until(until: Instant) -> Self {
        Self { until, of: None }
    }

    /// To this peer, over certificates of which the first ends at `until`.
    pub fn of(peer: Rc<Peer>, trust: Arc<Trust>, until: Instant) -> Self {
        Self { until, of: Some((trust, peer)) }
    }

    /// The connection takes no more.
    pub fn end(&mut self) {
        self.until = alarm::instant();
    }

    /// Whether nothing new may begin on the connection.
    pub fn is_over(&self) -> bool {
        alarm::instant() >= self.until || self.of.as_ref().is_some_and(|(trust, peer)| trust.standing(peer) != Standing::Good)
    }

    /// Ends when its peer is no longer believed.
    pub async fn fallen(&self) -> Refusal {
        alarm::until(|| self.belief()).await
    }

    /// Ends when what is under way on the connection may not go on.
    pub async fn ended(&self) -> Refusal {
        alarm::until(|| match self.belief() {
            ControlFlow::Continue(_) if alarm::instant() >= self.until => {
                ControlFlow::Break(Refusal::new(Reason::PolicyRevoked, "the certificate of the connection ended"))
            }
            ControlFlow::Continue(next) => ControlFlow::Continue(next.min(self.until)),
            broken => broken,
        })
        .await
    }

    /// Why the peer is no longer believed, or until when nothing has to be looked at: the worker wakes everybody at a change.
    fn belief(&self) -> ControlFlow<Refusal, Instant> {
        let Some((trust, peer)) = &self.of else { return ControlFlow::Continue(self.until.max(alarm::instant() + FAR)) };
        match trust.refusal(peer) {
            Some(refusal) => ControlFlow::Break(refusal),
            None => ControlFlow::Continue(trust.deadline(peer)),
        }
    }
}
