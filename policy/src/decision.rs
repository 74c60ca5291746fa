//! What was decided, by which rule, under which revision.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether a call passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// It passes.
    Allow,
    /// It does not.
    Deny,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

/// A rule of one [`crate::Compiled`]; [`crate::Compiled::rule_name`] knows its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u32);

/// The verdict on one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Whether it passes.
    pub effect: Effect,
    /// The rule that decided; `None` where no rule held, which is a deny.
    pub rule: Option<RuleId>,
    /// The newest revision among the policies that were compiled.
    pub revision: u64,
    /// The audit rules that held.
    pub audited: Audited,
}

/// The first audit rules that held for a call, at most [`Audited::MAX`] of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Audited {
    rules: [Option<RuleId>; Self::MAX],
}

impl Audited {
    /// Most rules that are named.
    pub const MAX: usize = 4;

    /// The rules, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = RuleId> + '_ {
        self.rules.iter().copied().flatten()
    }

    /// Whether none held.
    pub fn is_empty(&self) -> bool {
        self.rules.iter().all(Option::is_none)
    }

    /// Notes a rule; says whether there is room for another one.
    pub(crate) fn push(&mut self, rule: RuleId) -> bool {
        match self.rules.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(rule),
            None => return false,
        }
        self.rules.iter().any(Option::is_none)
    }
}
