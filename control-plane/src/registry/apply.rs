//! Policies come and go: checked all, then stored all, or none.

use std::{collections::BTreeSet, sync::Arc};

use outrider_policy::{Diagnostic, Manifest, Severity, StoredPolicy, Target, Unknown, manifest};

use super::{
    Applied, Change, ChangeError, Policy, Route, World, nearest,
    routes::{Checked, ComparedRoutes},
};
use crate::{
    clock,
    publish::Publisher,
    store::{Author, Deed, StoreError, Written},
};

/// Documents beside what is stored.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// What happens to each resource.
    pub(super) changes: Vec<(String, Change)>,
    /// The policies to store.
    pub(super) puts: Vec<Policy>,
    /// Those that are as they should be.
    unchanged: Vec<Policy>,
}

impl World {
    /// Reads documents and says what is wrong, or only odd, with them in this mesh.
    pub(crate) fn check(&self, documents: &[(String, String)], unknown: Unknown) -> (Vec<Manifest>, Vec<Diagnostic>) {
        let (manifests, mut diagnostics) = read(documents);
        let existing: Vec<StoredPolicy> = self.policies.values().map(|policy| policy.stored.clone()).collect();
        diagnostics.extend(outrider_policy::analyse(&manifests, &existing, &self.ground(unknown)));
        (manifests, diagnostics)
    }

    /// Tells what would change, and keeps what must be written.
    pub(super) fn compare(&self, manifests: &[Manifest]) -> Result<Compared, StoreError> {
        let mut compared = Compared::default();
        for manifest in manifests {
            let name = manifest.policy.full_name();
            let json = manifest
                .policy
                .to_json()
                .map_err(|error| StoreError::Corrupt { table: "policies", reason: format!("`{name}`: {error}") })?;
            let change = match self.policies.get(&name) {
                Some(old) if old.json == json => {
                    compared.unchanged.push(Policy::clone(old));
                    Change::Unchanged
                }
                Some(_) => Change::Updated,
                None => Change::Created,
            };
            if change != Change::Unchanged {
                compared.puts.push(Policy::new(Arc::clone(&manifest.policy), json, 0));
            }
            compared.changes.push((name, change));
        }
        Ok(compared)
    }
}

/// What is to be stored at once.
#[derive(Debug, Default)]
pub(super) struct Changed {
    pub(super) puts: Vec<Policy>,
    /// `namespace/name` each.
    pub(super) deletes: Vec<String>,
    /// Policies that did not change and whose agents are waited for all the same.
    pub(super) also: Vec<Policy>,
    pub(super) routes: Vec<Route>,
    /// `KIND/namespace/name` each.
    pub(super) gone_routes: Vec<String>,
    /// As `also`.
    pub(super) also_routes: Vec<Route>,
}

/// Whether nothing can be done with what was read.
pub(super) fn is_broken(diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
}

impl Publisher {
    /// Applies documents. With an error among the diagnostics nothing is stored.
    pub(crate) async fn apply(
        &mut self,
        documents: &[(String, String)],
        unknown: Unknown,
        dry_run: bool,
        author: &Author,
    ) -> Result<Applied, ChangeError> {
        if !dry_run {
            self.refuse_during_canary()?;
        }
        let Checked { policies, routes, diagnostics } = self.world.check_all(documents, unknown);
        let broken = is_broken(&diagnostics);
        let compared = if broken { Compared::default() } else { self.world.compare(&policies)? };
        let routes = if broken { ComparedRoutes::default() } else { self.world.compare_routes(&routes)? };
        let changes = compared.changes.into_iter().chain(routes.changes).collect();
        let mut applied = Applied { diagnostics, changes, revision: self.world.revision };
        let nothing_new = compared.puts.is_empty() && routes.puts.is_empty();
        let changed = Changed {
            puts: compared.puts,
            also: compared.unchanged,
            routes: routes.puts,
            also_routes: routes.unchanged,
            ..Changed::default()
        };
        let revisions = changed.also.iter().map(|policy| policy.stored.revision);
        let newest = revisions.chain(changed.also_routes.iter().map(|route| route.revision)).max();
        if !nothing_new && !dry_run {
            let names: Vec<&str> = applied.changes.iter().map(|(name, _)| name.as_str()).collect();
            let deed = Deed { author, call: "Apply", subject: &names.join(" ") };
            applied.revision = self.store_change(changed, deed).await?;
        } else if let (true, Some(newest)) = (nothing_new, newest) {
            // What has not changed is in force where its own revision is, whatever else happened since.
            applied.revision = newest;
            self.remember(newest, &changed.also, &changed.also_routes);
        }
        Ok(applied)
    }

