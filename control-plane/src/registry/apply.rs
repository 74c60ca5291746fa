//! Policies come and go: checked all, then stored all, or none.

use std::{collections::BTreeSet, sync::Arc};

use outrider_policy::{Diagnostic, Manifest, Severity, StoredPolicy, Target, Unknown, manifest};

use super::{Applied, Change, ChangeError, Policy, World, nearest};
use crate::{
    clock,
    publish::Publisher,
    store::{StoreError, Written},
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
        uid: u32,
    ) -> Result<Applied, ChangeError> {
        if !dry_run {
            self.refuse_during_canary()?;
        }
        let (manifests, diagnostics) = self.world.check(documents, unknown);
        let compared = if is_broken(&diagnostics) { Compared::default() } else { self.world.compare(&manifests)? };
        let Compared { changes, puts, unchanged } = compared;
        let mut applied = Applied { diagnostics, changes, revision: self.world.revision };
        if !puts.is_empty() && !dry_run {
            applied.revision = self.store_policies(puts, Vec::new(), &unchanged, "Apply", uid).await?;
        } else if let (true, Some(newest)) = (puts.is_empty(), unchanged.iter().map(|policy| policy.stored.revision).max()) {
            // What has not changed is in force where its own revision is, whatever else happened since.
            applied.revision = newest;
            self.remember(newest, &unchanged);
        }
        Ok(applied)
    }

    /// Deletes policies by name; one that is not there fails the whole call.
    pub(crate) async fn delete(&mut self, names: &[String], uid: u32) -> Result<Applied, ChangeError> {
        self.refuse_during_canary()?;
        let policies = Arc::clone(&self.world.policies);
        let missing: Vec<String> = names
            .iter()
            .filter(|name| !policies.contains_key(*name))
            .map(|name| {
                let near = nearest(name, policies.keys().map(String::as_str));
                near.map_or_else(|| format!("no policy `{name}`"), |near| format!("no policy `{name}`: did you mean `{near}`?"))
            })
            .collect();
        if !missing.is_empty() {
            return Err(ChangeError::NotFound(missing.join("; ")));
        }
        let names: Vec<String> = names.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect();
        if names.is_empty() {
            return Ok(self.unchanged());
        }
        let changes = names.iter().map(|name| (name.clone(), Change::Deleted)).collect();
        let revision = self.store_policies(Vec::new(), names, &[], "Delete", uid).await?;
        Ok(Applied { diagnostics: Vec::new(), changes, revision })
    }

    /// Stores a change of policies and shows it to everybody. `also` are policies that did not change and whose agents are
    /// waited for all the same.
    pub(super) async fn store_policies(
        &mut self,
        puts: Vec<Policy>,
        deletes: Vec<String>,
        also: &[Policy],
        call: &str,
        uid: u32,
    ) -> Result<u64, StoreError> {
        let key = |policy: &Policy| {
            let metadata = &policy.stored.policy.metadata;
            (metadata.namespace.to_string(), metadata.name.to_string())
        };
        let put = |policy: &Policy| {
            let (namespace, name) = key(policy);
            (namespace, name, policy.json.clone())
        };
        let known = |name: &String| self.world.policies.get(name).map(|old| Policy::clone(old));
        let gone: Vec<Policy> = deletes.iter().filter_map(known).collect();
        let replaced: Vec<Policy> = puts.iter().filter_map(|put| known(&put.resource.name)).collect();
        let written = Written { puts: puts.iter().map(put).collect(), deletes: gone.iter().map(key).collect() };
        let revision = self.store.write_policies(&written, self.world.revision, (call, uid), clock::now()).await?;
        let puts: Vec<Policy> = puts.into_iter().map(|policy| Policy::new(policy.stored.policy, policy.json, revision)).collect();
        let touched: Vec<Policy> = puts.iter().chain(&replaced).chain(&gone).chain(also).cloned().collect();
        if self.is_next(Some(revision)) {
            self.world.change_policies(puts, &deletes, revision);
        } else {
            self.follow().await;
        }
        // Remembered before anybody can ask.
        self.remember(revision, &touched);
        self.show();
        Ok(revision)
    }

    /// Remembers whom these policies concern: who is connected, and who is part of the mesh and away for a moment.
    fn remember(&self, revision: u64, touched: &[Policy]) {
        let concerned = |targets: &[Target]| touched.iter().any(|policy| policy.applies_to_any(targets));
        self.sessions.remember(revision, self.world.reach(concerned));
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
