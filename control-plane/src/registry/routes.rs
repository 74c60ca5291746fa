//! Routes as the mesh has them, beside the policies and with the same revisions.

use std::{collections::BTreeMap, sync::Arc};

use outrider_policy::{
    Diagnostic, Manifest, ServiceName, Severity, StoredPolicy, Unknown,
    manifest::{self, RouteManifest},
    route::{self, StoredRoute},
};
use outrider_proto::v1;

use super::{Change, Encoded, Session, World};
use crate::store::{PolicyRow, StoreError};

/// A route, ready to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) stored: StoredRoute,
    /// Store revision at which it last changed.
    pub(crate) revision: u64,
    pub(crate) json: String,
    /// Its name is the route's label, `KIND/namespace/name`.
    pub(crate) resource: Arc<Encoded>,
}

/// Routes by label.
pub(crate) type Routes = BTreeMap<String, Arc<Route>>;

impl Route {
    /// Whether a row of the table of policies is a route: `KIND/name` is no name of a policy.
    pub(crate) fn is_row_of(row_name: &str) -> bool {
        row_name.contains('/')
    }

    /// Whether `KIND/namespace/name` is meant, rather than a policy's `namespace/name`.
    pub(crate) fn is_label(name: &str) -> bool {
        name.split('/').count() == 3
    }

    /// Reads a stored route. One that this version cannot read is an error, never a route that is left out.
    pub(crate) fn read(row: PolicyRow, created: u64) -> Result<Self, StoreError> {
        let route = route::Route::from_json(&row.json).map_err(|reason| StoreError::Corrupt {
            table: "policies",
            reason: format!("`{}/{}`: {reason}", row.namespace, row.name),
        })?;
        Ok(Self::new(Arc::new(route), row.json, row.revision, created))
    }

    pub(crate) fn new(route: Arc<route::Route>, json: String, revision: u64, created: u64) -> Self {
        let body = v1::RouteBody { json: json.clone(), created };
        let resource = Encoded::new(v1::ResourceKind::Route, label(&route), revision, &body);
        Self { stored: StoredRoute { route, created }, revision, json, resource: Arc::new(resource) }
    }

    /// `(namespace, KIND/name)`: where it stands in the table of policies, whose names have no slash.
    pub(crate) fn row(&self) -> (String, String) {
        let route = &self.stored.route;
        (route.metadata.namespace.to_string(), format!("{}/{}", route.kind.as_str(), route.metadata.name))
    }

    /// Whether a connected agent calls a service that it attaches to.
    pub(crate) fn concerns(&self, session: &Session) -> bool {
        session.wants.iter().any(|service| self.stored.route.concerns(service, &session.namespace))
    }
}

/// `KIND/namespace/name`.
pub(crate) fn label(route: &route::Route) -> String {
    format!("{}/{}", route.kind.as_str(), route.full_name())
}

/// The label of the route in a row of the table of policies.
pub(super) fn label_of(row: &PolicyRow) -> String {
    match row.name.split_once('/') {
        Some((kind, name)) => format!("{kind}/{}/{name}", row.namespace),
        None => format!("{}/{}", row.namespace, row.name),
    }
}

/// What documents hold.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    pub(crate) policies: Vec<Manifest>,
    pub(crate) routes: Vec<RouteManifest>,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

/// Routes of documents beside what is stored.
#[derive(Debug, Default)]
pub(super) struct ComparedRoutes {
    pub(super) changes: Vec<(String, Change)>,
    pub(super) puts: Vec<Route>,
    pub(super) unchanged: Vec<Route>,
}

impl World {
    /// Reads documents of all kinds and says what is wrong, or only odd, with them in this mesh.
    pub(crate) fn check_all(&self, documents: &[(String, String)], unknown: Unknown) -> Checked {
        let mut checked = read(documents);
        let existing: Vec<StoredPolicy> = self.policies.values().map(|policy| policy.stored.clone()).collect();
        let targets = self.targets();
        checked.diagnostics.extend(outrider_policy::analyse(&checked.policies, &existing, &self.ground(unknown)));
        let existing: Vec<_> = self.routes.values().map(|route| Arc::clone(&route.stored.route)).collect();
        checked.diagnostics.extend(route::analyse(&checked.routes, &existing, &targets));
        checked
    }

    /// Tells what would change, and keeps what must be written.
    pub(super) fn compare_routes(&self, manifests: &[RouteManifest]) -> Result<ComparedRoutes, StoreError> {
        let mut compared = ComparedRoutes::default();
        for manifest in manifests {
            let name = label(&manifest.route);
            let corrupt =
                |error: serde_json::Error| StoreError::Corrupt { table: "policies", reason: format!("`{name}`: {error}") };
            let json = manifest.route.to_json().map_err(corrupt)?;
            let change = match self.routes.get(&name) {
                Some(old) if old.json == json => {
                    compared.unchanged.push(Route::clone(old));
                    Change::Unchanged
                }
                Some(old) => {
                    compared.puts.push(Route::new(Arc::clone(&manifest.route), json, 0, old.stored.created));
                    Change::Updated
                }
                None => {
                    compared.puts.push(Route::new(Arc::clone(&manifest.route), json, 0, 0));
                    Change::Created
                }
            };
            compared.changes.push((name, change));
        }
        Ok(compared)
    }

    /// Puts routes in, as of `revision`, and takes others out.
    pub(super) fn change_routes(&mut self, puts: Vec<Route>, deletes: &[String], revision: u64) {
        let routes = Arc::make_mut(&mut self.routes);
        for name in deletes {
            routes.remove(name);
        }
        for route in puts {
            let created = if route.stored.created == 0 { revision } else { route.stored.created };
            let route = Route::new(route.stored.route, route.json, revision, created);
            routes.insert(route.resource.name.clone(), Arc::new(route));
        }
    }

    /// The routes that concern calls of a workload of `namespace` to `service`.
    pub(crate) fn routes_of<'a>(&'a self, service: &'a ServiceName, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Route>> {
        self.routes.values().filter(move |route| route.stored.route.concerns(service, namespace))
    }
}

/// Reads all documents of all sources; the same resource in two sources is an error too.
fn read(documents: &[(String, String)]) -> Checked {
    let mut all = Checked::default();
    let mut first: BTreeMap<String, String> = BTreeMap::new();
    for (source, yaml) in documents {
        let manifest::File { policies, routes, diagnostics, .. } = manifest::parse_resources(source, yaml);
        all.diagnostics.extend(diagnostics);
        let mut is_new = |name: String, at: manifest::Position| match first.get(&name) {
            Some(before) => {
                all.diagnostics.push(Diagnostic {
                    severity: Severity::Error,
                    source: source.clone(),
                    line: at.line,
                    column: at.column,
                    message: format!("{name} is written twice, first in `{before}`"),
                    help: Some("give one of them another name".to_owned()),
                });
                false
            }
            None => first.insert(name, source.clone()).is_none(),
        };
        all.policies
            .extend(policies.into_iter().filter(|one| is_new(format!("policy `{}`", one.policy.full_name()), one.position())));
        let name = |one: &RouteManifest| format!("{} `{}`", one.route.kind.as_str(), one.route.full_name());
        all.routes.extend(routes.into_iter().filter(|one| is_new(name(one), one.position())));
    }
    all
}
