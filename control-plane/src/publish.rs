//! The way of a change: watch → registry → compile → push.
//!
//! Everything that changes the mesh comes through one queue and is handled by one task: it checks, stores, and only then
//! shows the new snapshot to the streams ([`crate::push`]), each of which compiles its agent's view ([`crate::compile`]).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use outrider_runtime::Drain;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval},
};

pub(crate) use crate::registry::Mesh;
use crate::{
    ca::Authority,
    metrics::Metrics,
    registry::{ASK, ATTEMPTS, Applied, ChangeError, Keeper, Request, Revocations, Sessions, Start, World, abreast},
    store::{Store, StoreError},
};

/// Requests that may wait. More than that and those who ask wait too.
const QUEUE: usize = 1024;
/// Requests handled before others get a turn.
const BATCH: usize = 256;

/// The one writer of the mesh.
pub(crate) struct Publisher {
    pub(crate) store: Store,
    metrics: Metrics,
    pub(crate) world: World,
    shown: watch::Sender<Arc<World>>,
    pub(crate) revoked: watch::Sender<Arc<Revocations>>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) sessions: Sessions,
    requests: mpsc::Receiver<Request>,
    pub(crate) grace: Duration,
    /// Streams by agent.
    pub(crate) streams: BTreeMap<String, u64>,
    /// Candidates that are being tried.
    pub(crate) canary: Option<Keeper>,
    /// Agents whose stream broke, and when their endpoints go.
    pub(crate) leaving: BTreeMap<String, Instant>,
}

impl Publisher {
    /// Agents of the store that are not connected yet have `grace` to come back.
    pub(crate) fn new(store: Store, metrics: Metrics, (world, revoked, authority): Start, grace: Duration) -> (Self, Mesh) {
        let (send, requests) = mpsc::channel(QUEUE);
        let (shown, watched) = watch::channel(Arc::new(world.clone()));
        let sessions = Sessions::new();
        let until = Instant::now() + grace;
        let leaving = world.agents.values().filter(|agent| agent.present).map(|agent| (agent.id.clone(), until)).collect();
        let mesh = Mesh { requests: send, world: watched, sessions: sessions.clone() };
        let (streams, canary) = (BTreeMap::new(), None);
        let known =
            Self { store, metrics, world, shown, revoked, authority, sessions, requests, grace, streams, canary, leaving };
        (known, mesh)
    }

    /// Handles changes until drain.
    pub(crate) async fn run(mut self, drain: Drain) -> Result<(), StoreError> {
        let mut batch = Vec::with_capacity(BATCH);
        let (mut hints, mut ask) = (self.store.hints.mesh.subscribe(), interval(ASK));
        let mut tick = interval((self.grace / 8).clamp(Duration::from_millis(20), Duration::from_secs(1)));
        loop {
            tokio::select! {
                taken = self.requests.recv_many(&mut batch, BATCH) => {
                    if taken == 0 { return Ok(()) }
                    self.handle(std::mem::take(&mut batch)).await;
                }
                _ = tick.tick() => {
                    self.expire().await;
                    self.tend_canary().await;
                }
                // Other replicas change the mesh too: the hint may be lost, the question is not.
                _ = hints.changed() => self.tend().await,
                _ = ask.tick() => self.tend().await,
                () = drain.stopping() => return Ok(()),
            }
        }
    }

    async fn handle(&mut self, batch: Vec<Request>) {
        let mut joins = Vec::new();
        for request in batch {
            // A storm of agents is one transaction, but nothing overtakes anything.
            if !matches!(request, Request::Join { .. }) {
                self.join(std::mem::take(&mut joins)).await;
            }
            match request {
                Request::Join { agent, epoch, reply } => joins.push((agent, epoch, reply)),
                // Dropped when it is done: that is what a goodbye waits for.
                Request::Leave { agent_id, epoch, goodbye, _done } => self.leave(&agent_id, epoch, goodbye).await,
                // Nobody waits any more: what was stored stays stored.
                Request::Apply { documents, unknown, dry_run, author, reply } => {
                    drop(reply.send(abreast!(self, self.apply(&documents, unknown, dry_run, &author))))
                }
                Request::Canary { order, reply } => drop(reply.send(self.begin_canary(order).await)),
                Request::Rollback { revision, dry_run, author, reply } => {
                    drop(reply.send(abreast!(self, self.rollback(revision, dry_run, &author))))
                }
                Request::Delete { names, author, reply } => drop(reply.send(abreast!(self, self.delete(&names, &author)))),
                Request::Trust(change) => self.change_trust(change).await,
            }
        }
        self.join(joins).await;
    }

    /// Shows the snapshot to everybody.
    pub(crate) fn show(&self) {
        self.metrics.revision.set(i64::try_from(self.world.revision).unwrap_or(i64::MAX));
        self.shown.send_replace(Arc::new(self.world.clone()));
    }

    /// What is returned when nothing was to do.
    pub(crate) fn unchanged(&self) -> Applied {
        Applied { revision: self.world.revision, ..Applied::default() }
    }
}
