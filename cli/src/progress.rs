//! Waiting for agents: a progress bar for people, a deadline, and who lags in the end.

use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use outrider_proto::v1;
use serde::Serialize;
use tokio::time::Instant;
use tonic::Status;

use crate::{
    failure::Failure,
    output::Console,
    view::{Laggard, Rotation},
    when,
};

/// How far the agents are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// Agents concerned.
    agents: u32,
    /// Of those, the ones that are done.
    done: u32,
    laggards: Vec<Laggard>,
    /// Every agent has answered.
    is_last: bool,
}

impl From<v1::RolloutStatus> for Step {
    fn from(wire: v1::RolloutStatus) -> Self {
        let laggards = wire.laggards.into_iter().map(Laggard::from).collect();
        Self { agents: wire.agents, done: wire.in_force, laggards, is_last: wire.done }
    }
}

impl From<v1::RotationStatus> for Step {
    fn from(wire: v1::RotationStatus) -> Self {
        let laggards = wire.laggards.into_iter().map(Laggard::from).collect();
        Self { agents: wire.agents, done: wire.renewed, laggards, is_last: wire.done }
    }
}

/// How waiting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ending {
    /// Every agent concerned is done.
    Complete,
    /// Every agent answered or is gone, and some do not have it.
    Refused,
    /// The timeout came first.
    TimedOut,
    /// The control plane stopped telling.
    Unknown,
}

/// What is known when waiting ends. The shape that programs read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Waited {
    /// `complete`, `refused`, `timed-out` or `unknown`.
    pub(crate) ending: Ending,
    /// Agents concerned.
    pub(crate) agents: u32,
    /// Of those, the ones that are done.
    pub(crate) done: u32,
    pub(crate) laggards: Vec<Laggard>,
}

impl Waited {
    /// The control plane told nothing at all.
    pub(crate) fn unknown() -> Self {
        Self { ending: Ending::Unknown, agents: 0, done: 0, laggards: Vec::new() }
    }

    /// Tells the user, and fails unless it is complete. `done` is what complete agents did: `has it in force`.
    pub(crate) fn conclude(&self, what: &str, timeout: Duration, console: &Console) -> Result<(), Failure> {
        if self.ending == Ending::Complete {
            return Ok(());
        }
        if console.is_for_people() && !self.laggards.is_empty() {
            console.table(&self.laggards)?;
        }
        let lagging = self.agents.saturating_sub(self.done);
        let agents = format!("{lagging} of {} agent{}", self.agents, if self.agents == 1 { "" } else { "s" });
        Err(Failure::Lagging(match self.ending {
            Ending::Complete | Ending::Refused if self.laggards.iter().any(Laggard::is_away) => {
                format!("{what}, but {agents} refused, or went away without an answer")
            }
            Ending::Complete | Ending::Refused => format!("{what}, but {agents} refused"),
            Ending::TimedOut => format!("{what}, but {agents} did not follow within {}", when::exact(timeout)),
            Ending::Unknown => format!("{what}, but the control plane stopped telling how far the agents are"),
        }))
    }
}

/// Follows a stream of steps until its last one, its end, or the timeout.
pub(crate) async fn follow<W: Into<Step>>(
    mut steps: impl Stream<Item = Result<W, Status>> + Unpin,
    timeout: Duration,
    label: &'static str,
    console: &Console,
) -> Waited {
    let bar = bar(label, console);
    let deadline = Instant::now() + timeout;
    let mut last = Step::default();
    let ending = loop {
        match tokio::time::timeout_at(deadline, steps.next()).await {
            Err(_) => break Ending::TimedOut,
            Ok(Some(Ok(step))) => {
                last = step.into();
                bar.set_length(u64::from(last.agents));
                bar.set_position(u64::from(last.done));
                if last.is_last {
                    break if last.done >= last.agents && last.laggards.is_empty() { Ending::Complete } else { Ending::Refused };
                }
            }
            Ok(Some(Err(_)) | None) => break Ending::Unknown,
        }
    };
    bar.finish_and_clear();
    Waited { ending, agents: last.agents, done: last.done, laggards: last.laggards }
}

