use outrider_proto::v1::{self, AgentStatus, CaStatus, PolicyStatus, ServicePort, ServiceStatus};

use super::*;

const NOW: i64 = 1_800_000_000;
const DAY: i64 = 86_400;

fn authority(role: &str, age_days: i64, life_days: i64) -> CaStatus {
    let not_before = NOW - age_days * DAY;
    CaStatus {
        role: role.into(),
        common_name: format!("the {role}"),
        not_before,
        not_after: not_before + life_days * DAY,
        ..CaStatus::default()
    }
}

fn healthy() -> (StatusResponse, AgentStatus, PolicyStatus) {
    let status = StatusResponse {
        version: env!("CARGO_PKG_VERSION").into(),
        address: "127.0.0.1:15110".into(),
        trust_domain: "mesh.internal".into(),
        revision: 4,
        certificate_authorities: vec![authority("root", 10, 3650), authority("issuing", 1, 7)],
        leaf_ttl_seconds: 3600,
        ..StatusResponse::default()
    };
    let agent = AgentStatus {
        agent_id: "a1".into(),
        identity: "spiffe://mesh.internal/ns/shop/sa/web".into(),
        connected: true,
        certificate_not_after: NOW + 3000,
        ..AgentStatus::default()
    };
    let policy = PolicyStatus {
        name: "shop/orders".into(),
        targets: vec!["shop/orders".into()],
        agents: 1,
        in_force: 1,
        ..PolicyStatus::default()
    };
    (status, agent, policy)
}

fn states(status: &StatusResponse, agent: AgentStatus, policy: PolicyStatus) -> Vec<(State, String)> {
    let now = Timestamp::from_second(NOW).unwrap();
    let findings = assess(status, &[agent.into()], &[], &[policy.into()], now);
    findings.into_iter().filter(|one| one.state != State::Ok).map(|one| (one.state, one.detail)).collect()
}

#[test]
fn a_healthy_mesh_has_nothing_but_ok() {
    let (status, agent, policy) = healthy();
    assert_eq!(states(&status, agent, policy), []);
}

#[test]
fn an_agent_that_refused_a_policy_is_a_failure_with_its_reason() {
    let (status, mut agent, policy) = healthy();
    agent.nack = "unknown field `limits`".into();
    assert_eq!(states(&status, agent, policy), [(State::Fail, "a1 of shop/web refused: unknown field `limits`".to_owned())]);
}

#[test]
fn certificates_near_their_end_warn_and_ended_ones_fail() {
    let (status, mut agent, policy) = healthy();
    agent.certificate_not_after = NOW + 899;
    assert_eq!(states(&status, agent.clone(), policy.clone())[0].0, State::Warn);
    agent.certificate_not_after = NOW;
    assert_eq!(states(&status, agent, policy)[0].0, State::Fail);
}

#[test]
fn authorities_warn_in_time_and_fail_at_the_end() {
    let (mut status, agent, policy) = healthy();
    let mut worst = |authority: CaStatus| {
        status.certificate_authorities = vec![authority];
        states(&status, agent.clone(), policy.clone()).first().map(|one| one.0)
    };
    assert_eq!(worst(authority("issuing", 5, 7)), Some(State::Warn));
    assert_eq!(worst(authority("issuing", 7, 7)), Some(State::Fail));
    assert_eq!(worst(authority("root", 3000, 3650)), None);
    assert_eq!(worst(authority("root", 3400, 3650)), Some(State::Warn));
    status.certificate_authorities.clear();
    assert_eq!(states(&status, agent, policy)[0].0, State::Fail);
}

#[test]
fn policies_that_are_not_everywhere_or_nowhere_are_named() {
    let (status, agent, mut policy) = healthy();
    policy.in_force = 0;
    assert_eq!(states(&status, agent.clone(), policy.clone())[0].1, "shop/orders is in force at 0 of 1 agents");
    policy.in_force = 1;
    policy.targets.clear();
    assert_eq!(states(&status, agent, policy)[0].1, "shop/orders applies to no service");
}

#[test]
fn an_empty_mesh_warns_that_everything_is_denied() {
    let (status, ..) = healthy();
    let findings = assess(&status, &[], &[], &[], Timestamp::from_second(NOW).unwrap());
    assert!(findings.iter().all(|one| one.state != State::Fail));
    assert!(findings.iter().any(|one| one.detail.contains("every call is denied")));
}

#[test]
fn a_service_that_nobody_backs_is_named_and_a_caller_that_left_is_not() {
    let (status, mut agent, policy) = healthy();
    let service = |name: &str, ports: &[u32], connected| {
        let port = |port: &u32| ServicePort { port: *port, ..ServicePort::default() };
        let service = v1::Service { name: name.into(), ports: ports.iter().map(port).collect(), ..v1::Service::default() };
        ServiceStatus { service: Some(service), connected }.into()
    };
    agent.connected = false;
    let services = [service("shop/orders", &[80], 0), service("shop/files", &[80], 1), service("shop/web", &[], 0)];
    let findings = assess(&status, &[agent.into()], &services, &[policy.into()], Timestamp::from_second(NOW).unwrap());
    let named: Vec<&str> = findings.iter().filter(|one| one.check == "services").map(|one| one.detail.as_str()).collect();
    assert_eq!(named, ["1 backed by connected agents", "no connected agent backs shop/orders"]);
}
