//! The wire's words for what operators ask about.

use outrider_policy::{Diagnostic, Explanation, MtlsMode, Severity, Target, Unknown};
use outrider_proto::v1;

use crate::{
    ca::{CaInfo, hex, renew_at},
    compile::Explained,
    registry::{Canary, CanaryState, Change, Concerned, Phase, Policy, Route, Session},
    store::{AgentRow, CertificateRow, RevisionRow},
};

/// The kind of resource that has no kind in its name.
pub(super) const KIND: &str = "ServicePolicy";
/// Why an agent lags that has no stream.
const AWAY: &str = "not connected";
/// Days before a root's end from which operators are warned.
const ROOT_NOTICE: i64 = 180 * 86_400;

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

pub(super) fn diagnostic(diagnostic: Diagnostic) -> v1::Diagnostic {
    let severity = match diagnostic.severity {
        Severity::Error => v1::diagnostic::Severity::Error,
        Severity::Warning => v1::diagnostic::Severity::Warning,
    };
    v1::Diagnostic {
        severity: severity.into(),
        source: diagnostic.source,
        line: count(diagnostic.line),
        column: count(diagnostic.column),
        message: diagnostic.message,
        help: diagnostic.help.unwrap_or_default(),
    }
}

/// Of `KIND/namespace/name`, or a policy's `namespace/name`.
fn kind_and_name(label: &str) -> (String, String) {
    match label.split_once('/') {
        Some((kind, name)) if Route::is_label(label) => (kind.to_owned(), name.to_owned()),
        _ => (KIND.to_owned(), label.to_owned()),
    }
}

/// A stored route and where it is in force.
pub(super) fn route(route: &Route, sessions: &[Session]) -> v1::RouteStatus {
    let concerned: Vec<&Session> = sessions.iter().filter(|session| route.concerns(session)).collect();
    let laggards = concerned.iter().filter(|session| session.in_force < route.revision);
    let laggards: Vec<v1::Laggard> = laggards.map(|session| laggard(session, refused(session))).collect();
    let own = &route.stored.route;
    let mut backends: Vec<String> = own.backends().map(|service| service.to_string()).collect();
    backends.sort_unstable();
    backends.dedup();
    v1::RouteStatus {
        kind: own.kind.as_str().to_owned(),
        name: own.full_name(),
        revision: route.revision,
        json: route.json.clone(),
        parents: own.parents().map(|service| service.to_string()).collect(),
        backends,
        agents: count(concerned.len()),
        in_force: count(concerned.len() - laggards.len()),
        laggards,
    }
}

pub(super) fn changes(changes: Vec<(String, Change)>) -> Vec<v1::ResourceChange> {
    use v1::resource_change::Change as Wire;
    let change = |(name, change): (String, Change)| {
        let change = match change {
            Change::Created => Wire::Created,
            Change::Updated => Wire::Updated,
            Change::Unchanged => Wire::Unchanged,
            Change::Deleted => Wire::Deleted,
        };
        let (kind, name) = kind_and_name(&name);
        v1::ResourceChange { kind, name, change: change.into() }
    };
    changes.into_iter().map(change).collect()
}

fn laggard(session: &Session, reason: &str) -> v1::Laggard {
    v1::Laggard { agent_id: session.agent_id.clone(), identity: session.identity.clone(), reason: reason.to_owned() }
}

/// What a session refused that has not this revision in force. It may have been an older revision: as long as it stands,
/// nothing newer that holds the same is even sent.
fn refused(session: &Session) -> &str {
    session.refused.as_ref().map(|(_, reason)| reason.as_str()).unwrap_or_default()
}

pub(super) fn canary(state: CanaryState) -> v1::CanaryStatus {
    use v1::canary_status::Phase as Wire;
    let phase = match state.phase {
        Phase::Nothing => Wire::Unspecified,
        Phase::Pushing => Wire::Pushing,
        Phase::Watching => Wire::Watching,
        Phase::Promoted => Wire::Promoted,
        Phase::RolledBack => Wire::RolledBack,
    };
    v1::CanaryStatus {
        diagnostics: state.diagnostics.into_iter().map(diagnostic).collect(),
        phase: phase.into(),
        revision: state.revision,
        agents: count(state.agents),
        chosen: state.chosen,
        in_force: count(state.in_force),
        newly_denied: state.newly_denied,
        examples: state.examples,
        reason: state.reason,
        seconds_left: u32::try_from(state.seconds_left).unwrap_or(u32::MAX),
        changes: changes(state.changes),
    }
}

pub(super) fn revision(row: RevisionRow) -> v1::Revision {
    // In the store a route stands by `namespace/KIND/name`.
    let shown = |subject: String| match subject.split('/').collect::<Vec<_>>().as_slice() {
        [namespace, kind, name] => format!("{kind} {namespace}/{name}"),
        _ => subject,
    };
    let policies = row.policies.into_iter().map(shown).collect();
    v1::Revision { revision: row.revision, time: row.time, who: row.who, call: row.call, policies }
}

