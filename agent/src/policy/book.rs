//! The policies in force, one compiled index for each port of each own service.

use std::sync::{
    Arc,
    atomic::{
        AtomicU64,
        Ordering::{Acquire, Release},
    },
};

use arc_swap::ArcSwap;
use outrider_policy::{Compiled, ServiceName, SpiffeId, StoredPolicy, Target, compile};
use tokio::sync::watch;

use super::{Limiter, Over};
use crate::tls::Trust;

/// Everything that is in force at one revision.
#[derive(Debug)]
pub struct InForce {
    /// Store revision of the view that it was made from.
    pub revision: u64,
    compiled: Vec<Arc<Compiled>>,
    limiters: Vec<Option<Arc<Limiter>>>,
}

/// The policies in force. Before the first view everything is denied.
#[derive(Debug)]
pub struct PolicyBook {
    targets: Vec<Target>,
    current: ArcSwap<InForce>,
    /// Counts what was put in force: moved on after it is in place.
    version: AtomicU64,
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
        let current = ArcSwap::from_pointee(InForce { revision: 0, compiled, limiters: Vec::new() });
        Self { targets, current, version: AtomicU64::new(0), trust, changed }
    }

    /// Compiles `policies` and puts them in force for every decision from now on, and for streams under way.
    ///
    /// # Errors
    /// When a policy cannot be compiled for a port it lands on; what was in force before still is.
    pub fn put_in_force(&self, policies: &[StoredPolicy], revision: u64) -> Result<(), String> {
        let mut compiled = Vec::with_capacity(self.targets.len());
        let mut limiters = Vec::with_capacity(self.targets.len());
        let before = self.current.load_full();
        for (at, target) in self.targets.iter().enumerate() {
            let index = compile(policies, target).map_err(|problems| {
                let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
                format!("{} port {}: {}", target.service, target.port, problems.join("; "))
            })?;
            // What has been used of a limit stays used when something else changes.
            limiters.push(index.limits().map(|limits| {
                let kept = before.limiters.get(at).and_then(Option::as_ref).filter(|limiter| limiter.limits() == limits);
                kept.cloned().unwrap_or_else(|| Arc::new(Limiter::new(limits.clone())))
            }));
            compiled.push(Arc::new(index));
        }
        self.current.store(Arc::new(InForce { revision, compiled, limiters }));
        self.version.fetch_add(1, Release);
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

    /// Changes with what is in force. Read before deciding, so that no change is lost.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Acquire)
    }

    /// The index for a port, as it is now.
    pub fn compiled(&self, target: usize) -> Option<Arc<Compiled>> {
        self.current.load().compiled.get(target).cloned()
    }

    /// Counts a call of this caller to a port that has a limit.
    ///
    /// # Errors
    /// When it is over the limit.
    pub(super) fn count(&self, target: usize, source: Option<&SpiffeId>) -> Result<(), Over> {
        let current = self.current.load();
        current.limiters.get(target).and_then(Option::as_ref).map_or(Ok(()), |limiter| limiter.take(source))
    }

    /// Revision of the view in force.
    pub fn revision(&self) -> u64 {
        self.current.load().revision
    }
}
