//! The store as a PostgreSQL database that several replicas share.

use std::{fmt, str::FromStr as _, time::Duration};

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions, PgSslMode};
use zeroize::Zeroizing;

use super::{
    OpenError, Store, schema,
    sql::{Change, Connections, Health, Pool, script, sql},
};

/// Most connections of one replica.
const CONNECTIONS: u32 = 12;
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection that was idle for longer is asked whether it lives before it is used.
const IDLE: Duration = Duration::from_secs(1);
/// Longest wait for a connection that somebody gave back, maybe in the middle of a query. The pool itself would wait for ever when
/// the server's host has vanished, and would be empty before long.
const GIVEN_BACK: Duration = Duration::from_secs(3);
/// Of the advisory lock under which the schema is changed: "OUTRIDER".
const SCHEMA_LOCK: i64 = 0x4f55_5452_4944_4552;
/// What the server does for us. A replica that is paused or cut off within a change must not keep the others out, and a
/// server must notice that it is.
const SESSION: [(&str, &str); 6] = [
    ("statement_timeout", "8s"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "4s"),
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "3"),
];

/// Where a PostgreSQL store is: `postgres://USER:PASSWORD@HOST[:PORT][,HOST…]/DATABASE`. Never printed whole.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl(Zeroizing<String>);

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PostgresUrl({self})")
    }
}

impl fmt::Display for PostgresUrl {
    /// Without user and password.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (authority, rest) = self.parts();
        let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
        let database = rest.split('?').next().unwrap_or_default();
        write!(out, "postgres://{hosts}{database}")
    }
}

impl PostgresUrl {
    /// Reads the address of a store.
    ///
    /// # Errors
    /// What is wrong with it, in words that hold nothing of it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err("is not of the form `postgres://USER:PASSWORD@HOST/DATABASE`".to_owned());
        }
        let url = Self(Zeroizing::new(text.to_owned()));
        url.options().map(|_| url)
    }

    /// What lies between `//` and the path, and the rest.
    fn parts(&self) -> (&str, &str) {
        let rest = self.0.split_once("://").map_or("", |(_, rest)| rest);
        rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()))
    }

    /// How to connect to each of the hosts, in their order.
    pub(super) fn options(&self) -> Result<Vec<PgConnectOptions>, String> {
        let (authority, rest) = self.parts();
        let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
        let at = if user.is_empty() { "" } else { "@" };
        hosts.split(',').map(|host| one(&format!("postgres://{user}{at}{host}{rest}"), rest)).collect()
    }
}

fn one(url: &str, rest: &str) -> Result<PgConnectOptions, String> {
    // What the parser says may hold the address, and so the password.
    let options = PgConnectOptions::from_str(url).map_err(|_| "cannot be read as an address of PostgreSQL".to_owned())?;
    let options = options.application_name("outrider-control-plane").options(SESSION);
    let host = options.get_host();
    let near =
        options.get_socket().is_some() || host.starts_with('/') || ["localhost", "127.0.0.1", "::1", "[::1]"].contains(&host);
    let chosen = rest.contains("sslmode=") || rest.contains("ssl-mode=");
    // Policies and certificates do not travel in the clear because nobody thought of it.
    Ok(if near || chosen { options } else { options.ssl_mode(PgSslMode::VerifyFull) })
}

/// Opens the database, and brings it to the newest schema.
pub(super) async fn open(url: &PostgresUrl) -> Result<Pool, OpenError> {
    let pool = connect(url).await?;
    migrate(&pool, url).await?;
    Ok(pool)
}

/// Opens a database that has the newest schema already.
pub(super) async fn open_as_it_is(url: &PostgresUrl) -> Result<Pool, OpenError> {
    let pool = connect(url).await?;
    let found: Result<(i64,), _> = sql("SELECT version FROM outrider_schema WHERE id = 1").one(&pool).await;
    match found {
        Ok((version,)) if usize::try_from(version) == Ok(schema::KNOWN) => Ok(pool),
        Ok((version,)) => Err(OpenError::Other {
            path: url.to_string(),
            reason: format!("it has schema {version}, this version knows {}: start this version on it once", schema::KNOWN),
        }),
        Err(sqlx::Error::Database(_)) => Err(OpenError::Foreign { path: url.to_string() }),
        Err(error) => Err(explain(url, &error)),
    }
}

async fn connect(url: &PostgresUrl) -> Result<Pool, OpenError> {
    let wrong = |error: sqlx::Error| explain(url, &error);
    let options = url.options().map_err(|reason| OpenError::Other { path: url.to_string(), reason })?;
    let first = reachable(&options).await.map_err(wrong)?;
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(CONNECT)
        .test_before_acquire(false)
        .before_acquire(|connection, meta| Box::pin(is_usable(connection, meta.idle_for)))
        .after_release(|connection, _| Box::pin(answers(connection)));
    let pool = pool.connect_with(first).await.map_err(wrong)?;
    Ok(Pool { database: Connections::Postgres(pool), health: Health::new() })
}

