//! Our own pair: a control plane and two agents, with everything on that a production mesh has.

use std::{fs, net::SocketAddr, process::Command};

use super::{
    super::{
        ground::{Ground, free_address, status},
        process::Process,
    },
    Backend,
    contender::{Contender, Handshake},
    pairs,
};
use crate::command;

/// Rules of the policy, beside a limit that nobody reaches: nine that look at the request and do not match, then the one that does.
const RULES: usize = 10;

/// Starts the control plane and both agents, with so many workers each.
///
/// `suffix` tells several meshes on the same ground apart.
pub(super) fn start(ground: &Ground, backend: &Backend, suffix: &str, workers: u32) -> anyhow::Result<Contender> {
    let called = |name: &str| format!("{name}{suffix}");
    let (control_plane, join, socket) = control_plane(ground, &called("control-plane"))?;
    // It lives as long as the bench; its own CPU is not a request's.
    ground.keep(control_plane);
    let (mesh, front, grpc) = (free_address()?, free_address()?, free_address()?);
    let mut start = agent(ground, &called("callee"), join, &token(ground, &socket, "bench/files")?, workers)?;
    start.args(["--mesh", &mesh.to_string(), "--outbound", &free_address()?.to_string()]);
    start.args(["--service", &format!("bench/files:80/http={}", backend.http1)]);
    start.args(["--service", &format!("bench/files:90/grpc={}", backend.http2)]);
    let callee = ready(Process::start(&called("callee"), &mut start, ground.directory())?, ground, &called("callee"))?;
    let mut start = agent(ground, &called("caller"), join, &token(ground, &socket, "bench/web")?, workers)?;
    start.args(["--mesh", &free_address()?.to_string(), "--outbound", &free_address()?.to_string()]);
    start.args(["--upstream", &format!("{front}=bench/files:80"), "--upstream", &format!("{grpc}=bench/files:90")]);
    let caller = ready(Process::start(&called("caller"), &mut start, ground.directory())?, ground, &called("caller"))?;
    let file = ground.directory().join("policy.yaml");
    fs::write(&file, policy())?;
    command::output(operator(ground, &socket).args(["apply", "--wait", "-f"]).arg(&file))?;
    let tls = Some((mesh, Handshake::Mesh { join, socket }));
    pairs::ready(Contender { name: "outrider", http1: Some(front), http2: Some(grpc), tls, pair: Some((caller, callee)) })
}

/// Starts a control plane; returns where agents connect and its admin socket.
fn control_plane(ground: &Ground, name: &str) -> anyhow::Result<(Process, SocketAddr, String)> {
    let (listen, health) = (free_address()?, free_address()?);
    let state = ground.directory().join(name);
    let socket = state.join("admin.sock").display().to_string();
    let mut start = ground.binary("outrider-control-plane");
    start.arg("--state-dir").arg(&state).args(["--admin-socket", &socket]);
    start.args(["--listen", &listen.to_string(), "--health-listen", &health.to_string()]);
    let mut process = Process::start(name, &mut start, ground.directory())?;
    process.wait_until("ready", || status(health, "/readyz") == Some(200))?;
    Ok((process, listen, socket))
}

fn operator(ground: &Ground, socket: &str) -> Command {
    let mut outrider = ground.binary("outrider");
    outrider.args(["--admin-socket", socket]);
    outrider
}

fn agent(ground: &Ground, name: &str, control_plane: SocketAddr, token: &str, workers: u32) -> anyhow::Result<Command> {
    let health = free_address()?;
    fs::write(ground.directory().join(format!("{name}.health")), health.to_string())?;
    let mut start = ground.binary("outrider-agent");
    start.arg("--state-dir").arg(ground.directory().join(name));
    start.args(["--control-plane", &control_plane.to_string(), "--token", token, "--health", &health.to_string()]);
    start.arg("--access-log").arg(ground.directory().join(format!("{name}-access.log")));
    start.args(["--workers", &workers.to_string()]);
    Ok(start)
}

fn ready(mut process: Process, ground: &Ground, name: &str) -> anyhow::Result<Process> {
    let health: SocketAddr = fs::read_to_string(ground.directory().join(format!("{name}.health")))?.parse()?;
    process.wait_until("ready", || status(health, "/readyz") == Some(200))?;
    Ok(process)
}

/// A join token for this identity.
pub(super) fn token(ground: &Ground, socket: &str, identity: &str) -> anyhow::Result<String> {
    Ok(command::output(operator(ground, socket).args(["token", "create", "--identity", identity]))?.trim().to_owned())
}

fn policy() -> String {
    let mut text = "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: { name: files, namespace: bench }\n\
                    spec:\n  targetRefs: [{ kind: Service, name: files }]\n  limits: { requests: 1000000, unit: Second }\n\
                    \x20 authorization:\n    rules:\n"
        .to_owned();
    for number in 1..RULES {
        text.push_str(&format!(
            "      - name: other-{number}\n        action: Allow\n        from: [{{ serviceAccounts: [bench/other-{number}] }}]\n        \
             to: [{{ methods: [GET], paths: [\"/api/v{number}/*\"] }}]\n"
        ));
    }
    text + "      - name: web\n        action: Allow\n        from: [{ serviceAccounts: [bench/web] }]\n        \
            to: [{ methods: [GET, POST], paths: [\"/{rest=**}\"] }]\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_has_ten_rules_and_the_last_one_matches() {
        let text = policy();
        assert_eq!(text.matches("- name: ").count(), RULES);
        assert!(text.ends_with("paths: [\"/{rest=**}\"] }]\n"));
    }
}
