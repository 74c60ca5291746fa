//! A pair of agents between a load generator and nginx: mTLS, 10 rules of which the last matches, 1 KiB GET, keep-alive.

use std::{fs, net::SocketAddr, process::Command};

use anyhow::Context as _;
use serde::Deserialize;

use super::{
    Plan,
    ground::{Ground, free_address, progress, status},
    process::Process,
    report::Report,
};
use crate::{command, setup};

/// Rules of the policy: nine that look at the request and do not match, then the one that does.
const RULES: usize = 10;

/// What the load generator says.
#[derive(Debug, Deserialize)]
struct Load {
    requests: u64,
    errors: u64,
    seconds: f64,
    p50_us: f64,
    p99_us: f64,
}

/// The two agents and where the caller's agent takes calls.
struct Pair {
    caller: Process,
    callee: Process,
    outbound: SocketAddr,
}

/// Runs all rounds.
pub(super) fn run(plan: &Plan) -> anyhow::Result<Report> {
    setup::run()?;
    let ground = Ground::prepare("dataplane", plan)?;
    let backend = free_address()?;
    let _nginx = ground.nginx(backend)?;
    let (_control_plane, agents_address, socket) = control_plane(&ground)?;
    let pair = pair(&ground, backend, agents_address, &socket)?;

    let mut report = Report::new("dataplane");
    report.add("caller's agent", "idle memory", "MiB", mebibytes(pair.caller.resident()?));
    report.add("callee's agent", "idle memory", "MiB", mebibytes(pair.callee.resident()?));
    let bar = progress(u64::from(plan.rounds) * 2);
    for _ in 0..plan.rounds {
        bar.set_message("direct");
        let direct = load(&ground, plan, &format!("http://{backend}/1k"), None)?;
        record(&mut report, "direct", &direct);
        bar.inc(1);
        bar.set_message("agents");
        let before = (pair.caller.cpu()?, pair.callee.cpu()?);
        let agents = load(&ground, plan, "http://files.bench/1k", Some(pair.outbound))?;
        let after = (pair.caller.cpu()?, pair.callee.cpu()?);
        record(&mut report, "agents", &agents);
        let per_request = |spent: std::time::Duration| spent.as_secs_f64() * 1e6 / agents.requests as f64;
        report.add("caller's agent", "CPU per request", "µs", per_request(after.0.saturating_sub(before.0)));
        report.add("callee's agent", "CPU per request", "µs", per_request(after.1.saturating_sub(before.1)));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(report)
}

fn record(report: &mut Report, contender: &'static str, load: &Load) {
    report.add(contender, "requests", "1/s", load.requests as f64 / load.seconds);
    report.add(contender, "p50", "µs", load.p50_us);
    report.add(contender, "p99", "µs", load.p99_us);
    report.add(contender, "failed", "", load.errors as f64);
}

fn load(ground: &Ground, plan: &Plan, url: &str, proxy: Option<SocketAddr>) -> anyhow::Result<Load> {
    let mut generator = ground.binary("outrider-load");
    // CPU time is read before and after, so requests outside of the measurement must not exist.
    generator.args([
        url,
        "--warm-up",
        "0",
        "--seconds",
        &plan.seconds.to_string(),
        "--connections",
        &plan.connections.to_string(),
    ]);
    if let Some(proxy) = proxy {
        generator.args(["--proxy", &proxy.to_string()]);
    }
    serde_json::from_str(&command::output(&mut generator)?).context("the load generator wrote what is not understood")
}

/// Starts a control plane; returns where agents connect and its admin socket.
fn control_plane(ground: &Ground) -> anyhow::Result<(Process, SocketAddr, String)> {
    let (listen, health) = (free_address()?, free_address()?);
    let state = ground.directory().join("control-plane");
    let socket = state.join("admin.sock").display().to_string();
    let mut start = ground.binary("outrider-control-plane");
    start.arg("--state-dir").arg(&state).args(["--admin-socket", &socket]);
    start.args(["--listen", &listen.to_string(), "--health-listen", &health.to_string()]);
    let mut process = Process::start("control-plane", &mut start, ground.directory())?;
    process.wait_until("ready", || status(health, "/readyz") == Some(200))?;
    Ok((process, listen, socket))
}

fn pair(ground: &Ground, backend: SocketAddr, control_plane: SocketAddr, socket: &str) -> anyhow::Result<Pair> {
    let operator = || {
        let mut outrider = ground.binary("outrider");
        outrider.args(["--admin-socket", socket]);
        outrider
    };
    let callee_health = free_address()?;
    let mut start = agent(ground, "callee", control_plane, callee_health, &token(operator(), "bench/files")?)?;
    start.args(["--service", &format!("bench/files:80/http={backend}")]);
    let mut callee = Process::start("callee", &mut start, ground.directory())?;
    callee.wait_until("ready", || status(callee_health, "/readyz") == Some(200))?;

    let (caller_health, outbound) = (free_address()?, free_address()?);
    let mut start = agent(ground, "caller", control_plane, caller_health, &token(operator(), "bench/web")?)?;
    start.args(["--outbound", &outbound.to_string()]);
    let mut caller = Process::start("caller", &mut start, ground.directory())?;
    caller.wait_until("ready", || status(caller_health, "/readyz") == Some(200))?;

    let file = ground.directory().join("policy.yaml");
    fs::write(&file, policy())?;
    command::output(operator().args(["apply", "--wait", "-f"]).arg(&file))?;
    Ok(Pair { caller, callee, outbound })
}

fn agent(ground: &Ground, name: &str, control_plane: SocketAddr, health: SocketAddr, token: &str) -> anyhow::Result<Command> {
    let mut start = ground.binary("outrider-agent");
    start.arg("--state-dir").arg(ground.directory().join(name));
    start.args(["--control-plane", &control_plane.to_string(), "--token", token, "--health", &health.to_string()]);
    // One worker each, as the peers in the comparison have.
    start.args(["--mesh", &free_address()?.to_string(), "--workers", "1"]);
    if name == "callee" {
        start.args(["--outbound", &free_address()?.to_string()]);
    }
    Ok(start)
}

fn token(mut operator: Command, identity: &str) -> anyhow::Result<String> {
    Ok(command::output(operator.args(["token", "create", "--identity", identity]))?.trim().to_owned())
}

fn policy() -> String {
    let mut text = "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: { name: files, namespace: bench }\n\
                    spec:\n  targetRefs: [{ kind: Service, name: files }]\n  authorization:\n    rules:\n"
        .to_owned();
    for number in 1..RULES {
        text.push_str(&format!(
            "      - name: other-{number}\n        action: Allow\n        from: [{{ serviceAccounts: [bench/other-{number}] }}]\n        \
             to: [{{ methods: [GET], paths: [\"/other-{number}/*\"] }}]\n"
        ));
    }
    text + "      - name: web-reads\n        action: Allow\n        from: [{ serviceAccounts: [bench/web] }]\n        \
            to: [{ methods: [GET], paths: [\"/1k\"] }]\n"
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_has_ten_rules_and_the_last_one_matches() {
        let text = policy();
        assert_eq!(text.matches("- name: ").count(), RULES);
        assert!(text.ends_with("paths: [\"/1k\"] }]\n"));
    }
}
