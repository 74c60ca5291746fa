//! Moving a store from one database to another: offline, whole, and checked. The source is only read.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest;

use super::{
    Claim, DirError, OpenError,
    postgres::{self, PostgresUrl},
    replica::SILENT,
    sql::{Change, Kind, Pool, Value, composed, rows, sql},
    sqlite,
};

/// Rows that are read and written at once.
const PAGE: usize = 200;
/// What belongs to running control planes, not to the mesh.
const PASSING: [&str; 3] = ["leases", "replicas", "sessions"];

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL database.
    Postgres(PostgresUrl),
}

impl Place {
    /// Reads `sqlite:FILE`, `sqlite:DIR`, `postgres://…`, or `file:PATH` of a file that holds one of these.
    ///
    /// # Errors
    /// What is wrong with it, in words that hold no password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(path) = text.strip_prefix("file:") {
            let held = std::fs::read_to_string(path).map_err(|error| format!("`{path}`: {error}"))?;
            return if held.trim().starts_with("file:") {
                Err(format!("`{path}` names another file"))
            } else {
                Self::parse(&held)
            };
        }
        if let Some(path) = text.strip_prefix("sqlite:").filter(|path| !path.is_empty()) {
            let path = Path::new(path.strip_prefix("//").unwrap_or(path));
            let named = path.extension().is_some_and(|extension| extension == "db") && !path.is_dir();
            return Ok(Self::Sqlite(if named { path.to_owned() } else { path.join(super::open::FILE) }));
        }
        if text.starts_with("postgres") {
            return PostgresUrl::parse(text).map(Self::Postgres).map_err(|error| format!("the address {error}"));
        }
        Err("write `sqlite:DIR`, `sqlite:FILE`, `postgres://USER:PASSWORD@HOST/DATABASE`, or `file:PATH` of a file that says it"
            .into())
    }
}

impl std::fmt::Display for Place {
    /// Without user and password.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(file) => write!(out, "{}", file.display()),
            Self::Postgres(url) => write!(out, "{url}"),
        }
    }
}

/// Why a store was not moved. The target is as it was, but for an empty schema.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// One of the two cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A directory.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// A control plane uses it.
    #[error("a control plane runs on `{0}`: stop it first, what it writes from now on would be lost")]
    InUse(String),
    /// There is no such store.
    #[error("there is no store at `{0}`")]
    NoSource(String),
    /// The target holds something.
    #[error("`{0}` is not empty: a store is moved into an empty database or a new file only")]
    NotEmpty(String),
    /// Rows differ.
    #[error("table `{table}` does not read the same at the target ({read} rows read, {written} written): nothing was kept")]
    Differs {
        /// Which.
        table: String,
        /// Rows of the source.
        read: u64,
        /// Rows of the target.
        written: u64,
    },
    /// One of the databases failed.
    #[error("table `{table}`: {reason}")]
    Table {
        /// Which.
        table: String,
        /// What the database said.
        reason: String,
    },
    /// The copy of the source.
    #[error("cannot copy `{path}`: {reason}")]
    Copy {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
}

/// A table that was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Its name.
    pub table: String,
    /// Its rows.
    pub rows: u64,
}

/// Moves a store. `progress` hears of rows done and of all rows.
///
/// # Errors
/// When the source is in use or damaged, the target is not empty, or they do not read the same afterwards.
pub async fn migrate(from: &Place, to: &Place, mut progress: impl FnMut(u64, u64) + Send) -> Result<Vec<Moved>, MigrateError> {
    let source = Source::open(from).await?;
    let (target, _claim) = open_target(to).await?;
    let outcome = copy(&source.pool, &target, to, &mut progress).await;
    source.pool.close().await;
    let settled = target.settle().await;
    target.close().await;
    let moved = outcome?;
    settled.map_err(|error| table("mesh", &error))?;
    Ok(moved)
}

/// A source that nobody writes. A SQLite file is copied first: whoever opens one writes to its directory.
struct Source {
    pool: Pool,
    copy: Option<PathBuf>,
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Some(copy) = &self.copy {
            drop(std::fs::remove_dir_all(copy));
        }
    }
}

