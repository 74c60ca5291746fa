//! Who is no longer believed.

use super::{Author, Deed, Store, StoreError, audit::enter, next_revision, sql::sql};

/// Most revocations at a time: agents hold all of them.
pub(crate) const MAX_REVOCATIONS: usize = 4096;

/// A revoked certificate, or a revoked identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RevocationRow {
    /// Serial number, lower-case hex, or SPIFFE ID.
    pub(crate) subject: String,
    /// Whose certificate it is, or the subject itself.
    pub(crate) identity: String,
    pub(crate) reason: String,
    /// Unix seconds.
    pub(crate) created: i64,
    /// Unix seconds: when the certificate ends. `None` for an identity.
    pub(crate) ends: Option<i64>,
}

impl RevocationRow {
    /// Whether it is of a whole identity.
    pub(crate) fn is_identity(&self) -> bool {
        self.ends.is_none()
    }
}

impl Store {
    /// All of them, oldest first.
    pub(crate) async fn revocations(&self) -> Result<Vec<RevocationRow>, StoreError> {
        let rows: Vec<(String, String, String, i64, Option<i64>)> =
            sql("SELECT subject, identity, reason, created, ends FROM revocations ORDER BY created, subject")
                .all(self.readers())
                .await?;
        let row = |(subject, identity, reason, created, ends)| RevocationRow { subject, identity, reason, created, ends };
        Ok(rows.into_iter().map(row).collect())
    }

    /// Revokes. `None` when there is no room.
    pub(crate) async fn revoke(&self, row: &RevocationRow, author: &Author) -> Result<Option<u64>, StoreError> {
        let mut change = self.begin().await?;
        let (others,): (i64,) =
            sql("SELECT count(*) FROM revocations WHERE subject <> $1").bind(&row.subject).one(&mut change).await?;
        if usize::try_from(others).unwrap_or(usize::MAX) >= MAX_REVOCATIONS {
            return Ok(None);
        }
        sql("INSERT INTO revocations (subject, identity, reason, created, ends) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (subject) DO UPDATE SET reason = excluded.reason")
        .bind(&row.subject)
        .bind(&row.identity)
        .bind(&row.reason)
        .bind(row.created)
        .bind(row.ends)
        .run(&mut change)
        .await?;
        let revision = next_revision(&mut change).await?;
        let subject = format!("{}: {}", row.subject, row.reason);
        enter(&mut change, Deed { author, call: "Revoke", subject: &subject }, revision, row.created).await?;
        change.commit().await?;
        Ok(Some(revision))
    }

    /// Undoes a revocation. `None` when there is none.
    pub(crate) async fn unrevoke(&self, subject: &str, author: &Author, now: i64) -> Result<Option<u64>, StoreError> {
        let mut change = self.begin().await?;
        let gone = sql("DELETE FROM revocations WHERE subject = $1").bind(subject).run(&mut change).await?;
        if gone == 0 {
            return Ok(None);
        }
        let revision = next_revision(&mut change).await?;
        enter(&mut change, Deed { author, call: "Unrevoke", subject }, revision, now).await?;
        change.commit().await?;
        Ok(Some(revision))
    }

    /// Forgets revocations of certificates that ended before `before`. `None` when there was none.
    pub(crate) async fn prune_revocations(&self, before: i64) -> Result<Option<u64>, StoreError> {
        let mut change = self.begin().await?;
        let gone = sql("DELETE FROM revocations WHERE ends < $1").bind(before).run(&mut change).await?;
        if gone == 0 {
            return Ok(None);
        }
        let revision = next_revision(&mut change).await?;
        change.commit().await?;
        Ok(Some(revision))
    }
}
