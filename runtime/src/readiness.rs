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
    gates: watch::Sender<BTreeMap<u64, Condition>>,
    next: Arc<AtomicU64>,
}

/// What is known of a gate.
#[derive(Debug)]
struct Condition {
    name: &'static str,
    open: bool,
    /// Why it is closed, when somebody said.
    why: Option<&'static str>,
}

/// One condition of readiness.
#[derive(Debug)]
pub struct Gate {
    id: u64,
    gates: watch::Sender<BTreeMap<u64, Condition>>,
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
            gates.insert(id, Condition { name, open: false, why: None });
        });
        Gate { id, gates: self.gates.clone() }
    }

    /// Names of the gates that are closed, in the order they were added.
    pub fn missing(&self) -> Vec<&'static str> {
        self.gates.borrow().values().filter(|gate| !gate.open).map(|gate| gate.name).collect()
    }

    /// The same, each with the reason in parentheses if one was given.
    pub fn waiting(&self) -> Vec<String> {
        let closed = |gate: &Condition| match gate.why {
            Some(why) => format!("{} ({why})", gate.name),
            None => gate.name.to_owned(),
        };
        self.gates.borrow().values().filter(|gate| !gate.open).map(closed).collect()
    }

    /// Whether every gate is open.
    pub fn is_ready(&self) -> bool {
        self.gates.borrow().values().all(|gate| gate.open)
    }

    /// Ends when every gate is open.
    pub async fn ready(&self) {
        let mut gates = self.gates.subscribe();
        // The sender lives as long as `self`.
        let _ = gates.wait_for(|gates| gates.values().all(|gate| gate.open)).await;
    }
}

impl Gate {
    /// The condition holds.
    pub fn open(&self) {
        self.set(true, None);
    }

    /// The condition holds no longer.
    pub fn close(&self) {
        self.set(false, None);
    }

    /// The condition holds no longer, for a reason that everybody may know.
    pub fn close_because(&self, why: &'static str) {
        self.set(false, Some(why));
    }

    fn set(&self, open: bool, why: Option<&'static str>) {
        self.gates.send_if_modified(|gates| {
            gates.get_mut(&self.id).is_some_and(|gate| {
                let before = std::mem::replace(gate, Condition { name: gate.name, open, why });
                (before.open, before.why) != (open, why)
            })
        });
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
        policy.close_because("it is not there");
        assert_eq!(readiness.waiting(), ["identity", "policy (it is not there)"]);
        policy.open();
        assert_eq!(readiness.waiting(), ["identity"]);
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
