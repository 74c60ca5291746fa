//! The change of the trust anchor: prepare → distribute → issue → prove → retire.
//!
//! What was done is in the store, so that a control plane that dies goes on where it was. Every replica looks how far the phase
//! is and asks its own agents to renew; the one that holds the lease takes the phase on, through the queue of changes, so that
//! no revision is shown without the bundle that belongs to it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use outrider_runtime::Drain;
use tokio::{
    sync::watch,
    time::{Instant, interval},
};

use crate::{
    ca::{self, CaError, Facts, Phase, Present, Progress},
    clock,
    issue::Issuance,
    publish::Mesh,
    registry::{ChangeError, Command, Request, TrustChange},
    store::{HeldRow, RotationRow, StoreError},
};

/// How often it is looked how far the phase is.
const LOOK: Duration = Duration::from_millis(250);
/// Life of the lease.
const LEASE: Duration = Duration::from_secs(3);
/// An agent that was asked to renew gets this long before it is asked again.
const PATIENCE: Duration = Duration::from_secs(10);
/// All agents are asked within this many looks, so that they do not all come at once.
const SPREAD: usize = 40;
/// However few agents there are, that many are asked at a time.
const AT_ONCE: usize = 10;

/// How far a rotation is, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rotation {
    pub(crate) row: RotationRow,
    pub(crate) progress: Progress,
}

/// Why a step was not made.
#[derive(Debug, thiserror::Error)]
enum RotateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error(transparent)]
    Ca(#[from] CaError),
}

/// Looks after the rotation.
pub(crate) struct Keeper {
    issuance: Issuance,
    mesh: Mesh,
    told: watch::Sender<Option<Rotation>>,
    /// Agents that were asked to renew, and when.
    asked: BTreeMap<String, Instant>,
}

impl Keeper {
    /// The receiver tells how far the last rotation is.
    pub(crate) fn new(issuance: Issuance, mesh: Mesh) -> (Self, watch::Receiver<Option<Rotation>>) {
        let (told, state) = watch::channel(None);
        (Self { issuance, mesh, told, asked: BTreeMap::new() }, state)
    }

    /// Works until drain.
    pub(crate) async fn run(mut self, drain: Drain) -> Result<(), std::convert::Infallible> {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = drain.stopping() => return Ok(()),
            }
            if let Err(error) = self.look().await {
                tracing::warn!(error = outrider_runtime::tasks::chain(&error), "rotation of the trust anchor: trying again");
            }
        }
    }

    async fn look(&mut self) -> Result<(), RotateError> {
        if self.issuance.authority.is_mounted() {
            return self.look_at_mounted().await;
        }
        let store = &self.issuance.store;
        let Some(row) = store.rotation().await? else { return Ok(()) };
        let now = clock::now();
        let held = if row.phase.is_over() { Vec::new() } else { store.held(now).await? };
        let progress = self.progress(&row, &held, now).await?;
        if row.phase.renews() {
            self.ask_to_renew(&progress.to_renew);
        } else {
            self.asked.clear();
        }
        let goes_on = progress.is_clear() && row.phase < row.goal && !row.phase.is_over();
        self.tell(Rotation { row: row.clone(), progress });
        if goes_on && let Some(lease) = self.issuance.store.take_lease("ca-rotation", LEASE).await? {
            self.issuance.metrics.lease_held("ca-rotation", true);
            let from = row.phase;
            let advanced = self.mesh.ask(|reply| Request::Trust(TrustChange::Advance { lease, row, reply })).await?;
            if let (Some(revision), Some(to)) = (advanced, from.next()) {
                tracing::info!(from = from.as_str(), to = to.as_str(), revision, "rotation of the trust anchor");
            }
        }
        Ok(())
    }

    /// The change from one mounted CA to the next is this replica's own.
    async fn look_at_mounted(&mut self) -> Result<(), RotateError> {
        let authority = Arc::clone(&self.issuance.authority);
        let Some(row) = authority.handover() else { return Ok(()) };
        let now = clock::now();
        let mut progress = Progress::default();
        if row.phase == Phase::Distributing && row.revision == 0 {
            progress.others.push("the trust bundle with its root is not shown yet".to_owned());
        } else if !row.phase.is_over() {
            let held = self.issuance.store.held(now).await?;
            let present: Vec<Present> = self.mesh.sessions.list().into_iter().map(present).collect();
            let facts = Facts { row: &row, held: &held, present: &present, tokens: &[], without_issuer: &[], now };
            progress = ca::progress(&facts);
            self.ask_to_renew(&progress.to_renew);
        }
        let goes_on = !row.phase.is_over() && (progress.is_clear() || authority.handover_presses(now));
        self.tell(Rotation { row, progress });
        if goes_on {
            authority.advance_handover(now).await?;
        }
        Ok(())
    }

    fn tell(&self, rotation: Rotation) {
        let state = Some(rotation);
        self.told.send_if_modified(|told| {
            let changed = *told != state;
            *told = state;
            changed
        });
    }

    async fn progress(&self, row: &RotationRow, held: &[HeldRow], now: i64) -> Result<Progress, StoreError> {
        let store = &self.issuance.store;
        let present: Vec<Present> = self.mesh.sessions.list().into_iter().map(present).collect();
        let tokens = store.open_tokens(&row.old_root, now).await?;
        let without_issuer = store.replicas_without(&row.new_root).await?;
        Ok(ca::progress(&Facts { row, held, present: &present, tokens: &tokens, without_issuer: &without_issuer, now }))
    }

    /// Asks some of these agents for a new certificate: not all at once, and none again and again.
    fn ask_to_renew(&mut self, due: &[String]) {
        self.asked.retain(|_, at| at.elapsed() < PATIENCE);
        let most = due.len().div_ceil(SPREAD).max(AT_ONCE);
        let asked: Vec<&String> = due.iter().filter(|id| !self.asked.contains_key(*id)).take(most).collect();
        for id in asked {
            // Agents of other replicas are asked by those.
            self.mesh.sessions.command(id, Command::Renew);
            self.asked.insert(id.clone(), Instant::now());
        }
    }
}

fn present(session: crate::registry::Session) -> Present {
    Present {
        agent_id: session.agent_id,
        identity: session.identity,
        serial: session.serial,
        in_force: session.in_force,
        refused: session.refused.map(|(_, reason)| reason).unwrap_or_default(),
    }
}
