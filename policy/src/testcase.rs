//! Policy tests as files: given a call, expect a verdict and the rule that gave it.
//!
//! A file holds documents of `kind: PolicyTest`, and may hold the policies that they are about beside them.

use serde::{Deserialize, Serialize};

use crate::described::{Answer, AnswerProblem, DescribedCall};
use crate::names::Label;
use crate::resource::ApiVersion;
use crate::{Effect, StoredPolicy};

/// Several cases about the same policies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyTest {
    /// [`crate::resource::API_VERSION`].
    pub api_version: ApiVersion,
    /// `PolicyTest`.
    pub kind: TestKind,
    /// What the test is called.
    pub metadata: TestMetadata,
    /// The cases.
    pub spec: TestSpec,
}

/// The kind of the resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TestKind {
    /// [`PolicyTest`].
    #[default]
    PolicyTest,
}

/// What names a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestMetadata {
    /// Its name.
    pub name: Label,
}

/// What a test consists of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestSpec {
    /// The cases, each on its own.
    pub cases: Vec<TestCase>,
}

/// One call and what must come of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestCase {
    /// What it promises, in words.
    pub name: String,
    /// The call.
    pub given: DescribedCall,
    /// What must come of it.
    pub expect: Expectation,
}

/// What must come of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// The verdict.
    pub effect: Effect,
    /// The rule that gives it, `namespace/policy/rule`; any rule or none if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Whether the request is answered with 400 before any rule; either if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<bool>,
}

/// What came of a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CaseResult {
    /// The name of the test.
    pub test: String,
    /// The name of the case.
    pub case: String,
    /// Why it failed; `None` if it passed.
    pub failure: Option<String>,
    /// What was decided, unless the policies or the call could not be read.
    pub answer: Option<Answer>,
}

impl CaseResult {
    /// Whether what was expected came.
    pub fn passed(&self) -> bool {
        self.failure.is_none()
    }
}

impl PolicyTest {
    /// Runs all cases against `policies`, of which each destination takes those that apply to it.
    pub fn run(&self, policies: &[StoredPolicy]) -> Vec<CaseResult> {
        self.spec.cases.iter().map(|case| self.run_case(case, case.given.answer(policies))).collect()
    }

    fn run_case(&self, case: &TestCase, answer: Result<Answer, AnswerProblem>) -> CaseResult {
        let failure = match &answer {
            Ok(answer) => case.expect.unlike(answer),
            Err(problem) => Some(problem.to_string()),
        };
        CaseResult { test: self.metadata.name.to_string(), case: case.name.clone(), failure, answer: answer.ok() }
    }
}

impl Expectation {
    /// How `answer` differs from what was expected, if it does.
    pub fn unlike(&self, answer: &Answer) -> Option<String> {
        let Answer { effect, rule, near_misses, refused, .. } = answer;
        let by = rule.as_ref().map_or_else(|| "no rule".to_owned(), |rule| format!("`{rule}`"));
        if self.refused.is_some_and(|expected| expected != refused.is_some()) {
            return Some(match refused {
                Some(reason) => format!("expected a decision, got a refusal: {reason}"),
                None => format!("expected a refusal before any rule, got {effect} by {by}"),
            });
        }
        if self.effect != *effect {
            let near =
                near_misses.first().map(|miss| format!("; nearest is `{}`: {}", miss.rule, miss.failed)).unwrap_or_default();
            let why = refused.as_ref().map_or(near, |reason| format!("; {reason}"));
            return Some(format!("expected {}, got {effect} by {by}{why}", self.effect));
        }
        match &self.rule {
            Some(expected) if rule.as_ref() != Some(expected) => {
                Some(format!("expected {effect} by `{expected}`, got it by {by}"))
            }
            _ => None,
        }
    }
}
