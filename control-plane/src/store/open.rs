//! Opening a store: checked page by page, brought to the newest schema, and known to be ours.

use std::{path::Path, time::Duration};

use outrider_policy::identity::TrustDomain;
use sqlx::{
    Connection as _, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    DirError, Store, StoreError,
    dir::Claim,
    keys::{Kek, KeyError},
};
use crate::config::KeySource;

/// Name of the file in the state directory.
const FILE: &str = "store.db";
/// Marks the file as ours in SQLite's header: "OUTR".
const APPLICATION: i32 = 0x4f55_5452;
/// The schema, step by step. Steps are only ever added.
const MIGRATIONS: [&str; 4] = [
    include_str!("../../migrations/0001_spine.sql"),
    include_str!("../../migrations/0002_grants_at_redemption.sql"),
    include_str!("../../migrations/0003_history.sql"),
    include_str!("../../migrations/0004_revocations.sql"),
];
/// Connections for reading.
const READERS: u32 = 4;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// The file is not a whole database.
    #[error("store `{path}` is damaged: {reason} (restore it from a backup)")]
    Damaged {
        /// The file.
        path: String,
        /// What was found.
        reason: String,
    },
    /// A database of something else.
    #[error("`{path}` is a database, but not a store of a control plane")]
    Foreign {
        /// The file.
        path: String,
    },
    /// Written by a newer version.
    #[error("store `{path}` has schema {found}, this version knows {known}: use the version that wrote it, or a newer one")]
    Newer {
        /// The file.
        path: String,
        /// Schema of the file.
        found: usize,
        /// Newest schema of this version.
        known: usize,
    },
    /// It belongs to another mesh.
    #[error("store `{path}` is of trust domain `{found}`, not `{wanted}`: set `--trust-domain {found}` or another `--state-dir`")]
    OtherTrustDomain {
        /// The file.
        path: String,
        /// Its trust domain.
        found: String,
        /// The one in the settings.
        wanted: String,
    },
    /// The key is missing or wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Anything else.
    #[error("cannot open store `{path}`: {reason}")]
    Other {
        /// The file.
        path: String,
        /// What the database said.
        reason: String,
    },
}

impl Store {
    /// Opens the store of a state directory, or makes it.
    ///
    /// # Errors
    /// When it is damaged, foreign, of another trust domain, or its key is missing or wrong.
    pub(crate) async fn open(claim: &Claim, trust_domain: &TrustDomain, key: &KeySource) -> Result<(Self, Kek), OpenError> {
        let file = claim.touch(FILE)?;
        let store = Self::connect(&file).await.map_err(|error| explain(&file, &error))?;
        store.check(&file).await?;
        store.migrate(&file).await?;
        let kek = store.adopt(&file, trust_domain, key).await?;
        Ok((store, kek))
    }

    async fn connect(file: &Path) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        // A commit that fails, on a full disk, leaves a connection that believes to be within a transaction for ever: no later
        // one would begin on it.
        let writer =
            SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None).before_acquire(|connection, _| {
                let usable = !connection.is_in_transaction();
                Box::pin(std::future::ready(Ok(usable)))
            });
        let readers = SqlitePoolOptions::new().max_connections(READERS).idle_timeout(None).max_lifetime(None);
        let writer = writer.connect_with(options.clone()).await?;
        Ok(Self { writer, readers: readers.connect_lazy_with(options) })
    }

    async fn check(&self, file: &Path) -> Result<(), OpenError> {
        let rows: Vec<(String,)> =
            sqlx::query_as("PRAGMA integrity_check(3)").fetch_all(&self.writer).await.map_err(|error| explain(file, &error))?;
        let findings: Vec<String> = rows.into_iter().map(|(finding,)| finding).filter(|finding| finding != "ok").collect();
        if findings.is_empty() {
            return Ok(());
        }
        Err(OpenError::Damaged { path: file.display().to_string(), reason: findings.join("; ").replace('\n', " ") })
    }

    async fn migrate(&self, file: &Path) -> Result<(), OpenError> {
        let path = || file.display().to_string();
        let wrong = |error: sqlx::Error| explain(file, &error);
        let (application,): (i32,) = sqlx::query_as("PRAGMA application_id").fetch_one(&self.writer).await.map_err(wrong)?;
        let (version,): (i64,) = sqlx::query_as("PRAGMA user_version").fetch_one(&self.writer).await.map_err(wrong)?;
        let (tables,): (i64,) =
            sqlx::query_as("SELECT count(*) FROM sqlite_master").fetch_one(&self.writer).await.map_err(wrong)?;
        if application != APPLICATION && tables > 0 {
            return Err(OpenError::Foreign { path: path() });
        }
        let version = usize::try_from(version).unwrap_or(usize::MAX);
        if version > MIGRATIONS.len() {
            return Err(OpenError::Newer { path: path(), found: version, known: MIGRATIONS.len() });
        }
        for (step, sql) in MIGRATIONS.iter().enumerate().skip(version) {
            // The version is part of the transaction: a step happened whole or not at all.
            let mut change = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(wrong)?;
            sqlx::raw_sql(*sql).execute(&mut *change).await.map_err(wrong)?;
            let marks = format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {}", step + 1);
            sqlx::raw_sql(sqlx::AssertSqlSafe(marks)).execute(&mut *change).await.map_err(wrong)?;
            change.commit().await.map_err(wrong)?;
        }
        Ok(())
    }

    /// Makes a new store part of the mesh, or checks that an old one is, and finds its key.
    async fn adopt(&self, file: &Path, trust_domain: &TrustDomain, key: &KeySource) -> Result<Kek, OpenError> {
        let path = || file.display().to_string();
        let wrong = |error: sqlx::Error| explain(file, &error);
        let row: Option<(String, Vec<u8>)> =
            sqlx::query_as("SELECT trust_domain, key_check FROM mesh").fetch_optional(&self.writer).await.map_err(wrong)?;
        let Some((found, check)) = row else {
            let kek = Kek::make(key)?;
            sqlx::query("INSERT INTO mesh (id, trust_domain, revision, key_check) VALUES (1, ?, 0, ?)")
                .bind(trust_domain.as_str())
                .bind(kek.check_value(trust_domain)?)
                .execute(&self.writer)
                .await
                .map_err(wrong)?;
            return Ok(kek);
        };
        if found != trust_domain.as_str() {
            return Err(OpenError::OtherTrustDomain { path: path(), found, wanted: trust_domain.to_string() });
        }
        let kek = Kek::load(key)?;
        kek.prove(trust_domain, &check)?;
        Ok(kek)
    }

    /// The pool that reads, for the modules of the store.
    pub(crate) fn readers(&self) -> &SqlitePool {
        &self.readers
    }
}

/// SQLite's words for a broken file, told apart from all other trouble.
fn explain(file: &Path, error: &sqlx::Error) -> OpenError {
    let path = file.display().to_string();
    let reason = error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
    let damaged = ["malformed", "not a database", "disk I/O error", "corrupt"].iter().any(|sign| reason.contains(sign));
    if damaged { OpenError::Damaged { path, reason } } else { OpenError::Other { path, reason } }
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        Self::Other { path: FILE.to_owned(), reason: outrider_runtime::tasks::chain(&error) }
    }
}
