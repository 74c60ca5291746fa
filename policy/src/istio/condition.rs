//! The conditions of a rule: what `when` says about callers, ports and headers.

use super::place::{Place, Report};
use super::rule::{Context, FORWARDED, TOKENS, note_ports, words};
use super::value::{self, Word};
use crate::header::HeaderMatch;
use crate::pattern::{AccountPattern, NamespacePattern, PrincipalPattern};
use crate::rule::{IpBlock, Operation, Source};

/// A key of `when`, with what its value must and must not be.
pub(super) enum Condition {
    Principals(Vec<PrincipalPattern>, Vec<PrincipalPattern>),
    Namespaces(Vec<NamespacePattern>, Vec<NamespacePattern>),
    ServiceAccounts(Vec<AccountPattern>, Vec<AccountPattern>),
    Addresses(Vec<IpBlock>, Vec<IpBlock>),
    Ports(Vec<u16>, Vec<u16>),
    Header(Option<HeaderMatch>, Vec<HeaderMatch>),
}

/// Two conditions on the same thing that cannot be said in one.
pub(super) struct Unsayable;

impl Condition {
    /// Moves a condition into all sources; false where none is left.
    pub(super) fn narrow_sources(&self, sources: &mut Vec<Source>) -> Result<bool, Unsayable> {
        if sources.is_empty() {
            sources.push(Source::default());
        }
        let mut left = Vec::new();
        for mut source in std::mem::take(sources) {
            if self.narrow_source(&mut source).map_err(|()| Unsayable)? {
                left.push(source);
            }
        }
        *sources = left;
        Ok(!sources.is_empty())
    }

    fn narrow_source(&self, source: &mut Source) -> Result<bool, ()> {
        Ok(match self {
            Self::Principals(is, not) => {
                source.not_principals.extend(not.iter().cloned());
                is.is_empty() || value::narrow(&mut source.principals, is, PrincipalPattern::pattern)?
            }
            Self::Namespaces(is, not) => {
                source.not_namespaces.extend(not.iter().cloned());
                is.is_empty() || value::narrow(&mut source.namespaces, is, NamespacePattern::pattern)?
            }
            Self::ServiceAccounts(is, not) => {
                source.not_service_accounts.extend(not.iter().cloned());
                is.is_empty() || value::narrow(&mut source.service_accounts, is, AccountPattern::pattern)?
            }
            Self::Addresses(is, not) => {
                source.not_ip_blocks.extend(not.iter().copied());
                is.is_empty() || value::narrow_blocks(&mut source.ip_blocks, is)
            }
            Self::Ports(..) | Self::Header(..) => true,
        })
    }

    /// Moves a condition into all operations; false where none is left.
    pub(super) fn narrow_operations(&self, operations: &mut Vec<Operation>) -> Result<bool, Unsayable> {
        if operations.is_empty() {
            operations.push(Operation::default());
        }
        operations.retain_mut(|operation| match self {
            Self::Ports(is, not) => {
                operation.not_ports.extend(not);
                is.is_empty() || value::narrow_ports(&mut operation.ports, is)
            }
            Self::Header(is, not) => {
                operation.headers.extend(is.clone());
                operation.not_headers.extend(not.iter().cloned());
                true
            }
            _ => true,
        });
        Ok(!operations.is_empty())
    }
}

/// The conditions of a rule, each with its place.
pub(super) fn read<'n>(rule: &Place<'n>, context: &Context<'_>, report: &mut Report<'_>) -> Vec<(Place<'n>, Condition)> {
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
