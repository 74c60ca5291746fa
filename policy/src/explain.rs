//! Why a call was decided as it was, in words.

use std::fmt::{Display, Write};
use std::ops::ControlFlow;

use serde::Serialize;

use crate::call::Call;
use crate::compile::Compiled;
use crate::decision::Effect;
use crate::evaluate::{Condition, Facts, Reading, Sense};
use crate::rule::{Action, Rule};

/// Most near misses that are told.
pub const MAX_NEAR_MISSES: usize = 8;
/// Most values of a list that are told.
const MAX_VALUES: usize = 4;

/// A verdict with its reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Whether the call passes.
    pub effect: Effect,
    /// The rule that decided, `namespace/policy/rule`; `None` where no rule held.
    pub rule: Option<String>,
    /// The revision that decided.
    pub revision: u64,
    /// Rules that did not hold, the nearest first, at most [`MAX_NEAR_MISSES`].
    pub near_misses: Vec<NearMiss>,
}

/// A rule that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NearMiss {
    /// `namespace/policy/rule`.
    pub rule: String,
    /// What it would have done.
    pub action: Action,
    /// How many of its conditions held.
    pub held: usize,
    /// The first condition that did not.
    pub failed: String,
}

impl Compiled {
    /// The verdict of [`Compiled::decide`], and the rules that nearly held.
    pub fn explain(&self, call: &Call<'_>) -> Explanation {
        let decision = self.decide(call);
        let facts = Facts::of(call);
        let mut near_misses: Vec<NearMiss> =
            self.rules().filter_map(|(_, name, rule)| self.near_miss(name, rule, &facts)).collect();
        near_misses.sort_by(|a, b| (b.held, a.action, &a.rule).cmp(&(a.held, b.action, &b.rule)));
        near_misses.truncate(MAX_NEAR_MISSES);
        let rule = decision.rule.map(|rule| self.rule_name(rule).to_owned());
        Explanation { effect: decision.effect, rule, revision: decision.revision, near_misses }
    }

    fn near_miss(&self, name: &str, rule: &Rule, facts: &Facts<'_>) -> Option<NearMiss> {
        let mut tally = Tally::default();
        let reading = Reading::of(rule.action);
        let destination = self.destination();
        let check = |condition: &Condition<'_>| condition.holds(facts, destination, reading);
        tally.add_best(rule.from.iter().map(|source| Tally::of(facts, check, |each| source.walk(each))));
        tally.add_best(rule.to.iter().map(|operation| Tally::of(facts, check, |each| operation.walk(each))));
        tally.add_best(rule.when.iter().map(|when| Tally::of(facts, check, |each| each(Condition::When(when)))));
        let failed = tally.failed?;
        Some(NearMiss { rule: name.to_owned(), action: rule.action, held: tally.held, failed })
    }
}

/// How many conditions held, and the first that did not.
#[derive(Default)]
struct Tally {
    held: usize,
    failed: Option<String>,
}

impl Tally {
    fn of<'r>(
        facts: &Facts<'_>,
        check: impl Fn(&Condition<'r>) -> bool,
        walk: impl FnOnce(&mut dyn FnMut(Condition<'r>) -> ControlFlow<()>) -> ControlFlow<()>,
    ) -> Self {
        let mut tally = Self::default();
        // the walk is never broken off here
        let _ = walk(&mut |condition| {
            match check(&condition) {
                true => tally.held += 1,
                false if tally.failed.is_none() => tally.failed = Some(condition.failure(facts)),
                false => {}
            }
            ControlFlow::Continue(())
        });
        tally
    }

    /// Of alternatives, one that holds, else the one that came nearest.
    fn add_best(&mut self, alternatives: impl Iterator<Item = Self>) {
        let best = alternatives.reduce(|best, next| match (best.failed.is_none(), next.failed.is_none()) {
            (true, _) => best,
            (false, true) => next,
            (false, false) if next.held > best.held => next,
            (false, false) => best,
        });
        if let Some(best) = best {
            self.held += best.held;
            self.failed = self.failed.take().or(best.failed);
        }
    }
}

impl Condition<'_> {
    /// Why the condition does not hold for the call.
    fn failure(&self, facts: &Facts<'_>) -> String {
        let source = facts.call.source;
        let http = facts.call.http;
        let identity = source.map(|id| id.as_str());
        match self {
            Self::Principals(list, sense) => said("principal", identity, "the caller has no identity", *sense, list),
            Self::Namespaces(list, sense) => said("namespace", facts.namespace, no_account(identity), *sense, list),
            Self::ServiceAccounts(list, sense) => said("service account", facts.account, no_account(identity), *sense, list),
            Self::TrustDomains(list, sense) => {
                said("trust domain", source.map(|id| id.trust_domain()), "the caller has no identity", *sense, list)
            }
            Self::IpBlocks(list, sense) => said("source address", Some(&facts.source_ip.to_string()), "", *sense, list),
            Self::Anonymous(true) => format!("the caller is `{}`, not anonymous", identity.unwrap_or_default()),
            Self::Anonymous(false) => "the caller has no identity".to_owned(),
            Self::Ports(list, sense) => said("port", Some(&facts.call.port.to_string()), "", *sense, list),
            Self::Methods(list, sense) => said("method", http.map(|http| http.method), NOT_HTTP, *sense, list),
            Self::Hosts(list, sense) => said("host", http.map(|http| http.host), NOT_HTTP, *sense, list),
            Self::Paths(list, sense) => said("path", http.map(|http| http.path), NOT_HTTP, *sense, list),
            Self::Header(_, _) if http.is_none() => NOT_HTTP.to_owned(),
            Self::Header(header, Sense::Is) => format!("not so: header {header}"),
            Self::Header(header, Sense::IsNot) => format!("excluded: header {header}"),
            Self::When(when) => when.failure(),
        }
    }
}

const NOT_HTTP: &str = "the call is not an HTTP request";

fn no_account(identity: Option<&str>) -> &'static str {
    match identity {
        Some(_) => "the caller's identity names no namespace and service account",
        None => "the caller has no identity",
    }
}

/// `method `POST` is not one of `GET`, `HEAD``.
fn said<T: Display>(what: &str, value: Option<&str>, missing: &str, sense: Sense, list: &[T]) -> String {
    let Some(value) = value else { return missing.to_owned() };
    let mut text = String::new();
    let value: String = value.chars().take(200).collect();
    let verb = match (sense, list.len()) {
        (Sense::Is, 1) => "is not",
        (Sense::Is, _) => "is not one of",
        (Sense::IsNot, 1) => "is excluded by",
        (Sense::IsNot, _) => "is one of the excluded",
    };
    // writing into a text cannot fail
    let _ = write!(text, "{what} `{value}` {verb} ");
    for (at, item) in list.iter().take(MAX_VALUES).enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}`{item}`");
    }
    if list.len() > MAX_VALUES {
        let _ = write!(text, " and {} more", list.len() - MAX_VALUES);
    }
    text
}