impl Source {
    async fn open(place: &Place) -> Result<Self, MigrateError> {
        match place {
            Place::Sqlite(file) => Self::copied(file).await,
            Place::Postgres(url) => {
                let pool = postgres::open_as_it_is(url).await?;
                let live = format!("SELECT count(*) FROM replicas WHERE last_seen > {} - $1", pool.now());
                let (live,): (i64,) = composed(live).bind(SILENT).one(&pool).await.map_err(|error| table("replicas", &error))?;
                if live > 0 {
                    return Err(MigrateError::InUse(place.to_string()));
                }
                Ok(Self { pool, copy: None })
            }
        }
    }

    async fn copied(file: &Path) -> Result<Self, MigrateError> {
        if !file.is_file() {
            return Err(MigrateError::NoSource(file.display().to_string()));
        }
        let lock = file.with_file_name("lock");
        if let Ok(lock) = std::fs::File::open(lock)
            && matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock))
        {
            return Err(MigrateError::InUse(file.display().to_string()));
        }
        let dir = std::env::temp_dir().join(format!("outrider-migrate-{}", uuid::Uuid::now_v7()));
        let claim = Claim::new(&dir)?;
        let copy = claim.touch("store.db")?;
        let opened = async {
            for suffix in ["", "-wal"] {
                let name = |file: &Path| {
                    let mut name = file.as_os_str().to_owned();
                    name.push(suffix);
                    PathBuf::from(name)
                };
                let (from, to) = (name(file), name(&copy));
                match std::fs::copy(&from, to) {
                    Ok(_) => {}
                    Err(error) if !suffix.is_empty() && error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(reason) => return Err(MigrateError::Copy { path: from, reason }),
                }
            }
            Ok(sqlite::open(&copy).await?.0)
        };
        let source = |pool| Self { pool, copy: Some(dir.clone()) };
        match opened.await {
            Ok(pool) => Ok(source(pool)),
            Err(error) => {
                drop(std::fs::remove_dir_all(&dir));
                Err(error)
            }
        }
    }
}

async fn open_target(place: &Place) -> Result<(Pool, Option<Claim>), MigrateError> {
    match place {
        Place::Sqlite(file) => {
            if file.exists() {
                return Err(MigrateError::NotEmpty(place.to_string()));
            }
            let claim = Claim::new(file.parent().unwrap_or(Path::new(".")))?;
            let name = file.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or(super::open::FILE);
            let file = claim.touch(name)?;
            Ok((sqlite::open(&file).await?.0, Some(claim)))
        }
        Place::Postgres(url) => Ok((postgres::open(url).await?, None)),
    }
}

async fn copy(
    source: &Pool,
    target: &Pool,
    place: &Place,
    progress: &mut (impl FnMut(u64, u64) + Send),
) -> Result<Vec<Moved>, MigrateError> {
    let mut read = source.snapshot().await.map_err(|error| table("mesh", &error))?;
    let mut written = target.begin().await.map_err(|error| table("mesh", &error))?;
    let tables = tables(&mut written).await.map_err(|error| table("mesh", &error))?;
    let mut all = 0;
    for one in &tables {
        if count(&mut written, &one.name).await? > 0 {
            return Err(MigrateError::NotEmpty(place.to_string()));
        }
        all += count(&mut read, &one.name).await?;
    }
    let (mut done, mut moved) = (0, Vec::new());
    for one in &tables {
        let sum = one.copy(&mut read, &mut written, |rows| {
            done += rows;
            progress(done, all);
        });
        let sum = sum.await.map_err(|error| table(&one.name, &error))?;
        let again = one.sum(&mut written).await.map_err(|error| table(&one.name, &error))?;
        if sum != again {
            return Err(MigrateError::Differs { table: one.name.clone(), read: sum.rows, written: again.rows });
        }
        moved.push(Moved { table: one.name.clone(), rows: sum.rows });
    }
    written.commit().await.map_err(|error| table("mesh", &error))?;
    Ok(moved)
}

fn table(name: &str, error: &dyn std::fmt::Display) -> MigrateError {
    MigrateError::Table { table: name.to_owned(), reason: error.to_string() }
}

async fn count(change: &mut Change, name: &str) -> Result<u64, MigrateError> {
    let counted: Result<(i64,), sqlx::Error> = composed(format!("SELECT count(*) FROM {name}")).one(change).await;
    counted.map(|(rows,)| rows.unsigned_abs()).map_err(|error| table(name, &error))
}

/// A table of the schema.
struct Table {
    name: String,
    columns: Vec<(String, Kind)>,
    /// Columns of its primary key.
    key: Vec<String>,
    /// Column that the database counts by itself.
    counted: Option<String>,
}

