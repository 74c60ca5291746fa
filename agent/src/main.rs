//! `outrider-agent`: the agent on its own.

mod service;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use outrider_agent::{Agent, Config, Settings, capture::command::CaptureCommand};
use outrider_runtime::{Drain, Drained, Tasks, config::layered, drain, telemetry};

/// The Outrider agent: identity, mutual TLS and policy beside one program.
#[derive(Debug, Parser)]
#[command(name = "outrider-agent", version, args_conflicts_with_subcommands = true)]
struct Args {
    /// YAML file of settings: the same names as the flags
    #[arg(long, env = "OUTRIDER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// What the program does instead of running as an agent.
#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Print, install, check or remove the kernel's rules that redirect connections of programs to the agent
    Capture(CaptureCommand),
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Verb::Capture(capture)) = args.verb {
        return capture.run();
    }
    match run(args) {
        Ok(code) => code,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the last word of the program, with or without logging")]
            {
                eprintln!("outrider-agent: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<ExitCode> {
    outrider_runtime::allocator::settle();
    let settings = layered(args.config.as_deref(), args.settings)?;
    let filter = settings.log.clone().unwrap_or_else(|| "info".to_owned());
    telemetry::init(settings.log_format.unwrap_or_default(), &filter).map_err(anyhow::Error::msg)?;
    let config = Config::try_from(settings)?;
    outrider_runtime::descriptors::raise_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let ended = runtime.block_on(async {
        let (tasks, drain) = (Tasks::new(), Drain::new());
        let agent = tokio::select! {
            agent = Agent::start(config, &tasks, &drain) => agent?,
            signal = drain::signal() => {
                tracing::info!(signal = signal?, "stopped before it was ready");
                return Ok(ExitCode::FAILURE);
            }
        };
        tasks.spawn("readiness", service::ready(agent.readiness.clone(), drain.clone()));
        tracing::info!(mesh = %agent.mesh, outbound = %agent.outbound, health = %agent.health, "listening");
        match agent.run(service::told_to_stop()).await? {
            Drained::Clean => tracing::info!("drained"),
            Drained::Forced(cut) => tracing::warn!(cut, "drain deadline passed: connections were cut"),
        }
        Ok(ExitCode::SUCCESS)
    });
    // A successor that still starts is not waited for.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ended
}
