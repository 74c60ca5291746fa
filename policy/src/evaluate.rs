//! Whether the conditions of a rule hold for a call.
//!
//! There is one walk over the conditions of a rule: `decide` stops it at the first that fails, `explain` counts and names
//! them. Where something can be read in two ways the [`Reading`] settles it, always towards refusal.

use std::net::IpAddr;
use std::ops::ControlFlow;

use crate::call::{Call, HttpCall};
use crate::header::HeaderMatch;
use crate::path::Forms;
use crate::path_pattern::PathPattern;
use crate::pattern::{AccountPattern, HostPattern, MethodPattern, NamespacePattern, PrincipalPattern, TrustDomainPattern};
use crate::rule::{Action, IpBlock, Operation, Rule, Source};
use crate::when::{Destination, When};

/// Which way doubts go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// One reading that is meant suffices, and what cannot be told counts as meant: for deny and audit.
    Some,
    /// Every reading must be meant, and what cannot be told counts as not meant: for allow.
    Every,
}

impl Reading {
    pub(crate) fn of(action: Action) -> Self {
        match action {
            Action::Allow => Self::Every,
            Action::Deny | Action::Audit => Self::Some,
        }
    }

    /// The value of a condition that cannot be told.
    fn doubt(self) -> bool {
        self == Self::Some
    }
}

/// What is derived from a call once, for all rules.
pub(crate) struct Facts<'a> {
    pub(crate) call: &'a Call<'a>,
    pub(crate) source_ip: IpAddr,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) account: Option<&'a str>,
    pub(crate) forms: Option<Forms<'a>>,
}

impl<'a> Facts<'a> {
    pub(crate) fn of(call: &'a Call<'a>) -> Self {
        let path = call.http.map(|http| http.path).filter(|path| !path.is_empty());
        Self {
            call,
            source_ip: call.source_ip.to_canonical(),
            namespace: call.source.and_then(|source| source.namespace()),
            account: call.source.and_then(|source| source.account_name()),
            forms: path.map(Forms::of),
        }
    }

    pub(crate) fn host(&self) -> Option<&'a str> {
        self.call.http.map(|http| http.host).filter(|host| !host.is_empty())
    }
}

/// Whether a condition names what must be or what must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sense {
    Is,
    IsNot,
}

