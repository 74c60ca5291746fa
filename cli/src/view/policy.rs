//! A stored policy and where it is in force.

use jiff::Timestamp;
use outrider_proto::v1;
use serde::Serialize;

use super::{Laggard, Named};
use crate::{
    output::Tone,
    table::{Cell, Row},
};

/// A policy.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) revision: u64,
    /// Services it applies to.
    pub(crate) targets: Vec<String>,
    /// Connected agents that should have it.
    pub(crate) agents: u32,
    /// Of those, the ones that acknowledged it.
    pub(crate) in_force: u32,
    pub(crate) laggards: Vec<Laggard>,
    /// The resource itself.
    pub(crate) resource: serde_json::Value,
}

impl From<v1::PolicyStatus> for Policy {
    fn from(wire: v1::PolicyStatus) -> Self {
        Self {
            // A control plane that sends no JSON is shown as it speaks rather than not at all.
            resource: serde_json::from_str(&wire.json).unwrap_or(serde_json::Value::String(wire.json)),
            name: wire.name,
            revision: wire.revision,
            targets: wire.targets,
            agents: wire.agents,
            in_force: wire.in_force,
            laggards: wire.laggards.into_iter().map(Laggard::from).collect(),
        }
    }
}

impl Named for Policy {
    const KIND: &'static str = "policy";

    fn name(&self) -> &str {
        &self.name
    }
}

impl Row for Policy {
    const COLUMNS: &'static [&'static str] = &["NAME", "REVISION", "RULES", "TARGETS", "IN FORCE", "LAGGARDS"];

    fn cells(&self, _: Timestamp) -> Vec<Cell> {
        let rules = self.resource.pointer("/spec/authorization/rules").and_then(|rules| rules.as_array()).map_or(0, Vec::len);
        let tone = match (self.in_force, self.laggards.iter().any(|laggard| !laggard.reason.is_empty())) {
            (_, true) => Tone::Bad,
            (in_force, false) if in_force < self.agents => Tone::Warn,
            (0, false) => Tone::Quiet,
            _ => Tone::Good,
        };
        let laggards: Vec<String> = self
            .laggards
            .iter()
            .map(|one| if one.reason.is_empty() { one.agent.clone() } else { format!("{}: {}", one.agent, one.reason) })
            .collect();
        vec![
            self.name.as_str().into(),
            self.revision.to_string().into(),
            rules.to_string().into(),
            Cell::list(&self.targets),
            Cell::new(tone, format!("{}/{}", self.in_force, self.agents)),
            Cell::list(&laggards),
        ]
    }
}
