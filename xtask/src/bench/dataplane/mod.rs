//! Pairs of proxies between a load generator and nginx, side by side: mutual TLS between them, ten rules at the callee's.

mod contender;
mod load;
mod mesh;
mod pairs;
mod soak;
mod train;
mod workers;

pub(crate) use soak::soak;
pub(crate) use train::{trace, train};

use std::{net::SocketAddr, time::Duration};

use contender::Contender;
use load::{Counted, Workload};

use super::{
    Plan,
    ground::{Ground, progress},
    process::Process,
    report::Report,
};
use crate::{dist, setup};

/// The floor: every other pair's CPU is shown as a share of its.
const FLOOR: &str = "tunnel";

/// Runs all rounds of all workloads. The order of the contenders turns around every round, so that what changes with time hits
/// all of them alike.
pub(super) fn run(plan: &Plan) -> anyhow::Result<Report> {
    setup::run()?;
    let ground = Ground::prepare("dataplane", plan)?;
    let ground = if plan.profiled { ground.with_agent(&dist::agent(&dist::Tools::find()?)?) } else { ground };
    let backend = ground.nginx()?;
    let contenders = pairs::start(&ground, &backend, plan)?;
    let workloads: Vec<Workload> = Workload::ALL.into_iter().filter(|workload| plan.wants(workload.word())).collect();
    let rounds = |workload: &Workload| if workload.is_main() { plan.rounds } else { plan.rounds.div_ceil(2) };
    let mut report = Report::new("dataplane");
    memory(&ground, plan, &contenders, &mut report)?;
    let steps: u32 = workloads.iter().map(rounds).sum();
    let bar = progress(u64::from(steps) * contenders.len() as u64);
    for workload in &workloads {
        let able: Vec<&Contender> = contenders.iter().filter(|contender| workload.address(contender).is_some()).collect();
        for round in 0..rounds(workload) {
            let mut order: Vec<&&Contender> = able.iter().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for contender in order {
                bar.set_message(format!("{} {}", workload.word(), contender.name));
                measure(&ground, plan, workload, contender, &mut report)?;
            }
            bar.inc(contenders.len() as u64);
        }
    }
    bar.finish_and_clear();
    if plan.wants("workers") && plan.measures("outrider") {
        workers::measure(&ground, &backend, plan, &mut report)?;
    }
    shares(&workloads, &contenders, &mut report);
    Ok(report)
}

/// One measurement of one contender.
fn measure(ground: &Ground, plan: &Plan, workload: &Workload, contender: &Contender, report: &mut Report) -> anyhow::Result<()> {
    let Some(address) = workload.address(contender) else { return Ok(()) };
    // Connections, caches and pools as they are under way, and CPU time of the measurement only.
    load::run(ground, workload, contender, address, Duration::from_millis(300))?;
    let before = contender.cpu()?;
    let counted = load::run(ground, workload, contender, address, Duration::from_secs(u64::from(plan.seconds)))?;
    let after = contender.cpu()?;
    let (name, word) = (contender.name, workload.word());
    let Counted { requests, seconds, p50_us, p99_us, failed } = counted;
    report.add(name, &format!("{word} rate"), "1/s", requests / seconds);
    if let (Some(p50), Some(p99)) = (p50_us, p99_us) {
        report.add(name, &format!("{word} p50"), "µs", p50);
        report.add(name, &format!("{word} p99"), "µs", p99);
    }
    if failed > 0.0 {
        report.add(name, &format!("{word} FAILED"), "", failed);
    }
    let spent: Vec<f64> =
        after.iter().zip(&before).map(|(after, before)| (after.saturating_sub(*before)).as_secs_f64() * 1e6 / requests).collect();
    if let [caller, callee] = spent[..] {
        report.add(name, &format!("{word} CPU caller"), "µs", caller);
        report.add(name, &format!("{word} CPU callee"), "µs", callee);
        report.add(name, &cpu(word), "µs", if *workload == Workload::Handshakes { callee } else { caller + callee });
    }
    Ok(())
}

fn cpu(word: &str) -> String {
    format!("{word} CPU pair")
}

/// Memory as started and with many connections, before any load.
fn memory(ground: &Ground, plan: &Plan, contenders: &[Contender], report: &mut Report) -> anyhow::Result<()> {
    if !plan.wants("idle") {
        return Ok(());
    }
    for contender in contenders {
        for (role, process) in contender.processes() {
            report.add(contender.name, &format!("idle memory {role}"), "MiB", process.resident()? as f64 / f64::from(1 << 20));
        }
        if let Some((caller, callee)) = load::idle_plain(ground, plan, contender)? {
            report.add(contender.name, "idle plain connection, caller", "KiB", caller);
            report.add(contender.name, "idle plain connection, callee", "KiB", callee);
        }
        if let Some(callee) = load::idle_tls(ground, plan, contender)? {
            report.add(contender.name, "idle mTLS connection, callee", "KiB", callee);
        }
    }
    Ok(())
}

/// CPU relative to the floor, and latency added to that of no proxy at all.
fn shares(workloads: &[Workload], contenders: &[Contender], report: &mut Report) {
    for workload in workloads {
        let word = workload.word();
        for contender in contenders {
            let name = contender.name;
            if let (Some(floor), Some(own)) = (report.median(FLOOR, &cpu(word)), report.median(name, &cpu(word))) {
                report.add(name, &format!("{word} CPU ÷ tunnel"), "×", own / floor);
            }
            for quantile in
                ["p50", "p99"].map(|quantile| format!("{word} {quantile}")).iter().filter(|_| *workload == Workload::Rate)
            {
                if let (Some(direct), Some(own)) = (report.median("direct", quantile), report.median(name, quantile)) {
                    report.add(name, &format!("{quantile} added"), "µs", own - direct);
                }
            }
        }
    }
}

/// Addresses of the program behind the proxies.
#[derive(Debug)]
pub(super) struct Backend {
    /// HTTP/1.1.
    pub(super) http1: SocketAddr,
    /// HTTP/2 with prior knowledge.
    pub(super) http2: SocketAddr,
    pub(super) _process: Process,
}