/// One condition of a rule.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Condition<'r> {
    Principals(&'r [PrincipalPattern], Sense),
    Namespaces(&'r [NamespacePattern], Sense),
    ServiceAccounts(&'r [AccountPattern], Sense),
    TrustDomains(&'r [TrustDomainPattern], Sense),
    IpBlocks(&'r [IpBlock], Sense),
    Anonymous(bool),
    Ports(&'r [u16], Sense),
    Methods(&'r [MethodPattern], Sense),
    Hosts(&'r [HostPattern], Sense),
    Paths(&'r [PathPattern], Sense),
    Header(&'r HeaderMatch, Sense),
    When(&'r When),
}

impl Condition<'_> {
    pub(crate) fn holds(&self, facts: &Facts<'_>, destination: &Destination, reading: Reading) -> bool {
        let source = facts.call.source;
        match self {
            Self::Principals(list, sense) => {
                identity(*sense, reading, source.map(|id| list.iter().any(|p| p.matches(id.as_str()))))
            }
            Self::Namespaces(list, sense) => {
                identity(*sense, reading, facts.namespace.map(|ns| list.iter().any(|p| p.matches(ns))))
            }
            Self::ServiceAccounts(list, sense) => {
                identity(*sense, reading, facts.account.map(|account| list.iter().any(|p| p.matches(account))))
            }
            Self::TrustDomains(list, sense) => {
                identity(*sense, reading, source.map(|id| list.iter().any(|p| p.matches(id.trust_domain()))))
            }
            Self::IpBlocks(list, sense) => sensed(*sense, list.iter().any(|block| block.contains(facts.source_ip))),
            Self::Anonymous(wanted) => source.is_none() == *wanted,
            Self::Ports(list, sense) => sensed(*sense, list.contains(&facts.call.port)),
            Self::Methods(list, sense) => {
                told(*sense, reading, facts.call.http.map(|http| list.iter().any(|p| p.matches(http.method))))
            }
            Self::Hosts(list, sense) => told(*sense, reading, facts.host().map(|host| list.iter().any(|p| p.matches(host)))),
            Self::Paths(list, sense) => paths(list, *sense, facts, reading),
            Self::Header(header, sense) => header_holds(header, *sense, facts.call.http.as_ref(), reading),
            Self::When(when) => when.holds(facts, destination, reading),
        }
    }
}

/// `matched` is `None` where the caller has no such identity: that matches no list. That it is *not* one of a list cannot be
/// shown either, so an allow does not hold; a deny of everybody else does, or plaintext would pass where a stranger may not.
fn identity(sense: Sense, reading: Reading, matched: Option<bool>) -> bool {
    match (sense, matched) {
        (Sense::Is, matched) => matched.unwrap_or(false),
        (Sense::IsNot, Some(matched)) => !matched,
        (Sense::IsNot, None) => reading.doubt(),
    }
}

fn sensed(sense: Sense, matched: bool) -> bool {
    (sense == Sense::Is) == matched
}

/// `matched` is `None` where the call has no such attribute.
fn told(sense: Sense, reading: Reading, matched: Option<bool>) -> bool {
    matched.map_or(reading.doubt(), |matched| sensed(sense, matched))
}

fn paths(list: &[PathPattern], sense: Sense, facts: &Facts<'_>, reading: Reading) -> bool {
    let Some(forms) = &facts.forms else { return reading.doubt() };
    let meant = |form: &str| sensed(sense, list.iter().any(|pattern| pattern.matches(form)));
    match reading {
        Reading::Some => forms.any(meant),
        Reading::Every => forms.all(meant),
    }
}

fn header_holds(header: &HeaderMatch, sense: Sense, http: Option<&HttpCall<'_>>, reading: Reading) -> bool {
    let Some(http) = http else { return reading.doubt() };
    match (sense, reading) {
        (Sense::Is, Reading::Some) => header.holds_for_some_reading(http.headers),
        (Sense::Is, Reading::Every) => header.holds_for_every_reading(http.headers),
        (Sense::IsNot, Reading::Some) => !header.holds_for_every_reading(http.headers),
        (Sense::IsNot, Reading::Every) => !header.holds_for_some_reading(http.headers),
    }
}

impl Source {
    /// Calls `each` with every condition, the quickest to check first.
    pub(crate) fn walk<'r>(&'r self, each: &mut (impl FnMut(Condition<'r>) -> ControlFlow<()> + ?Sized)) -> ControlFlow<()> {
        use Condition as C;
        if let Some(wanted) = self.anonymous {
            each(C::Anonymous(wanted))?;
        }
        list(&self.principals, C::Principals, Sense::Is, each)?;
        list(&self.not_principals, C::Principals, Sense::IsNot, each)?;
        list(&self.service_accounts, C::ServiceAccounts, Sense::Is, each)?;
        list(&self.not_service_accounts, C::ServiceAccounts, Sense::IsNot, each)?;
        list(&self.namespaces, C::Namespaces, Sense::Is, each)?;
        list(&self.not_namespaces, C::Namespaces, Sense::IsNot, each)?;
        list(&self.trust_domains, C::TrustDomains, Sense::Is, each)?;
        list(&self.not_trust_domains, C::TrustDomains, Sense::IsNot, each)?;
        list(&self.ip_blocks, C::IpBlocks, Sense::Is, each)?;
        list(&self.not_ip_blocks, C::IpBlocks, Sense::IsNot, each)
    }
}

impl Operation {
    /// Calls `each` with every condition, the quickest to check first.
    pub(crate) fn walk<'r>(&'r self, each: &mut (impl FnMut(Condition<'r>) -> ControlFlow<()> + ?Sized)) -> ControlFlow<()> {
        use Condition as C;
        list(&self.ports, C::Ports, Sense::Is, each)?;
        list(&self.not_ports, C::Ports, Sense::IsNot, each)?;
        list(&self.methods, C::Methods, Sense::Is, each)?;
        list(&self.not_methods, C::Methods, Sense::IsNot, each)?;
        list(&self.hosts, C::Hosts, Sense::Is, each)?;
        list(&self.not_hosts, C::Hosts, Sense::IsNot, each)?;
        list(&self.paths, C::Paths, Sense::Is, each)?;
        list(&self.not_paths, C::Paths, Sense::IsNot, each)?;
        self.headers.iter().try_for_each(|header| each(C::Header(header, Sense::Is)))?;
        self.not_headers.iter().try_for_each(|header| each(C::Header(header, Sense::IsNot)))
    }
}

fn list<'r, T>(
    values: &'r [T],
    condition: fn(&'r [T], Sense) -> Condition<'r>,
    sense: Sense,
    each: &mut (impl FnMut(Condition<'r>) -> ControlFlow<()> + ?Sized),
) -> ControlFlow<()> {
    if values.is_empty() { ControlFlow::Continue(()) } else { each(condition(values, sense)) }
}

impl Rule {
    /// Whether the rule holds for the call.
    pub(crate) fn holds(&self, facts: &Facts<'_>, destination: &Destination) -> bool {
        let reading = Reading::of(self.action);
        let mut check = |condition: Condition<'_>| match condition.holds(facts, destination, reading) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        };
        let from = self.from.is_empty() || self.from.iter().any(|source| source.walk(&mut check).is_continue());
        from && (self.to.is_empty() || self.to.iter().any(|operation| operation.walk(&mut check).is_continue()))
            && self.when.as_ref().is_none_or(|when| check(Condition::When(when)).is_continue())
    }
}
