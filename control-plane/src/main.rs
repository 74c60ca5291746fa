//! `outrider-control-plane`: settings, logs, start, wait for a signal, leave in good order.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use outrider_control_plane::{ControlPlane, Environment, Raw};
use outrider_runtime::{Drain, Drained, Tasks, config::layered, drain, telemetry};

/// Time that work under way gets after a signal.
const DEADLINE: Duration = Duration::from_secs(10);

/// The control plane of Outrider: certificate authority, policies, and what each agent needs to know.
#[derive(Debug, Parser)]
#[command(name = "outrider-control-plane", version)]
struct Cli {
    /// YAML file with settings; flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Raw,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            // Where settings are wrong there is no log yet.
            #[expect(clippy::print_stderr, reason = "the last word of a program goes to its user")]
            {
                eprintln!("error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let config = layered(cli.config.as_deref(), cli.settings)?.resolve(&Environment::read())?;
    telemetry::init(config.log_format, &config.log).map_err(anyhow::Error::msg)?;
    let (tasks, drain) = (Tasks::new(), Drain::new());
    let running = ControlPlane::start(config, &tasks, &drain).await?;
    tracing::info!(
        address = %running.address,
        advertise = running.advertise,
        health = %running.health,
        admin = %running.admin_socket.display(),
        "control plane is ready"
    );
    let failure = tokio::select! {
        signal = drain::signal() => {
            tracing::info!(signal = signal.context("signal handlers")?, "stopping");
            None
        }
        failure = tasks.failure() => Some(failure),
    };
    if let Drained::Forced(left) = drain.drain(DEADLINE).await {
        tracing::warn!(left, "work cut off at the deadline");
    }
    tasks.finish(Duration::from_secs(1)).await;
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}
