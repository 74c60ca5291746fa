//! Policies come and go: checked all, then stored all, or none.

use std::{collections::BTreeMap, sync::Arc};

use outrider_policy::{Diagnostic, Manifest, Severity, StoredPolicy, Target, manifest};

use super::{Applied, Change, ChangeError, Policy, nearest};
use crate::{
    clock,
    publish::Publisher,
    store::{StoreError, Written},
};

/// What happens to each resource, the policies to store, and those that are as they should be.
type Compared = (Vec<(String, Change)>, Vec<Policy>, Vec<Policy>);

impl Publisher {
    /// Applies documents. With an error among the diagnostics nothing is stored.
    pub(crate) async fn apply(
        &mut self,
        documents: &[(String, String)],
        dry_run: bool,
        uid: u32,
    ) -> Result<Applied, ChangeError> {
        let (manifests, mut diagnostics) = read(documents);
        diagnostics.extend(self.analyse(&manifests));
        let broken = diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error);
        let (changes, puts, unchanged) = if broken { Compared::default() } else { self.compare(&manifests)? };
        let mut applied = Applied { diagnostics, changes, revision: self.world.revision };
        if !puts.is_empty() && !dry_run {
            applied.revision = self.put_policies(puts, unchanged, uid).await?;
        } else if let (true, Some(newest)) = (puts.is_empty(), unchanged.iter().map(|policy| policy.stored.revision).max()) {
            // What has not changed is in force where its own revision is, whatever else happened since.
            applied.revision = newest;
            self.remember(newest, &unchanged);
        }
        Ok(applied)
    }

    /// What is wrong, or only odd, with these policies in this mesh.
    fn analyse(&self, manifests: &[Manifest]) -> Vec<Diagnostic> {
        let existing: Vec<StoredPolicy> = self.world.policies.values().map(|policy| policy.stored.clone()).collect();
        outrider_policy::analyse(manifests, &existing, &self.world.targets())
    }

    /// Tells what would change, and keeps what must be written.
    fn compare(&self, manifests: &[Manifest]) -> Result<Compared, StoreError> {
        let mut changes = Vec::new();
        let (mut puts, mut unchanged) = (Vec::new(), Vec::new());
        for manifest in manifests {
            let name = manifest.policy.full_name();
            let json = manifest
                .policy
                .to_json()
                .map_err(|error| StoreError::Corrupt { table: "policies", reason: format!("`{name}`: {error}") })?;
            let change = match self.world.policies.get(&name) {
                Some(old) if old.json == json => {
                    unchanged.push(Policy::clone(old));
                    Change::Unchanged
                }
                Some(_) => Change::Updated,
                None => Change::Created,
            };
            if change != Change::Unchanged {
                puts.push(Policy::new(Arc::clone(&manifest.policy), json, 0));
            }
            changes.push((name, change));
        }
        Ok((changes, puts, unchanged))
    }

    async fn put_policies(&mut self, puts: Vec<Policy>, unchanged: Vec<Policy>, uid: u32) -> Result<u64, StoreError> {
        let row = |policy: &Policy| {
            let metadata = &policy.stored.policy.metadata;
            (metadata.namespace.to_string(), metadata.name.to_string(), policy.json.clone())
        };
        let written = Written { puts: puts.iter().map(row).collect(), deletes: Vec::new() };
        let revision = self.store.write_policies(&written, "Apply", uid, clock::now()).await?;
        let puts: Vec<Policy> = puts.into_iter().map(|policy| Policy::new(policy.stored.policy, policy.json, revision)).collect();
        let touched: Vec<Policy> = puts
            .iter()
            .flat_map(|put| [Some(put.clone()), self.world.policies.get(&put.resource.name).map(|old| Policy::clone(old))])
            .flatten()
            .chain(unchanged)
            .collect();
        self.world.change_policies(puts, &[], revision);
        self.publish(revision, &touched);
        Ok(revision)
    }

    /// Deletes policies by name; one that is not there fails the whole call.
    pub(crate) async fn delete(&mut self, names: &[String], uid: u32) -> Result<Applied, ChangeError> {
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
        let touched: BTreeMap<&String, Policy> =
            names.iter().filter_map(|name| policies.get(name).map(|old| (name, Policy::clone(old)))).collect();
        if touched.is_empty() {
            return Ok(self.unchanged());
        }
        let key = |policy: &Policy| {
            let metadata = &policy.stored.policy.metadata;
            (metadata.namespace.to_string(), metadata.name.to_string())
        };
        let written = Written { puts: Vec::new(), deletes: touched.values().map(key).collect() };
        let revision = self.store.write_policies(&written, "Delete", uid, clock::now()).await?;
        let changes = touched.keys().map(|name| ((*name).clone(), Change::Deleted)).collect();
        let touched: Vec<Policy> = touched.into_values().collect();
        self.world.change_policies(Vec::new(), names, revision);
        self.publish(revision, &touched);
        Ok(Applied { diagnostics: Vec::new(), changes, revision })
    }

    /// Shows the new snapshot, and remembers whom the change concerns before anybody can ask.
    fn publish(&self, revision: u64, touched: &[Policy]) {
        self.remember(revision, touched);
        self.show();
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
