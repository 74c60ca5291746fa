//! Recorded requests, decided again: by what is stored and by candidates in its place. Pure; the caller brings the records.

use std::collections::BTreeMap;

use outrider_policy::{Compiled, Effect, ServiceName, StoredPolicy, Target, TrustDomain, compile};
use outrider_proto::v1;

use super::{describe, explain::with_call};

/// Requests named in a group.
const NAMED: usize = 100;

/// A port that is decided for: service, port, what it speaks.
type Port = (ServiceName, u16, &'static str);

/// Decides recorded requests by one set of policies. Each port's policies are compiled once.
#[derive(Debug)]
pub(crate) struct Judge {
    policies: Vec<StoredPolicy>,
    /// `None` where they do not compile.
    ports: BTreeMap<Port, Option<Compiled>>,
}

impl Judge {
    pub(crate) fn new(policies: Vec<StoredPolicy>) -> Self {
        Self { policies, ports: BTreeMap::new() }
    }

    /// Effect and rule (`namespace/policy/rule`, empty when nothing matches). `None` when it cannot be decided.
    pub(crate) fn decide(&mut self, trust_domain: &TrustDomain, record: &v1::DecisionRecord) -> Option<(Effect, String)> {
        let (call, protocol) = describe(record);
        let service: ServiceName = record.destination.parse().ok()?;
        let port = u16::try_from(record.port).ok()?;
        let target = Target { service: service.clone(), labels: BTreeMap::new(), port, protocol };
        let compiled = self.ports.entry((service, port, protocol.as_str()));
        let compiled = compiled.or_insert_with(|| compile(&self.policies, &target).ok()).as_ref()?;
        let decision = with_call(&target, trust_domain, &call, |call| compiled.decide(call)).ok()?;
        Some((decision.effect, decision.rule.map(|rule| compiled.rule_name(rule).to_owned()).unwrap_or_default()))
    }
}

/// Requests that flip alike: source, destination, port, method, rules and effect afterwards.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Alike {
    source: String,
    destination: String,
    port: u32,
    method: String,
    rule_before: String,
    rule_after: String,
    is_denied: bool,
}

/// Decides records again, one after the other.
#[derive(Debug)]
pub(crate) struct Replay<'a> {
    trust_domain: &'a TrustDomain,
    before: Judge,
    after: Judge,
    groups: BTreeMap<Alike, v1::FlipGroup>,
    replayed: u64,
    skipped: u64,
}

impl<'a> Replay<'a> {
    /// Compares these two sets of policies.
    pub(crate) fn new(trust_domain: &'a TrustDomain, before: Vec<StoredPolicy>, after: Vec<StoredPolicy>) -> Self {
        let (before, after) = (Judge::new(before), Judge::new(after));
        Self { trust_domain, before, after, groups: BTreeMap::new(), replayed: 0, skipped: 0 }
    }

    /// Takes a record. What the callee's agent did not decide by policy is none of ours.
    pub(crate) fn record(&mut self, record: &v1::DecisionRecord) {
        let by_policy = record.effect == "allow" || matches!(record.reason.as_str(), "policy_denied" | "no_policy");
        if record.side() != v1::Side::Inbound || !by_policy {
            return;
        }
        let before = self.before.decide(self.trust_domain, record);
        match before.zip(self.after.decide(self.trust_domain, record)) {
            None => self.skipped += 1,
            Some((before, after)) => {
                self.replayed += 1;
                if before.0 != after.0 {
                    self.flip(record, before.1, after.1, after.0);
                }
            }
        }
    }

    fn flip(&mut self, record: &v1::DecisionRecord, rule_before: String, rule_after: String, effect: Effect) {
        let is_denied = effect == Effect::Deny;
        let alike = Alike {
            source: record.source.clone(),
            destination: record.destination.clone(),
            port: record.port,
            method: record.method.clone(),
            rule_before,
            rule_after,
            is_denied,
        };
        let group = self.groups.entry(alike).or_insert_with_key(|alike| v1::FlipGroup {
            source: alike.source.clone(),
            destination: alike.destination.clone(),
            port: alike.port,
            method: alike.method.clone(),
            before: if is_denied { Effect::Allow } else { Effect::Deny }.to_string(),
            rule_before: alike.rule_before.clone(),
            after: effect.to_string(),
            rule_after: alike.rule_after.clone(),
            ..v1::FlipGroup::default()
        });
        group.count += 1;
        if group.requests.len() < NAMED {
            group.requests.push(in_short(record));
        }
    }

    /// What came of it.
    pub(crate) fn finish(self, diagnostics: Vec<v1::Diagnostic>) -> v1::ReplayResponse {
        let count =
            |denied: bool| self.groups.iter().filter(|(alike, _)| alike.is_denied == denied).map(|(_, group)| group.count).sum();
        let (newly_denied, newly_allowed) = (count(true), count(false));
        let mut flips: Vec<v1::FlipGroup> = self.groups.into_values().collect();
        flips.sort_by_key(|group| (group.after != "deny", std::cmp::Reverse(group.count)));
        v1::ReplayResponse { diagnostics, replayed: self.replayed, skipped: self.skipped, flips, newly_denied, newly_allowed }
    }
}

/// A record as lists name it.
pub(crate) fn in_short(record: &v1::DecisionRecord) -> v1::RecordedRequest {
    v1::RecordedRequest {
        request_id: record.request_id.clone(),
        time: record.time,
        host: record.host.clone(),
        path: record.path.clone(),
    }
}
