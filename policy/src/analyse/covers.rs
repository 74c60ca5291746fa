//! Rules that another rule makes pointless.

use std::collections::HashMap;
use std::sync::Arc;

use super::Report;
use crate::compile::rule_name;
use crate::manifest::Finding;
use crate::resource::ServicePolicy;
use crate::rule::{Action, Operation, Rule, Source};
use crate::target::Layer;

/// Most pairs of values that are compared for one policy; beyond it only equal rules are found.
const MAX_PAIRS: usize = 5_000_000;

/// All rules, those of equal content together.
pub(super) struct Index<'a> {
    rules: Vec<(&'a Arc<ServicePolicy>, usize, &'a Rule)>,
    /// The first rule of each content.
    equal: HashMap<String, usize>,
    weight: usize,
}

impl<'a> Index<'a> {
    pub(super) fn of(policies: &[&'a Arc<ServicePolicy>]) -> Self {
        let rules: Vec<_> = policies
            .iter()
            .flat_map(|policy| policy.rules().iter().enumerate().map(move |(index, rule)| (*policy, index, rule)))
            .collect();
        let mut equal = HashMap::new();
        for (at, (_, _, rule)) in rules.iter().enumerate() {
            equal.entry(content(rule)).or_insert(at);
        }
        let weight = rules.iter().map(|(_, _, rule)| weight(rule)).sum();
        Self { rules, equal, weight }
    }
}

/// How many values a rule has to compare.
fn weight(rule: &Rule) -> usize {
    let source = |s: &Source| {
        s.principals.len()
            + s.not_principals.len()
            + s.namespaces.len()
            + s.not_namespaces.len()
            + s.service_accounts.len()
            + s.not_service_accounts.len()
            + s.ip_blocks.len()
            + s.not_ip_blocks.len()
    };
    let operation = |o: &Operation| {
        o.hosts.len()
            + o.not_hosts.len()
            + o.ports.len()
            + o.not_ports.len()
            + o.methods.len()
            + o.not_methods.len()
            + o.paths.len()
            + o.not_paths.len()
            + o.headers.len()
            + o.not_headers.len()
    };
    1 + rule.from.iter().map(|s| 1 + source(s)).sum::<usize>() + rule.to.iter().map(|o| 1 + operation(o)).sum::<usize>()
}

/// What a rule says, without its name.
fn content(rule: &Rule) -> String {
    let nameless = Rule { name: None, ..rule.clone() };
    serde_json::to_string(&nameless).unwrap_or_default()
}

pub(super) fn examine(report: &mut Report<'_>, index: &Index<'_>) {
    let policy = Arc::clone(&report.manifest.policy);
    let weight: usize = policy.rules().iter().map(weight).sum();
    let affordable = weight.saturating_mul(index.weight) <= MAX_PAIRS;
    // rules of one policy stand together, in their order
    let first = index.rules.iter().position(|(other, ..)| Arc::ptr_eq(other, &policy)).unwrap_or(usize::MAX);
    for (at, rule) in policy.rules().iter().enumerate() {
        let finding = if affordable {
            let own = first.saturating_add(at);
            index.rules.iter().enumerate().find_map(|(other_at, other)| covered(&policy, rule, own, other_at, other))
        } else {
            equal_to(index, &policy, at, rule)
        };
        if let Some((other, what)) = finding {
            let position = report.manifest.rule_position(at);
            let name = rule_name(&policy, at, rule);
            report.warning(
                Finding::new(position, format!("rule `{name}` {what} `{other}`")).help("remove it, or narrow the other one"),
            );
        }
    }
}

fn equal_to(index: &Index<'_>, policy: &Arc<ServicePolicy>, at: usize, rule: &Rule) -> Option<(String, &'static str)> {
    let first = index.rules.get(*index.equal.get(&content(rule))?)?;
    let (other, other_at, other_rule) = first;
    let same = Arc::ptr_eq(other, policy) && *other_at == at;
    (!same && reaches(other, policy)).then(|| (rule_name(other, *other_at, other_rule), "says the same as"))
}

fn covered(
    policy: &ServicePolicy,
    rule: &Rule,
    own: usize,
    other_at: usize,
    other: &(&Arc<ServicePolicy>, usize, &Rule),
) -> Option<(String, &'static str)> {
    let (other_policy, other_index, other_rule) = other;
    if own == other_at || !reaches(other_policy, policy) || !covers(other_rule, rule) {
        return None;
    }
    let what = match (other_rule.action, rule.action) {
        (Action::Deny, Action::Allow) => "is unreachable: whatever it allows is denied by",
        // of two equal rules the later one is called a duplicate
        (a, b) if a == b && covers(rule, other_rule) && reaches(policy, other_policy) => {
            if own < other_at {
                return None;
            }
            "says the same as"
        }
        (a, b) if a == b => "is shadowed: whatever it holds for is covered by",
        _ => return None,
    };
    Some((rule_name(other_policy, *other_index, other_rule), what))
}

/// Whether `wide` applies to everything that `narrow` applies to.
fn reaches(wide: &ServicePolicy, narrow: &ServicePolicy) -> bool {
    let home = wide.metadata.namespace == narrow.metadata.namespace;
    match wide.layer() {
        Layer::Mesh => true,
        Layer::Namespace => home,
        Layer::Targeted => {
            let names = !wide.spec.target_refs.is_empty() && !narrow.spec.target_refs.is_empty();
            let same_names = names && narrow.spec.target_refs.iter().all(|target| wide.spec.target_refs.contains(target));
            home && (same_names || (wide.spec.selector.is_some() && wide.spec.selector == narrow.spec.selector))
        }
    }
}

/// Whether `wide` holds for every call that `narrow` holds for. May say no where the answer is yes.
pub(super) fn covers(wide: &Rule, narrow: &Rule) -> bool {
    let from = wide.from.is_empty()
        || (!narrow.from.is_empty() && narrow.from.iter().all(|b| wide.from.iter().any(|a| source_covers(a, b))));
    let from = from || wide.from.contains(&Source::default());
    let to =
        wide.to.is_empty() || (!narrow.to.is_empty() && narrow.to.iter().all(|b| wide.to.iter().any(|a| operation_covers(a, b))));
    let to = to || wide.to.contains(&Operation::default());
    from && to && (wide.when.is_none() || wide.when == narrow.when)
}

fn source_covers(a: &Source, b: &Source) -> bool {
    lists(&a.principals, &a.not_principals, &b.principals, &b.not_principals, |a, b| a.pattern().covers(b.pattern()))
        && lists(&a.namespaces, &a.not_namespaces, &b.namespaces, &b.not_namespaces, |a, b| a.pattern().covers(b.pattern()))
        && lists(&a.service_accounts, &a.not_service_accounts, &b.service_accounts, &b.not_service_accounts, |a, b| {
            a.pattern().covers(b.pattern())
        })
        && lists(&a.trust_domains, &a.not_trust_domains, &b.trust_domains, &b.not_trust_domains, |a, b| {
            a.pattern().covers(b.pattern())
        })
        && lists(&a.ip_blocks, &a.not_ip_blocks, &b.ip_blocks, &b.not_ip_blocks, |a, b| a.net().contains(&b.net()))
        && (a.anonymous.is_none() || a.anonymous == b.anonymous)
}

fn operation_covers(a: &Operation, b: &Operation) -> bool {
    lists(&a.hosts, &a.not_hosts, &b.hosts, &b.not_hosts, |a, b| a.pattern().covers(b.pattern()))
        && lists(&a.ports, &a.not_ports, &b.ports, &b.not_ports, |a, b| a == b)
        && lists(&a.methods, &a.not_methods, &b.methods, &b.not_methods, |a, b| a.pattern().covers(b.pattern()))
        && lists(&a.paths, &a.not_paths, &b.paths, &b.not_paths, |a, b| a.covers(b))
        && a.headers.iter().all(|header| b.headers.contains(header))
        && a.not_headers.iter().all(|header| b.not_headers.contains(header))
}

/// One field and its `not…` form: `a` asks for no more than `b`, and excludes no more than `b`.
fn lists<T>(a: &[T], not_a: &[T], b: &[T], not_b: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
    let wanted = a.is_empty() || (!b.is_empty() && b.iter().all(|b| a.iter().any(|a| covers(a, b))));
    wanted && not_a.iter().all(|a| not_b.iter().any(|b| covers(b, a)))
}
