//! What only shows after long: memory that grows with requests, requests that fail once in a million, very many connections.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, ensure};

use super::{
    super::{
        Plan,
        ground::{Ground, progress},
        report::Report,
    },
    load, mesh,
};
use crate::{command, setup};

/// Measurements of memory over the run.
const SLICES: u64 = 50;
/// Descriptors that an agent has beside those of its callers, at most.
const OWN: u64 = 200;

/// Runs `requests` through a pair of agents over 64 connections, then holds `connections` idle ones.
///
/// # Errors
/// When a request failed, memory grew with the requests, or a connection was not held.
pub(crate) fn soak(profile: &str, requests: u64, connections: u32) -> anyhow::Result<Report> {
    setup::run()?;
    allow_descriptors(connections);
    // As many as the system lets an agent have, beside what it needs for itself.
    let idle = u32::try_from(most_descriptors()?.saturating_sub(OWN)).unwrap_or(u32::MAX).min(connections);
    let plan = Plan { profile: profile.to_owned(), seconds: 1, rounds: 1, idle, ..Plan::default() };
    let ground = Ground::prepare("soak", &plan)?;
    let backend = ground.nginx()?;
    let pair = mesh::start(&ground, &backend, "", 1)?;
    let address = pair.http1.ok_or_else(|| anyhow::anyhow!("the pair takes no HTTP/1.1"))?;
    let mut report = Report::new("soak dataplane");
    let (mut done, mut failed, mut points) = (0.0, 0.0, Vec::new());
    let bar = progress(requests);
    while done < requests as f64 {
        let slice = Duration::from_secs((requests / SLICES / 50_000).clamp(1, 30));
        let counted = load::run(&ground, &load::Workload::C64, &pair, address, slice)?;
        (done, failed) = (done + counted.requests, failed + counted.failed);
        let memory: u64 = pair.processes().map(|(_, process)| process.resident()).sum::<anyhow::Result<u64>>()?;
        points.push((done, memory as f64));
        bar.set_position(done as u64);
        // What they log is not what is tested.
        for agent in ["caller", "callee"] {
            let _ = fs::File::options()
                .write(true)
                .open(ground.directory().join(format!("{agent}-access.log")))
                .map(|log| log.set_len(0));
        }
    }
    bar.finish_and_clear();
    // The first fifth fills pools and caches.
    let settled = points.get(points.len() / 5..).unwrap_or_default();
    let grown = slope(settled) * 1e6 / 1024.0;
    report.add("outrider", "requests", "", done);
    report.add("outrider", "failed", "", failed);
    report.add(
        "outrider",
        "memory of both, at the end",
        "MiB",
        points.last().map_or(0.0, |(_, bytes)| bytes / f64::from(1 << 20)),
    );
    report.add("outrider", "memory gained for each million requests", "KiB", grown);
    report.target("outrider", "failed", "", 0.0);
    report.target("outrider", "memory gained for each million requests", "KiB", 64.0);
    // Whatever becomes of the idle connections: what the requests showed is told.
    let held = load::idle_plain(&ground, &plan, &pair);
    if let Ok(Some((caller, callee))) = held {
        report.add("outrider", "idle connections held", "", f64::from(idle));
        report.add("outrider", "idle plain connection, caller", "KiB", caller);
        report.add("outrider", "idle plain connection, callee", "KiB", callee);
        report.target("outrider", "idle plain connection, caller", "KiB", 4.0);
    }
    report.print()?;
    held?;
    ensure!(failed == 0.0, "{failed} requests failed");
    ensure!(settled.len() < 5 || grown <= 64.0, "memory grows with requests: {grown:.0} KiB for each million");
    ensure!(idle == connections, "the system lets a process hold {idle} connections, not {connections}: `ulimit -Hn` says so");
    Ok(report)
}

/// Lets this process, and all that it starts, open enough descriptors. Without the right to do so the limit stays what it is, and
/// the run says how many connections were held.
fn allow_descriptors(connections: u32) {
    let limit = u64::from(connections) + 4096;
    let pid = std::process::id().to_string();
    let mut prlimit = Command::new("prlimit");
    // A limit that is high enough may be one that nobody may change.
    let _ = command::output(prlimit.args(["--pid", &pid, &format!("--nofile={limit}:{limit}")]));
}

/// Descriptors that a process may open.
fn most_descriptors() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/self/limits").context("the system does not say what a process may open")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap_or_default();
    let most = line.split_whitespace().nth(1).context("the system does not say how many files may be open")?;
    Ok(most.parse().unwrap_or(u64::MAX))
}

/// Least squares: bytes for each request.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |value: fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>() / count.max(1.0);
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let over: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let under: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if under > 0.0 { over / under } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_is_found() {
        assert_eq!(slope(&[(0.0, 5.0), (1.0, 7.0), (2.0, 9.0)]), 2.0);
        assert_eq!(slope(&[(0.0, 5.0), (1.0, 5.0)]), 0.0);
        assert_eq!(slope(&[(1.0, 5.0)]), 0.0);
    }
}