/// A stored policy and where it is in force; agents that try a candidate in its place have it not.
pub(super) fn policy(
    name: &str,
    policy: &Policy,
    targets: &[Target],
    sessions: &[Session],
    canary: Option<&Canary>,
) -> v1::PolicyStatus {
    let revision = policy.stored.revision;
    let mut services: Vec<String> = targets
        .iter()
        .filter(|target| policy.stored.policy.applies_to(target))
        .map(|target| target.service.to_string())
        .collect();
    services.dedup();
    let concerned: Vec<&Session> = sessions.iter().filter(|session| policy.applies_to_any(&session.targets)).collect();
    let canary = canary.filter(|canary| canary.policies.contains_key(name));
    let laggards: Vec<v1::Laggard> = concerned
        .iter()
        .filter_map(|session| match canary.filter(|canary| canary.chosen.contains(&session.agent_id)) {
            Some(canary) => Some(laggard(session, &format!("tries revision {} as a canary", canary.revision))),
            None if session.in_force < revision => Some(laggard(session, refused(session))),
            None => None,
        })
        .collect();
    v1::PolicyStatus {
        name: name.to_owned(),
        revision,
        json: policy.json.clone(),
        targets: services,
        agents: count(concerned.len()),
        in_force: count(concerned.len() - laggards.len()),
        laggards,
    }
}

pub(super) fn agent(agent: &AgentRow, session: Option<&Session>) -> v1::AgentStatus {
    let refused = session.and_then(|session| session.refused.as_ref()).map(|(_, reason)| reason.clone());
    v1::AgentStatus {
        agent_id: agent.id.clone(),
        identity: agent.identity.to_string(),
        version: session.map_or(&agent.version, |session| &session.version).clone(),
        services: agent.backings.iter().map(|backing| backing.service.to_string()).collect(),
        connected: session.is_some(),
        last_seen: session.map_or(agent.last_seen, |session| session.last_seen),
        revision: session.map_or(0, |session| session.in_force),
        nack: refused.unwrap_or_default(),
        certificate_serial: session.map(|session| session.serial.clone()).unwrap_or_default(),
        certificate_not_after: session.map_or(0, |session| session.certificate_end),
        labels: agent.backings.iter().flat_map(|backing| backing.labels.clone()).collect(),
    }
}

/// An agent that has not this revision in force, and whether that is its last word; `None` when it has.
fn lagging(agent: &Concerned, revision: u64, present: impl Fn(&str) -> bool) -> Option<(v1::Laggard, bool)> {
    let Some(session) = &agent.session else {
        let away = v1::Laggard { agent_id: agent.agent_id.clone(), identity: agent.identity.clone(), reason: AWAY.to_owned() };
        // Until its grace ends it is part of the mesh, and may come back.
        return Some((away, !present(&agent.agent_id)));
    };
    if session.in_force >= revision {
        return None;
    }
    // A refusal of something older is no answer to what is on the way or has not been looked at.
    let answered = session.considered >= revision && !session.answering;
    let reason = if answered { refused(session) } else { "" };
    Some((laggard(session, reason), !reason.is_empty()))
}

/// `present` says whether the endpoints of an agent are part of the mesh.
pub(super) fn rollout(revision: u64, concerned: &[Concerned], present: impl Fn(&str) -> bool) -> v1::RolloutStatus {
    let lag: Vec<(v1::Laggard, bool)> = concerned.iter().filter_map(|agent| lagging(agent, revision, &present)).collect();
    v1::RolloutStatus {
        revision,
        agents: count(concerned.len()),
        in_force: count(concerned.len() - lag.len()),
        done: lag.iter().all(|(_, is_final)| *is_final),
        laggards: lag.into_iter().map(|(laggard, _)| laggard).collect(),
    }
}

/// `asked` are the sessions as they were when they were asked.
pub(super) fn rotation(asked: &[Session], now: impl Fn(&str) -> Option<Session>) -> v1::RotationStatus {
    let lag = asked.iter().filter_map(|before| match now(&before.agent_id) {
        Some(session) if session.serial != before.serial => None,
        Some(session) => Some(laggard(&session, "")),
        None => Some(laggard(before, AWAY)),
    });
    let laggards: Vec<v1::Laggard> = lag.collect();
    v1::RotationStatus {
        agents: count(asked.len()),
        renewed: count(asked.len() - laggards.len()),
        done: laggards.is_empty(),
        laggards,
    }
}

pub(super) fn certificate(row: CertificateRow) -> v1::CertificateStatus {
    v1::CertificateStatus {
        serial: row.serial,
        identity: row.identity,
        not_before: row.not_before,
        not_after: row.not_after,
        evidence: row.evidence,
        agent_id: row.agent_id,
        issuer: row.issuer,
        replica: row.replica,
        root: row.root,
    }
}

pub(super) fn authority(ca: CaInfo) -> v1::CaStatus {
    v1::CaStatus {
        role: ca.role.to_owned(),
        common_name: ca.common_name,
        serial: ca.serial,
        not_before: ca.not_before,
        not_after: ca.not_after,
        spki_sha256: hex(&ca.spki),
        signs: ca.signs,
    }
}

