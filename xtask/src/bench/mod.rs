//! `cargo xtask bench`: numbers beside `direct`, measured in the same run.

mod dataplane;
mod ground;
mod identity;
mod policy;
mod process;
mod report;

use std::path::PathBuf;

use clap::ValueEnum;

pub(crate) use dataplane::{soak as soak_dataplane, trace, train};
pub(crate) use ground::target_directory;
pub(crate) use report::Report;

/// Measure, beside `direct` in the same run.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Rounds of the contenders alternate, so that a busy neighbour hits all of them. Tables show median [min–max] over the rounds.")]
pub(crate) struct Bench {
    /// What to measure
    #[arg(value_enum, default_value_t = Name::Dataplane)]
    name: Name,
    /// A smoke run: few short rounds, `release` instead of `dist`. Its numbers prove nothing
    #[arg(long)]
    quick: bool,
    /// Also write the rows to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Seconds of each measurement [default: 3; with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: Option<u32>,
    /// Rounds [default: 5; with --quick 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Measure only these: workloads (c16, c64, rate, close, big, grpc, handshakes, idle, workers) and contenders (outrider, envoy, …);
    /// `direct` and `tunnel` are always there
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    /// Connections that are held idle to see their memory
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    idle: u32,
    /// Cargo profile of the measured binaries [default: dist; with --quick release]
    #[arg(long)]
    profile: Option<String>,
    /// Measure the agent that `cargo xtask dist` builds: it takes long
    #[arg(long, conflicts_with = "profile")]
    profiled: bool,
}

/// The benches there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Pairs of proxies, ours and others': mTLS, 10 rules; requests, latency, CPU, memory, handshakes
    Dataplane,
    /// Decisions by 10, 1000 and 10 000 rules, with and without CEL; how long they take to compile, and their memory
    Policy,
    /// Leaves signed and issued, a change in force at up to 2000 agents, memory for each, and all of them coming back at once
    Identity,
}

/// How to measure: the flags with their defaults filled in.
#[derive(Clone, Debug, Default)]
struct Plan {
    profile: String,
    seconds: u32,
    rounds: u32,
    only: Vec<String>,
    idle: u32,
    quick: bool,
    profiled: bool,
}

/// Names that choose workloads; the others choose contenders.
const WORKLOADS: [&str; 9] = ["c16", "c64", "rate", "close", "big", "grpc", "handshakes", "idle", "workers"];

impl Plan {
    /// Whether a workload is wanted.
    fn wants(&self, workload: &str) -> bool {
        let any = self.only.iter().any(|name| WORKLOADS.contains(&name.as_str()));
        !any || self.only.iter().any(|name| name == workload)
    }

    /// Whether anything is wanted but gRPC.
    fn wants_http1(&self) -> bool {
        WORKLOADS.into_iter().any(|name| name != "grpc" && self.wants(name))
    }

    /// Whether a contender is measured; one word of its name chooses it.
    fn measures(&self, contender: &str) -> bool {
        let chosen = |name: &&String| !WORKLOADS.contains(&name.as_str());
        let is_it = |name: &String| contender == name || contender.split(' ').any(|word| word == name);
        contender == "tunnel" || !self.only.iter().any(|name| chosen(&name)) || self.only.iter().any(is_it)
    }
}

impl Bench {
    /// Runs it, prints the table and writes the file.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let default = |usual: u32, quick: u32| if self.quick { quick } else { usual };
        let plan = Plan {
            profile: self.profile.clone().unwrap_or_else(|| if self.quick { "release" } else { "dist" }.to_owned()),
            seconds: self.seconds.unwrap_or_else(|| default(3, 1)),
            rounds: self.rounds.unwrap_or_else(|| default(5, 2)),
            only: self.only.clone(),
            idle: self.idle,
            quick: self.quick,
            profiled: self.profiled,
        };
        let report = match self.name {
            Name::Dataplane => dataplane::run(&plan)?,
            Name::Policy => policy::run(&plan)?,
            Name::Identity => identity::run(&plan)?,
        };
        report.print()?;
        match self.json {
            Some(path) => report.write(&path),
            None => Ok(()),
        }
    }
}