/// Follows a change of the trust anchor until the phase that was asked for, its end, or the timeout: the last that was heard,
/// and whether the time is over. A bar for each phase.
pub(crate) async fn rotation(
    mut steps: impl Stream<Item = Result<v1::CaRotation, Status>> + Unpin,
    timeout: Duration,
    console: &Console,
) -> Result<(Option<Rotation>, bool), Failure> {
    let deadline = Instant::now() + timeout;
    let mut last: Option<Rotation> = None;
    let mut shown: Option<ProgressBar> = None;
    let timed_out = loop {
        match tokio::time::timeout_at(deadline, steps.next()).await {
            Err(_) => break true,
            Ok(Some(Ok(step))) => {
                let Some(step) = Rotation::read(step) else { continue };
                if last.as_ref().is_none_or(|last| last.phase != step.phase) {
                    if let Some(bar) = shown.take() {
                        bar.finish();
                    }
                    shown = Some(bar(step.phase, console));
                }
                if let Some(bar) = &shown {
                    bar.set_length(u64::from(step.agents));
                    bar.set_position(u64::from(step.done));
                }
                let reached = step.reached;
                last = Some(step);
                if reached {
                    break false;
                }
            }
            // It stopped telling; what was heard first may be why.
            Ok(Some(Err(status))) if last.is_none() => return Err(status.into()),
            Ok(Some(Err(_)) | None) => break false,
        }
    };
    if let Some(bar) = shown {
        bar.finish_and_clear();
    }
    Ok((last, timed_out))
}

/// A bar on standard error; invisible when that is no terminal.
fn bar(label: &'static str, console: &Console) -> ProgressBar {
    let target = if console.remarks().terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let template = if console.remarks().colours {
        "{spinner} {msg} [{bar:30.green}] {pos}/{len} agents  {elapsed}"
    } else {
        "{spinner} {msg} [{bar:30}] {pos}/{len} agents  {elapsed}"
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
    let bar = ProgressBar::with_draw_target(Some(0), target).with_style(style).with_message(label);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;
    use crate::output::Format;

    fn step(agents: u32, in_force: u32, done: bool, reasons: &[&str]) -> Result<v1::RolloutStatus, Status> {
        let laggard =
            |reason: &&str| v1::Laggard { agent_id: "a1".into(), identity: String::new(), reason: (*reason).to_owned() };
        Ok(v1::RolloutStatus { revision: 7, agents, in_force, laggards: reasons.iter().map(laggard).collect(), done })
    }

    async fn ending(steps: Vec<Result<v1::RolloutStatus, Status>>, open: bool) -> Waited {
        let console = Console::new(Format::Json);
        let told = stream::iter(steps);
        if open {
            follow(told.chain(stream::pending()), Duration::from_secs(60), "test", &console).await
        } else {
            follow(told, Duration::from_secs(60), "test", &console).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_complete_only_when_every_agent_is_done() {
        assert_eq!(ending(vec![step(2, 1, false, &[""]), step(2, 2, true, &[])], true).await.ending, Ending::Complete);
        assert_eq!(ending(vec![step(0, 0, true, &[])], true).await.ending, Ending::Complete);
        assert_eq!(ending(vec![step(2, 1, true, &["unknown field"])], true).await.ending, Ending::Refused);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_runs_into_the_timeout_and_keeps_the_laggards() {
        let waited = ending(vec![step(2, 1, false, &[""])], true).await;
        assert_eq!((waited.ending, waited.laggards.len(), waited.done), (Ending::TimedOut, 1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_breaks_off_is_not_taken_for_success() {
        assert_eq!(ending(vec![step(1, 1, false, &[])], false).await.ending, Ending::Unknown);
        assert_eq!(ending(vec![Err(Status::unavailable("gone"))], true).await.ending, Ending::Unknown);
    }
}