    /// Deletes policies and routes by name, `KIND/namespace/name` for routes; one that is not there fails the whole call.
    pub(crate) async fn delete(&mut self, names: &[String], author: &Author) -> Result<Applied, ChangeError> {
        self.refuse_during_canary()?;
        let (policies, routes) = (Arc::clone(&self.world.policies), Arc::clone(&self.world.routes));
        let missing = |name: &String| {
            let (what, near) = match Route::is_label(name) {
                true if routes.contains_key(name) => return None,
                true => ("route", nearest(name, routes.keys().map(String::as_str))),
                false if policies.contains_key(name) => return None,
                false => ("policy", nearest(name, policies.keys().map(String::as_str))),
            };
            Some(near.map_or_else(|| format!("no {what} `{name}`"), |near| format!("no {what} `{name}`: did you mean `{near}`?")))
        };
        let missing: Vec<String> = names.iter().filter_map(missing).collect();
        if !missing.is_empty() {
            return Err(ChangeError::NotFound(missing.join("; ")));
        }
        let names: Vec<String> = names.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect();
        if names.is_empty() {
            return Ok(self.unchanged());
        }
        let changes = names.iter().map(|name| (name.clone(), Change::Deleted)).collect();
        let subject = names.join(" ");
        let (gone_routes, deletes) = names.into_iter().partition(|name| Route::is_label(name));
        let deed = Deed { author, call: "Delete", subject: &subject };
        let revision = self.store_change(Changed { deletes, gone_routes, ..Changed::default() }, deed).await?;
        Ok(Applied { diagnostics: Vec::new(), changes, revision })
    }

    /// Stores a change of policies and routes and shows it to everybody.
    pub(super) async fn store_change(&mut self, changed: Changed, deed: Deed<'_>) -> Result<u64, StoreError> {
        let Changed { puts, deletes, also, routes, gone_routes, also_routes } = changed;
        let key = |policy: &Policy| {
            let metadata = &policy.stored.policy.metadata;
            (metadata.namespace.to_string(), metadata.name.to_string())
        };
        let with_json = |((namespace, name), json): ((String, String), &String)| (namespace, name, json.clone());
        let known = |name: &String| self.world.policies.get(name).map(|old| Policy::clone(old));
        let known_route = |name: &String| self.world.routes.get(name).map(|old| Route::clone(old));
        let gone: Vec<Policy> = deletes.iter().filter_map(known).collect();
        let replaced: Vec<Policy> = puts.iter().filter_map(|put| known(&put.resource.name)).collect();
        let lost: Vec<Route> = gone_routes.iter().filter_map(known_route).collect();
        let rerouted: Vec<Route> = routes.iter().filter_map(|put| known_route(&put.resource.name)).collect();
        let rows = puts.iter().map(|policy| (key(policy), &policy.json));
        let written = Written {
            puts: rows.chain(routes.iter().map(|route| (route.row(), &route.json))).map(with_json).collect(),
            deletes: gone.iter().map(key).chain(lost.iter().map(Route::row)).collect(),
        };
        let revision = self.store.write_policies(&written, self.world.revision, deed, clock::now()).await?;
        let puts: Vec<Policy> = puts.into_iter().map(|policy| Policy::new(policy.stored.policy, policy.json, revision)).collect();
        let touched: Vec<Policy> = puts.iter().chain(&replaced).chain(&gone).chain(&also).cloned().collect();
        let touched_routes: Vec<Route> = routes.iter().cloned().chain(rerouted).chain(lost).chain(also_routes).collect();
        if self.is_next(Some(revision)) {
            self.world.change_policies(puts, &deletes, revision);
            self.world.change_routes(routes, &gone_routes, revision);
        } else {
            self.follow().await;
        }
        // Remembered before anybody can ask.
        self.remember(revision, &touched, &touched_routes);
        self.show();
        Ok(revision)
    }

    /// Remembers whom these policies and routes concern: who is connected, and who is part of the mesh and away for a moment.
    /// What an agent calls is known of those that are connected only.
    fn remember(&self, revision: u64, touched: &[Policy], routes: &[Route]) {
        let concerned = |targets: &[Target]| touched.iter().any(|policy| policy.applies_to_any(targets));
        let mut reach = self.world.reach(concerned);
        if !routes.is_empty() {
            let sessions = self.sessions.list();
            let callers = sessions.iter().filter(|session| routes.iter().any(|route| route.concerns(session)));
            reach.extend(callers.filter_map(|session| self.world.agents.get(&session.agent_id).cloned()));
            reach.sort_by(|left, right| left.id.cmp(&right.id));
            reach.dedup_by(|left, right| left.id == right.id);
        }
        self.sessions.remember(revision, reach);
    }
}

/// Reads all documents of all sources; the same policy in two sources is an error too.
fn read(documents: &[(String, String)]) -> (Vec<Manifest>, Vec<Diagnostic>) {
    let (mut manifests, mut diagnostics) = (Vec::<Manifest>::new(), Vec::new());
    for (source, yaml) in documents {
        let (more, findings) = manifest::parse(source, yaml);
        diagnostics.extend(findings);
        for manifest in more {
            let name = manifest.policy.full_name();
            if let Some(first) = manifests.iter().find(|first| first.policy.full_name() == name) {
                let at = manifest.position();
                diagnostics.push(Diagnostic {
                    severity: Severity::Error,
                    source: source.clone(),
                    line: at.line,
                    column: at.column,
                    message: format!("policy `{name}` is written twice, first in `{}`", first.source),
                    help: Some("give one of them another name".to_owned()),
                });
            } else {
                manifests.push(manifest);
            }
        }
    }
    (manifests, diagnostics)
}
