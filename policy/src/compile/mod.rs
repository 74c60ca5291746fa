//! All policies of one port of a service, made into one value that decides calls.

mod index;
mod posting;
mod trie;

use std::ops::ControlFlow;
use std::sync::Arc;

use index::Index;

use crate::call::Call;
use crate::decision::{Audited, Decision, Effect, RuleId};
use crate::evaluate::{Facts, Reading};
use crate::limits::Limits;
use crate::resource::{MtlsMode, ServicePolicy};
use crate::rule::{Action, Rule};
use crate::target::{Layer, StoredPolicy, Target};
use crate::when::Destination;

/// Most rules that can apply to one port of a service.
pub const MAX_COMPILED_RULES: usize = 100_000;

/// Why policies cannot be compiled for a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// More rules than an agent holds.
    #[error("{found} rules apply to `{target}`, at most {MAX_COMPILED_RULES} can")]
    TooManyRules {
        /// `namespace/name:port`.
        target: String,
        /// How many do.
        found: usize,
    },
    /// Both ways to choose what a policy applies to.
    #[error("policy `{policy}` has both `targetRefs` and `selector`: write one of them")]
    TwoTargets {
        /// `namespace/name`.
        policy: String,
    },
    /// Two rules could not be told apart in decisions.
    #[error("policy `{policy}` has two rules of the name `{rule}`")]
    DuplicateRule {
        /// `namespace/name`.
        policy: String,
        /// The rule's name.
        rule: String,
    },
}

/// The policies of one port of a service, ready to decide. Immutable; share it behind an `Arc`.
#[derive(Debug)]
pub struct Compiled {
    rules: Box<[CompiledRule]>,
    deny: Section,
    allow: Section,
    audit: Section,
    destination: Destination,
    revision: u64,
    policies: usize,
    headers_read: Box<[Box<str>]>,
    mtls_mode: MtlsMode,
    limits: Option<Limits>,
    deny_all: Option<Box<str>>,
}

/// The rules of one action: where they begin among all rules, and which of them can hold for a call.
#[derive(Debug, Default)]
struct Section {
    first: u32,
    index: Index,
}

/// One rule, where it comes from, and what it is called in decisions.
#[derive(Debug)]
struct CompiledRule {
    policy: Arc<ServicePolicy>,
    index: usize,
    name: Box<str>,
    action: Action,
}

impl CompiledRule {
    fn rule(&self) -> Option<&Rule> {
        self.policy.rules().get(self.index)
    }
}

/// Compiles those of `policies` that apply to `target`.
///
/// # Errors
/// All problems of all policies, not only the first. A caller that must go on takes [`Compiled::deny_all`].
pub fn compile(policies: &[StoredPolicy], target: &Target) -> Result<Compiled, Vec<Problem>> {
    let applicable: Vec<&StoredPolicy> = policies.iter().filter(|stored| stored.policy.applies_to(target)).collect();
    let mut problems = Vec::new();
    let mut rules = Vec::new();
    for stored in &applicable {
        check(&stored.policy, &mut problems);
        rules.extend(stored.policy.rules().iter().enumerate().map(|(index, rule)| CompiledRule {
            policy: Arc::clone(&stored.policy),
            index,
            name: rule_name(&stored.policy, index, rule).into(),
            action: rule.action,
        }));
    }
    if rules.len() > MAX_COMPILED_RULES {
        problems.push(Problem::TooManyRules { target: format!("{}:{}", target.service, target.port), found: rules.len() });
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    // by name, so that the order in which rules are written or stored does not show in decisions
    rules.sort_by(|a, b| (a.action, &a.name).cmp(&(b.action, &b.name)));
    Ok(Compiled {
        deny: section(&rules, Action::Deny),
        allow: section(&rules, Action::Allow),
        audit: section(&rules, Action::Audit),
        headers_read: headers_read(rules.iter().filter_map(CompiledRule::rule)),
        rules: rules.into(),
        destination: Destination::of(target),
        revision: applicable.iter().map(|stored| stored.revision).max().unwrap_or(0),
        policies: applicable.len(),
        mtls_mode: mtls_mode(&applicable, target),
        limits: limits(&applicable, target),
        deny_all: None,
    })
}

fn section(rules: &[CompiledRule], action: Action) -> Section {
    let first = rules.partition_point(|rule| rule.action < action);
    let index = Index::of(rules.iter().filter(|rule| rule.action == action).filter_map(CompiledRule::rule));
    Section { first: u32::try_from(first).unwrap_or(u32::MAX), index }
}

/// `namespace/policy/rule`.
pub(crate) fn rule_name(policy: &ServicePolicy, index: usize, rule: &Rule) -> String {
    let (namespace, name) = (&policy.metadata.namespace, &policy.metadata.name);
    match &rule.name {
        Some(rule) => format!("{namespace}/{name}/{rule}"),
        None => format!("{namespace}/{name}/rules[{index}]"),
    }
}

fn check(policy: &ServicePolicy, problems: &mut Vec<Problem>) {
    if !policy.spec.target_refs.is_empty() && policy.spec.selector.is_some() {
        problems.push(Problem::TwoTargets { policy: policy.full_name() });
    }
    let mut names: Vec<&str> = policy.rules().iter().filter_map(|rule| rule.name.as_ref()).map(|name| name.as_str()).collect();
    names.sort_unstable();
    for pair in names.windows(2) {
        if let [first, second] = pair
            && first == second
        {
            problems.push(Problem::DuplicateRule { policy: policy.full_name(), rule: (*first).to_owned() });
        }
    }
}

fn headers_read<'r>(rules: impl Iterator<Item = &'r Rule>) -> Box<[Box<str>]> {
    let mut names: Vec<Box<str>> = Vec::new();
    for rule in rules {
        names.extend(rule.to.iter().flat_map(|to| to.headers.iter().chain(&to.not_headers)).map(|header| header.name().into()));
        names.extend(rule.when.iter().flat_map(|when| when.headers_read()).map(Into::into));
    }
    names.sort_unstable();
    names.dedup();
    names.into()
}

