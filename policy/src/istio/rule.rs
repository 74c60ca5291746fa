//! One rule of an `AuthorizationPolicy`.
//!
//! There, as here, a rule holds if one of its sources, one of its operations and all of its conditions hold. Conditions are
//! moved into every source or operation, as they are about the one or the other.

use super::place::{Place, Report};
use super::value::{self, Word};
use crate::TrustDomain;
use crate::header::HeaderMatch;
use crate::names::Label;
use crate::pattern::{AccountPattern, NamespacePattern, PrincipalPattern};
use crate::rule::{Action, IpBlock, Operation, Rule, Source};
use crate::when::When;

/// What a rule is part of.
pub(super) struct Context<'a> {
    pub(super) action: Action,
    pub(super) namespace: &'a str,
    pub(super) trust_domain: Option<&'a TrustDomain>,
}

/// A key of `when`, with what its value must and must not be.
enum Condition {
    Principals(Vec<PrincipalPattern>, Vec<PrincipalPattern>),
    Namespaces(Vec<NamespacePattern>, Vec<NamespacePattern>),
    ServiceAccounts(Vec<AccountPattern>, Vec<AccountPattern>),
    Addresses(Vec<IpBlock>, Vec<IpBlock>),
    Ports(Vec<u16>, Vec<u16>),
    Header(Option<HeaderMatch>, Vec<HeaderMatch>),
}

/// Two conditions on the same thing that cannot be said in one.
struct Unsayable;

