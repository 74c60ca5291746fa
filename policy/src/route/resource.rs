//! `HTTPRoute` and `GRPCRoute` as operators write them: the part of the Gateway API that is put in force, and nothing else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::duration::RouteDuration;
use crate::names::{Label, ServiceName};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$each:meta])* $word:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$each])* #[serde(rename = $text)] $word),* }
        impl $name {
            /// The word as it is written.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$word => $text),* }
            }
        }
    };
}

words! {
    /// The API version.
    ApiVersion {
        /// `gateway.networking.k8s.io/v1`.
        V1 = "gateway.networking.k8s.io/v1",
    }
}
words! {
    /// Kinds of routes.
    RouteKind {
        /// For HTTP requests.
        Http = "HTTPRoute",
        /// For gRPC methods.
        Grpc = "GRPCRoute",
    }
}
words! {
    /// The kind of what routes attach and lead to.
    ServiceKind {
        /// A service.
        Service = "Service",
    }
}
words! {
    /// How a text is compared.
    MatchType {
        /// The same text.
        Exact = "Exact",
        /// The whole text is matched by this regular expression.
        RegularExpression = "RegularExpression",
    }
}
words! {
    /// How a path is compared.
    PathMatchType {
        /// The same path.
        Exact = "Exact",
        /// This path, or one below it.
        PathPrefix = "PathPrefix",
        /// The whole path is matched by this regular expression.
        RegularExpression = "RegularExpression",
    }
}

/// A route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// `gateway.networking.k8s.io/v1`.
    pub api_version: ApiVersion,
    /// What it is for.
    pub kind: RouteKind,
    /// Name and namespace.
    pub metadata: RouteMetadata,
    /// What it says.
    pub spec: RouteSpec,
}

/// What names a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteMetadata {
    /// Its name, one in its namespace and kind.
    pub name: Label,
    /// Its namespace.
    pub namespace: Label,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Where a route attaches and what it does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteSpec {
    /// The services whose callers it concerns.
    pub parent_refs: Vec<ParentRef>,
    /// The rules; the most specific match decides.
    pub rules: Vec<RouteRule>,
}

/// Names a service whose callers a route concerns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentRef {
    /// Empty: the core group.
    #[serde(default)]
    pub group: String,
    /// `Service`.
    pub kind: ServiceKind,
    /// Its name.
    pub name: Label,
    /// Its namespace; none for the route's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Label>,
    /// Its port; none for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A rule of a route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteRule {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Label>,
    /// What it is for; none for everything. One of them is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<RouteMatch>,
    /// What is done to the request and its response.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// Where it goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<BackendRef>,
    /// How long it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// What is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
}

/// What a request must be; all that is written must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteMatch {
    /// Its path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Its fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// Its query's parameters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query_params: Vec<HeaderMatch>,
    /// Its method: of HTTP, or of gRPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
}

/// A condition on the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatch {
    /// How it is compared.
    #[serde(rename = "type", default = "path_prefix")]
    pub kind: PathMatchType,
    /// With what.
    #[serde(default = "root")]
    pub value: String,
}

fn path_prefix() -> PathMatchType {
    PathMatchType::PathPrefix
}

fn root() -> String {
    "/".to_owned()
}

fn exact() -> MatchType {
    MatchType::Exact
}

/// A condition on a field or a parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// How it is compared.
    #[serde(rename = "type", default = "exact")]
    pub kind: MatchType,
    /// Its name.
    pub name: String,
    /// With what.
    pub value: String,
}

/// A method.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Method {
    /// Of HTTP.
    Http(String),
    /// Of gRPC.
    Grpc(GrpcMethodMatch),
}

/// A condition on service and method of gRPC; at least one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMethodMatch {
    /// How both are compared.
    #[serde(rename = "type", default = "exact")]
    pub kind: MatchType,
    /// The service, `package.Service`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// Something done to a request or its response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum Filter {
    /// Changes fields of the request.
    RequestHeaderModifier {
        /// How.
        #[serde(rename = "requestHeaderModifier")]
        changes: HeaderChanges,
    },
    /// Changes fields of the response.
    ResponseHeaderModifier {
        /// How.
        #[serde(rename = "responseHeaderModifier")]
        changes: HeaderChanges,
    },
    /// Sends a copy to another backend, whose answer nobody waits for.
    RequestMirror {
        /// Where to, and how many.
        #[serde(rename = "requestMirror")]
        mirror: RequestMirror,
    },
    /// Answers with a redirect.
    RequestRedirect {
        /// Where to.
        #[serde(rename = "requestRedirect")]
        redirect: Redirect,
    },
    /// Changes the path.
    #[serde(rename = "URLRewrite")]
    UrlRewrite {
        /// How.
        #[serde(rename = "urlRewrite")]
        rewrite: Rewrite,
    },
}

