//! `Admin`, as far as it is about the change of the trust anchor.

use outrider_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::{
    admin::{Operators, Progress},
    unavailable,
};
use crate::{
    ca::Phase,
    clock,
    registry::{ChangeError, Request as Change, TrustChange},
    rotate::Rotation,
    store::{Author, RotationRow},
};

/// Most laggards that are named.
const MAX_LAGGARDS: usize = 1000;

impl Operators {
    /// Begins, goes on or takes back, and follows.
    pub(super) async fn rotation_asked(
        &self,
        request: v1::RotateCaRequest,
        author: &Author,
    ) -> Result<Response<Progress<v1::CaRotation>>, Status> {
        let v1::RotateCaRequest { step, abort, skip_away } = request;
        if self.authority.is_mounted() {
            if skip_away && !abort {
                let live = self.authority.skip_away(author, clock::now()).await;
                if let Some(row) = live.map_err(|error| unavailable("rotation", &error))? {
                    return Ok(self.follow_rotation(Phase::Done, Some(row)));
                }
            }
            let way = "the CA is mounted from files: change it where it is made, and the control plane follows";
            return Err(Status::failed_precondition(way));
        }
        let live = self.stored_rotation().await?.filter(|row| !row.phase.is_over());
        let goal = match (abort, live) {
            (true, row) => {
                self.take_back(row, author).await?;
                Phase::Aborted
            }
            (false, Some(row)) => {
                let goal = if step { row.phase.next().unwrap_or(Phase::Done) } else { Phase::Done };
                let aimed = self.store.aim_rotation(goal, skip_away, author, clock::now()).await;
                aimed.map_err(|error| unavailable("rotation", &error))?;
                goal
            }
            (false, None) => {
                let goal = if step { Phase::Prepared } else { Phase::Done };
                self.begin(goal, skip_away, author).await?;
                goal
            }
        };
        tracing::info!(goal = goal.as_str(), who = author.who, "rotation of the trust anchor asked for");
        let began = self.stored_rotation().await?;
        Ok(self.follow_rotation(goal, began))
    }

    async fn begin(&self, goal: Phase, skip_away: bool, author: &Author) -> Result<(), Status> {
        let now = clock::now();
        let root = self.authority.make_root(now).map_err(|error| unavailable("root", &error))?;
        let begun = self.store.begin_rotation(&root, (goal, skip_away), self.authority.kek(), author, now).await;
        match begun.map_err(|error| unavailable("rotation", &error))? {
            true => Ok(()),
            false => Err(Status::aborted("another rotation has begun in this moment: see `outrider ca status`")),
        }
    }

    async fn take_back(&self, row: Option<RotationRow>, author: &Author) -> Result<(), Status> {
        let row = row.ok_or_else(|| Status::failed_precondition("no rotation is under way"))?;
        let late = |phase: Phase| {
            let phase = phase.as_str();
            Status::failed_precondition(format!(
                "it is too late to abort: the rotation is {phase}, go on with `outrider ca rotate`"
            ))
        };
        if !row.phase.can_abort() {
            return Err(late(row.phase));
        }
        let phase = row.phase;
        let author = author.clone();
        let taken = self.mesh.ask(|reply| Change::Trust(TrustChange::Abort { row, author, reply })).await;
        match taken {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(late(phase.next().unwrap_or(phase))),
            Err(ChangeError::Store(error)) => Err(unavailable("rotation", &error)),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }

    async fn stored_rotation(&self) -> Result<Option<RotationRow>, Status> {
        self.store.rotation().await.map_err(|error| unavailable("rotation", &error))
    }

    /// How far the last one is.
    pub(super) async fn last_rotation(&self) -> Result<v1::CaRotation, Status> {
        let row = if self.authority.is_mounted() { self.authority.handover() } else { self.stored_rotation().await? };
        let Some(row) = row else { return Ok(v1::CaRotation::default()) };
        let seen = self.rotation.borrow().clone().filter(|seen| seen.row.phase == row.phase && seen.row.new_root == row.new_root);
        let rotation = seen.unwrap_or_else(|| Rotation { row, progress: Default::default() });
        let goal = rotation.row.goal;
        Ok(status(&rotation, goal))
    }

    fn follow_rotation(&self, goal: Phase, began: Option<RotationRow>) -> Response<Progress<v1::CaRotation>> {
        let (send, told) = mpsc::channel(4);
        let (mut state, drain) = (self.rotation.clone(), self.drain.clone());
        self.tasks.spawn_scoped(async move {
            // What was seen before this call is of another rotation, or of another goal.
            let Some(began) = began else { return };
            loop {
                let seen = state.borrow_and_update().clone();
                if let Some(seen) = seen.filter(|seen| seen.row.new_root == began.new_root && seen.row.phase >= began.phase) {
                    let status = status(&seen, goal);
                    let reached = status.reached;
                    if send.send(Ok(status)).await.is_err() || reached {
                        return;
                    }
                }
                tokio::select! {
                    changed = state.changed() => if changed.is_err() { return },
                    () = send.closed() => return,
                    () = drain.stopping() => {
                        let _ = send.try_send(Err(Status::unavailable("the control plane is stopping")));
                        return;
                    }
                }
            }
        });
        Response::new(ReceiverStream::new(told))
    }
}

fn wire(phase: Phase) -> v1::ca_rotation::Phase {
    use v1::ca_rotation::Phase as Wire;
    match phase {
        Phase::Prepared => Wire::Prepared,
        Phase::Distributing => Wire::Distributing,
        Phase::Issuing => Wire::Issuing,
        Phase::Proving => Wire::Proving,
        Phase::Retiring => Wire::Retiring,
        Phase::Done => Wire::Done,
        Phase::Aborted => Wire::Aborted,
    }
}

fn status(rotation: &Rotation, goal: Phase) -> v1::CaRotation {
    let Rotation { row, progress } = rotation;
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let laggard = |one: &crate::ca::Waiting| v1::Laggard {
        agent_id: one.agent_id.clone(),
        identity: one.identity.clone(),
        reason: one.reason.clone(),
    };
    v1::CaRotation {
        phase: wire(row.phase).into(),
        goal: wire(row.goal).into(),
        old_root: row.old_root.clone(),
        new_root: row.new_root.clone(),
        started: row.started,
        phase_started: row.phase_started,
        agents: count(progress.agents),
        laggards: progress.laggards.iter().take(MAX_LAGGARDS).map(laggard).collect(),
        skipped: progress.skipped.iter().take(MAX_LAGGARDS).map(laggard).collect(),
        done: count(progress.agents.saturating_sub(progress.laggards.len())),
        waiting: progress.others.clone(),
        reached: row.phase >= goal || row.phase.is_over(),
    }
}
