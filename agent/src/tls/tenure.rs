//! How long a connection to somebody may be used.

use std::{ops::ControlFlow, rc::Rc, sync::Arc};

use tokio::time::Instant;

use super::{Standing, Trust};
use crate::{
    alarm,
    identity::Peer,
    refusal::{Reason, Refusal},
};

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
        match &self.of {
            Some((trust, peer)) => alarm::until(|| belief(trust, peer)).await,
            None => std::future::pending().await,
        }
    }

    /// Ends when what is under way on the connection may not go on.
    pub async fn ended(&self) -> Refusal {
        let believed = || match &self.of {
            Some((trust, peer)) => belief(trust, peer),
            None => ControlFlow::Continue(self.until),
        };
        alarm::until(|| match believed() {
            ControlFlow::Continue(_) if alarm::instant() >= self.until => {
                ControlFlow::Break(Refusal::new(Reason::PolicyRevoked, "the certificate of the connection ended"))
            }
            ControlFlow::Continue(next) => ControlFlow::Continue(next.min(self.until)),
            broken => broken,
        })
        .await
    }
}

/// Why a peer is no longer believed, or until when nothing has to be looked at: the worker wakes everybody at a change.
fn belief(trust: &Trust, peer: &Peer) -> ControlFlow<Refusal, Instant> {
    match trust.refusal(peer) {
        Some(refusal) => ControlFlow::Break(refusal),
        None => ControlFlow::Continue(trust.deadline(peer)),
    }
}
