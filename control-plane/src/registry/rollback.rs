//! Going back: policies and routes as they were at an earlier revision, as a change of its own.

use std::collections::BTreeSet;

use super::{Applied, Change, ChangeError, Policy, Route, apply::Changed};
use crate::{
    publish::Publisher,
    store::{Author, Deed, PolicyRow},
};

/// The end of a rollback.
#[derive(Debug)]
pub(crate) enum RolledBack {
    /// A canary was ended, and nothing else was done.
    Canary,
    /// The policies are what they were at this revision.
    To(u64, Applied),
}

impl Publisher {
    /// Puts policies back to what they were at `revision`; 0 means before their last change. What was in force once is not
    /// analysed again: going back must work when the mesh has changed, and agents refuse what they cannot enforce.
    pub(crate) async fn rollback(&mut self, revision: u64, dry_run: bool, author: &Author) -> Result<RolledBack, ChangeError> {
        if !dry_run && self.abort_canary() {
            return Ok(RolledBack::Canary);
        }
        let restored = self.restored(revision).await?;
        let wanted = self.store.policies_at(restored).await?;
        let (mut changed, mut changes, mut kept) = (Changed::default(), Vec::new(), BTreeSet::new());
        for (namespace, name, json) in wanted {
            let row = PolicyRow { namespace, name, json, revision: 0 };
            let (full, now) = if Route::is_row_of(&row.name) {
                let route = Route::read(row.clone(), 0)?;
                let full = route.resource.name.clone();
                let now = self.world.routes.get(&full);
                if now.is_none_or(|now| now.json != row.json) {
                    let created = now.map_or(0, |now| now.stored.created);
                    changed.routes.push(Route::new(route.stored.route, route.json, 0, created));
                }
                (full, now.map(|now| &now.json))
            } else {
                let full = format!("{}/{}", row.namespace, row.name);
                let now = self.world.policies.get(&full).map(|now| &now.json);
                if now != Some(&row.json) {
                    changed.puts.push(Policy::read(row.clone())?);
                }
                (full, now)
            };
            match now {
                Some(now) if *now == row.json => {}
                Some(_) => changes.push((full.clone(), Change::Updated)),
                None => changes.push((full.clone(), Change::Created)),
            }
            kept.insert(full);
        }
        let gone = |name: &&String| !kept.contains(*name);
        changed.deletes = self.world.policies.keys().filter(gone).cloned().collect();
        changed.gone_routes = self.world.routes.keys().filter(gone).cloned().collect();
        changes.extend(changed.deletes.iter().chain(&changed.gone_routes).map(|name| (name.clone(), Change::Deleted)));
        let mut applied = Applied { changes, ..self.unchanged() };
        if !dry_run && !applied.changes.is_empty() {
            let deed = Deed { author, call: "Rollback", subject: &format!("to {restored}") };
            applied.revision = self.store_change(changed, deed).await?;
        }
        Ok(RolledBack::To(restored, applied))
    }

    async fn restored(&self, revision: u64) -> Result<u64, ChangeError> {
        let newest = self.world.revision;
        if revision > newest {
            return Err(ChangeError::NotFound(format!("revision {revision} does not exist yet, the newest is {newest}")));
        }
        if revision > 0 {
            return Ok(revision);
        }
        let last = self.store.policy_revisions(1).await?;
        let last =
            last.first().ok_or_else(|| ChangeError::NotFound("no policy was ever applied: nothing to go back to".to_owned()))?;
        Ok(last.revision - 1)
    }
}
