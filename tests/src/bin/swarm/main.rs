//! `outrider-swarm`: many agents in one process, as a control plane sees them: real TLS, real gRPC streams, each with a key
//! and a certificate of its own. It reads commands from standard input and answers each with one line of JSON.

mod door;
mod flood;
mod issuance;
mod member;
mod swarm;

use std::{
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use tokio::sync::mpsc;

use crate::{door::Door, swarm::Swarm};

/// Simulated agents of a control plane.
#[derive(Debug, Parser)]
#[command(name = "outrider-swarm", version)]
struct Args {
    /// Where agents connect; more than one are tried in turn
    #[arg(long, required = true)]
    control_plane: Vec<SocketAddr>,
    /// The operators' socket
    #[arg(long)]
    admin_socket: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Renew certificates as fast as the control plane issues them
    Issue {
        /// Identities, each on a connection of its own: renewals are limited by identity
        #[arg(long, default_value_t = 64)]
        identities: usize,
        /// Requests under way on each connection
        #[arg(long, default_value_t = 1)]
        depth: usize,
        /// How long
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
    /// Time the renewals of one identity, alone and beside a flood from another
    Flood {
        /// How long
        #[arg(long, default_value_t = 8.0)]
        seconds: f64,
    },
    /// Hold streams. Commands: `grow N`, `change`, `lost`, `current`, `quit`
    Hold,
}

fn main() -> ExitCode {
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no runtime")
        .and_then(|runtime| runtime.block_on(run(Args::parse())));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let door = Door::new(args.control_plane, &args.admin_socket).await?;
    match args.what {
        What::Issue { identities, depth, seconds } => {
            say(&issuance::run(&door, identities, depth, Duration::from_secs_f64(seconds)).await?)
        }
        What::Flood { seconds } => say(&flood::run(&door, Duration::from_secs_f64(seconds)).await?),
        What::Hold => hold(door).await,
    }
}

async fn hold(door: Door) -> anyhow::Result<()> {
    let mut swarm = Swarm::new(door);
    let mut lines = lines();
    while let Some(line) = lines.recv().await {
        let begun = Instant::now();
        let mut answer = match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["grow", to] => {
                swarm.grow(to.parse().context("a number")?).await?;
                serde_json::json!({ "agents": swarm.len() })
            }
            ["change"] => swarm.change().await?,
            ["lost"] => swarm.until_current(|current, _| current == 0).await.map(|()| serde_json::json!({}))?,
            ["current"] => swarm.until_current(|current, all| current == all).await.map(|()| serde_json::json!({}))?,
            ["quit"] => return Ok(()),
            _ => bail!("`{line}` is no command: use `grow N`, `change`, `lost`, `current` or `quit`"),
        };
        if let Some(fields) = answer.as_object_mut() {
            fields.insert("seconds".to_owned(), begun.elapsed().as_secs_f64().into());
        }
        say(&answer)?;
    }
    Ok(())
}

/// Standard input, line by line. Its thread ends with the process.
fn lines() -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel(1);
    std::thread::spawn(move || std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| send.blocking_send(line)));
    receive
}

fn say(answer: &serde_json::Value) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{answer}").context("nobody reads the answers")
}
