//! `outrider rollback`: the policies as they were.

use outrider_proto::v1::RollbackRequest;
use serde::Serialize;

use crate::{
    apply::{self, Change, Wait},
    args::Socket,
    failure::{Exit, Failure},
    output::{Console, Tone},
    progress::Waited,
};

/// Put the policies back to what they were, in one transaction.
///
/// Without --to it undoes the last change; run again, it undoes the undoing. `outrider get revisions` lists what there is to go
/// back to. While a canary is under way it ends the canary, and nothing else.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outrider rollback --wait
  outrider rollback --to 41 --dry-run")]
pub(crate) struct Rollback {
    /// The revision whose policies should be back
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(u64).range(1..))]
    to: Option<u64>,
    /// Only say what would change
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    #[command(flatten)]
    wait: Wait,
}

/// The answer of `rollback`. The shape that programs read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RolledBack {
    dry_run: bool,
    /// A canary was ended, and nothing else was done.
    canary_ended: bool,
    /// The revision whose policies are back.
    restored: u64,
    /// Store revision after the call.
    revision: u64,
    changes: Vec<Change>,
    /// Only with `--wait`.
    #[serde(skip_serializing_if = "Option::is_none")]
    rollout: Option<Waited>,
}

impl Rollback {
    /// Runs the verb.
    pub(crate) async fn run(self, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
        let mut admin = socket.connect().await?;
        let request = RollbackRequest { revision: self.to.unwrap_or(0), dry_run: self.dry_run };
        let answer = admin.rollback(request).await?.into_inner();
        let mut done = RolledBack {
            dry_run: self.dry_run,
            canary_ended: answer.canary_ended,
            restored: answer.restored,
            revision: answer.revision,
            changes: answer.changes.into_iter().map(Change::from).collect(),
            rollout: None,
        };
        if console.is_for_people() {
            if done.canary_ended {
                console.line(&console.paint(Tone::Good, "the canary was taken back: all agents get what is stored"))?;
            } else if done.changes.is_empty() {
                console.line(&format!("the policies are as they were at revision {}: nothing to do", done.restored))?;
            }
            apply::tell_changes(&done.changes, done.revision, self.dry_run, console)?;
        }
        if self.wait.is_wanted() && !done.changes.is_empty() {
            done.rollout = Some(self.wait.rollout(&mut admin, done.revision, console).await);
        }
        if !console.is_for_people() {
            console.value(&done)?;
        }
        if let Some(rollout) = &done.rollout {
            self.wait.conclude(rollout, done.revision, console)?;
        }
        Ok(Exit::Done)
    }
}
