//! Where policies land: a port of a service and the labels of its workload.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::resource::{ROOT_NAMESPACE, ServicePolicy};
use crate::{Protocol, ServiceName};

/// One port of one service, as an agent serves it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Target {
    /// The service.
    pub service: ServiceName,
    /// The labels of the workload.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The port.
    pub port: u16,
    /// What the service declares to speak on it.
    pub protocol: Protocol,
}

/// A policy and the revision of the store at which it last changed.
#[derive(Debug, Clone)]
pub struct StoredPolicy {
    /// The policy.
    pub policy: Arc<ServicePolicy>,
    /// The revision.
    pub revision: u64,
}

/// How closely a policy is aimed. The closer one wins where only one can be in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// The whole mesh.
    Mesh,
    /// One namespace.
    Namespace,
    /// Services by name or workloads by label.
    Targeted,
}

impl ServicePolicy {
    /// Whether the policy applies to `target`.
    pub fn applies_to(&self, target: &Target) -> bool {
        let (spec, namespace) = (&self.spec, self.metadata.namespace.as_str());
        let at_home = namespace == target.service.namespace();
        let named =
            spec.target_refs.is_empty() || (at_home && spec.target_refs.iter().any(|r| r.name.as_str() == target.service.name()));
        let labels = spec.selector.as_ref().map(|selector| &selector.match_labels);
        let selected = labels.is_none_or(|labels| labels.iter().all(|(key, value)| target.labels.get(key) == Some(value)));
        (at_home || namespace == ROOT_NAMESPACE) && named && selected
    }

    /// How closely the policy is aimed.
    pub fn layer(&self) -> Layer {
        match (self.spec.target_refs.is_empty() && self.spec.selector.is_none(), self.metadata.namespace.as_str()) {
            (false, _) => Layer::Targeted,
            (true, ROOT_NAMESPACE) => Layer::Mesh,
            (true, _) => Layer::Namespace,
        }
    }
}
