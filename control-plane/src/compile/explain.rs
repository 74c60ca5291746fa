//! What the policies in the store decide for a call, and why: the same compile and the same decide as at the agents.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use outrider_policy::{
    Call, Explanation, HttpCall, Protocol, ServiceAccount, ServiceName, SpiffeId, StoredPolicy, Target, TrustDomain, compile,
    host, path,
};
use outrider_proto::v1;

use crate::registry::{World, from_wire};

/// Why a call cannot be explained.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExplainError {
    /// The description is not one of a call.
    #[error("{0}")]
    Described(String),
    /// Agents refuse such a request before any rule.
    #[error("{0}")]
    Refused(String),
    /// The policies do not compile.
    #[error("the policies of `{service}` do not compile: {reason}; its agents deny everything")]
    Compile {
        /// The service.
        service: ServiceName,
        /// All problems.
        reason: String,
    },
}

/// A verdict with its reasons, and remarks.
#[derive(Debug)]
pub(crate) struct Explained {
    pub(crate) explanation: Explanation,
    pub(crate) notes: Vec<String>,
}

/// What is known of a call because it was recorded.
#[derive(Debug)]
pub(crate) struct Recorded<'a> {
    pub(crate) record: &'a v1::DecisionRecord,
    pub(crate) protocol: Protocol,
}

impl Recorded<'_> {
    fn is_by(&self, explanation: &Explanation) -> bool {
        let rule = explanation.rule.as_deref().unwrap_or_default();
        explanation.effect.to_string() == self.record.effect && rule == self.record.rule
    }
}

/// Explains a described call.
pub(crate) fn explain(
    world: &World,
    trust_domain: &TrustDomain,
    call: &v1::CallDescription,
    recorded: Option<&Recorded<'_>>,
) -> Result<Explained, ExplainError> {
    let described = |error: &dyn std::fmt::Display| ExplainError::Described(error.to_string());
    let mut notes = Vec::new();
    let service: ServiceName = call.destination.parse().map_err(|error| described(&error))?;
    let (port, protocol) = port(world, &service, call, recorded.map(|recorded| recorded.protocol), &mut notes)?;
    if protocol.is_http() && call.method.is_empty() {
        return Err(ExplainError::Described(format!("port {port} of `{service}` speaks {protocol}: name METHOD and PATH")));
    }
    let target = |labels| Target { service: service.clone(), labels, port, protocol };
    let labels = world.labels().of(&service);
    let mut explained = Vec::new();
    for labels in &labels {
        let (explanation, audited) = explain_at(world, trust_domain, call, &target(labels.clone()))?;
        explained.push((labels, explanation, audited));
    }
    // A recorded call was decided by a workload that decides so.
    let wanted =
        explained.iter().position(|(_, one, _)| recorded.is_some_and(|recorded| recorded.is_by(one))).unwrap_or_default();
    let Some((own, explanation, audited)) = (wanted < explained.len()).then(|| explained.swap_remove(wanted)) else {
        return Err(ExplainError::Described(format!("`{service}` has no workload")));
    };
    if explanation.rule.is_none() && world.policies.values().all(|policy| !policy.stored.policy.applies_to(&target(own.clone())))
    {
        notes.push(format!("no policy applies to `{service}`: everything is denied"));
    }
    notes.extend(audited);
    let verdict = (explanation.effect, &explanation.rule);
    for (labels, ..) in explained.iter().filter(|(_, other, _)| (other.effect, &other.rule) != verdict) {
        notes.push(format!(
            "this is decided by workloads of `{service}` with {}; those with {} decide otherwise",
            in_words(own),
            in_words(labels)
        ));
    }
    Ok(Explained { explanation, notes })
}

/// What the workloads with one set of labels decide, and remarks.
fn explain_at(
    world: &World,
    trust_domain: &TrustDomain,
    call: &v1::CallDescription,
    target: &Target,
) -> Result<(Explanation, Vec<String>), ExplainError> {
    let applicable = world.policies.values().filter(|policy| policy.stored.policy.applies_to(target));
    let policies: Vec<StoredPolicy> = applicable.map(|policy| policy.stored.clone()).collect();
    let compiled = compile(&policies, target).map_err(|problems| ExplainError::Compile {
        service: target.service.clone(),
        reason: problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    })?;
    with_call(target, trust_domain, call, |call| {
        let audited =
            compiled.decide(call).audited.iter().map(|rule| format!("audited by {}", compiled.rule_name(rule))).collect();
        (compiled.explain(call), audited)
    })
}

fn in_words(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("`{key}={value}`")).collect();
    if pairs.is_empty() { "no labels".to_owned() } else { format!("the labels {}", pairs.join(", ")) }
}

