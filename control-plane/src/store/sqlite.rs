//! The store as one SQLite file: checked page by page, and known to be ours.

use std::{path::Path, time::Duration};

use sqlx::{
    Connection as _,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    OpenError, StoreError, schema,
    sql::{Connections, Health, Pool, script, sql},
};

/// Marks the file as ours in SQLite's header: "OUTR".
const APPLICATION: i64 = 0x4f55_5452;
/// Connections for reading.
const READERS: u32 = 4;

/// Opens the file: a pool that writes and one that reads.
pub(super) async fn open(file: &Path) -> Result<(Pool, Pool), OpenError> {
    let (writer, readers) = connect(file).await.map_err(|error| explain(file, &error))?;
    check(&writer, file).await?;
    migrate(&writer, file).await?;
    Ok((writer, readers))
}

async fn connect(file: &Path) -> Result<(Pool, Pool), sqlx::Error> {
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
    let health = Health::new();
    let pool = |pool| Pool { database: Connections::Sqlite(pool), health: health.clone() };
    let writer = writer.connect_with(options.clone()).await?;
    Ok((pool(writer), pool(readers.connect_lazy_with(options))))
}

async fn check(writer: &Pool, file: &Path) -> Result<(), OpenError> {
    let rows: Vec<(String,)> = sql("PRAGMA integrity_check(3)").all(writer).await.map_err(|error| explain(file, &error))?;
    let findings: Vec<String> = rows.into_iter().map(|(finding,)| finding).filter(|finding| finding != "ok").collect();
    if findings.is_empty() {
        return Ok(());
    }
    Err(OpenError::Damaged { path: file.display().to_string(), reason: findings.join("; ").replace('\n', " ") })
}

async fn migrate(writer: &Pool, file: &Path) -> Result<(), OpenError> {
    let path = || file.display().to_string();
    let wrong = |error: sqlx::Error| explain(file, &error);
    let (application,): (i64,) = sql("PRAGMA application_id").one(writer).await.map_err(wrong)?;
    let (version,): (i64,) = sql("PRAGMA user_version").one(writer).await.map_err(wrong)?;
    let (tables,): (i64,) = sql("SELECT count(*) FROM sqlite_master").one(writer).await.map_err(wrong)?;
    if application != APPLICATION && tables > 0 {
        return Err(OpenError::Foreign { path: path() });
    }
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    if version > schema::KNOWN {
        return Err(OpenError::Newer { path: path(), found: version, known: schema::KNOWN });
    }
    for (step, text) in schema::for_sqlite(version) {
        // The version is part of the transaction: a step happened whole or not at all.
        let mut change = writer.begin().await.map_err(wrong)?;
        let marks = format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {step}");
        script(text, &mut change).await.map_err(wrong)?;
        script(marks, &mut change).await.map_err(wrong)?;
        change.commit().await.map_err(wrong)?;
    }
    Ok(())
}

impl Pool {
    /// Writes everything to the main file, where there is one.
    pub(super) async fn settle(&self) -> Result<(), StoreError> {
        if let Connections::Sqlite(_) = &self.database {
            sql("PRAGMA wal_checkpoint(TRUNCATE)").run(self).await?;
        }
        Ok(())
    }
}

/// SQLite's words for a broken file, told apart from all other trouble.
fn explain(file: &Path, error: &sqlx::Error) -> OpenError {
    let path = file.display().to_string();
    let reason = error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
    let damaged = ["malformed", "not a database", "disk I/O error", "corrupt"].iter().any(|sign| reason.contains(sign));
    if damaged { OpenError::Damaged { path, reason } } else { OpenError::Other { path, reason } }
}
