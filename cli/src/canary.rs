//! `outrider apply --canary`: some agents first, watched, and taken back by itself when they deny what was allowed.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use outrider_proto::v1::{CanaryRequest, CanaryStatus, Manifest, canary_status::Phase};
use serde::Serialize;

use crate::{
    admin::Admin,
    apply::{self, Change},
    failure::{Exit, Failure},
    output::{Console, Tone},
    report::{self, Finding},
    view::Recorded,
    when,
};

/// How a canary is done.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Canary {
    /// Push to this share of the agents concerned first; store for all when it went well, take it back when not
    #[arg(long, value_name = "PERCENT", value_parser = percent, conflicts_with_all = ["dry_run", "wait"])]
    canary: Option<u32>,
    /// How long to watch the canary
    #[arg(long = "for", value_parser = when::duration, default_value = "60s", value_name = "DURATION", requires = "canary")]
    watch: Duration,
    /// Newly denied requests that are accepted
    #[arg(long, default_value_t = 0, value_name = "REQUESTS", requires = "canary")]
    tolerate: u64,
}

fn percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().ok().filter(|percent| (1..=100).contains(percent));
    number.ok_or_else(|| format!("`{text}` is not a share: write for example `10%`"))
}

/// The answer of a canary. The shape that programs read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    diagnostics: Vec<Finding>,
    /// `nothing`, `promoted`, `rolled-back`; `unknown` when the control plane stopped telling.
    outcome: &'static str,
    /// Of the stored policies when promoted, of the candidates otherwise.
    revision: u64,
    changes: Vec<Change>,
    /// Agents concerned.
    agents: u32,
    /// Ids of those that were chosen.
    chosen: Vec<String>,
    /// Requests that a chosen agent denied and that the stored policies allow.
    newly_denied: u64,
    examples: Vec<Recorded>,
    /// Why it was taken back.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

impl From<CanaryStatus> for Outcome {
    fn from(wire: CanaryStatus) -> Self {
        let outcome = match wire.phase() {
            Phase::Unspecified => "nothing",
            Phase::Promoted => "promoted",
            Phase::RolledBack => "rolled-back",
            Phase::Pushing | Phase::Watching => "unknown",
        };
        Self {
            diagnostics: wire.diagnostics.into_iter().map(Finding::from).collect(),
            outcome,
            revision: wire.revision,
            changes: wire.changes.into_iter().map(Change::from).collect(),
            agents: wire.agents,
            chosen: wire.chosen,
            newly_denied: wire.newly_denied,
            examples: wire.examples.into_iter().map(Recorded::from).collect(),
            reason: wire.reason,
        }
    }
}

impl Canary {
    /// Whether one is wanted.
    pub(crate) fn is_wanted(&self) -> bool {
        self.canary.is_some()
    }

    /// Has the control plane do it, and follows it to its end.
    pub(crate) async fn run(
        &self,
        admin: &mut Admin,
        manifests: Vec<Manifest>,
        allow_unknown_services: bool,
        console: &Console,
    ) -> Result<Exit, Failure> {
        let request = CanaryRequest {
            manifests: manifests.clone(),
            percent: self.canary.unwrap_or(100),
            watch_seconds: u32::try_from(self.watch.as_secs().max(1)).unwrap_or(u32::MAX),
            tolerate: self.tolerate,
            allow_unknown_services,
        };
        let mut steps = admin.canary(request).await?.into_inner();
        if console.is_for_people() {
            console.remark(
                "the canary goes on when this command is interrupted: `outrider check` shows it, `outrider rollback` ends it",
            );
        }
        let bar = self.bar(console);
        let mut last = CanaryStatus::default();
        // An error ends it like silence does: the control plane goes on by itself, or has taken it back by dying.
        while let Ok(Some(step)) = steps.message().await {
            bar.set_position(self.watch.as_secs().saturating_sub(u64::from(step.seconds_left)));
            bar.set_message(match step.phase() {
                Phase::Watching => format!("watching {}, {} newly denied", step.chosen.len(), step.newly_denied),
                _ => format!("pushing {}/{}", step.in_force, step.chosen.len()),
            });
            last = step;
        }
        bar.finish_and_clear();
        let outcome = Outcome::from(last);
        if console.is_for_people() {
            outcome.tell(&manifests, console)?;
        } else {
            console.value(&outcome)?;
        }
        Ok(match outcome.outcome {
            "promoted" => Exit::Done,
            "nothing" if !outcome.diagnostics.iter().any(Finding::is_error) => Exit::Done,
            "unknown" => Exit::Lagging,
            _ => Exit::Failed,
        })
    }

    fn bar(&self, console: &Console) -> ProgressBar {
        let target = if console.remarks().terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{spinner} {msg} [{bar:30}] {pos}/{len} s");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
        ProgressBar::with_draw_target(Some(self.watch.as_secs()), target).with_style(style)
    }
}

impl Outcome {
    fn tell(&self, manifests: &[Manifest], console: &Console) -> Result<(), Failure> {
        if !self.diagnostics.is_empty() {
            console.remark(report::render(&self.diagnostics, manifests, console.remarks()).trim_end_matches('\n'));
        }
        if self.diagnostics.iter().any(Finding::is_error) {
            console.remark(&format!("\n{}: nothing was pushed", report::count(&self.diagnostics)));
            return Ok(());
        }
        for example in &self.examples {
            console.line(&format!("newly denied: {} {} (request id {})", example.host, example.path, example.request_id))?;
        }
        let chosen = format!("{} of {} agents", self.chosen.len(), self.agents);
        match self.outcome {
            "promoted" => {
                apply::tell_changes(&self.changes, self.revision, false, console)?;
                console.line(&console.paint(Tone::Good, &format!("went well at {chosen}: stored for all")))
            }
            "rolled-back" => {
                console.line(&console.paint(Tone::Bad, &format!("taken back from {chosen}, nothing was stored: {}", self.reason)))
            }
            "nothing" => console.line("nothing would change: no canary was needed"),
            _ => {
                console.remark("the control plane stopped telling: `outrider get revisions` shows whether it was stored");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_one_to_a_hundred_percent() {
        assert_eq!((percent("10%"), percent("100")), (Ok(10), Ok(100)));
        for wrong in ["0", "101%", "", "%", "ten", "-5"] {
            assert!(percent(wrong).unwrap_err().contains("10%"), "{wrong}");
        }
    }
}
