//! Ready means every gate is open. A gate that is dropped closes: nobody becomes ready by going away.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::watch;

/// The gates of a process. Clones share them.
#[derive(Clone, Debug)]
pub struct Readiness {
    gates: watch::Sender<BTreeMap<u64, (&'static str, bool)>>,
    next: Arc<AtomicU64>,
}

/// One condition of readiness.
#[derive(Debug)]
pub struct Gate {
    id: u64,
    gates: watch::Sender<BTreeMap<u64, (&'static str, bool)>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// No gates yet. A process without gates is ready.
    pub fn new() -> Self {
        Self { gates: watch::Sender::new(BTreeMap::new()), next: Arc::default() }
    }

    /// Adds a closed gate.
    pub fn gate(&self, name: &'static str) -> Gate {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.gates.send_modify(|gates| {
            gates.insert(id, (name, false));
        });
        Gate { id, gates: self.gates.clone() }
    }

    /// Names of the gates that are closed, in the order they were added.
    pub fn missing(&self) -> Vec<&'static str> {
        self.gates.borrow().values().filter(|(_, open)| !open).map(|(name, _)| *name).collect()
    }

    /// Whether every gate is open.
    pub fn is_ready(&self) -> bool {
        self.gates.borrow().values().all(|(_, open)| *open)
    }

    /// Ends when every gate is open.
    pub async fn ready(&self) {
        let mut gates = self.gates.subscribe();
        // The sender lives as long as `self`.
        let _ = gates.wait_for(|gates| gates.values().all(|(_, open)| *open)).await;
    }
}

impl Gate {
    /// The condition holds.
    pub fn open(&self) {
        self.set(true);
    }

    /// The condition holds no longer.
    pub fn close(&self) {
        self.set(false);
    }

    fn set(&self, to: bool) {
        self.gates.send_if_modified(|gates| gates.get_mut(&self.id).is_some_and(|(_, open)| std::mem::replace(open, to) != to));
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_only_when_every_gate_is_open() {
        let readiness = Readiness::new();
        let (identity, policy) = (readiness.gate("identity"), readiness.gate("policy"));
        identity.open();
        assert_eq!(readiness.missing(), ["policy"]);
        policy.open();
        readiness.ready().await;
        identity.close();
        assert!(!readiness.is_ready());
    }

    #[test]
    fn dropping_a_gate_closes_it() {
        let readiness = Readiness::new();
        let gate = readiness.gate("identity");
        gate.open();
        drop(gate);
        assert!(!readiness.is_ready());
    }
}
