//! Decisions that agents reported: a ring that keeps denials longest.

use super::{Store, StoreError};

/// Most decisions kept.
pub(crate) const DECISIONS_KEPT: i64 = 100_000;

/// A decision as stored.
#[derive(Clone, Debug)]
pub(crate) struct DecisionRow {
    pub(crate) request_id: String,
    /// `namespace/name`.
    pub(crate) destination: String,
    pub(crate) denied: bool,
    /// Encoded `DecisionRecord`.
    pub(crate) record: Vec<u8>,
}

impl Store {
    /// Adds a batch in one transaction.
    pub(crate) async fn put_decisions(&self, batch: &[DecisionRow]) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        for row in batch {
            sqlx::query("INSERT INTO decisions (request_id, destination, denied, record) VALUES (?, ?, ?, ?)")
                .bind(&row.request_id)
                .bind(&row.destination)
                .bind(row.denied)
                .bind(&row.record)
                .execute(&mut *change)
                .await?;
        }
        Ok(change.commit().await?)
    }

    /// Shortens the ring to `kept`: the oldest allows go first, then the oldest denials.
    pub(crate) async fn prune_decisions(&self, kept: i64) -> Result<u64, StoreError> {
        let mut change = self.begin().await?;
        let (count,): (i64,) = sqlx::query_as("SELECT count(*) FROM decisions").fetch_one(&mut *change).await?;
        let mut left = count - kept;
        let mut pruned = 0;
        for denied in [false, true] {
            if left > 0 {
                let gone = sqlx::query(
                    "DELETE FROM decisions WHERE seq IN (SELECT seq FROM decisions WHERE denied = ? ORDER BY seq LIMIT ?)",
                )
                .bind(denied)
                .bind(left)
                .execute(&mut *change)
                .await?
                .rows_affected();
                pruned += gone;
                left -= i64::try_from(gone).unwrap_or(left);
            }
        }
        change.commit().await?;
        Ok(pruned)
    }

    /// The newest decisions, newest first: encoded `DecisionRecord`s.
    pub(crate) async fn decisions(&self, limit: u32, denied_only: bool, destination: &str) -> Result<Vec<Vec<u8>>, StoreError> {
        let rows: Vec<(Vec<u8>,)> = sqlx::query_as(
            "SELECT record FROM decisions WHERE (NOT ? OR denied) AND (? = '' OR destination = ?) ORDER BY seq DESC LIMIT ?",
        )
        .bind(denied_only)
        .bind(destination)
        .bind(destination)
        .bind(limit)
        .fetch_all(self.readers())
        .await?;
        Ok(rows.into_iter().map(|(record,)| record).collect())
    }

    /// What was reported about one request: encoded `DecisionRecord`s, oldest first.
    pub(crate) async fn decisions_of(&self, request_id: &str) -> Result<Vec<Vec<u8>>, StoreError> {
        let rows: Vec<(Vec<u8>,)> = sqlx::query_as("SELECT record FROM decisions WHERE request_id = ? ORDER BY seq LIMIT 16")
            .bind(request_id)
            .fetch_all(self.readers())
            .await?;
        Ok(rows.into_iter().map(|(record,)| record).collect())
    }
}
