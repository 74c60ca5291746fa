//! Going back: the policies as they were at an earlier revision, as a change of its own.

use std::collections::BTreeSet;

use super::{Applied, Change, ChangeError, Policy};
use crate::{publish::Publisher, store::PolicyRow};

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
    pub(crate) async fn rollback(&mut self, revision: u64, dry_run: bool, uid: u32) -> Result<RolledBack, ChangeError> {
        if !dry_run && self.abort_canary() {
            return Ok(RolledBack::Canary);
        }
        let restored = self.restored(revision).await?;
        let wanted = self.store.policies_at(restored).await?;
        let (mut puts, mut changes, mut kept) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (namespace, name, json) in wanted {
            let full = format!("{namespace}/{name}");
            kept.insert(full.clone());
            let change = match self.world.policies.get(&full) {
                Some(now) if now.json == json => continue,
                Some(_) => Change::Updated,
                None => Change::Created,
            };
            puts.push(Policy::read(PolicyRow { namespace, name, json, revision: 0 })?);
            changes.push((full, change));
        }
        let deletes: Vec<String> = self.world.policies.keys().filter(|name| !kept.contains(*name)).cloned().collect();
        changes.extend(deletes.iter().map(|name| (name.clone(), Change::Deleted)));
        let mut applied = Applied { changes, ..self.unchanged() };
        if !dry_run && !applied.changes.is_empty() {
            applied.revision = self.store_policies(puts, deletes, &[], "Rollback", uid).await?;
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