const TOKENS: &str = "tokens cannot be checked yet";
const FORWARDED: &str = "addresses that other proxies report are not believed, only the one that connects (`ipBlocks`)";

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
    let conditions = conditions(place, context, report);
    let from = entries(place, "from", "source", report);
    let to = entries(place, "to", "operation", report);
    let mut sources: Vec<Source> = from.iter().map(|one| source(one, context, report)).collect();
    let mut operations: Vec<Operation> = to.iter().map(|one| operation(one, report)).collect();
    let http =
        operations.iter().any(Operation::needs_http) || conditions.iter().any(|(_, one)| matches!(one, Condition::Header(..)));
    for (place, condition) in &conditions {
        let held = match condition {
            Condition::Ports(..) | Condition::Header(..) => operations_with(&mut operations, condition),
            _ => sources_with(&mut sources, condition),
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
fn words<'n>(entry: &Place<'n>, name: &str, report: &mut Report<'_>) -> Vec<Word<'n>> {
    entry.field(name).map(|field| field.texts(report)).unwrap_or_default()
}

fn source(place: &Place<'_>, context: &Context<'_>, report: &mut Report<'_>) -> Source {
    place.expect_fields(&SOURCE, report);
    let mut refused = false;
    for (name, why) in WITHOUT_COUNTERPART {
        if let Some(field) = place.field(name).filter(|_| !words(place, name, report).is_empty()) {
            report.refuse(field.not_kept(why));
            refused = true;
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
    let source = Source {
        principals: value::principals(&principals, context.trust_domain, report),
        not_principals: value::principals(&not_principals, context.trust_domain, report),
        namespaces: value::alike(&namespaces, report),
        not_namespaces: value::alike(&not_namespaces, report),
        service_accounts: value::service_accounts(&accounts, context.namespace, report),
        not_service_accounts: value::service_accounts(&not_accounts, context.namespace, report),
        ip_blocks: value::alike(&blocks, report),
        not_ip_blocks: value::alike(&not_blocks, report),
        ..Source::default()
    };
    if source == Source::default() && !refused {
        report.refuse(place.invalid("it says nothing"));
    }
    source
}

fn operation(place: &Place<'_>, report: &mut Report<'_>) -> Operation {
    let known = ["hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths"];
    place.expect_fields(&known, report);
    let [hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths] =
        known.map(|name| words(place, name, report));
    if let Some((place, _)) = ports.first().or(not_ports.first()) {
        note_ports(place, report);
    }
    let operation = Operation {
        hosts: value::hosts(&hosts, report),
        not_hosts: value::hosts(&not_hosts, report),
        ports: value::ports(&ports, report),
        not_ports: value::ports(&not_ports, report),
        methods: value::alike(&methods, report),
        not_methods: value::alike(&not_methods, report),
        paths: value::paths(&paths, report),
        not_paths: value::paths(&not_paths, report),
        ..Operation::default()
    };
    if operation == Operation::default() {
        report.refuse(place.invalid("it says nothing"));
    }
    operation
}

fn note_ports(place: &Place<'_>, report: &mut Report<'_>) {
    let remark = place.remark("Istio means the port of the workload, Outrider that of the service");
    report.note(remark.help("change it where the two differ"));
}

fn conditions<'n>(rule: &Place<'n>, context: &Context<'_>, report: &mut Report<'_>) -> Vec<(Place<'n>, Condition)> {
    let Some(list) = rule.field("when") else { return Vec::new() };
    let elements = list.elements(report);
    if elements.is_empty() {
        report.refuse(list.invalid("an empty list: leave it out to match everything"));
    }
    let mut conditions = Vec::new();
    for element in elements {
        element.expect_fields(&["key", "values", "notValues"], report);
        let (is, not) = (words(&element, "values", report), words(&element, "notValues", report));
        let Some(key) = element.field("key") else {
            report.refuse(element.invalid("the field `key` is missing"));
            continue;
        };
        if is.is_empty() && not.is_empty() {
            report.refuse(element.invalid("it has neither `values` nor `notValues`"));
            continue;
        }
        let Some(name) = key.text(report) else { continue };
        conditions.extend(condition(&key, name, &is, &not, context, report).map(|condition| (element, condition)));
    }
    conditions
}

fn condition(
    key: &Place<'_>,
    name: &str,
    is: &[Word<'_>],
    not: &[Word<'_>],
    context: &Context<'_>,
    report: &mut Report<'_>,
) -> Option<Condition> {
    let domain = context.trust_domain;
    Some(match name {
        "source.principal" => {
            Condition::Principals(value::principals(is, domain, report), value::principals(not, domain, report))
        }
        "source.namespace" => Condition::Namespaces(value::alike(is, report), value::alike(not, report)),
        "source.serviceAccount" => {
            let mut accounts = |words| value::service_accounts(words, context.namespace, report);
            Condition::ServiceAccounts(accounts(is), accounts(not))
        }
        "source.ip" => Condition::Addresses(value::alike(is, report), value::alike(not, report)),
        "destination.port" => {
            note_ports(key, report);
            Condition::Ports(value::ports(is, report), value::ports(not, report))
        }
        _ => match name.strip_prefix("request.headers[").and_then(|rest| rest.strip_suffix(']')) {
            Some(header) => {
                let not = not.iter().filter_map(|(place, text)| value::one_value(header, text, place, report)).collect();
                let is = if is.is_empty() { None } else { Some(value::header(header, is, key, report)?) };
                Condition::Header(is, not)
            }
            None => {
                report.refuse(key.not_kept(&format!("`{}`: {}", name.chars().take(80).collect::<String>(), unknown(name))));
                return None;
            }
        },
    })
}

/// Why a key has no counterpart.
fn unknown(name: &str) -> &'static str {
    match name {
        "remote.ip" => FORWARDED,
        "destination.ip" => "policies are about services, whatever their addresses",
        "connection.sni" => "agents name services to each other in their own way, not by SNI",
        _ if name.starts_with("request.auth.") => TOKENS,
        _ if name.starts_with("experimental.") => "it is about a filter of Envoy",
        _ => "it is not known",
    }
}

/// Moves a condition into all sources; false where none is left.
fn sources_with(sources: &mut Vec<Source>, condition: &Condition) -> Result<bool, Unsayable> {
    if sources.is_empty() {
        sources.push(Source::default());
    }
    let mut left = Vec::new();
    for mut source in std::mem::take(sources) {
        if narrow_source(&mut source, condition).map_err(|()| Unsayable)? {
            left.push(source);
        }
    }
    *sources = left;
    Ok(!sources.is_empty())
}

fn narrow_source(source: &mut Source, condition: &Condition) -> Result<bool, ()> {
    Ok(match condition {
        Condition::Principals(is, not) => {
            source.not_principals.extend(not.iter().cloned());
            is.is_empty() || value::narrow(&mut source.principals, is, PrincipalPattern::pattern)?
        }
        Condition::Namespaces(is, not) => {
            source.not_namespaces.extend(not.iter().cloned());
            is.is_empty() || value::narrow(&mut source.namespaces, is, NamespacePattern::pattern)?
        }
        Condition::ServiceAccounts(is, not) => {
            source.not_service_accounts.extend(not.iter().cloned());
            is.is_empty() || value::narrow(&mut source.service_accounts, is, AccountPattern::pattern)?
        }
        Condition::Addresses(is, not) => {
            source.not_ip_blocks.extend(not.iter().copied());
            is.is_empty() || value::narrow_blocks(&mut source.ip_blocks, is)
        }
        Condition::Ports(..) | Condition::Header(..) => true,
    })
}

/// Moves a condition into all operations; false where none is left.
fn operations_with(operations: &mut Vec<Operation>, condition: &Condition) -> Result<bool, Unsayable> {
    if operations.is_empty() {
        operations.push(Operation::default());
    }
    operations.retain_mut(|operation| match condition {
        Condition::Ports(is, not) => {
            operation.not_ports.extend(not);
            is.is_empty() || value::narrow_ports(&mut operation.ports, is)
        }
        Condition::Header(is, not) => {
            operation.headers.extend(is.clone());
            operation.not_headers.extend(not.iter().cloned());
            true
        }
        _ => true,
    });
    Ok(!operations.is_empty())
}
