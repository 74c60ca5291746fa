//! Policies as stored, and who changed them.

use std::collections::BTreeMap;

use super::{
    Deed, Store, StoreError,
    audit::enter,
    next_revision, signed,
    sql::{Change, sql},
};

/// A policy, or a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PolicyRow {
    pub(crate) namespace: String,
    /// Of a route with its kind: `HTTPRoute/name`.
    pub(crate) name: String,
    /// The resource as JSON.
    pub(crate) json: String,
    /// Store revision at which it last changed.
    pub(crate) revision: u64,
}

/// What one change writes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written {
    /// `(namespace, name, json)` to put.
    pub(crate) puts: Vec<(String, String, String)>,
    /// `(namespace, name)` to delete.
    pub(crate) deletes: Vec<(String, String)>,
}

/// A change of policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RevisionRow {
    pub(crate) revision: u64,
    /// Unix seconds.
    pub(crate) time: i64,
    /// SPIFFE ID of an operator, or `uid N` on the local socket.
    pub(crate) who: String,
    pub(crate) call: String,
    /// `namespace/name` each.
    pub(crate) policies: Vec<String>,
}

impl Store {
    /// The revision at which each policy was created, or created again after it had been deleted.
    pub(crate) async fn policy_ages(&self) -> Result<BTreeMap<(String, String), u64>, StoreError> {
        let rows: Vec<(String, String, i64)> =
            sql("SELECT namespace, name, min(revision) FROM policy_history AS one WHERE revision >
             (SELECT coalesce(max(revision), 0) FROM policy_history
              WHERE namespace = one.namespace AND name = one.name AND json IS NULL)
             GROUP BY namespace, name")
            .all(self.readers())
            .await?;
        Ok(rows.into_iter().map(|(namespace, name, revision)| ((namespace, name), revision.unsigned_abs())).collect())
    }

    /// Writes all of it in one transaction with one new revision, which is returned once it is durable. Refuses when policies
    /// changed after the revision `known`: whoever writes has to look at them first.
    pub(crate) async fn write_policies(
        &self,
        written: &Written,
        known: u64,
        deed: Deed<'_>,
        now: i64,
    ) -> Result<u64, StoreError> {
        let mut change = self.begin().await?;
        let revision = next_revision(&mut change).await?;
        let (newest,): (i64,) = sql("SELECT coalesce(max(revision), 0) FROM policy_history").one(&mut change).await?;
        if newest > signed(known) {
            return Err(StoreError::Overtaken);
        }
        for (namespace, name, json) in &written.puts {
            sql("INSERT INTO policies (namespace, name, json, revision) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (namespace, name) DO UPDATE SET json = excluded.json, revision = excluded.revision")
            .bind(namespace)
            .bind(name)
            .bind(json)
            .bind(signed(revision))
            .run(&mut change)
            .await?;
            remember(&mut change, namespace, name, revision, Some(json)).await?;
            trace(&mut change, deed, &format!("{namespace}/{name}"), now, revision).await?;
        }
        for (namespace, name) in &written.deletes {
            let delete = sql("DELETE FROM policies WHERE namespace = $1 AND name = $2");
            delete.bind(namespace).bind(name).run(&mut change).await?;
            remember(&mut change, namespace, name, revision, None).await?;
            trace(&mut change, deed, &format!("{namespace}/{name}"), now, revision).await?;
        }
        enter(&mut change, deed, revision, now).await?;
        change.commit().await?;
        Ok(revision)
    }

    /// All policies as they were at a revision, `(namespace, name, json)` each.
    pub(crate) async fn policies_at(&self, revision: u64) -> Result<Vec<(String, String, String)>, StoreError> {
        let rows: Vec<(String, String, Option<String>)> =
            sql("SELECT namespace, name, json FROM policy_history AS one WHERE revision =
             (SELECT max(revision) FROM policy_history
              WHERE namespace = one.namespace AND name = one.name AND revision <= $1)
             ORDER BY namespace, name")
            .bind(signed(revision))
            .all(self.readers())
            .await?;
        Ok(rows.into_iter().filter_map(|(namespace, name, json)| Some((namespace, name, json?))).collect())
    }

    /// Revisions at which policies changed, newest first.
    pub(crate) async fn policy_revisions(&self, limit: u32) -> Result<Vec<RevisionRow>, StoreError> {
        let rows: Vec<(i64, i64, String, String, String)> = sql("SELECT audit.revision, time, who, call, subject FROM audit
             JOIN (SELECT DISTINCT revision FROM policy_history ORDER BY revision DESC LIMIT $1) AS changed
             ON changed.revision = audit.revision
             WHERE call IN ('Apply', 'Delete', 'Canary', 'Rollback') ORDER BY audit.revision DESC, seq")
        .bind(limit)
        .all(self.readers())
        .await?;
        let mut revisions: Vec<RevisionRow> = Vec::new();
        for (revision, time, who, call, subject) in rows {
            let revision = revision.unsigned_abs();
            match revisions.last_mut().filter(|last| last.revision == revision) {
                Some(last) => last.policies.push(subject),
                None => {
                    revisions.push(RevisionRow { revision, time, who, call, policies: vec![subject] });
                }
            }
        }
        Ok(revisions)
    }

    /// Takes a revision for candidates, which are not stored.
    pub(crate) async fn take_revision(&self, deed: Deed<'_>, now: i64) -> Result<u64, StoreError> {
        let mut change = self.begin().await?;
        let revision = next_revision(&mut change).await?;
        enter(&mut change, deed, revision, now).await?;
        change.commit().await?;
        Ok(revision)
    }
}

/// What happened to policies after a revision: `(namespace, name, revision, json)` each, without JSON when it was deleted.
pub(super) async fn since(moment: &mut Change, revision: u64) -> Result<Vec<(String, String, u64, Option<String>)>, StoreError> {
    let rows: Vec<(String, String, i64, Option<String>)> =
        sql("SELECT namespace, name, revision, json FROM policy_history WHERE revision > $1 ORDER BY revision, namespace, name")
            .bind(signed(revision))
            .all(moment)
            .await?;
    Ok(rows.into_iter().map(|(namespace, name, revision, json)| (namespace, name, revision.unsigned_abs(), json)).collect())
}

/// All policies.
pub(super) async fn all(moment: &mut Change) -> Result<Vec<PolicyRow>, StoreError> {
    let rows: Vec<(String, String, String, i64)> =
        sql("SELECT namespace, name, json, revision FROM policies ORDER BY namespace, name").all(moment).await?;
    let row = |(namespace, name, json, revision): (_, _, _, i64)| PolicyRow {
        namespace,
        name,
        json,
        revision: revision.unsigned_abs(),
    };
    Ok(rows.into_iter().map(row).collect())
}

/// Keeps a state of a policy as part of the change that made it.
async fn remember(change: &mut Change, namespace: &str, name: &str, revision: u64, json: Option<&str>) -> Result<(), StoreError> {
    sql("INSERT INTO policy_history (namespace, name, revision, json) VALUES ($1, $2, $3, $4)")
        .bind(namespace)
        .bind(name)
        .bind(signed(revision))
        .bind(json)
        .run(&mut *change)
        .await?;
    Ok(())
}

/// Says who changed a policy, as part of the change.
async fn trace(change: &mut Change, deed: Deed<'_>, policy: &str, now: i64, revision: u64) -> Result<(), StoreError> {
    sql("INSERT INTO audit (time, who, call, subject, revision) VALUES ($1, $2, $3, $4, $5)")
        .bind(now)
        .bind(&deed.author.who)
        .bind(deed.call)
        .bind(policy)
        .bind(signed(revision))
        .run(&mut *change)
        .await?;
    Ok(())
}
