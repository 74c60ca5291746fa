//! Recorded requests, decided again: by what is stored and by candidates in its place. Pure; the caller brings the records.

use std::collections::BTreeMap;

use outrider_policy::{Call, Compiled, Effect, ServiceName, StoredPolicy, Target, TrustDomain, compile};
use outrider_proto::v1;

use super::{describe, explain::with_call};
use crate::registry::ServiceLabels;

/// Requests named in a group.
const NAMED: usize = 100;

/// A port that is decided for: service, port, what it speaks.
type Port = (ServiceName, u16, &'static str);
/// What a port's policies compile to for each set of labels that its workloads have; `None` where they do not compile.
type ByLabels = Option<Vec<Compiled>>;
/// Effect and rule.
type Verdict = (Effect, String);

/// Decides recorded requests by one set of policies. Each port's policies are compiled once.
#[derive(Debug)]
pub(crate) struct Judge {
    policies: Vec<StoredPolicy>,
    labels: ServiceLabels,
    ports: BTreeMap<Port, ByLabels>,
}

impl Judge {
    pub(crate) fn new(policies: Vec<StoredPolicy>, labels: ServiceLabels) -> Self {
        Self { policies, labels, ports: BTreeMap::new() }
    }

    /// Effect and rule (`namespace/policy/rule`, empty when nothing matches). `None` when it cannot be decided, also because
    /// workloads of the service have different labels and it depends on them.
    pub(crate) fn decide(&mut self, trust_domain: &TrustDomain, record: &v1::DecisionRecord) -> Option<Verdict> {
        let mut verdicts = self.decide_each(trust_domain, record)?.into_iter();
        let first = verdicts.next()?;
        verdicts.all(|other| other.0 == first.0).then_some(first)
    }

    /// The same for each set of labels that a workload of the service has, in their order.
    fn decide_each(&mut self, trust_domain: &TrustDomain, record: &v1::DecisionRecord) -> Option<Vec<Verdict>> {
        let (call, protocol) = describe(record);
        let service: ServiceName = record.destination.parse().ok()?;
        let port = u16::try_from(record.port).ok()?;
        let target = |labels| Target { service: service.clone(), labels, port, protocol };
        let labels = self.labels.of(&service);
        let compiled = self
            .ports
            .entry((service.clone(), port, protocol.as_str()))
            .or_insert_with(|| labels.iter().map(|labels| compile(&self.policies, &target(labels.clone())).ok()).collect());
        let decide = |compiled: &Compiled, call: &Call<'_>| {
            let decision = compiled.decide(call);
            (decision.effect, decision.rule.map(|rule| compiled.rule_name(rule).to_owned()).unwrap_or_default())
        };
        let compiled = compiled.as_ref()?;
        let any = target(BTreeMap::new());
        with_call(&any, trust_domain, &call, |call| compiled.iter().map(|compiled| decide(compiled, call)).collect()).ok()
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
    pub(crate) fn new(
        trust_domain: &'a TrustDomain,
        before: Vec<StoredPolicy>,
        after: Vec<StoredPolicy>,
        labels: ServiceLabels,
    ) -> Self {
        let (before, after) = (Judge::new(before, labels.clone()), Judge::new(after, labels));
        Self { trust_domain, before, after, groups: BTreeMap::new(), replayed: 0, skipped: 0 }
    }

    /// Takes a record. What the callee's agent did not decide by policy is none of ours.
    pub(crate) fn record(&mut self, record: &v1::DecisionRecord) {
        let by_policy = record.effect == "allow" || matches!(record.reason.as_str(), "policy_denied" | "no_policy");
        if record.side() != v1::Side::Inbound || !by_policy {
            return;
        }
        let before = self.before.decide_each(self.trust_domain, record);
        let Some((before, after)) = before.zip(self.after.decide_each(self.trust_domain, record)) else {
            self.skipped += 1;
            return;
        };
        self.replayed += 1;
        // Of workloads with different labels, it was one that decided as the record says.
        let as_recorded = |verdict: &Verdict| verdict.0.to_string() == record.effect;
        let known = before.iter().any(as_recorded);
        let mut pairs = before.into_iter().zip(after).filter(|(before, _)| !known || as_recorded(before));
        if let Some((before, after)) = pairs.find(|(before, after)| before.0 != after.0) {
            self.flip(record, before.1, after.1, after.0);
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
