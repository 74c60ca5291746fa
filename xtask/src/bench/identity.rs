//! What identities cost: leaves signed and issued, one change in force at many agents, memory for each, and a storm of agents
//! that all come back at once.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::{
    Plan,
    ground::{Ground, free_address, progress, status},
    process::Process,
    report::Report,
};
use crate::command;

/// Agents that are there before memory is counted.
const WARM: usize = 10;
/// Numbers of agents.
const AGENTS: &[usize] = &[100, 500, 2000];
/// Numbers of agents of a smoke run.
const QUICK: &[usize] = &[20, 50, 100];
/// Changes measured at each size.
const CHANGES: u32 = 10;
/// Issued over gRPC, every second of one core of the control plane.
const ISSUED: f64 = 1500.0;
/// Signed by the authority alone, every second of one core.
const SIGNED: f64 = 5000.0;

/// What renewals saw.
#[derive(Debug, Deserialize)]
struct Issued {
    issued: u64,
    seconds: f64,
    p50_us: f64,
    p99_us: f64,
}

/// What a flood cost somebody else.
#[derive(Debug, Deserialize)]
struct Flood {
    asked: u64,
    issued: u64,
    alone_p99_us: f64,
    beside_p99_us: f64,
}

/// How long a change took.
#[derive(Debug, Deserialize)]
struct Change {
    stored_us: f64,
    p50_us: f64,
    p99_us: f64,
    known_us: f64,
}

/// Runs all of it.
pub(super) fn run(plan: &Plan) -> anyhow::Result<Report> {
    let ground = Ground::with("identity", plan, &["--bin", "outrider-control-plane", "--bin", "outrider-swarm"])?;
    let mut report = Report::new("identity");
    let sizes = if plan.quick { QUICK } else { AGENTS };
    let bar = progress(u64::from(plan.rounds) * 2 + 1 + sizes.len() as u64 * 2);
    for _ in 0..plan.rounds {
        bar.set_message("signing");
        signing(plan, &mut report)?;
        bar.inc(1);
    }
    for round in 0..plan.rounds {
        bar.set_message("issuing");
        issuing(&ground, plan, round, &mut report)?;
        bar.inc(1);
    }
    bar.set_message("a flood from one identity");
    flood(&ground, plan, &mut report)?;
    bar.inc(1);
    agents(&ground, sizes, &mut report, &bar)?;
    bar.finish_and_clear();
    Ok(report)
}

/// The authority alone: signing request in, leaf out, without network and store.
fn signing(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let mut bench = command::cargo();
    bench.args(["bench", "--quiet", "-p", "outrider-control-plane", "--features", "bench", "--bench", "sign"]);
    bench.args(["--profile", &plan.profile, "--", &plan.seconds.to_string()]);
    let rate: f64 = command::output(&mut bench)?.trim().parse().context("the bench of the authority wrote what is no number")?;
    report.add("authority", "leaves signed", "1/s and core", rate);
    report.at_least("authority", "leaves signed", "1/s and core", SIGNED);
    Ok(())
}

/// Renewals over gRPC and mutual TLS, each recorded before it is answered.
fn issuing(ground: &Ground, plan: &Plan, round: u32, report: &mut Report) -> anyhow::Result<()> {
    let plane = Plane::start(ground, &format!("issuing-{round}"))?;
    let identities = if plan.quick { "32" } else { "256" };
    let mut load = plane.swarm(ground);
    load.args(["issue", "--identities", identities, "--seconds", &plan.seconds.to_string()]);
    // Joining costs too: it is told apart by asking for a moment only.
    let mut joining = plane.swarm(ground);
    joining.args(["issue", "--identities", identities, "--seconds", "0"]);
    command::output(&mut joining)?;
    let before = plane.process.cpu()?;
    command::output(&mut joining)?;
    let joined = plane.process.cpu()?;
    let seen: Issued = serde_json::from_str(&command::output(&mut load)?).context("the swarm wrote what is not understood")?;
    let spent = plane.process.cpu()?.saturating_sub(joined).saturating_sub(joined.saturating_sub(before));
    let issued = seen.issued as f64;
    report.add("control plane", "leaves issued", "1/s", issued / seen.seconds);
    report.add("control plane", "leaves issued", "1/s and core", issued / spent.as_secs_f64().max(1e-6));
    report.at_least("control plane", "leaves issued", "1/s and core", ISSUED);
    report.add("control plane", "p50 of an issuance", "µs", seen.p50_us);
    report.add("control plane", "p99 of an issuance", "µs", seen.p99_us);
    Ok(())
}

/// What another identity waits while one asks for twenty times what it may.
fn flood(ground: &Ground, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let plane = Plane::start(ground, "flood")?;
    let seconds = plan.seconds.saturating_mul(8).min(60).to_string();
    let mut load = plane.swarm(ground);
    load.args(["flood", "--seconds", &seconds]);
    let seen: Flood = serde_json::from_str(&command::output(&mut load)?).context("the swarm wrote what is not understood")?;
    report.add("a calm identity", "p99 of a renewal, alone", "µs", seen.alone_p99_us);
    report.add("a calm identity", "p99 of a renewal, beside a flood", "µs", seen.beside_p99_us);
    report.add("a calm identity", "p99 beside a flood / alone", "", seen.beside_p99_us / seen.alone_p99_us.max(1.0));
    report.target("a calm identity", "p99 beside a flood / alone", "", 2.0);
    report.add("a loud identity", "asked for", "", seen.asked as f64);
    report.add("a loud identity", "issued", "", seen.issued as f64);
    Ok(())
}

