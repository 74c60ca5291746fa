//! One rule of an `AuthorizationPolicy`.
//!
//! There, as here, a rule holds if one of its sources, one of its operations and all of its conditions hold. Conditions are
//! moved into every source or operation, as they are about the one or the other.

use super::condition::{self, Condition, Unsayable};
use super::place::{Place, Report};
use super::value::{self, Word};
use crate::TrustDomain;
use crate::names::Label;
use crate::rule::{Action, Operation, Rule, Source};
use crate::when::When;

/// What a rule is part of.
pub(super) struct Context<'a> {
    pub(super) action: Action,
    pub(super) namespace: &'a str,
    pub(super) trust_domain: Option<&'a TrustDomain>,
}

/// Why fields about tokens have no counterpart.
pub(super) const TOKENS: &str = "tokens cannot be checked yet";
/// Why fields about addresses that proxies report have none.
pub(super) const FORWARDED: &str =
    "addresses that other proxies report are not believed, only the one that connects (`ipBlocks`)";

/// The fields of a source.
const SOURCE: [&str; 12] = [
    "principals",
    "notPrincipals",
    "requestPrincipals",
    "notRequestPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "ipBlocks",
    "notIpBlocks",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
];

/// Those that cannot be kept, and why.
const WITHOUT_COUNTERPART: [(&str, &str); 4] = [
    ("requestPrincipals", TOKENS),
    ("notRequestPrincipals", TOKENS),
    ("remoteIpBlocks", FORWARDED),
    ("notRemoteIpBlocks", FORWARDED),
];

/// The rule in our words; none where it can never hold.
pub(super) fn translate(place: &Place<'_>, index: usize, context: &Context<'_>, report: &mut Report<'_>) -> Option<Rule> {
    place.expect_fields(&["from", "to", "when"], report);
    let conditions = condition::read(place, context, report);
    let from = entries(place, "from", "source", report);
    let to = entries(place, "to", "operation", report);
    let mut sources: Vec<Source> = from.iter().map(|one| source(one, context, report)).collect();
    let mut operations: Vec<Operation> = to.iter().map(|one| operation(one, report)).collect();
    let http =
        operations.iter().any(Operation::needs_http) || conditions.iter().any(|(_, one)| matches!(one, Condition::Header(..)));
    for (place, condition) in &conditions {
        let held = match condition {
            Condition::Ports(..) | Condition::Header(..) => condition.narrow_operations(&mut operations),
            _ => condition.narrow_sources(&mut sources),
        };
        match held {
            Ok(true) => {}
            Ok(false) => {
                report.note(place.remark("nothing can be like this and like the rest of its rule: the rule is left out"));
                return None;
            }
            Err(Unsayable) => {
                report.refuse(place.not_kept("a beginning here and an end elsewhere in its rule are no single pattern"));
                return None;
            }
        }
    }
    if context.action == Action::Allow {
        sources = sources.into_iter().flat_map(with_strangers).collect();
    }
    let name = Label::new(&format!("rule-{}", index + 1)).ok();
    // Istio leaves an allow rule out on an opaque port if any part of it is about HTTP, also one that another makes up for
    let void_on_tcp = context.action == Action::Allow && http && !operations.iter().all(Operation::needs_http);
    let when = if void_on_tcp { When::new("connection.protocol != \"tcp\"").ok() } else { None };
    Some(Rule { name, action: context.action, from: sources, to: operations, when })
}

/// To Istio a caller without identity is *not* somebody; to us an allow never takes that for granted, unless it says so.
fn with_strangers(source: Source) -> Vec<Source> {
    let positive = !(source.principals.is_empty() && source.namespaces.is_empty() && source.service_accounts.is_empty());
    let negative =
        !(source.not_principals.is_empty() && source.not_namespaces.is_empty() && source.not_service_accounts.is_empty());
    if positive || !negative {
        return vec![source];
    }
    let Source { ip_blocks, not_ip_blocks, .. } = source.clone();
    vec![source, Source { ip_blocks, not_ip_blocks, anonymous: Some(true), ..Source::default() }]
}

