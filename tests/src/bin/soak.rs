//! `outrider-soak`: long runs of what the suite does in short, with one line of JSON at the end.

use std::{
    io::Write as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use outrider_tests::soak::{RotationPlan, rotation};

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
}

fn main() -> ExitCode {
    let What::Rotation { requests, renewals, replicas, rate } = Args::parse().what;
    let plan = RotationPlan {
        requests,
        renewals,
        connections: 8,
        replicas,
        rate,
        leaf_ttl: "60s",
        issuing_ttl: "120s",
        patience: Duration::from_secs(2 * 3600),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut told = Instant::now();
    let seen = runtime.block_on(rotation(plan, |what, requests| {
        let is_step = !what.contains("renewed");
        if is_step || told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            let _ = writeln!(std::io::stderr(), "{requests} requests: {what}");
        }
    }));
    let is_good = seen.failed == 0 && seen.anchor_changed && seen.old_root_refused;
    let line = serde_json::to_string(&seen).unwrap_or_default();
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) if is_good => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
