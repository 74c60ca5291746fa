//! `outrider check`: is all well, row by row, and what to do where it is not.

use jiff::Timestamp;
use outrider_proto::v1::{ListAgentsRequest, ListPoliciesRequest, ListServicesRequest, StatusRequest, StatusResponse};
use serde::Serialize;

use crate::{
    args::Socket,
    failure::{Exit, Failure},
    output::{Console, Tone},
    table::{Cell, Row},
    view::{Agent, Policy, Service, short_identity},
    when,
};

/// Look over the control plane, its agents and their certificates.
///
/// Exit code 1 when a row says `fail`; `warn` alone is 0.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outrider check
  outrider check -o json | jq -r '.[] | select(.state != \"ok\") | .detail'")]
pub(crate) struct Check {}

/// How a row stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at. The shape that programs read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    state: State,
    /// What was looked at.
    check: &'static str,
    /// What was found.
    detail: String,
    /// What to do; empty when nothing is to be done.
    help: String,
}

impl Finding {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { state: State::Ok, check, detail: detail.into(), help: String::new() }
    }

    fn warn(check: &'static str, detail: impl Into<String>, help: impl Into<String>) -> Self {
        Self { state: State::Warn, check, detail: detail.into(), help: help.into() }
    }

    fn fail(check: &'static str, detail: impl Into<String>, help: impl Into<String>) -> Self {
        Self { state: State::Fail, check, detail: detail.into(), help: help.into() }
    }
}

impl Row for Finding {
    const COLUMNS: &'static [&'static str] = &["STATE", "CHECK", "FOUND", "WHAT TO DO"];

    fn cells(&self, _: Timestamp) -> Vec<Cell> {
        let state = match self.state {
            State::Ok => Cell::new(Tone::Good, "ok"),
            State::Warn => Cell::new(Tone::Warn, "warn"),
            State::Fail => Cell::new(Tone::Bad, "fail"),
        };
        vec![state, self.check.into(), self.detail.as_str().into(), self.help.as_str().into()]
    }
}

impl Check {
    /// Runs the verb.
    pub(crate) async fn run(self, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
        let findings = match look(socket).await {
            Ok(findings) => findings,
            Err(failure) => vec![Finding::fail("control plane", failure.to_string(), failure.help().unwrap_or_default())],
        };
        console.rows(&findings, "nothing to check")?;
        let failed = findings.iter().any(|finding| finding.state == State::Fail);
        Ok(if failed { Exit::Failed } else { Exit::Done })
    }
}

async fn look(socket: &Socket) -> Result<Vec<Finding>, Failure> {
    let mut admin = socket.connect().await?;
    let status = admin.status(StatusRequest {}).await?.into_inner();
    let agents = admin.list_agents(ListAgentsRequest {}).await?.into_inner().agents;
    let policies = admin.list_policies(ListPoliciesRequest::default()).await?.into_inner().policies;
    let services = admin.list_services(ListServicesRequest::default()).await?.into_inner().services;
    let agents: Vec<Agent> = agents.into_iter().map(Agent::from).collect();
    let policies: Vec<Policy> = policies.into_iter().map(Policy::from).collect();
    let services: Vec<Service> = services.into_iter().map(Service::from).collect();
    Ok(assess(&status, &agents, &services, &policies, Timestamp::now()))
}

fn assess(status: &StatusResponse, agents: &[Agent], services: &[Service], policies: &[Policy], now: Timestamp) -> Vec<Finding> {
    let mut findings = vec![control_plane(status)];
    findings.extend(status.warnings.iter().map(|text| Finding::warn("control plane", text.as_str(), "")));
    findings.extend(authorities(status, now));
    findings.extend(connections(agents));
    findings.extend(backing(services));
    findings.extend(certificates(agents, i64::from(status.leaf_ttl_seconds), now));
    findings.extend(in_force(policies));
    findings
}

fn control_plane(status: &StatusResponse) -> Finding {
    let own = env!("CARGO_PKG_VERSION");
    let detail =
        format!("{} at {}, trust domain {}, revision {}", status.version, status.address, status.trust_domain, status.revision);
    if status.version == own {
        Finding::ok("control plane", detail)
    } else {
        Finding::warn("control plane", detail, format!("this program is {own}: bring both to the same version"))
    }
}