/// What is worth a look about the CAs, worst first.
pub(super) fn ca_warnings(authorities: &[CaInfo], now: i64) -> Vec<String> {
    let mut warnings = Vec::new();
    for ca in authorities {
        let left = ca.not_after - now;
        if left <= 0 {
            warnings.push(format!("the {} CA `{}` has expired", ca.role, ca.common_name));
        } else if now < ca.not_before {
            warnings.push(format!(
                "the {} CA `{}` is not valid for another {} s: the clock has moved back, or is wrong",
                ca.role,
                ca.common_name,
                ca.not_before - now
            ));
        } else if ca.role == "root" && left < ROOT_NOTICE {
            warnings.push(format!("the root CA ends in {} days: plan its rotation", left / 86_400));
        } else if ca.role != "root" && now > renew_at(ca.not_before, ca.not_after) + 3600 {
            warnings.push(format!("the issuing CA is past its renewal point and was not renewed, it ends in {} h", left / 3600));
        }
    }
    warnings
}

/// A canary is something to know of: other changes wait for its end.
pub(super) fn under_way(canary: &Canary) -> String {
    let names: Vec<&str> = canary.policies.keys().map(String::as_str).collect();
    let names = names.join(", ");
    let agents = if canary.chosen.len() == 1 { "one agent".to_owned() } else { format!("{} agents", canary.chosen.len()) };
    format!("a canary (revision {}) of {names} is under way at {agents}: `outrider rollback` ends it", canary.revision)
}

/// A policy that lets plaintext in, which is for the time of a migration only.
pub(super) fn plaintext(name: &str, policy: &Policy) -> Option<String> {
    let mtls = policy.stored.policy.spec.mtls.as_ref()?;
    let of = |mode: MtlsMode| mtls.ports.iter().filter(move |(_, own)| **own == mode).map(|(port, _)| port.to_string());
    let (open, closed): (Vec<_>, Vec<_>) = (of(MtlsMode::Permissive).collect(), of(MtlsMode::Strict).collect());
    let ports = match (mtls.mode, open.is_empty(), closed.is_empty()) {
        (MtlsMode::Permissive, _, true) => "at every port".to_owned(),
        (MtlsMode::Permissive, _, false) => format!("at every port but {}", closed.join(", ")),
        (MtlsMode::Strict, false, _) => format!("at port {}", open.join(", ")),
        (MtlsMode::Strict, true, _) => return None,
    };
    Some(format!("policy {name} lets plaintext in {ports} (Permissive): end the migration"))
}

pub(super) fn refusal(session: &Session) -> Option<String> {
    let (revision, reason) = session.refused.as_ref()?;
    Some(format!("agent {} (`{}`) refused revision {revision}: {reason}", session.agent_id, session.identity))
}

pub(super) fn explained(explained: Explained, records: Vec<v1::DecisionRecord>) -> v1::ExplainResponse {
    let Explained { explanation, notes } = explained;
    let miss = |miss: outrider_policy::NearMiss| v1::NearMiss {
        rule: miss.rule,
        action: miss.action.to_string().to_lowercase(),
        held: count(miss.held),
        failed: miss.failed,
    };
    v1::ExplainResponse {
        effect: explanation.effect.to_string(),
        rule: explanation.rule.unwrap_or_default(),
        revision: explanation.revision,
        near_misses: explanation.near_misses.into_iter().map(miss).collect(),
        records,
        notes,
        refused: String::new(),
    }
}

/// What is made of policies for services that nobody has heard of.
pub(super) fn unknown(allowed: bool) -> Unknown {
    if allowed { Unknown::Expected } else { Unknown::Refused }
}

/// A described call that agents answer with 400 before any rule.
pub(super) fn unreadable(why: String) -> v1::ExplainResponse {
    v1::ExplainResponse { effect: outrider_policy::Effect::Deny.to_string(), refused: why, ..v1::ExplainResponse::default() }
}

/// A refusal before any policy was asked: the record says it all.
pub(super) fn undecided(record: v1::DecisionRecord, records: Vec<v1::DecisionRecord>) -> v1::ExplainResponse {
    let place = match record.side() {
        v1::Side::Outbound => format!("refused by the caller's own agent, for host `{}`", record.host),
        v1::Side::Inbound | v1::Side::Unspecified => "refused at the callee's agent, before a service was known".to_owned(),
    };
    let why = format!("{}: {}", record.reason, record.detail);
    v1::ExplainResponse { effect: record.effect, records, notes: vec![place, why], ..v1::ExplainResponse::default() }
}

/// Remarks on what changed since a request was decided.
pub(super) fn since(record: &v1::DecisionRecord, explanation: &Explanation) -> Vec<String> {
    let mut notes = Vec::new();
    if record.revision != explanation.revision {
        notes.push(format!(
            "decided by revision {}; the reasons are those of revision {} now",
            record.revision, explanation.revision
        ));
    }
    if record.effect != explanation.effect.to_string() {
        notes.push(format!("the same request would get `{}` now", explanation.effect));
    }
    notes
}