async fn is_usable(connection: &mut PgConnection, idle: Duration) -> Result<bool, sqlx::Error> {
    if idle < IDLE {
        return Ok(true);
    }
    let ask = sqlx::query_as("SELECT pg_is_in_recovery()").fetch_one(connection);
    Ok(matches!(tokio::time::timeout(Duration::from_secs(1), ask).await, Ok(Ok((false,)))))
}

/// An error closes the connection without another word to it.
async fn answers(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let silent = |_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()));
    tokio::time::timeout(GIVEN_BACK, sqlx::Connection::ping(connection)).await.unwrap_or_else(silent).map(|()| true)
}

/// The first of the servers that answers and takes writes.
async fn reachable(servers: &[PgConnectOptions]) -> Result<PgConnectOptions, sqlx::Error> {
    let mut last = sqlx::Error::PoolTimedOut;
    for server in servers {
        match takes_writes(server).await {
            Ok(true) => return Ok(server.clone()),
            Ok(false) => last = sqlx::Error::Protocol("the server is a standby, which takes no writes".to_owned()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn takes_writes(server: &PgConnectOptions) -> Result<bool, sqlx::Error> {
    let ask = async {
        let mut connection = sqlx::ConnectOptions::connect(server).await?;
        let (standby,): (bool,) = sqlx::query_as("SELECT pg_is_in_recovery()").fetch_one(&mut connection).await?;
        sqlx::Connection::close(connection).await?;
        Ok(!standby)
    };
    tokio::time::timeout(CONNECT, ask).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

async fn migrate(pool: &Pool, url: &PostgresUrl) -> Result<(), OpenError> {
    let wrong = |error: sqlx::Error| explain(url, &error);
    let mut change = pool.begin().await.map_err(wrong)?;
    // Replicas that start at once wait for each other here.
    sql("SELECT pg_advisory_xact_lock($1)").bind(SCHEMA_LOCK).run(&mut change).await.map_err(wrong)?;
    let version = version(&mut change, url).await?;
    if version > schema::KNOWN {
        return Err(OpenError::Newer { path: url.to_string(), found: version, known: schema::KNOWN });
    }
    for (step, text) in schema::for_postgres(version) {
        script(text, &mut change).await.map_err(wrong)?;
        let mark = sql("UPDATE outrider_schema SET version = $1 WHERE id = 1");
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        mark.bind(step).run(&mut change).await.map_err(wrong)?;
    }
    change.commit().await.map_err(wrong)
}

/// The version of the schema; 0 for an empty database, which is marked as ours.
async fn version(change: &mut Change, url: &PostgresUrl) -> Result<usize, OpenError> {
    let wrong = |error: sqlx::Error| explain(url, &error);
    let tables: Vec<(String,)> = sql("SELECT CAST(tablename AS TEXT) FROM pg_tables WHERE schemaname = current_schema()")
        .all(&mut *change)
        .await
        .map_err(wrong)?;
    if tables.iter().any(|(name,)| name == "outrider_schema") {
        let (version,): (i64,) = sql("SELECT version FROM outrider_schema WHERE id = 1").one(change).await.map_err(wrong)?;
        return Ok(usize::try_from(version).unwrap_or(usize::MAX));
    }
    if !tables.is_empty() {
        return Err(OpenError::Foreign { path: url.to_string() });
    }
    let made = "CREATE TABLE outrider_schema (id BIGINT PRIMARY KEY CHECK (id = 1), version BIGINT NOT NULL);
                INSERT INTO outrider_schema (id, version) VALUES (1, 0)";
    script(made.to_owned(), change).await.map_err(wrong)?;
    Ok(0)
}

impl Store {
    /// Whether several replicas may share it.
    pub(crate) fn is_shared(&self) -> bool {
        self.url.is_some()
    }

    /// Looks for a server that takes writes when the one in use does not answer, or has become a standby.
    pub(crate) async fn follow(&self) {
        let (Some(url), Connections::Postgres(pool)) = (&self.url, &self.writer.database) else { return };
        let Ok(servers) = url.options() else { return };
        if let Ok(server) = reachable(&servers).await {
            pool.set_connect_options(server);
        }
    }
}

fn explain(url: &PostgresUrl, error: &sqlx::Error) -> OpenError {
    let reason = error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
    OpenError::Other { path: url.to_string(), reason }
}
