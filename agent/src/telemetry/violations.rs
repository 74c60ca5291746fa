//! Counts what other agents do against the mesh protocol.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::Side;
use crate::mesh::Violation;

/// Both come from closed sets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    side: &'static str,
    violation: &'static str,
}

/// Connections that ended for a broken rule, by the side that they came in on or went out from, and the rule. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MeshViolations(Family<Labels, Counter>);

impl MeshViolations {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let own = Self::default();
        registry.register("mesh_violations", "Connections that ended for a broken rule of the mesh protocol", own.0.clone());
        own
    }

    /// Counts one.
    pub fn count(&self, side: Side, violation: Violation) {
        self.0.get_or_create_owned(&Labels { side: side.as_str(), violation: violation.as_str() }).inc();
    }
}