/// What rows add up to, in whichever order they come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    rows: u64,
    digest: u64,
}

impl Sum {
    fn add(&mut self, row: &[Value]) {
        let text = format!("{row:?}");
        let hash = digest::digest(&digest::SHA256, text.as_bytes());
        let first = hash.as_ref().first_chunk::<8>().copied().unwrap_or_default();
        self.rows += 1;
        self.digest = self.digest.wrapping_add(u64::from_le_bytes(first));
    }
}

impl Table {
    fn names(&self) -> String {
        self.columns.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// A page of rows, in an order that does not change.
    async fn page(&self, change: &mut Change, offset: u64) -> Result<Vec<Vec<Value>>, sqlx::Error> {
        let names = self.names();
        let text = format!("SELECT {names} FROM {} ORDER BY {} LIMIT {PAGE} OFFSET {offset}", self.name, self.key.join(", "));
        let kinds: Vec<Kind> = self.columns.iter().map(|(_, kind)| *kind).collect();
        composed(text).values(&kinds, change).await
    }

    async fn copy(&self, read: &mut Change, written: &mut Change, mut step: impl FnMut(u64)) -> Result<Sum, sqlx::Error> {
        let mut sum = Sum::default();
        loop {
            let page = self.page(read, sum.rows).await?;
            if page.is_empty() {
                break;
            }
            let text = format!("INSERT INTO {} ({}) VALUES {}", self.name, self.names(), rows(1, page.len(), self.columns.len()));
            let length = u64::try_from(page.len()).unwrap_or(0);
            page.iter().for_each(|row| sum.add(row));
            page.into_iter().flatten().fold(composed(text), super::sql::Sql::bind).run(&mut *written).await?;
            step(length);
        }
        if let Some(column) = self.counted.as_ref().filter(|_| written.is_shared()) {
            let text = format!(
                "SELECT setval(pg_get_serial_sequence('{0}', '{column}'), (SELECT coalesce(max({column}), 0) + 1 FROM {0}), false)",
                self.name
            );
            composed(text).run(written).await?;
        }
        Ok(sum)
    }

    async fn sum(&self, change: &mut Change) -> Result<Sum, sqlx::Error> {
        let mut sum = Sum::default();
        loop {
            let page = self.page(change, sum.rows).await?;
            if page.is_empty() {
                return Ok(sum);
            }
            page.iter().for_each(|row| sum.add(row));
        }
    }
}

/// The tables of the newest schema, as the target has them.
async fn tables(change: &mut Change) -> Result<Vec<Table>, sqlx::Error> {
    let columns: Vec<(String, String, String, String, i64)> = if change.is_shared() {
        sql("SELECT CAST(table_name AS TEXT), CAST(column_name AS TEXT), CAST(data_type AS TEXT), CAST(is_identity AS TEXT),
             (SELECT count(*) FROM information_schema.key_column_usage AS key WHERE key.table_schema = columns.table_schema
              AND key.table_name = columns.table_name AND key.column_name = columns.column_name
              AND key.constraint_name = columns.table_name || '_pkey') FROM information_schema.columns AS columns
             WHERE table_schema = current_schema() AND table_name <> 'outrider_schema' ORDER BY 1, ordinal_position")
        .all(change)
        .await?
    } else {
        sql("SELECT one.name, field.name, lower(field.type), CASE WHEN lower(field.type) = 'integer' THEN 'YES' ELSE 'NO' END, field.pk
             FROM sqlite_master AS one JOIN pragma_table_info(one.name) AS field
             WHERE one.type = 'table' AND one.name NOT LIKE 'sqlite_%' ORDER BY one.name, field.cid")
        .all(change)
        .await?
    };
    let mut tables: Vec<Table> = Vec::new();
    for (name, column, kind, counted, key) in columns.into_iter().filter(|(name, ..)| !PASSING.contains(&name.as_str())) {
        let kind = match kind.as_str() {
            "text" => Kind::Text,
            "blob" | "bytea" => Kind::Bytes,
            _ => Kind::Integer,
        };
        if tables.last().is_none_or(|last| last.name != name) {
            tables.push(Table { name, columns: Vec::new(), key: Vec::new(), counted: None });
        }
        if let Some(last) = tables.last_mut() {
            last.counted = last.counted.take().or_else(|| (counted == "YES").then(|| column.clone()));
            last.key.extend((key > 0).then(|| column.clone()));
            last.columns.push((column, kind));
        }
    }
    Ok(tables)
}
