//! Whose turn it is to be issued a leaf: so many at a time in all, first come first served, and of one identity no more than its
//! share, so that nobody waits behind a flood of somebody else.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use outrider_policy::SpiffeId;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Issuances at a time. More do not make a machine faster.
const AT_ONCE: usize = 128;
/// Of one identity, under way and waiting.
const OF_ONE: usize = 32;
/// How long one waits for its turn.
const PATIENCE: Duration = Duration::from_secs(5);

/// Turns. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    all: Arc<Semaphore>,
    of_one: Arc<Mutex<HashMap<SpiffeId, usize>>>,
}

/// A turn. Over when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    identity: SpiffeId,
    of_one: Arc<Mutex<HashMap<SpiffeId, usize>>>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub(crate) fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(AT_ONCE)), of_one: Arc::default() }
    }

    /// Waits for a turn. `None` when the identity has its share already, or everybody waits for too long.
    pub(crate) async fn take(&self, identity: &SpiffeId) -> Option<Turn> {
        {
            // Nothing in here can panic half-way.
            let mut of_one = self.of_one.lock().unwrap_or_else(PoisonError::into_inner);
            let count = of_one.entry(identity.clone()).or_default();
            if *count >= OF_ONE {
                return None;
            }
            *count += 1;
        }
        let mut turn = Turn { identity: identity.clone(), of_one: Arc::clone(&self.of_one), permit: None };
        // The semaphore is fair: whoever came first is next.
        turn.permit = timeout(PATIENCE, Arc::clone(&self.all).acquire_owned()).await.ok()?.ok();
        turn.permit.is_some().then_some(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut of_one = self.of_one.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = of_one.get_mut(&self.identity) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                of_one.remove(&self.identity);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> SpiffeId {
        SpiffeId::new(&format!("spiffe://td/ns/a/sa/{name}")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn one_identity_takes_no_more_than_its_share_of_the_turns() {
        let turns = Turns::new();
        let mut held = Vec::new();
        while let Some(turn) = turns.take(&id("loud")).await {
            held.push(turn);
        }
        assert_eq!(held.len(), OF_ONE);
        assert!(turns.take(&id("calm")).await.is_some(), "others have theirs");
        held.pop();
        assert!(turns.take(&id("loud")).await.is_some());
        drop(held);
        assert!(turns.of_one.lock().unwrap().is_empty(), "nobody is remembered");
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_turns_are_taken_one_waits_and_not_for_ever() {
        let turns = Turns::new();
        let mut held = Vec::new();
        for number in 0..AT_ONCE {
            held.push(turns.take(&id(&format!("s{}", number / OF_ONE))).await.unwrap());
        }
        assert!(turns.take(&id("late")).await.is_none());
        held.pop();
        assert!(turns.take(&id("late")).await.is_some());
    }
}
