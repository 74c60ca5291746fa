//! `cargo xtask`: the project's own chores. Depends on nothing of the project, so that it runs when the project does not build.
#![forbid(unsafe_code)]

mod bench;
mod command;
mod dist;
mod lint;
mod python;
mod setup;
mod soak;
mod suite;

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// The project's chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Check formatting, clippy and the rules of the house
    Lint(lint::Lint),
    /// Install what the tests need (as root on Debian), or say what is missing
    Setup,
    /// Set up, build the binaries and run all tests; arguments go to `cargo test`
    Test(suite::Suite),
    /// Measure, beside `direct` in the same run
    Bench(bench::Bench),
    /// Build the binaries of images: the agent by a profile of its own load
    Dist(dist::Dist),
    /// Run for long what the tests do in short
    Soak(soak::Soak),
}

fn main() -> ExitCode {
    let chore = Args::parse().chore;
    let outcome = std::env::set_current_dir(command::root()).context("cannot enter the workspace").and_then(|()| match chore {
        Chore::Lint(lint) => lint.run(),
        Chore::Setup => setup::run(),
        Chore::Test(suite) => suite.run(),
        Chore::Bench(bench) => bench.run(),
        Chore::Dist(dist) => dist.run(),
        Chore::Soak(soak) => soak.run(),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says what is being done, on standard error: standard output belongs to results.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
