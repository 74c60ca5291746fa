//! `outrider replay`: which recorded requests a change of policies would decide otherwise.

use std::{path::PathBuf, time::Duration};

use outrider_proto::v1::{Manifest, ReplayRequest};
use serde::Serialize;

use crate::{
    admin::Admin,
    args::Socket,
    failure::{Exit, Failure},
    manifest::{self, Below},
    output::{Console, Tone},
    report::{self, Finding},
    view::Flip,
    when,
};

/// Decide recorded requests again, by these policies in place of the stored ones, and show which would flip.
///
/// Agents record every denial and a share of what they allow (`--report-allows`), without bodies. Nothing is stored or pushed.
/// The exit code is 0 whatever would flip; `outrider apply --gate-on-replay` refuses.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outrider replay -f orders.yaml
  outrider replay -f policies/ --since 24h -o json")]
pub(crate) struct Replay {
    /// File, directory (its *.yaml, *.yml and *.json files) or `-` for standard input; may stand several times
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    /// Requests recorded within this time
    #[arg(long, value_parser = when::duration, default_value = "1h", value_name = "DURATION")]
    since: Duration,
}

/// The answer of `replay`. The shape that programs read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Replayed {
    diagnostics: Vec<Finding>,
    /// Recorded requests that were decided again.
    replayed: u64,
    /// Recorded requests that could not be.
    skipped: u64,
    /// Allowed now, and would be denied.
    pub(crate) newly_denied: u64,
    /// Denied now, and would be allowed.
    newly_allowed: u64,
    flips: Vec<Flip>,
}

impl Replay {
    /// Runs the verb.
    pub(crate) async fn run(self, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
        let manifests = manifest::read(&self.files, Below::Ignored)?;
        let replayed = replay(&mut socket.connect().await?, &manifests, self.since).await?;
        if console.is_for_people() {
            replayed.tell(&manifests, self.since, console)?;
        } else {
            console.value(&replayed)?;
        }
        Ok(if replayed.diagnostics.iter().any(Finding::is_error) { Exit::Failed } else { Exit::Done })
    }
}

/// Asks the control plane.
pub(crate) async fn replay(admin: &mut Admin, manifests: &[Manifest], since: Duration) -> Result<Replayed, Failure> {
    let request = ReplayRequest { manifests: manifests.to_vec(), since_seconds: since.as_secs().max(1) };
    let answer = admin.replay(request).await?.into_inner();
    Ok(Replayed {
        diagnostics: answer.diagnostics.into_iter().map(Finding::from).collect(),
        replayed: answer.replayed,
        skipped: answer.skipped,
        newly_denied: answer.newly_denied,
        newly_allowed: answer.newly_allowed,
        flips: answer.flips.into_iter().map(Flip::from).collect(),
    })
}

impl Replayed {
    /// Shows it to people.
    pub(crate) fn tell(&self, manifests: &[Manifest], since: Duration, console: &Console) -> Result<(), Failure> {
        if !self.diagnostics.is_empty() {
            console.remark(report::render(&self.diagnostics, manifests, console.remarks()).trim_end_matches('\n'));
            if self.diagnostics.iter().any(Finding::is_error) {
                console.remark(&format!("\n{}: nothing was replayed", report::count(&self.diagnostics)));
                return Ok(());
            }
        }
        if !self.flips.is_empty() {
            console.table(&self.flips)?;
        }
        let recorded = format!("of {} requests recorded within {}", self.replayed, when::exact(since));
        let line = match (self.newly_denied, self.newly_allowed) {
            (0, 0) => console.paint(Tone::Good, &format!("{recorded} none would flip")),
            (denied, allowed) => {
                let tone = if denied > 0 { Tone::Bad } else { Tone::Warn };
                console.paint(tone, &format!("{recorded} {denied} would be newly denied, {allowed} newly allowed"))
            }
        };
        console.line(&line)?;
        if self.skipped > 0 {
            console.remark(&format!("{} more could not be decided again: their services' policies do not compile", self.skipped));
        }
        Ok(())
    }
}
