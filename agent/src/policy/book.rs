//! The policies in force, one compiled index for each port of each own service.

use std::sync::Arc;

use arc_swap::ArcSwap;
use outrider_policy::{Compiled, ServiceName, StoredPolicy, Target, compile};
use tokio::sync::watch;

use crate::tls::Trust;

/// Everything that is in force at one revision.
#[derive(Debug)]
pub struct InForce {
    /// Store revision of the view that it was made from.
    pub revision: u64,
    compiled: Vec<Arc<Compiled>>,
}

/// The policies in force. Before the first view everything is denied.
#[derive(Debug)]
pub struct PolicyBook {
    targets: Vec<Target>,
    current: ArcSwap<InForce>,
    /// Who is believed: what a permit stands on beside the policies.
    pub(super) trust: Arc<Trust>,
    changed: Arc<watch::Sender<u64>>,
}

impl PolicyBook {
    /// A book for these ports of own services, denying everything. What changes in `trust` is heard of as a change too.
    pub fn new(targets: Vec<Target>, trust: Arc<Trust>) -> Self {
        let deny = Arc::new(Compiled::deny_all("no policy received yet"));
        let compiled = targets.iter().map(|_| deny.clone()).collect();
        let changed = trust.changed();
        Self { targets, current: ArcSwap::from_pointee(InForce { revision: 0, compiled }), trust, changed }
    }

    /// Compiles `policies` and puts them in force for every decision from now on, and for streams under way.
    ///
    /// # Errors
    /// When a policy cannot be compiled for a port it lands on; what was in force before still is.
    pub fn put_in_force(&self, policies: &[StoredPolicy], revision: u64) -> Result<(), String> {
        let mut compiled = Vec::with_capacity(self.targets.len());
        for target in &self.targets {
            let index = compile(policies, target).map_err(|problems| {
                let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
                format!("{} port {}: {}", target.service, target.port, problems.join("; "))
            })?;
            compiled.push(Arc::new(index));
        }
        self.current.store(Arc::new(InForce { revision, compiled }));
        self.changed.send_modify(|changes| *changes += 1);
        Ok(())
    }

    /// Position of a port of an own service.
    pub fn find(&self, service: &ServiceName, port: u16) -> Option<usize> {
        self.targets.iter().position(|target| target.service == *service && target.port == port)
    }

    /// The ports that decisions are made for.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Told at every change. Subscribe before deciding, so that no change is lost.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The index for a port, as it is now.
    pub fn compiled(&self, target: usize) -> Option<Arc<Compiled>> {
        self.current.load().compiled.get(target).cloned()
    }

    /// Revision of the view in force.
    pub fn revision(&self) -> u64 {
        self.current.load().revision
    }
}
