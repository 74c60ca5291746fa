//! Rules that can never hold, and rules that hold for more than most people mean.

use super::Report;
use crate::SpiffeId;
use crate::compile::rule_name;
use crate::manifest::{Finding, Position, Step};
use crate::pattern::Pattern;
use crate::rule::{Action, Operation, Rule, Source};

pub(super) fn examine(report: &mut Report<'_>) {
    let policy = std::sync::Arc::clone(&report.manifest.policy);
    for (index, rule) in policy.rules().iter().enumerate() {
        let name = rule_name(&policy, index, rule);
        for (entry, source) in rule.from.iter().enumerate() {
            if let Some(why) = contradiction_in_source(source) {
                report.error(never_holds(position(report, index, "from", entry), &name, &why));
            }
        }
        for (entry, operation) in rule.to.iter().enumerate() {
            if let Some(why) = contradiction_in_operation(operation) {
                report.error(never_holds(position(report, index, "to", entry), &name, &why));
            }
        }
        too_wide(report, index, rule, &name);
    }
}

fn position(report: &Report<'_>, rule: usize, list: &str, entry: usize) -> Position {
    report.manifest.position_of(&[
        Step::Field("spec"),
        Step::Field("authorization"),
        Step::Field("rules"),
        Step::Element(rule),
        Step::Field(list),
        Step::Element(entry),
    ])
}

fn never_holds(at: Position, name: &str, why: &str) -> Finding {
    Finding::new(at, format!("this entry of rule `{name}` can never hold: {why}"))
        .help("fields of one entry must all hold; write alternatives as entries of their own")
}

fn contradiction_in_source(source: &Source) -> Option<String> {
    let Source {
        principals,
        not_principals,
        namespaces,
        not_namespaces,
        service_accounts,
        not_service_accounts,
        trust_domains,
        not_trust_domains,
        ip_blocks,
        not_ip_blocks,
        anonymous,
    } = source;
    let identity = !(principals.is_empty() && namespaces.is_empty() && service_accounts.is_empty() && trust_domains.is_empty());
    if *anonymous == Some(true) && identity {
        return Some("an anonymous caller has no identity".to_owned());
    }
    excluded("principals", principals, not_principals, |a, b| b.pattern().covers(a.pattern()))
        .or_else(|| excluded("namespaces", namespaces, not_namespaces, |a, b| b.pattern().covers(a.pattern())))
        .or_else(|| excluded("serviceAccounts", service_accounts, not_service_accounts, |a, b| b.pattern().covers(a.pattern())))
        .or_else(|| excluded("trustDomains", trust_domains, not_trust_domains, |a, b| b.pattern().covers(a.pattern())))
        .or_else(|| excluded("ipBlocks", ip_blocks, not_ip_blocks, |a, b| b.net().contains(&a.net())))
        .or_else(|| other_namespaces(source))
}

fn excluded<T>(field: &str, wanted: &[T], unwanted: &[T], covered: impl Fn(&T, &T) -> bool) -> Option<String> {
    let all = !wanted.is_empty() && wanted.iter().all(|a| unwanted.iter().any(|b| covered(a, b)));
    all.then(|| format!("everything in `{field}` is excluded by its `not…` form"))
}

/// `namespaces: [shop]` beside `serviceAccounts: [other/web]`.
fn other_namespaces(source: &Source) -> Option<String> {
    if source.namespaces.is_empty() {
        return None;
    }
    let outside = |namespace: Option<&str>| {
        namespace.is_some_and(|namespace| !source.namespaces.iter().any(|pattern| pattern.matches(namespace)))
    };
    let account = |pattern: &Pattern| match pattern {
        Pattern::Exact(account) => outside(account.split_once('/').map(|(namespace, _)| namespace)),
        _ => false,
    };
    let principal = |pattern: &Pattern| match pattern {
        Pattern::Exact(id) => outside(SpiffeId::new(id).ok().as_ref().and_then(SpiffeId::namespace)),
        _ => false,
    };
    let accounts =
        !source.service_accounts.is_empty() && source.service_accounts.iter().all(|pattern| account(pattern.pattern()));
    let principals = !source.principals.is_empty() && source.principals.iter().all(|pattern| principal(pattern.pattern()));
    (accounts || principals).then(|| "its callers are in none of its `namespaces`".to_owned())
}

fn contradiction_in_operation(operation: &Operation) -> Option<String> {
    let Operation { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths, headers, not_headers } =
        operation;
    excluded("hosts", hosts, not_hosts, |a, b| b.pattern().covers(a.pattern()))
        .or_else(|| excluded("ports", ports, not_ports, |a, b| a == b))
        .or_else(|| excluded("methods", methods, not_methods, |a, b| b.pattern().covers(a.pattern())))
        .or_else(|| excluded("paths", paths, not_paths, |a, b| b.covers(a)))
        .or_else(|| {
            headers
                .iter()
                .any(|header| not_headers.contains(header))
                .then(|| "a header is both asked for and excluded".to_owned())
        })
}

fn too_wide(report: &mut Report<'_>, index: usize, rule: &Rule, name: &str) {
    let anybody = rule.from.is_empty() || rule.from.iter().any(is_anybody);
    let anything = rule.to.is_empty() || rule.to.iter().any(|operation| *operation == Operation::default());
    if rule.when.is_some() || !anybody || !anything {
        return;
    }
    let at = report.manifest.rule_position(index);
    match rule.action {
        Action::Allow => report.warning(
            Finding::new(at, format!("rule `{name}` allows every caller everything"))
                .help("say who may with `from`, or what with `to`"),
        ),
        Action::Deny => report.warning(
            Finding::new(at, format!("rule `{name}` denies every call, so that no rule can allow one"))
                .help("without any rule nothing is allowed either: leave it out"),
        ),
        Action::Audit => {}
    }
    if rule.action == Action::Allow && super::landing::may_be_anonymous(&report.manifest.policy) {
        report.warning(
            Finding::new(at, format!("rule `{name}` also allows callers that come in plaintext, without any identity"))
                .help("add `from: [{ anonymous: false }]`"),
        );
    }
}

fn is_anybody(source: &Source) -> bool {
    let everywhere = |source: &Source| source.ip_blocks.iter().any(|block| block.net().prefix_len() == 0);
    *source == Source::default()
        || (everywhere(source) && Source { ip_blocks: Vec::new(), ..source.clone() } == Source::default())
}
