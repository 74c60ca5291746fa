//! `outrider-soak`: long runs of what the suite does in short, with one line of JSON at the end.

use std::{
    io::Write as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use outrider_tests::soak::{
    RotationPlan,
    floods::{FloodPlan, floods},
    rotation,
    slow::slow,
};
use tokio::runtime::Runtime;

/// Long runs.
#[derive(Debug, Parser)]
#[command(name = "outrider-soak", version)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Certificates of every kind change, and control planes are killed, under load
    Rotation {
        /// Requests at least
        #[arg(long, default_value_t = 1_000_000)]
        requests: u64,
        /// Leaf renewals at least
        #[arg(long, default_value_t = 200)]
        renewals: u64,
        /// Control planes; more than one share a PostgreSQL
        #[arg(long, default_value_t = 2)]
        replicas: usize,
        /// Requests a second at most; as many as pass when not set
        #[arg(long)]
        rate: Option<u32>,
    },
    /// Each flood of frames again and again, beside a neighbour
    Floods {
        /// Times without a flood and with it, in turn
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// Milliseconds that each takes
        #[arg(long, default_value_t = 1000)]
        window: u64,
        /// Only floods with this in their name
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Connections that take their time, beside a neighbour
    Slow {
        /// Of each kind
        #[arg(long, default_value_t = 1000)]
        connections: usize,
    },
}

fn main() -> ExitCode {
    let what = Args::parse().what;
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tell(&format!("error: no runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let line = match what {
        What::Rotation { requests, renewals, replicas, rate } => {
            return rotated(
                &runtime,
                RotationPlan {
                    requests,
                    renewals,
                    connections: 8,
                    replicas,
                    rate,
                    leaf_ttl: "60s",
                    issuing_ttl: "120s",
                    patience: Duration::from_secs(2 * 3600),
                },
            );
        }
        What::Floods { rounds, window, only } => {
            let plan = FloodPlan { rounds, window: Duration::from_millis(window), only };
            let seen = runtime.block_on(floods(plan, |seen, left| {
                tell(&format!("{} ({}): {} times, {left} floods are left", seen.name, seen.way, seen.times));
            }));
            serde_json::to_string(&seen)
        }
        What::Slow { connections } => serde_json::to_string(&runtime.block_on(slow(connections, tell))),
    };
    // Who started it judges.
    said(&line.unwrap_or_default(), true)
}

fn rotated(runtime: &Runtime, plan: RotationPlan) -> ExitCode {
    let mut told = Instant::now();
    let seen = runtime.block_on(rotation(plan, |what, requests| {
        let is_step = !what.contains("renewed");
        if is_step || told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            tell(&format!("{requests} requests: {what}"));
        }
    }));
    let is_good = seen.failed == 0 && seen.anchor_changed && seen.old_root_refused;
    said(&serde_json::to_string(&seen).unwrap_or_default(), is_good)
}

/// Progress.
fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The result.
fn said(line: &str, is_good: bool) -> ExitCode {
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) if is_good => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