/// Roots last years and want planning; issuing certificates renew themselves at half life, so a third left means trouble.
fn authorities(status: &StatusResponse, now: Timestamp) -> Vec<Finding> {
    if status.certificate_authorities.is_empty() {
        return vec![Finding::fail(
            "certificate authority",
            "the control plane has none",
            "its log says why it could not make one",
        )];
    }
    let now_seconds = now.as_second();
    let assess_one = |ca: &outrider_proto::v1::CaStatus| {
        let (check, share) = if ca.role == "root" { ("root certificate", 10) } else { ("issuing certificate", 3) };
        let left = ca.not_after.saturating_sub(now_seconds);
        let life = ca.not_after.saturating_sub(ca.not_before);
        let detail = format!("{} ends {}", ca.common_name, when::relative(when::from_seconds(ca.not_after), now));
        match (left, ca.role.as_str()) {
            (..=0, _) => Finding::fail(check, detail, "restart the control plane; agents cannot renew until it has a valid one"),
            (left, "root") if left < life / share => Finding::warn(check, detail, "plan the rotation of the trust anchor"),
            (left, _) if left < life / share => {
                Finding::warn(check, detail, "it should have been renewed at half its life: the control plane's log says why not")
            }
            _ => Finding::ok(check, detail),
        }
    };
    status.certificate_authorities.iter().map(assess_one).collect()
}

fn connections(agents: &[Agent]) -> Vec<Finding> {
    let connected = agents.iter().filter(|agent| agent.connected).count();
    let mut findings = Vec::new();
    if connected == 0 {
        findings.push(Finding::warn("agents", "none is connected", "start one with `outrider run --service NAMESPACE/NAME`"));
    } else {
        let away = agents.len() - connected;
        let away = if away == 0 { String::new() } else { format!(", {away} away") };
        findings.push(Finding::ok("agents", format!("{connected} connected{away}")));
    }
    for agent in agents.iter().filter(|agent| agent.connected && !agent.nack.is_empty()) {
        let detail = format!("{} of {} refused: {}", agent.id, short_identity(&agent.identity), agent.nack);
        let help = "it keeps the last good policies: change the policy, or upgrade the agent";
        findings.push(Finding::fail("agents", detail, help));
    }
    findings
}

/// Callers come and go, so an agent that is away is no news; a service that nobody backs is.
fn backing(services: &[Service]) -> Vec<Finding> {
    let offered = services.iter().filter(|service| !service.ports.is_empty());
    let mut findings: Vec<Finding> = offered
        .clone()
        .filter(|service| service.connected == 0)
        .map(|service| {
            let help = "start its agent again; if it runs, its log says why it does not connect";
            Finding::warn("services", format!("no connected agent backs {}", service.name), help)
        })
        .collect();
    let backed = offered.count() - findings.len();
    if backed > 0 {
        findings.insert(0, Finding::ok("services", format!("{backed} backed by connected agents")));
    }
    findings
}

/// Leaves renew at half life: less than a quarter left means that renewal has failed for a while.
fn certificates(agents: &[Agent], ttl_seconds: i64, now: Timestamp) -> Vec<Finding> {
    let connected = agents.iter().filter(|agent| agent.connected);
    let mut findings: Vec<Finding> = Vec::new();
    let mut fine = 0;
    for agent in connected {
        let Some(end) = agent.certificate_not_after else { continue };
        let left = end.as_second().saturating_sub(now.as_second());
        let detail = format!("{} of {} ends {}", agent.id, short_identity(&agent.identity), when::relative(Some(end), now));
        let help =
            format!("`outrider certs rotate {}`; if that fails, the agent's log says why", short_identity(&agent.identity));
        if left <= 0 {
            findings.push(Finding::fail("certificates", detail, help));
        } else if left < ttl_seconds / 4 {
            findings.push(Finding::warn("certificates", detail, help));
        } else {
            fine += 1;
        }
    }
    if fine > 0 {
        let detail = if fine == 1 { "1 agent's is fresh".to_owned() } else { format!("{fine} agents' are fresh") };
        findings.insert(0, Finding::ok("certificates", detail));
    }
    findings
}

fn in_force(policies: &[Policy]) -> Vec<Finding> {
    if policies.is_empty() {
        return vec![Finding::warn("policies", "there are none: every call is denied", "`outrider apply -f FILE --wait`")];
    }
    let lagging = policies.iter().filter(|policy| policy.in_force < policy.agents);
    let mut findings: Vec<Finding> = lagging
        .map(|policy| {
            let detail = format!("{} is in force at {} of {} agents", policy.name, policy.in_force, policy.agents);
            Finding::warn("policies", detail, format!("`outrider get policies {}` names the laggards", policy.name))
        })
        .collect();
    findings.extend(policies.iter().filter(|policy| policy.targets.is_empty()).map(|policy| {
        Finding::warn("policies", format!("{} applies to no service", policy.name), "check its `targetRefs` and `selector`")
    }));
    if findings.is_empty() {
        let count = policies.len();
        findings.push(Finding::ok(
            "policies",
            format!("{count} in force wherever {} should be", if count == 1 { "it" } else { "they" }),
        ));
    }
    findings
}

#[cfg(test)]
mod tests;
