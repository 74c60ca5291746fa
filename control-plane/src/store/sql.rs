//! One SQL text for both databases.
//!
//! A query is written once, with `$1`, `$2`, … for its values, which both databases read. What a column may hold is what both
//! have: 64-bit integers, text, bytes. There is no boolean: 0 and 1 are integers in either.

use std::time::{Duration, Instant};

use prometheus_client::metrics::{
    counter::Counter,
    histogram::{Histogram, exponential_buckets},
};
use sqlx::{
    Arguments, AssertSqlSafe, Database, Encode, FromRow, PgPool, Postgres, Row, SqlSafeStr as _, SqlStr, Sqlite, SqlitePool,
    Transaction, Type, postgres::PgRow, sqlite::SqliteRow,
};
use tokio::time::timeout;

use super::Author;

/// Longest wait for one answer of the database. A server that vanished does not say that it did.
const ANSWER: Duration = Duration::from_secs(10);

/// How the store does. Clones share the counts.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    /// Seconds that one statement, or one commit, took.
    pub(crate) seconds: Histogram,
    /// Statements and commits that failed.
    pub(crate) errors: Counter,
}

impl Health {
    pub(super) fn new() -> Self {
        Self { seconds: Histogram::new(exponential_buckets(0.000_05, 2.5, 13)), errors: Counter::default() }
    }

    /// Waits for an answer, and takes note of it.
    async fn observe<T>(&self, answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
        let asked = Instant::now();
        let late = || sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the database did not answer"));
        let answer = timeout(ANSWER, answer).await.unwrap_or_else(|_| Err(late()));
        self.seconds.observe(asked.elapsed().as_secs_f64());
        if answer.is_err() {
            self.errors.inc();
        }
        answer
    }
}

/// Connections to a database. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub(super) database: Connections,
    pub(super) health: Health,
}

#[derive(Clone, Debug)]
pub(super) enum Connections {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// A transaction. Dropped without [`Change::commit`] it never happened.
pub(crate) struct Change {
    transaction: Begun,
    health: Health,
    /// Whose entry is part of it.
    author: Option<Author>,
}

enum Begun {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

impl Pool {
    /// Begins a change. SQLite has one writer at a time, and this waits for its turn.
    pub(super) async fn begin(&self) -> Result<Change, sqlx::Error> {
        let begin = async {
            Ok(match &self.database {
                Connections::Sqlite(pool) => Begun::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?),
                Connections::Postgres(pool) => Begun::Postgres(pool.begin().await?),
            })
        };
        Ok(Change { transaction: self.health.observe(begin).await?, health: self.health.clone(), author: None })
    }

    /// Begins to read: everything in it is of one moment.
    pub(super) async fn snapshot(&self) -> Result<Change, sqlx::Error> {
        let begin = async {
            Ok(match &self.database {
                Connections::Sqlite(pool) => Begun::Sqlite(pool.begin().await?),
                Connections::Postgres(pool) => {
                    Begun::Postgres(pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?)
                }
            })
        };
        Ok(Change { transaction: self.health.observe(begin).await?, health: self.health.clone(), author: None })
    }

    /// Lets go of all connections.
    pub(super) async fn close(&self) {
        match &self.database {
            Connections::Sqlite(pool) => pool.close().await,
            Connections::Postgres(pool) => pool.close().await,
        }
    }

    /// The store's own clock as an expression: Unix milliseconds. Several replicas have several clocks, and one store.
    pub(super) fn now(&self) -> &'static str {
        match &self.database {
            Connections::Sqlite(_) => "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
            Connections::Postgres(_) => "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)",
        }
    }
}

impl Change {
    /// Whether other replicas may see it.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self.transaction, Begun::Postgres(_))
    }

    /// The entry of this author is part of it.
    pub(super) fn is_entered_by(&mut self, author: &Author) {
        self.author = Some(author.clone());
    }

    /// Makes it last. What this returns for is on the disk.
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        let commit = async {
            match self.transaction {
                Begun::Sqlite(transaction) => transaction.commit().await,
                Begun::Postgres(transaction) => transaction.commit().await,
            }
        };
        self.health.observe(commit).await?;
        if let Some(author) = &self.author {
            author.mark_entered();
        }
        Ok(())
    }
}

/// Where a query runs.
pub(super) enum On<'a> {
    Pool(&'a Pool),
    Change(&'a mut Change),
}

impl<'a> From<&'a Pool> for On<'a> {
    fn from(pool: &'a Pool) -> Self {
        Self::Pool(pool)
    }
}

impl<'a> From<&'a mut Change> for On<'a> {
    fn from(change: &'a mut Change) -> Self {
        Self::Change(change)
    }
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Integer,
    Text,
    Bytes,
}

/// A value of a query. `None` is NULL.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Integer(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Integer(Some(value))
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Integer(Some(value.into()))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Integer(Some(value.into()))
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::Integer(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        // PostgreSQL has no NUL in texts, and nothing that we store needs one.
        Self::Text(Some(value.replace('\0', "\u{fffd}")))
    }
}

impl From<&String> for Value {
    fn from(value: &String) -> Self {
        value.as_str().into()
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        value.as_str().into()
    }
}

impl From<Option<&str>> for Value {
    fn from(value: Option<&str>) -> Self {
        value.map_or(Self::Text(None), Self::from)
    }
}

impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        Self::Bytes(Some(value.to_owned()))
    }
}

impl From<&Vec<u8>> for Value {
    fn from(value: &Vec<u8>) -> Self {
        value.as_slice().into()
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(Some(value))
    }
}

/// A row that reads the same from both databases: a tuple of `i64`, `String`, `Vec<u8>`, and options of them.
pub(super) trait Record: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}

impl<T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin> Record for T {}

