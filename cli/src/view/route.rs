//! A stored route and where it is in force.

use jiff::Timestamp;
use outrider_proto::v1;
use serde::Serialize;

use super::{Laggard, Named};
use crate::{
    output::Tone,
    table::{Cell, Row},
};

/// A route.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Route {
    /// `HTTPRoute` or `GRPCRoute`.
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) revision: u64,
    /// Services whose callers it concerns.
    pub(crate) parents: Vec<String>,
    /// Services it leads to.
    pub(crate) backends: Vec<String>,
    /// Connected agents whose program calls one of the parents.
    pub(crate) agents: u32,
    /// Of those, the ones that acknowledged it.
    pub(crate) in_force: u32,
    pub(crate) laggards: Vec<Laggard>,
    /// The resource itself.
    pub(crate) resource: serde_json::Value,
}

impl From<v1::RouteStatus> for Route {
    fn from(wire: v1::RouteStatus) -> Self {
        Self {
            resource: serde_json::from_str(&wire.json).unwrap_or(serde_json::Value::String(wire.json)),
            kind: wire.kind,
            name: wire.name,
            revision: wire.revision,
            parents: wire.parents,
            backends: wire.backends,
            agents: wire.agents,
            in_force: wire.in_force,
            laggards: wire.laggards.into_iter().map(Laggard::from).collect(),
        }
    }
}

impl Named for Route {
    const KIND: &'static str = "route";

    fn name(&self) -> &str {
        &self.name
    }
}

impl Row for Route {
    const COLUMNS: &'static [&'static str] = &["KIND", "NAME", "REVISION", "PARENTS", "BACKENDS", "IN FORCE", "LAGGARDS"];

    fn cells(&self, _: Timestamp) -> Vec<Cell> {
        let refused = self.laggards.iter().any(|laggard| !laggard.reason.is_empty());
        let tone = match self.in_force {
            _ if refused => Tone::Bad,
            in_force if in_force < self.agents => Tone::Warn,
            0 => Tone::Quiet,
            _ => Tone::Good,
        };
        let laggard = |one: &Laggard| match one.reason.as_str() {
            "" => one.agent.clone(),
            reason => format!("{}: {reason}", one.agent),
        };
        let laggards: Vec<String> = self.laggards.iter().map(laggard).collect();
        vec![
            self.kind.as_str().into(),
            self.name.as_str().into(),
            self.revision.to_string().into(),
            Cell::list(&self.parents),
            Cell::list(&self.backends),
            Cell::new(tone, format!("{}/{}", self.in_force, self.agents)),
            Cell::list(&laggards),
        ]
    }
}
