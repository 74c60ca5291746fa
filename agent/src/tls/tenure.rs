//! How long a connection to somebody may be used.

use std::{rc::Rc, sync::Arc};

use tokio::time::Instant;

use super::{Standing, Trust};
use crate::{
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
        self.until = Instant::now();
    }

    /// Whether nothing new may begin on the connection.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until || self.of.as_ref().is_some_and(|(trust, peer)| trust.standing(peer) != Standing::Good)
    }

    /// Ends when its peer is no longer believed.
    pub async fn fallen(&self) -> Refusal {
        match &self.of {
            Some((trust, peer)) => trust.fallen(peer).await,
            None => std::future::pending().await,
        }
    }

    /// Ends when what is under way on the connection may not go on.
    pub async fn ended(&self) -> Refusal {
        let certificate = || Refusal::new(Reason::PolicyRevoked, "the certificate of the connection ended");
        tokio::select! {
            biased;
            refusal = self.fallen() => refusal,
            () = tokio::time::sleep_until(self.until) => certificate(),
        }
    }
}