/// The mode of the most closely aimed policy; of equally close ones the strictest.
fn mtls_mode(policies: &[&StoredPolicy], target: &Target) -> MtlsMode {
    let modes = policies.iter().filter_map(|stored| {
        let mtls = stored.policy.spec.mtls.as_ref()?;
        Some((stored.policy.layer(), mtls.ports.get(&target.port).copied().unwrap_or(mtls.mode)))
    });
    modes.max().map_or(MtlsMode::Strict, |(_layer, mode): (Layer, MtlsMode)| mode)
}

/// The limit of the most closely aimed policy that has one for this port; of equally close ones, which `apply` refuses, the slowest.
fn limits(policies: &[&StoredPolicy], target: &Target) -> Option<Limits> {
    let limits = policies.iter().filter_map(|stored| {
        let limits = stored.policy.spec.limits.as_ref().filter(|limits| limits.covers(target.port))?;
        Some((stored.policy.layer(), limits.interval(), limits))
    });
    limits.max_by_key(|(layer, interval, _)| (*layer, *interval)).map(|(.., limits)| limits.clone())
}

impl Compiled {
    /// A policy that refuses everything, for when there is none that could be relied on.
    pub fn deny_all(reason: impl Into<Box<str>>) -> Self {
        Self {
            rules: Box::default(),
            deny: Section::default(),
            allow: Section::default(),
            audit: Section::default(),
            destination: Destination::default(),
            revision: 0,
            policies: 0,
            headers_read: Box::default(),
            mtls_mode: MtlsMode::Strict,
            limits: None,
            deny_all: Some(reason.into()),
        }
    }

    /// Decides one call. Deny beats allow; where no rule holds the call is denied.
    pub fn decide(&self, call: &Call<'_>) -> Decision {
        let facts = Facts::of(call);
        let deny = self.first(&self.deny, Reading::Some, &facts);
        let allow = if deny.is_none() { self.first(&self.allow, Reading::Every, &facts) } else { None };
        let mut audited = Audited::default();
        self.each_holding(&self.audit, Reading::Some, &facts, &mut |rule| {
            if audited.push(rule) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        let effect = if allow.is_some() { Effect::Allow } else { Effect::Deny };
        Decision { effect, rule: deny.or(allow), revision: self.revision, audited }
    }

    fn first(&self, section: &Section, reading: Reading, facts: &Facts<'_>) -> Option<RuleId> {
        let mut first = None;
        self.each_holding(section, reading, facts, &mut |rule| {
            first = Some(rule);
            ControlFlow::Break(())
        });
        first
    }

    /// Calls `each` with the rules of `section` that hold, in the order of their names, until it breaks.
    fn each_holding(
        &self,
        section: &Section,
        reading: Reading,
        facts: &Facts<'_>,
        each: &mut dyn FnMut(RuleId) -> ControlFlow<()>,
    ) {
        // where it broke off is in the hands of `each`
        let _ = section.index.candidates(facts, reading, &mut |number| {
            let id = RuleId(section.first.saturating_add(number));
            match self.rule(id) {
                Some(rule) if rule.holds(facts, &self.destination) => each(id),
                _ => ControlFlow::Continue(()),
            }
        });
    }

    /// `namespace/policy/rule`, or nothing for a rule of another compilation.
    pub fn rule_name(&self, rule: RuleId) -> &str {
        self.compiled_rule(rule).map(|rule| &*rule.name).unwrap_or_default()
    }

    /// The rule itself.
    pub fn rule(&self, rule: RuleId) -> Option<&Rule> {
        self.compiled_rule(rule)?.rule()
    }

    fn compiled_rule(&self, rule: RuleId) -> Option<&CompiledRule> {
        self.rules.get(usize::try_from(rule.0).ok()?)
    }

    /// All rules with their names: deny, then allow, then audit, each by name.
    pub fn rules(&self) -> impl Iterator<Item = (RuleId, &str, &Rule)> {
        (0u32..).zip(&self.rules).filter_map(|(id, rule)| Some((RuleId(id), &*rule.name, rule.rule()?)))
    }

    /// The newest revision among the policies.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether no policy applies, so that everything is denied.
    pub fn is_empty(&self) -> bool {
        self.policies == 0
    }

    /// Names of headers (in lower case, sorted) that some rule reads.
    pub fn headers_read(&self) -> &[Box<str>] {
        &self.headers_read
    }

    /// Whether plaintext is let in on this port.
    pub fn mtls_mode(&self) -> MtlsMode {
        self.mtls_mode
    }

    /// How much may be called on this port.
    pub fn limits(&self) -> Option<&Limits> {
        self.limits.as_ref()
    }

    /// Why this is the policy that refuses everything, if it is.
    pub fn deny_all_reason(&self) -> Option<&str> {
        self.deny_all.as_deref()
    }

    pub(crate) fn destination(&self) -> &Destination {
        &self.destination
    }
}
