//! Fairness between callers: what one of them sends at once must not take all places in which requests wait for a connection.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    alarm::within,
    refusal::{Reason, Refusal},
};

/// Requests of one caller's connection that may wait for a connection to the program at a time: a quarter of all.
const SIDE_BY_SIDE: usize = super::breaker::CONNECTING / 4;

/// The requests of one caller's connection that need a new connection to the program, so many at a time.
#[derive(Debug)]
pub struct Turnstile(Semaphore);

impl Default for Turnstile {
    fn default() -> Self {
        Self(Semaphore::new(SIDE_BY_SIDE))
    }
}

impl Turnstile {
    /// Waits for a turn, in order, at most so long.
    ///
    /// # Errors
    /// `overloaded` when the time is up.
    pub(super) async fn pass(&self, limit: Duration) -> Result<SemaphorePermit<'_>, Refusal> {
        let late = || Refusal::new(Reason::Overloaded, "the caller's other requests wait for a connection already");
        within(limit, self.0.acquire()).await.map_err(|_| late())?.map_err(|_| late())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn the_next_one_passes_when_one_has_passed() {
        let turnstile = Turnstile::default();
        let mut turns = Vec::new();
        for _ in 0..SIDE_BY_SIDE {
            turns.push(turnstile.pass(Duration::from_secs(5)).await.unwrap());
        }
        let mut next = std::pin::pin!(turnstile.pass(Duration::from_secs(5)));
        assert!(poll!(&mut next).is_pending());
        turns.pop();
        assert!(next.await.is_ok());
    }
}
