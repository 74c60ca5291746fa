//! `cargo xtask soak`: what the tests do in short, for as long as it takes to believe it.

mod attacks;

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde::Deserialize;

use crate::{
    bench::{Report, soak_dataplane, target_directory},
    command, setup,
};

/// Run for long.
#[derive(Debug, clap::Args)]
pub(crate) struct Soak {
    /// What to run
    #[arg(value_enum)]
    name: Name,
    /// A smoke run: its numbers prove nothing
    #[arg(long)]
    quick: bool,
    /// Also write the rows to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// `rotation`: requests a second at most [default: as many as pass]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Cargo profile of the binaries
    #[arg(long, default_value = "release")]
    profile: String,
}

/// The long runs there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// 10^6 requests while leaves, issuing CAs and the trust anchor change and control planes are killed
    Rotation,
    /// 10^7 requests through a pair of agents, then 20 000 idle connections: nothing fails, memory does not grow
    Dataplane,
    /// Each flood of frames again and again: it ends, memory does not grow, a neighbour waits no longer
    Floods,
    /// 1000 connections of each kind that take their time: gone in 30 s, the service answers
    Slow,
    /// 200 times kill -9 during issuance, on SQLite and on PostgreSQL
    Store,
}

/// What a rotation saw.
#[derive(Debug, Deserialize)]
struct Rotation {
    requests: f64,
    failed: f64,
    first_failure: Option<String>,
    renewals: f64,
    issuing_cas: f64,
    kills: f64,
    anchor_changed: bool,
    old_root_refused: bool,
    slowest_ms: f64,
    seconds: f64,
}

impl Soak {
    fn dataplane(self) -> anyhow::Result<()> {
        let (requests, connections) = if self.quick { (100_000, 2_000) } else { (10_000_000, 20_000) };
        let report = soak_dataplane(&self.profile, requests, connections)?;
        self.json.map_or(Ok(()), |path| report.write(&path))
    }

    fn attacks(self, mut soak: Command) -> anyhow::Result<()> {
        let quick: &[&str] = match self.name {
            Name::Floods if self.quick => &["floods", "--rounds", "1", "--window", "200"],
            Name::Floods => &["floods"],
            _ if self.quick => &["slow", "--connections", "50"],
            _ => &["slow"],
        };
        // Its progress goes to the terminal as it comes.
        soak.args(quick).stdin(Stdio::null()).stderr(Stdio::inherit());
        let rows = soak.output().context("cannot run outrider-soak")?.stdout;
        let judge = if self.name == Name::Floods { attacks::floods } else { attacks::slow };
        judge(&rows, self.json.as_deref())
    }

    /// Runs it, prints what was seen, and fails when a request did.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if self.name == Name::Dataplane {
            return self.dataplane();
        }
        setup::run()?;
        if matches!(self.name, Name::Store) {
            return store(if self.quick { "20" } else { "200" });
        }
        let mut build = command::cargo();
        build.args(["build", "--workspace", "--bins", "--profile", &self.profile]);
        command::run(&mut build)?;
        let output = if self.profile == "dev" { "debug" } else { self.profile.as_str() };
        let mut soak = Command::new(target_directory()?.join(output).join("outrider-soak"));
        if matches!(self.name, Name::Floods | Name::Slow) {
            return self.attacks(soak);
        }
        soak.arg("rotation");
        if self.quick {
            soak.args(["--requests", "20000", "--renewals", "20"]);
        }
        if let Some(rate) = self.rate {
            soak.args(["--rate", &rate.to_string()]);
        }
        // Its progress goes to the terminal as it comes.
        let ended = soak.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot run outrider-soak")?;
        let seen: Rotation =
            serde_json::from_slice(&ended.stdout).with_context(|| format!("outrider-soak ended early ({})", ended.status))?;
        let mut report = Report::new("soak rotation");
        for (metric, unit, value) in [
            ("requests", "", seen.requests),
            ("failed", "", seen.failed),
            ("leaves renewed", "", seen.renewals),
            ("issuing CAs renewed", "", seen.issuing_cas),
            ("control planes killed", "", seen.kills),
            ("trust anchors changed", "", f64::from(u8::from(seen.anchor_changed))),
            ("old trust anchor refused", "", f64::from(u8::from(seen.old_root_refused))),
            ("slowest request", "ms", seen.slowest_ms),
            ("time", "s", seen.seconds),
        ] {
            report.add("mesh", metric, unit, value);
        }
        report.target("mesh", "failed", "", 0.0);
        report.at_least("mesh", "trust anchors changed", "", 1.0);
        report.at_least("mesh", "old trust anchor refused", "", 1.0);
        report.print()?;
        if let Some(path) = self.json {
            report.write(&path)?;
        }
        if !ended.status.success() {
            bail!("the run failed: {}", seen.first_failure.as_deref().unwrap_or("the old trust anchor is still there"));
        }
        Ok(())
    }
}

/// The test of the suite, with more kills. It fails when an acknowledged leaf is lost, or anything is half there.
fn store(kills: &str) -> anyhow::Result<()> {
    let mut test = command::cargo();
    test.args(["test", "-p", "outrider-control-plane", "--test", "it", "kill_9_during_issuance", "--", "--nocapture"]);
    command::run(test.env("OUTRIDER_KILLS", kills))
}