/// Changes of fields, in this order: `remove`, `set`, `add`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderChanges {
    /// Fields that have this value afterwards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<HeaderChange>,
    /// Values that are there besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<HeaderChange>,
    /// Fields that are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

/// A field and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderChange {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A mirror.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestMirror {
    /// Where copies go.
    pub backend_ref: BackendRef,
    /// Of a hundred requests, so many; none for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
    /// A share of the requests; none for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
}

/// A share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fraction {
    /// So many …
    pub numerator: u32,
    /// … of this many.
    #[serde(default = "hundred")]
    pub denominator: u32,
}

fn hundred() -> u32 {
    100
}

/// A redirect. What is not written stays as it is in the request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Redirect {
    /// `http` or `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// The host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
    /// The port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// 301 or 302; none for 302.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
}

/// A change of the path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rewrite {
    /// The path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
}

/// What becomes of a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum PathRewrite {
    /// This path instead.
    ReplaceFullPath {
        /// The path.
        #[serde(rename = "replaceFullPath")]
        to: String,
    },
    /// This instead of the prefix that matched.
    ReplacePrefixMatch {
        /// The prefix.
        #[serde(rename = "replacePrefixMatch")]
        to: String,
    },
}

/// A backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// Empty: the core group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// `Service`.
    #[serde(default = "service")]
    pub kind: ServiceKind,
    /// Its name.
    pub name: Label,
    /// Its namespace; none for the route's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Label>,
    /// Its port.
    pub port: u16,
    /// Its share, as part of the sum of all.
    #[serde(default = "one")]
    pub weight: u32,
}

fn service() -> ServiceKind {
    ServiceKind::Service
}

fn one() -> u32 {
    1
}

/// Bounds on time. `0s` is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// Until the response begins, all tries together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RouteDuration>,
    /// The same for one try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<RouteDuration>,
}

/// What is tried again (GEP-1731).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retry {
    /// Statuses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codes: Vec<u16>,
    /// Tries after the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Least pause between tries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<RouteDuration>,
}

impl Route {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// Reads a route from JSON, as the control plane sends it, and checks it.
    ///
    /// # Errors
    /// With the first thing that is wrong with it.
    pub fn from_json(json: &str) -> Result<Self, String> {
        let route: Self = serde_json::from_str(json).map_err(|error| error.to_string())?;
        match route.stored_problems().into_iter().next() {
            Some(problem) => Err(problem.message),
            None => Ok(route),
        }
    }

    /// The route as JSON.
    ///
    /// # Errors
    /// None that is known of.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    fn named(&self, namespace: Option<&Label>, name: &Label) -> Option<ServiceName> {
        let namespace = namespace.unwrap_or(&self.metadata.namespace);
        ServiceName::new(namespace.as_str(), name.as_str()).ok()
    }

    /// A service that it attaches to.
    pub fn parent(&self, parent: &ParentRef) -> Option<ServiceName> {
        self.named(parent.namespace.as_ref(), &parent.name)
    }

    /// A service that it leads to.
    pub fn backend(&self, backend: &BackendRef) -> Option<ServiceName> {
        self.named(backend.namespace.as_ref(), &backend.name)
    }

    /// The services that it attaches to.
    pub fn parents(&self) -> impl Iterator<Item = ServiceName> {
        self.spec.parent_refs.iter().filter_map(|parent| self.parent(parent))
    }

    /// Everything that it leads to, mirrors included.
    pub fn backends(&self) -> impl Iterator<Item = ServiceName> {
        let mirrored = |rule: &RouteRule| -> Vec<BackendRef> {
            let mirror = |filter: &Filter| match filter {
                Filter::RequestMirror { mirror } => Some(mirror.backend_ref.clone()),
                _ => None,
            };
            rule.backend_refs.iter().cloned().chain(rule.filters.iter().filter_map(mirror)).collect()
        };
        self.spec.rules.iter().flat_map(mirrored).filter_map(|backend| self.backend(&backend))
    }

    /// Whether it concerns calls of a workload of `namespace` to `service`: a route beside the service concerns all callers, a
    /// route beside a caller the callers of its own namespace only.
    pub fn concerns(&self, service: &ServiceName, namespace: &str) -> bool {
        let own = self.metadata.namespace.as_str();
        (own == service.namespace() || own == namespace) && self.parents().any(|parent| parent == *service)
    }
}
