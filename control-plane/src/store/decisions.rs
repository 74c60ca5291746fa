//! Decisions that agents reported: a ring that keeps denials longest.

use super::{
    Lease, Store, StoreError,
    sql::{composed, sql},
};

/// Most decisions kept.
pub(crate) const DECISIONS_KEPT: i64 = 100_000;
/// Most bytes that their records hold together.
pub(crate) const DECISIONS_BYTES: i64 = 64 << 20;

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
            sql("INSERT INTO decisions (request_id, destination, denied, record) VALUES ($1, $2, $3, $4)")
                .bind(&row.request_id)
                .bind(&row.destination)
                .bind(row.denied)
                .bind(&row.record)
                .run(&mut change)
                .await?;
        }
        Ok(change.commit().await?)
    }

    /// Shortens the ring to `kept` records of `bytes` together: the oldest allows go first, then the oldest refusals of
    /// callers that got no further than the handshake, then the oldest denials.
    pub(crate) async fn prune_decisions(&self, lease: &Lease, kept: i64, bytes: i64) -> Result<u64, StoreError> {
        let (mut count, mut size) = self.decisions_size().await?;
        let mut pruned = 0;
        for class in ["denied = 0", "denied = 1 AND destination = ''", "denied = 1"] {
            if count <= kept && size <= bytes {
                break;
            }
            // As many of the oldest as are too many, or hold as many bytes as are too many.
            let text = format!(
                "DELETE FROM decisions WHERE seq IN (SELECT seq FROM
                 (SELECT seq, row_number() OVER (ORDER BY seq) AS place,
                  sum(length(record)) OVER (ORDER BY seq) - length(record) AS older FROM decisions WHERE {class}) AS class
                 WHERE place <= $1 OR older < $2)"
            );
            let mut change = self.begin_under(lease).await?;
            pruned += composed(text).bind(count - kept).bind(size - bytes).run(&mut change).await?;
            change.commit().await?;
            (count, size) = self.decisions_size().await?;
        }
        Ok(pruned)
    }

    async fn decisions_size(&self) -> Result<(i64, i64), StoreError> {
        Ok(sql("SELECT count(*), coalesce(sum(length(record)), 0) FROM decisions").one(self.readers()).await?)
    }

    /// The newest decisions, newest first: encoded `DecisionRecord`s.
    pub(crate) async fn decisions(&self, limit: u32, denied_only: bool, destination: &str) -> Result<Vec<Vec<u8>>, StoreError> {
        let rows: Vec<(Vec<u8>,)> =
            sql("SELECT record FROM decisions WHERE denied >= $1 AND ($2 = '' OR destination = $2) ORDER BY seq DESC LIMIT $3")
                .bind(denied_only)
                .bind(destination)
                .bind(limit)
                .all(self.readers())
                .await?;
        Ok(rows.into_iter().map(|(record,)| record).collect())
    }

    /// A page of the decisions about known services, newest first: place and encoded `DecisionRecord`. Begins below `before`.
    pub(crate) async fn decisions_before(&self, before: i64, limit: u32) -> Result<Vec<(i64, Vec<u8>)>, StoreError> {
        let page = sql("SELECT seq, record FROM decisions WHERE seq < $1 AND destination <> '' ORDER BY seq DESC LIMIT $2");
        Ok(page.bind(before).bind(limit).all(self.readers()).await?)
    }

    /// What was reported about one request: encoded `DecisionRecord`s, oldest first.
    pub(crate) async fn decisions_of(&self, request_id: &str) -> Result<Vec<Vec<u8>>, StoreError> {
        let rows: Vec<(Vec<u8>,)> = sql("SELECT record FROM decisions WHERE request_id = $1 ORDER BY seq LIMIT 16")
            .bind(request_id)
            .all(self.readers())
            .await?;
        Ok(rows.into_iter().map(|(record,)| record).collect())
    }
}
