//! `outrider apply`: from files to policies in force.

use std::{path::PathBuf, time::Duration};

use outrider_proto::v1::{ApplyRequest, Manifest, ResourceChange, WatchRolloutRequest, resource_change};
use serde::Serialize;

use crate::{
    admin::Admin,
    args::Socket,
    canary::Canary,
    failure::{Exit, Failure},
    manifest::{self, Below},
    output::{Console, Tone, printable},
    progress::{self, Waited},
    replay,
    report::{self, Finding},
    when,
};

/// Check policies, store them in one transaction and push them to the agents.
///
/// All documents of all files are stored, or none. Without --wait the command returns once they are stored.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outrider apply -f orders.yaml --wait
  outrider apply -f policies/ --dry-run
  outrider apply -f orders.yaml --gate-on-replay --canary 10% --for 5m
  generate-policies | outrider apply -f - --wait --timeout 2m -o json")]
pub(crate) struct Apply {
    /// File, directory (its *.yaml, *.yml and *.json files) or `-` for standard input; may stand several times
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    /// Only check, and say what would change
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Take policies for services that nobody has heard of: they are to come
    #[arg(long)]
    allow_unknown_services: bool,
    /// Refuse when a recorded request that is allowed now would be denied
    #[arg(long)]
    gate_on_replay: bool,
    /// With --gate-on-replay: requests recorded within this time
    #[arg(long, value_parser = when::duration, default_value = "1h", value_name = "DURATION", requires = "gate_on_replay")]
    since: Duration,
    #[command(flatten)]
    canary: Canary,
    #[command(flatten)]
    wait: Wait,
}

/// Whether to wait, and how long.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Wait {
    /// Return when every agent concerned has it in force; exit code 4 names those that lag
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_parser = when::duration, default_value = "60s", value_name = "DURATION")]
    timeout: Duration,
}

/// What happened to one resource. The shape that programs read.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Change {
    kind: String,
    name: String,
    /// `created`, `updated`, `unchanged` or `deleted`.
    change: &'static str,
}

impl From<ResourceChange> for Change {
    fn from(wire: ResourceChange) -> Self {
        let change = match wire.change() {
            resource_change::Change::Created => "created",
            resource_change::Change::Updated => "updated",
            resource_change::Change::Deleted => "deleted",
            resource_change::Change::Unchanged | resource_change::Change::Unspecified => "unchanged",
        };
        Self { kind: wire.kind, name: wire.name, change }
    }
}

/// The answer of `apply`. The shape that programs read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Applied {
    dry_run: bool,
    /// Store revision after the call.
    revision: u64,
    changes: Vec<Change>,
    diagnostics: Vec<Finding>,
    /// Only with `--wait`.
    #[serde(skip_serializing_if = "Option::is_none")]
    rollout: Option<Waited>,
}

impl Apply {
    /// Runs the verb.
    pub(crate) async fn run(self, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
        let manifests = manifest::read(&self.files, Below::Ignored)?;
        let mut admin = socket.connect().await?;
        if self.gate_on_replay && self.is_gated(&mut admin, &manifests, console).await? {
            return Ok(Exit::Failed);
        }
        if self.canary.is_wanted() {
            return self.canary.run(&mut admin, manifests, self.allow_unknown_services, console).await;
        }
        let request = ApplyRequest {
            manifests: manifests.clone(),
            dry_run: self.dry_run,
            allow_unknown_services: self.allow_unknown_services,
        };
        let answer = admin.apply(request).await?.into_inner();
        let mut applied = Applied {
            dry_run: self.dry_run,
            revision: answer.revision,
            changes: answer.changes.into_iter().map(Change::from).collect(),
            diagnostics: answer.diagnostics.into_iter().map(Finding::from).collect(),
            rollout: None,
        };
        if console.is_for_people() {
            self.tell(&applied, &manifests, console)?;
        }
        let refused = applied.diagnostics.iter().any(Finding::is_error);
        if self.wait.wait && !refused {
            applied.rollout = Some(self.wait.rollout(&mut admin, applied.revision, console).await);
        }
        if !console.is_for_people() {
            console.value(&applied)?;
        }
        match &applied.rollout {
            Some(rollout) => self.wait.conclude(rollout, applied.revision, console).map(|()| Exit::Done),
            None => Ok(if refused { Exit::Failed } else { Exit::Done }),
        }
    }

    /// Whether recorded requests speak against it. What is wrong with the documents themselves, applying them will say.
    async fn is_gated(&self, admin: &mut Admin, manifests: &[Manifest], console: &Console) -> Result<bool, Failure> {
        let replayed = replay::replay(admin, manifests, self.since).await?;
        if replayed.newly_denied == 0 {
            return Ok(false);
        }
        if console.is_for_people() {
            replayed.tell(manifests, self.since, console)?;
        } else {
            console.value(&replayed)?;
        }
        console.remark("nothing was stored: requests that are allowed now would be denied (--gate-on-replay)");
        Ok(true)
    }

    fn tell(&self, applied: &Applied, manifests: &[Manifest], console: &Console) -> Result<(), Failure> {
        let findings = &applied.diagnostics;
        if !findings.is_empty() {
            console.remark(report::render(findings, manifests, console.remarks()).trim_end_matches('\n'));
        }
        if findings.iter().any(Finding::is_error) {
            console.remark(&format!("\n{}: nothing was stored", report::count(findings)));
            return Ok(());
        }
        if applied.changes.is_empty() {
            console.remark("the files hold no documents: nothing to do");
        }
        tell_changes(&applied.changes, applied.revision, self.dry_run, console)
    }
}

impl Wait {
    /// Whether to wait at all.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wait
    }

    /// Follows a revision until every agent concerned answered. What was stored stays stored: that the control plane does not
    /// tell how far it came is no reason to forget that.
    pub(crate) async fn rollout(&self, admin: &mut Admin, revision: u64, console: &Console) -> Waited {
        match admin.watch_rollout(WatchRolloutRequest { revision }).await {
            Ok(steps) => progress::follow(steps.into_inner(), self.timeout, "pushing", console).await,
            Err(_) => Waited::unknown(),
        }
    }

    /// Says how the rollout ended, and fails unless it is in force everywhere.
    pub(crate) fn conclude(&self, rollout: &Waited, revision: u64, console: &Console) -> Result<(), Failure> {
        rollout.conclude(&format!("revision {revision} is stored"), self.timeout, console)?;
        if console.is_for_people() {
            let agents = match rollout.agents {
                0 => "no agent is concerned".to_owned(),
                1 => "in force at the one agent concerned".to_owned(),
                several => format!("in force at all {several} agents concerned"),
            };
            console.line(&console.paint(Tone::Good, &format!("{agents} (revision {revision})")))?;
        }
        Ok(())
    }
}

/// One line a resource: `servicepolicy shop/orders created (revision 12)`.
pub(crate) fn tell_changes(changes: &[Change], revision: u64, dry_run: bool, console: &Console) -> Result<(), Failure> {
    for one in changes {
        console.line(&change_line(one, revision, dry_run, console))?;
    }
    Ok(())
}

fn change_line(one: &Change, revision: u64, dry_run: bool, console: &Console) -> String {
    let subject = printable(&format!("{} {}", one.kind.to_lowercase(), one.name));
    match (one.change, dry_run) {
        ("unchanged", _) => console.paint(Tone::Quiet, &format!("{subject} unchanged")),
        (change, true) => format!("{subject} would be {change}"),
        (change, false) => format!("{subject} {} (revision {revision})", console.paint(Tone::Good, change)),
    }
}