/// A query with its values.
pub(super) struct Sql {
    text: SqlStr,
    values: Vec<Value>,
    /// Whether the text comes again and again, so that it is worth to be prepared once.
    lasting: bool,
}

/// A query of a fixed text.
pub(super) fn sql(text: &'static str) -> Sql {
    Sql { text: text.into_sql_str(), values: Vec::new(), lasting: true }
}

/// A query whose text is put together of our own pieces, never of anything that came from outside.
pub(super) fn composed(text: String) -> Sql {
    Sql { text: AssertSqlSafe(text).into_sql_str(), values: Vec::new(), lasting: false }
}

/// `($1, $2), ($3, $4)`: as many rows of as many values, counted from `first`.
pub(super) fn rows(first: usize, rows: usize, columns: usize) -> String {
    let row = |row: usize| {
        let places: Vec<String> = (0..columns).map(|column| format!("${}", first + row * columns + column)).collect();
        format!("({})", places.join(", "))
    };
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

/// The same for whichever database it is; `$executor` is what its queries run on.
macro_rules! on {
    ($on:expr, $executor:ident, $database:ident => $body:expr) => {
        match $on {
            On::Pool(Pool { database: Connections::Sqlite($executor), .. }) => {
                type $database = Sqlite;
                $body
            }
            On::Pool(Pool { database: Connections::Postgres($executor), .. }) => {
                type $database = Postgres;
                $body
            }
            On::Change(Change { transaction: Begun::Sqlite(change), .. }) => {
                type $database = Sqlite;
                let $executor = &mut **change;
                $body
            }
            On::Change(Change { transaction: Begun::Postgres(change), .. }) => {
                type $database = Postgres;
                let $executor = &mut **change;
                $body
            }
        }
    };
}

impl Sql {
    /// The next value.
    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Runs it and says how many rows it touched.
    pub(super) async fn run<'a>(self, on: impl Into<On<'a>>) -> Result<u64, sqlx::Error> {
        let on = on.into();
        let health = on.health();
        let Self { text, values, lasting } = self;
        health
            .observe(async {
                on!(on, executor, D => {
                    let query = sqlx::query_with::<D, _>(text, arguments::<D>(values)?).persistent(lasting);
                    query.execute(executor).await.map(|done| done.rows_affected())
                })
            })
            .await
    }

    /// All rows.
    pub(super) async fn all<'a, R: Record>(self, on: impl Into<On<'a>>) -> Result<Vec<R>, sqlx::Error> {
        let on = on.into();
        let health = on.health();
        let Self { text, values, lasting } = self;
        health
            .observe(async {
                on!(on, executor, D => {
                    let query = sqlx::query_as_with::<D, R, _>(text, arguments::<D>(values)?).persistent(lasting);
                    query.fetch_all(executor).await
                })
            })
            .await
    }

    /// All rows, as values of these kinds.
    pub(super) async fn values<'a>(self, kinds: &[Kind], on: impl Into<On<'a>>) -> Result<Vec<Vec<Value>>, sqlx::Error> {
        let on = on.into();
        let health = on.health();
        let Self { text, values, lasting } = self;
        health
            .observe(async {
                on!(on, executor, D => {
                    let query = sqlx::query_with::<D, _>(text, arguments::<D>(values)?).persistent(lasting);
                    let rows = query.fetch_all(executor).await?;
                    let value = |row, (index, kind): (usize, &Kind)| match kind {
                        Kind::Integer => Row::try_get(row, index).map(Value::Integer),
                        Kind::Text => Row::try_get(row, index).map(Value::Text),
                        Kind::Bytes => Row::try_get(row, index).map(Value::Bytes),
                    };
                    rows.iter().map(|row| kinds.iter().enumerate().map(|kind| value(row, kind)).collect()).collect()
                })
            })
            .await
    }

    /// The first row, if there is one.
    pub(super) async fn first<'a, R: Record>(self, on: impl Into<On<'a>>) -> Result<Option<R>, sqlx::Error> {
        let on = on.into();
        let health = on.health();
        let Self { text, values, lasting } = self;
        health
            .observe(async {
                on!(on, executor, D => {
                    let query = sqlx::query_as_with::<D, R, _>(text, arguments::<D>(values)?).persistent(lasting);
                    query.fetch_optional(executor).await
                })
            })
            .await
    }

    /// The one row that there must be.
    pub(super) async fn one<'a, R: Record>(self, on: impl Into<On<'a>>) -> Result<R, sqlx::Error> {
        self.first(on).await?.ok_or(sqlx::Error::RowNotFound)
    }
}

/// Runs several statements without values, as in a step of the schema.
pub(super) async fn script(text: String, change: &mut Change) -> Result<(), sqlx::Error> {
    let on = On::Change(change);
    let health = on.health();
    health.observe(async { on!(on, executor, _D => sqlx::raw_sql(AssertSqlSafe(text)).execute(executor).await.map(drop)) }).await
}

impl On<'_> {
    fn health(&self) -> Health {
        match self {
            On::Pool(pool) => pool.health.clone(),
            On::Change(change) => change.health.clone(),
        }
    }
}

fn arguments<D: Database>(values: Vec<Value>) -> Result<D::Arguments, sqlx::Error>
where
    Option<i64>: for<'q> Encode<'q, D> + Type<D>,
    Option<String>: for<'q> Encode<'q, D> + Type<D>,
    Option<Vec<u8>>: for<'q> Encode<'q, D> + Type<D>,
{
    let mut arguments = D::Arguments::default();
    for value in values {
        let added = match value {
            Value::Integer(value) => arguments.add(value),
            Value::Text(value) => arguments.add(value),
            Value::Bytes(value) => arguments.add(value),
        };
        added.map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}
