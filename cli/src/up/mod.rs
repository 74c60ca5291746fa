//! `outrider up`: a whole mesh on this machine, shown step by step.

mod mesh;
mod program;
mod tour;

use std::{path::PathBuf, time::Duration};

use outrider_runtime::{Drain, Tasks, drain, telemetry};

use crate::{
    args::Socket,
    failure::{Exit, Failure},
    output::{Console, Tone},
};

/// Run a whole mesh on this machine and show what it does
///
/// Starts a control plane with its store, and two HTTP services (shop/web and shop/orders) with an agent each. Shows both
/// identities, a call that passes, a call that is refused, the same call after a second rule, and certificates that are
/// rotated while calls go on. Then it stays up until Ctrl-C.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  outrider up
  outrider up --check
  outrider up --state-dir /tmp/mesh")]
pub(crate) struct Up {
    /// Show the tour, then end: exit code 0 when everything was as it should be, else 1
    #[arg(long)]
    check: bool,
    /// Directory for CA, policies and agents; a second `up` finds them again [default: $XDG_STATE_HOME/outrider]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Log filter of control plane and agents
    #[arg(long, env = "OUTRIDER_LOG", default_value = "error", value_name = "FILTER")]
    log: String,
}

impl Up {
    /// Runs the verb.
    pub(crate) async fn run(self, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
        telemetry::init(telemetry::Format::Text, &self.log).map_err(Failure::Usage)?;
        let state_dir = match self.state_dir {
            Some(dir) => dir,
            None => socket.state_home()?,
        };
        outrider_runtime::descriptors::raise_limit();
        let (tasks, drain) = (Tasks::new(), Drain::new());
        let outcome = tokio::select! {
            outcome = Self::show(&state_dir, self.check, console, &tasks, &drain) => outcome,
            failed = tasks.failure() => Err(Failure::Agent(failed.to_string())),
        };
        drain.drain(Duration::from_secs(5)).await;
        tasks.finish(Duration::from_secs(5)).await;
        outcome
    }

    async fn show(
        state_dir: &std::path::Path,
        check: bool,
        console: &Console,
        tasks: &Tasks,
        drain: &Drain,
    ) -> Result<Exit, Failure> {
        let mesh = tokio::select! {
            mesh = mesh::Mesh::start(state_dir, tasks, drain) => mesh?,
            _ = drain::signal() => return Ok(Exit::Failed),
        };
        tokio::select! {
            toured = tour::run(&mesh, console) => toured?,
            _ = drain::signal() => return Ok(Exit::Failed),
        }
        if check {
            console.line(&console.paint(Tone::Good, "All of it was as it should be."))?;
            return Ok(Exit::Done);
        }
        mesh.describe(console)?;
        let signal = drain::signal().await.map_err(Failure::Runtime)?;
        console.remark(&format!("outrider: {signal}, leaving"));
        Ok(Exit::Done)
    }
}
