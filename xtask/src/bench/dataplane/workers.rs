//! What a second worker brings. Where load generator, both proxies and the program share two cores, their throughput says nothing
//! about that; how the work is spread does: an agent can do no more than its busiest worker, so what counts are the requests
//! for each second of that worker's CPU time.

use std::time::Duration;

use super::{
    super::{Plan, ground::Ground, process::Process, report::Report},
    Backend, load, mesh,
};

/// Gain of a second worker that is worth it.
const ENOUGH: f64 = 1.7;

/// Measures pairs of agents with one worker and with two.
pub(super) fn measure(ground: &Ground, backend: &Backend, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    for round in 0..plan.rounds {
        let mut reached = Vec::new();
        for workers in [1, 2] {
            // New ones for each round: which worker gets a connection is decided when it is opened.
            let pair = mesh::start(ground, backend, &format!("-of-{workers}-workers-{round}"), workers)?;
            let (Some(address), Some((caller, callee))) = (pair.http1, &pair.pair) else { continue };
            load::run(ground, &load::Workload::C64, &pair, address, Duration::from_millis(300))?;
            let (caller_before, callee_before) = (caller.threads()?, callee.threads()?);
            let counted = load::run(ground, &load::Workload::C64, &pair, address, Duration::from_secs(u64::from(plan.seconds)))?;
            let busiest = |process: &Process, before: &std::collections::HashMap<_, Duration>| -> anyhow::Result<f64> {
                let spent = process.threads()?.into_iter().map(|(thread, spent)| match before.get(&thread) {
                    Some(before) => spent.saturating_sub(*before),
                    None => spent,
                });
                Ok(counted.requests / spent.max().unwrap_or_default().as_secs_f64().max(f64::MIN_POSITIVE))
            };
            let (caller, callee) = (busiest(caller, &caller_before)?, busiest(callee, &callee_before)?);
            let name = if workers == 1 { "1 worker" } else { "2 workers" };
            report.add(name, "rate", "1/s", counted.requests / counted.seconds);
            report.add(name, "for a second of the busiest worker, caller", "1/s", caller);
            report.add(name, "for a second of the busiest worker, callee", "1/s", callee);
            reached.push((caller, callee));
        }
        if let [one, two] = reached[..] {
            for (end, gain) in [("caller", two.0 / one.0), ("callee", two.1 / one.1)] {
                report.add("2 workers", &format!("gain, {end}"), "×", gain);
                report.at_least("2 workers", &format!("gain, {end}"), "×", ENOUGH);
            }
        }
    }
    Ok(())
}
