//! What must survive: one SQLite file, or a PostgreSQL database that several replicas share. Every change is one transaction,
//! and what was acknowledged is on the disk.

mod agents;
mod audit;
mod authorities;
mod certificates;
mod decisions;
mod dir;
mod handovers;
mod hints;
mod issuing;
mod jwt_keys;
mod keys;
mod leases;
mod migrate;
mod open;
mod operators;
mod policies;
mod postgres;
mod replica;
mod revocations;
mod rotation;
mod schema;
mod sessions;
mod sql;
mod sqlite;
mod tokens;
mod wants;

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use dir::OpenFile;
use hints::Hints;
use issuing::Pending;
use sql::{Change, Health, Pool, sql};

pub(crate) use agents::{AgentRow, Backing};
pub(crate) use audit::{AuditRow, Author, Deed};
pub(crate) use authorities::RootMark;
pub(crate) use certificates::{CertificateRow, Redeem};
pub(crate) use decisions::{DECISIONS_BYTES, DECISIONS_KEPT, DecisionRow};
pub use dir::DirError;
pub(crate) use dir::{Claim, is_replica_id};
pub(crate) use handovers::GoingRow;
pub(crate) use jwt_keys::JwtKeyRow;
pub use keys::KeyError;
pub(crate) use keys::{CaRow, Kek, Role};
pub(crate) use leases::Lease;
pub use migrate::{MigrateError, Moved, Place, migrate};
pub use open::{Backend, OpenError};
pub(crate) use operators::OperatorRow;
pub(crate) use policies::{PolicyRow, RevisionRow, Written};
pub use postgres::PostgresUrl;
pub(crate) use replica::Replica;
pub(crate) use revocations::{MAX_REVOCATIONS, RevocationRow};
pub(crate) use rotation::{HeldRow, OpenTokens, RotationRow};
pub(crate) use sessions::SessionRow;
pub(crate) use tokens::{TokenHash, TokenRow};
pub(crate) use wants::WantsRow;

/// The store. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    /// SQLite has one writer at a time, and waiting in our queue is fairer than in its busy loop: one connection.
    writer: Pool,
    readers: Pool,
    issuances: mpsc::Sender<Pending>,
    replica: Arc<Replica>,
    /// Where it is, when it is a PostgreSQL database.
    url: Option<PostgresUrl>,
    /// The file, when it is one.
    file: Option<Arc<OpenFile>>,
    /// What other replicas changed.
    pub(crate) hints: Hints,
    /// Whether this replica has not left.
    here: Arc<tokio::sync::Mutex<bool>>,
}

/// What changed between two revisions.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The newer one.
    pub(crate) revision: u64,
    /// `(namespace, name, revision, json)` each, oldest first; without JSON it was deleted.
    pub(crate) policies: Vec<(String, String, u64, Option<String>)>,
    /// Agents whose endpoints changed, as they are now.
    pub(crate) agents: Vec<AgentRow>,
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
    /// A leaf was signed below a root that signs no more.
    #[error("the root of the certificate signs no more")]
    RootRetired,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// Its file was removed, or another one took its place.
    #[error("the store's file is gone: put it back from a backup and start again")]
    Gone,
    /// Another replica changed policies in the meantime.
    #[error("another replica changed policies at the same time: try again")]
    Overtaken,
    /// A single task lost its lease to another replica.
    #[error("the lease `{0}` has passed on to another replica")]
    Fenced(&'static str),
}

impl Store {
    /// Begins a change. Dropped without commit it never happened.
    async fn begin(&self) -> Result<Change, StoreError> {
        Ok(self.writer.begin().await?)
    }

    /// The pool that reads.
    fn readers(&self) -> &Pool {
        &self.readers
    }

    /// Id of this replica.
    pub(crate) fn replica(&self) -> &str {
        &self.replica.id
    }

    /// The mesh at one moment: its revision, policies and agents.
    pub(crate) async fn mesh(&self) -> Result<(u64, Vec<PolicyRow>, Vec<AgentRow>), StoreError> {
        let mut moment = self.readers().snapshot().await?;
        let (revision,): (i64,) = sql("SELECT revision FROM mesh WHERE id = 1").one(&mut moment).await?;
        let policies = policies::all(&mut moment).await?;
        let agents = agents::all(&mut moment).await?;
        Ok((revision.unsigned_abs(), policies, agents))
    }

    /// Shows how the database does.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let Health { seconds, errors } = self.writer.health.clone();
        registry.register("store_seconds", "Time of one statement or commit of the store", seconds);
        registry.register("store_statements_failed", "Statements and commits of the store that failed", errors);
    }

    /// What changed after a revision, at one moment.
    pub(crate) async fn changes_since(&self, revision: u64) -> Result<Changes, StoreError> {
        if self.revision().await? <= revision {
            return Ok(Changes { revision, ..Changes::default() });
        }
        let mut moment = self.readers().snapshot().await?;
        let (newest,): (i64,) = sql("SELECT revision FROM mesh WHERE id = 1").one(&mut moment).await?;
        let policies = policies::since(&mut moment, revision).await?;
        let agents = agents::since(&mut moment, revision).await?;
        Ok(Changes { revision: newest.unsigned_abs(), policies, agents })
    }

    /// The revision of the last change that agents can see.
    pub(crate) async fn revision(&self) -> Result<u64, StoreError> {
        let (revision,): (i64,) = sql("SELECT revision FROM mesh WHERE id = 1").one(self.readers()).await?;
        Ok(revision.unsigned_abs())
    }

    /// The same store in the hands of another replica.
    #[cfg(test)]
    pub(crate) fn as_replica(&self, id: &str) -> Self {
        Self { replica: Replica::starting(id, "elsewhere").into(), here: Arc::new(tokio::sync::Mutex::new(true)), ..self.clone() }
    }

    /// What a query that counts says.
    #[cfg(test)]
    pub(crate) async fn count(&self, text: &'static str) -> i64 {
        sql(text).one::<(i64,)>(&self.writer).await.unwrap().0
    }

    /// Runs something that no control plane does.
    #[cfg(test)]
    pub(crate) async fn meddle(&self, text: &'static str) {
        sql(text).run(&self.writer).await.unwrap();
    }

    /// Whether what is written has a place: a file that was removed takes every write, and keeps none.
    ///
    /// # Errors
    /// [`StoreError::Gone`].
    pub(crate) fn is_there(&self) -> Result<(), StoreError> {
        match &self.file {
            Some(file) if !file.is_there() => Err(StoreError::Gone),
            _ => Ok(()),
        }
    }

    /// Lets go of the database, in a state that the next one finds whole.
    pub(crate) async fn close(&self) -> Result<(), StoreError> {
        self.readers.close().await;
        self.writer.settle().await?;
        self.writer.close().await;
        Ok(())
    }
}

/// Takes the next revision within a change. The row is held to its end: revisions are committed in their order.
async fn next_revision(change: &mut Change) -> Result<u64, StoreError> {
    let (revision,): (i64,) =
        sql("UPDATE mesh SET revision = revision + 1 WHERE id = 1 RETURNING revision").one(&mut *change).await?;
    change.hint("mesh").await?;
    Ok(revision.unsigned_abs())
}

/// Revisions are counted from 0 by ones: they fit.
fn signed(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