/// Does something with a described call to a port.
///
/// # Errors
/// When the description is not one of a call.
pub(crate) fn with_call<T>(
    target: &Target,
    trust_domain: &TrustDomain,
    call: &v1::CallDescription,
    then: impl FnOnce(&Call<'_>) -> T,
) -> Result<T, ExplainError> {
    let refused = |error: &dyn std::fmt::Display| ExplainError::Refused(format!("the request is refused: {error}"));
    let source = source(&call.source, trust_domain)?;
    let source_ip = match call.source_ip.as_str() {
        "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        text => text.parse().map_err(|_| ExplainError::Described(format!("`{text}` is not an IP address")))?,
    };
    let (raw_path, query) = call.path.split_once('?').map_or((call.path.as_str(), None), |(path, query)| (path, Some(query)));
    let raw_path = if raw_path.is_empty() { "/" } else { raw_path };
    let path = path::canonical_target(&call.method, raw_path.as_bytes()).map_err(|error| refused(&error))?;
    let default_host = format!("{}.{}", target.service.name(), target.service.namespace());
    let raw_host = if call.host.is_empty() { default_host.as_str() } else { call.host.as_str() };
    let host = host::canonical(raw_host.as_bytes()).map_err(|error| refused(&error))?;
    let headers: Vec<(&str, &[u8])> = call.headers.iter().map(|header| (header.name.as_str(), header.value.as_slice())).collect();
    let method = if call.method.is_empty() { "GET" } else { call.method.as_str() };
    let http = target.protocol.is_http().then(|| HttpCall { method, host: &host.name, path: &path, query, headers: &headers });
    Ok(then(&Call { source: source.as_ref(), source_ip, port: target.port, protocol: target.protocol, http }))
}

/// The port that is meant, and what it speaks.
fn port(
    world: &World,
    service: &ServiceName,
    call: &v1::CallDescription,
    declared: Option<Protocol>,
    notes: &mut Vec<String>,
) -> Result<(u16, Protocol), ExplainError> {
    let wanted = u16::try_from(call.port).map_err(|_| ExplainError::Described(format!("{} is not a port", call.port)))?;
    let ports = world.services.get(service).map(|entry| entry.ports.clone()).unwrap_or_default();
    let list = || ports.keys().map(u16::to_string).collect::<Vec<_>>().join(", ");
    if let (Some(protocol), true) = (declared, wanted != 0) {
        return Ok((wanted, protocol));
    }
    match (wanted, ports.len()) {
        (_, 0) => {
            let protocol = if call.method.is_empty() { Protocol::Tcp } else { Protocol::Http };
            notes.push(format!("no agent backs `{service}` now: its port is taken to speak {protocol}"));
            Ok((if wanted == 0 { 80 } else { wanted }, protocol))
        }
        (0, 1) => ports
            .first_key_value()
            .map(|(port, protocol)| (*port, *protocol))
            .ok_or_else(|| ExplainError::Described(String::new())),
        (0, _) => Err(ExplainError::Described(format!("`{service}` has ports {}: name one with `--port`", list()))),
        (wanted, _) => match ports.get(&wanted) {
            Some(protocol) => Ok((wanted, *protocol)),
            None => Err(ExplainError::Described(format!("`{service}` has no port {wanted}, it has {}", list()))),
        },
    }
}

fn source(text: &str, trust_domain: &TrustDomain) -> Result<Option<SpiffeId>, ExplainError> {
    identity(text, trust_domain).map_err(ExplainError::Described)
}

/// A SPIFFE ID, or `namespace/service-account` in our trust domain; `None` for an empty text.
pub(crate) fn identity(text: &str, trust_domain: &TrustDomain) -> Result<Option<SpiffeId>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    if text.starts_with("spiffe:") {
        return SpiffeId::new(text).map(Some).map_err(|error| error.to_string());
    }
    let account: ServiceAccount =
        text.parse().map_err(|_| format!("`{text}` is neither a SPIFFE ID nor `namespace/service-account`"))?;
    Ok(Some(SpiffeId::of_account(trust_domain, &account)))
}

/// Describes a recorded call, to decide it again.
pub(crate) fn describe(record: &v1::DecisionRecord) -> (v1::CallDescription, Protocol) {
    let call = v1::CallDescription {
        source: record.source.clone(),
        source_ip: record.peer_address.parse::<SocketAddr>().map(|address| address.ip().to_string()).unwrap_or_default(),
        destination: record.destination.clone(),
        port: record.port,
        method: record.method.clone(),
        host: record.host.clone(),
        path: record.path.clone(),
        headers: record.headers.clone(),
    };
    (call, from_wire(record.protocol()))
}