/// The elements of `from` or `to`, each reduced to what stands in its only field.
fn entries<'n>(rule: &Place<'n>, list: &str, field: &str, report: &mut Report<'_>) -> Vec<Place<'n>> {
    let Some(list) = rule.field(list) else { return Vec::new() };
    let elements = list.elements(report);
    if elements.is_empty() {
        report.refuse(list.invalid("an empty list: leave it out to match everything"));
    }
    let mut entries = Vec::new();
    for element in elements {
        element.expect_fields(&[field], report);
        match element.field(field) {
            Some(entry) => entries.push(entry),
            None => report.refuse(element.invalid(&format!("the field `{field}` is missing"))),
        }
    }
    entries
}

/// The values of a field; a field with an empty list is as good as none.
pub(super) fn words<'n>(entry: &Place<'n>, name: &str, report: &mut Report<'_>) -> Vec<Word<'n>> {
    entry.field(name).map(|field| field.texts(report)).unwrap_or_default()
}

fn source(place: &Place<'_>, context: &Context<'_>, report: &mut Report<'_>) -> Source {
    place.expect_fields(&SOURCE, report);
    for (name, why) in WITHOUT_COUNTERPART {
        if let Some(field) = place.field(name).filter(|_| !words(place, name, report).is_empty()) {
            report.refuse(field.not_kept(why));
        }
    }
    let [principals, not_principals, namespaces, not_namespaces] =
        ["principals", "notPrincipals", "namespaces", "notNamespaces"].map(|name| words(place, name, report));
    let [accounts, not_accounts, blocks, not_blocks] =
        ["serviceAccounts", "notServiceAccounts", "ipBlocks", "notIpBlocks"].map(|name| words(place, name, report));
    let by_account = !(accounts.is_empty() && not_accounts.is_empty());
    let by_other = !(principals.is_empty() && not_principals.is_empty() && namespaces.is_empty() && not_namespaces.is_empty());
    if by_account && by_other {
        report.refuse(place.invalid("`serviceAccounts` excludes `principals` and `namespaces`"));
    }
    refuse_silence(place, &SOURCE, report);
    Source {
        principals: value::principals(&principals, context.trust_domain, report),
        not_principals: value::principals(&not_principals, context.trust_domain, report),
        namespaces: value::alike(&namespaces, report),
        not_namespaces: value::alike(&not_namespaces, report),
        service_accounts: value::service_accounts(&accounts, context.namespace, report),
        not_service_accounts: value::service_accounts(&not_accounts, context.namespace, report),
        ip_blocks: value::alike(&blocks, report),
        not_ip_blocks: value::alike(&not_blocks, report),
        ..Source::default()
    }
}

fn operation(place: &Place<'_>, report: &mut Report<'_>) -> Operation {
    let known = ["hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths"];
    place.expect_fields(&known, report);
    let [hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths] =
        known.map(|name| words(place, name, report));
    if let Some((place, _)) = ports.first().or(not_ports.first()) {
        note_ports(place, report);
    }
    refuse_silence(place, &known, report);
    Operation {
        hosts: value::hosts(&hosts, report),
        not_hosts: value::hosts(&not_hosts, report),
        ports: value::ports(&ports, report),
        not_ports: value::ports(&not_ports, report),
        methods: value::alike(&methods, report),
        not_methods: value::alike(&not_methods, report),
        paths: value::paths(&paths, report),
        not_paths: value::paths(&not_paths, report),
        ..Operation::default()
    }
}

/// An entry without any value would match everything, which is said by leaving it out.
fn refuse_silence(place: &Place<'_>, fields: &[&str], report: &mut Report<'_>) {
    if fields.iter().all(|name| words(place, name, report).is_empty()) {
        report.refuse(place.invalid("it says nothing"));
    }
}

/// Ports are counted at different ends.
pub(super) fn note_ports(place: &Place<'_>, report: &mut Report<'_>) {
    let remark = place.remark("Istio means the port of the workload, Outrider that of the service");
    report.note(remark.help("change it where the two differ"));
}