/// One change at many agents, their memory, and their return after a restart.
fn agents(ground: &Ground, sizes: &[usize], report: &mut Report, bar: &indicatif::ProgressBar) -> anyhow::Result<()> {
    let mut plane = Plane::start(ground, "agents")?;
    let mut swarm = Swarm::start(ground, &plane)?;
    // What it needs for the first of everything is not what another agent costs.
    swarm.ask(&format!("grow {WARM}"))?;
    swarm.ask("change")?;
    let warm = plane.process.resident()?;
    for size in sizes {
        let contender = format!("{size} agents");
        bar.set_message(format!("{contender}: changes"));
        swarm.ask(&format!("grow {size}"))?;
        let busy = plane.process.cpu()?;
        for _ in 0..CHANGES {
            let change: Change = serde_json::from_value(swarm.ask("change")?)?;
            report.add(&contender, "change stored", "ms", change.stored_us / 1e3);
            report.add(&contender, "change in force, p50 of agents", "ms", change.p50_us / 1e3);
            report.add(&contender, "change in force, p99 of agents", "ms", change.p99_us / 1e3);
            report.target(&contender, "change in force, p99 of agents", "ms", 1000.0);
            report.add(&contender, "known to be in force at all", "ms", change.known_us / 1e3);
        }
        let each = plane.process.cpu()?.saturating_sub(busy).as_secs_f64() / f64::from(CHANGES) / *size as f64;
        report.add(&contender, "CPU of a change for an agent", "µs", each * 1e6);
        let memory = plane.process.resident()?.saturating_sub(warm) as f64 / size.saturating_sub(WARM) as f64 / 1024.0;
        report.add(&contender, "memory of an agent", "KiB", memory);
        report.target(&contender, "memory of an agent", "KiB", 100.0);
        bar.inc(1);
        bar.set_message(format!("{contender}: all come back at once"));
        plane.restart(ground, || swarm.ask("lost").map(drop))?;
        let back = swarm.ask("current")?;
        let seconds = back.get("seconds").and_then(serde_json::Value::as_f64).context("no time")?;
        report.add(&contender, "all current after a restart", "s", seconds);
        let spent = plane.process.cpu()?.as_secs_f64();
        report.add(&contender, "CPU of the restart for an agent", "µs", spent / *size as f64 * 1e6);
        bar.inc(1);
    }
    Ok(())
}

/// A control plane of the bench.
struct Plane {
    process: Process,
    listen: SocketAddr,
    health: SocketAddr,
    name: String,
}

impl Plane {
    fn start(ground: &Ground, name: &str) -> anyhow::Result<Self> {
        let (listen, health) = (free_address()?, free_address()?);
        let process = Self::spawn(ground, name, listen, health)?;
        Ok(Self { process, listen, health, name: name.to_owned() })
    }

    fn spawn(ground: &Ground, name: &str, listen: SocketAddr, health: SocketAddr) -> anyhow::Result<Process> {
        let mut start = ground.binary("outrider-control-plane");
        start.arg("--state-dir").arg(ground.directory().join(name)).args(["--log", "warn"]);
        start.args(["--listen", &listen.to_string(), "--health-listen", &health.to_string()]);
        // What it can do is asked here, not what it is allowed to.
        start.args(["--issuance-rate", "1000000"]);
        let mut process = Process::start("control-plane", &mut start, ground.directory())?;
        process.wait_until("ready", || status(health, "/readyz") == Some(200))?;
        Ok(process)
    }

    /// Ends it without a word, waits for what must happen meanwhile, and starts it again.
    fn restart(&mut self, ground: &Ground, meanwhile: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.process.end();
        meanwhile()?;
        self.process = Self::spawn(ground, &self.name, self.listen, self.health)?;
        Ok(())
    }

    fn swarm(&self, ground: &Ground) -> Command {
        let mut swarm = ground.binary("outrider-swarm");
        swarm.args(["--control-plane", &self.listen.to_string(), "--admin-socket"]);
        swarm.arg(ground.directory().join(&self.name).join("admin.sock"));
        swarm
    }
}

/// Simulated agents, asked line by line.
struct Swarm {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Swarm {
    fn start(ground: &Ground, plane: &Plane) -> anyhow::Result<Self> {
        let mut child = plane.swarm(ground).arg("hold").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (commands, answers) = (child.stdin.take().context("no input")?, child.stdout.take().context("no output")?);
        Ok(Self { child, commands, answers: BufReader::new(answers) })
    }

    fn ask(&mut self, what: &str) -> anyhow::Result<serde_json::Value> {
        writeln!(self.commands, "{what}").context("the swarm is gone")?;
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("the swarm ended at `{what}`");
        }
        serde_json::from_str(&line).context("the swarm wrote what is not understood")
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
