//! What must survive: one SQLite file. Every change is one transaction, and what was acknowledged is on the disk.

mod agents;
mod certificates;
mod decisions;
mod dir;
mod keys;
mod open;
mod policies;
mod revocations;
mod tokens;

use sqlx::{Sqlite, SqlitePool, Transaction};

pub(crate) use agents::{AgentRow, Backing};
pub(crate) use certificates::{CertificateRow, Redeem};
pub(crate) use decisions::{DECISIONS_BYTES, DECISIONS_KEPT, DecisionRow};
pub(crate) use dir::Claim;
pub use dir::DirError;
pub use keys::KeyError;
pub(crate) use keys::{CaRow, Kek, Role};
pub use open::OpenError;
pub(crate) use policies::{PolicyRow, RevisionRow, Written};
pub(crate) use revocations::{MAX_REVOCATIONS, RevocationRow};
pub(crate) use tokens::{TokenHash, TokenRow};

/// The store. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    /// One connection: SQLite has one writer at a time, and waiting in our queue is fairer than in its busy loop.
    writer: SqlitePool,
    readers: SqlitePool,
}

/// The store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The database said no.
    #[error("the store failed")]
    Database(#[from] sqlx::Error),
    /// A row does not read as what was once written there.
    #[error("the store holds a row of `{table}` that cannot be read: {reason}")]
    Corrupt {
        /// Where.
        table: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A sealed key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A failure that several wait for.
    #[error(transparent)]
    Shared(std::sync::Arc<StoreError>),
    /// A one-time token was redeemed by somebody else in the meantime.
    #[error("the join token has been used")]
    TokenUsed,
}

impl Store {
    /// Begins a change. Dropped without commit it never happened.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// The revision of the last change that agents can see.
    pub(crate) async fn revision(&self) -> Result<u64, StoreError> {
        let (revision,): (i64,) = sqlx::query_as("SELECT revision FROM mesh WHERE id = 1").fetch_one(&self.readers).await?;
        Ok(revision.unsigned_abs())
    }

    /// Writes everything to the main file and lets go of it.
    pub(crate) async fn close(&self) -> Result<(), StoreError> {
        self.readers.close().await;
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&self.writer).await?;
        self.writer.close().await;
        Ok(())
    }
}

/// Takes the next revision within a change.
async fn next_revision(change: &mut Transaction<'static, Sqlite>) -> Result<u64, StoreError> {
    let (revision,): (i64,) = sqlx::query_as("UPDATE mesh SET revision = revision + 1 WHERE id = 1 RETURNING revision")
        .fetch_one(&mut **change)
        .await?;
    Ok(revision.unsigned_abs())
}

/// Revisions are counted from 0 by ones: they fit.
fn signed(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
