//! The resource that operators write: `kind: ServicePolicy`.
//!
//! One document, three carriers: a YAML file, JSON on the wire, a Kubernetes object. All of them refuse unknown fields, and
//! every text in it is parsed when the document is read, so that what was read can also be evaluated.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::names::Label;
use crate::rule::Rule;

/// The `apiVersion` of every resource.
pub const API_VERSION: &str = "outrider.dev/v1alpha1";
/// The namespace whose policies without target apply to the whole mesh.
pub const ROOT_NAMESPACE: &str = "outrider-system";
/// Most rules in one policy.
pub const MAX_RULES: usize = 10_000;

/// Who may do what to the services that it targets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePolicy {
    /// [`API_VERSION`].
    pub api_version: ApiVersion,
    /// `ServicePolicy`.
    pub kind: Kind,
    /// Name and namespace.
    pub metadata: Metadata,
    /// What it says.
    pub spec: Spec,
}

impl ServicePolicy {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// The rules, if the policy has an `authorization` section.
    pub fn rules(&self) -> &[Rule] {
        self.spec.authorization.as_ref().map(|section| section.rules.as_slice()).unwrap_or_default()
    }

    /// The first condition that no request can meet. An older version took it, and it is kept as it is; it would be refused now.
    pub fn out_of_reach(&self) -> Option<String> {
        self.rules().iter().find_map(|rule| {
            let mut operations = rule.to.iter();
            let when = rule.when.as_ref().and_then(|when| when.check().err()).map(|problem| problem.to_string());
            when.or_else(|| operations.find_map(crate::rule::Operation::out_of_reach))
        })
    }

    /// Reads one policy from JSON, as the control plane sends it.
    pub fn from_json(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    /// The policy as JSON.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

/// The one API version there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ApiVersion {
    /// [`API_VERSION`].
    #[default]
    #[serde(rename = "outrider.dev/v1alpha1")]
    V1Alpha1,
}

/// The kinds of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Kind {
    /// [`ServicePolicy`].
    #[default]
    ServicePolicy,
}

/// What names a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Its name, one in its namespace.
    pub name: Label,
    /// Its namespace, which also bounds what it can target.
    pub namespace: Label,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a policy applies to and what it says. Without `targetRefs` and `selector` it applies to its whole namespace, and
/// from the namespace [`ROOT_NAMESPACE`] to the whole mesh.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The services it applies to, by name, in its own namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "crate::rule::at_least_one")]
    pub target_refs: Vec<TargetRef>,
    /// The workloads it applies to, by label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Whether callers must present a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    /// How much may be called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Who may call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<Authorization>,
}

/// Names a service in the policy's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// `Service`.
    pub kind: TargetKind,
    /// Its name.
    pub name: Label,
}

/// What can be targeted by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TargetKind {
    /// A service.
    #[default]
    Service,
}

/// Chooses workloads that carry all of these labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// The labels.
    #[serde(deserialize_with = "some_labels")]
    pub match_labels: BTreeMap<String, String>,
}

/// An empty selector would choose everything where the writer meant to choose something.
fn some_labels<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let labels = BTreeMap::deserialize(deserializer)?;
    if labels.is_empty() {
        Err(serde::de::Error::custom("`matchLabels` is empty: leave `selector` out to target the whole namespace"))
    } else {
        Ok(labels)
    }
}

/// Whether plaintext is let in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mtls {
    /// The mode of all ports that `ports` does not name.
    pub mode: MtlsMode,
    /// Modes of single ports.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "port_modes")]
    pub ports: BTreeMap<u16, MtlsMode>,
}

/// Keys of a JSON object are texts: only the plain decimal spelling of a port is one.
fn port_modes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u16, MtlsMode>, D::Error> {
    let modes = BTreeMap::<String, MtlsMode>::deserialize(deserializer)?;
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0 && port.to_string() == text);
    let read = |(text, mode): (String, MtlsMode)| match port(&text) {
        Some(port) => Ok((port, mode)),
        None => Err(serde::de::Error::custom(format!("`{text}` is not a port from 1 to 65535"))),
    };
    modes.into_iter().map(read).collect()
}

/// Whether a caller without certificate is let as far as the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum MtlsMode {
    /// Plaintext comes in as an anonymous caller, for the time of a migration.
    Permissive,
    /// Mutual TLS only.
    #[default]
    Strict,
}

impl fmt::Display for MtlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permissive => "Permissive",
            Self::Strict => "Strict",
        })
    }
}

/// Who may call.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Authorization {
    /// The rules; their order means nothing. Without any, nobody may.
    #[serde(deserialize_with = "crate::rule::bounded_rules")]
    pub rules: Vec<Rule>,
}
