//! Policies as stored, and the audit trail of those who changed them.

use sqlx::{Sqlite, Transaction};

use super::{Store, StoreError, next_revision, signed};

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PolicyRow {
    pub(crate) namespace: String,
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

impl Store {
    /// All policies.
    pub(crate) async fn policies(&self) -> Result<Vec<PolicyRow>, StoreError> {
        let rows: Vec<(String, String, String, i64)> =
            sqlx::query_as("SELECT namespace, name, json, revision FROM policies ORDER BY namespace, name")
                .fetch_all(self.readers())
                .await?;
        let row = |(namespace, name, json, revision): (_, _, _, i64)| PolicyRow {
            namespace,
            name,
            json,
            revision: revision.unsigned_abs(),
        };
        Ok(rows.into_iter().map(row).collect())
    }

    /// Writes all of it in one transaction with one new revision, which is returned once it is durable.
    pub(crate) async fn write_policies(&self, written: &Written, call: &str, uid: u32, now: i64) -> Result<u64, StoreError> {
        let mut change = self.begin().await?;
        let revision = next_revision(&mut change).await?;
        for (namespace, name, json) in &written.puts {
            sqlx::query(
                "INSERT INTO policies (namespace, name, json, revision) VALUES (?, ?, ?, ?)
                 ON CONFLICT (namespace, name) DO UPDATE SET json = excluded.json, revision = excluded.revision",
            )
            .bind(namespace)
            .bind(name)
            .bind(json)
            .bind(signed(revision))
            .execute(&mut *change)
            .await?;
            audit(&mut change, call, &format!("{namespace}/{name}"), uid, now, revision).await?;
        }
        for (namespace, name) in &written.deletes {
            let delete = sqlx::query("DELETE FROM policies WHERE namespace = ? AND name = ?").bind(namespace).bind(name);
            delete.execute(&mut *change).await?;
            audit(&mut change, call, &format!("{namespace}/{name}"), uid, now, revision).await?;
        }
        change.commit().await?;
        Ok(revision)
    }

    /// Records a call that changes something outside of the policies.
    pub(crate) async fn audit(&self, call: &str, subject: &str, uid: u32, now: i64) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        let (revision,): (i64,) = sqlx::query_as("SELECT revision FROM mesh WHERE id = 1").fetch_one(&mut *change).await?;
        audit(&mut change, call, subject, uid, now, revision.unsigned_abs()).await?;
        Ok(change.commit().await?)
    }
}

/// Records a change as part of it.
pub(super) async fn audit(
    change: &mut Transaction<'static, Sqlite>,
    call: &str,
    subject: &str,
    uid: u32,
    now: i64,
    revision: u64,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO audit (time, uid, call, subject, revision) VALUES (?, ?, ?, ?, ?)")
        .bind(now)
        .bind(i64::from(uid))
        .bind(call)
        .bind(subject)
        .bind(signed(revision))
        .execute(&mut **change)
        .await?;
    Ok(())
}
