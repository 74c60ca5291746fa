//! Opening a store: brought to the newest schema, and known to be ours.

use outrider_policy::identity::TrustDomain;

use super::{
    DirError, Replica, Store, StoreError,
    dir::{Claim, OpenFile},
    hints::Hints,
    issuing,
    keys::{Kek, KeyError},
    postgres::{self, PostgresUrl},
    sql::{Pool, sql},
    sqlite,
};
use crate::config::KeySource;

/// Name of the file in the state directory.
pub(super) const FILE: &str = "store.db";

/// Which database a store is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// A file in the state directory, for one control plane.
    #[default]
    Sqlite,
    /// A database that several replicas may share.
    Postgres(PostgresUrl),
}

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
    #[error("store `{path}` is of trust domain `{found}`, not `{wanted}`: set `--trust-domain {found}` or use another store")]
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
    #[cfg(any(test, feature = "bench"))]
    pub(crate) async fn open(claim: &Claim, trust_domain: &TrustDomain, key: &KeySource) -> Result<(Self, Kek), OpenError> {
        Self::open_as(claim, &Backend::Sqlite, Replica::starting("solo", "home"), trust_domain, key).await
    }

    /// Opens the store for a replica, or makes it.
    ///
    /// # Errors
    /// When it cannot be reached, is damaged, foreign, of another trust domain, or its key is missing or wrong.
    pub(crate) async fn open_as(
        claim: &Claim,
        backend: &Backend,
        replica: Replica,
        trust_domain: &TrustDomain,
        key: &KeySource,
    ) -> Result<(Self, Kek), OpenError> {
        let (mut at, mut opened) = (None, None);
        let (place, writer, readers) = match backend {
            Backend::Sqlite => {
                let file = claim.touch(FILE)?;
                let (writer, readers) = sqlite::open(&file).await?;
                opened = Some(OpenFile::new(file.clone()).into());
                (file.display().to_string(), writer, readers)
            }
            Backend::Postgres(url) => {
                let pool = postgres::open(url).await?;
                at = Some(url.clone());
                (url.to_string(), pool.clone(), pool)
            }
        };
        let kek = adopt(&writer, &place, trust_domain, key).await?;
        if at.is_none() {
            // The claim says that whoever held a lease is gone. Its end is of a clock that may have been ahead by days.
            sql("UPDATE leases SET expires = 0").run(&writer).await?;
        }
        let store = Self {
            issuances: issuing::start(writer.clone()),
            writer,
            readers,
            replica: replica.into(),
            url: at,
            file: opened,
            hints: Hints::default(),
            here: std::sync::Arc::new(tokio::sync::Mutex::new(true)),
        };
        Ok((store, kek))
    }
}

/// Makes a new store part of the mesh, or checks that an old one is, and finds its key.
async fn adopt(writer: &Pool, place: &str, trust_domain: &TrustDomain, key: &KeySource) -> Result<Kek, OpenError> {
    let wrong = |error: sqlx::Error| OpenError::Other { path: place.to_owned(), reason: error.to_string() };
    let find = || sql("SELECT trust_domain, key_check FROM mesh").first::<(String, Vec<u8>)>(writer);
    if find().await.map_err(wrong)?.is_none() {
        let kek = Kek::make(key)?;
        // Of several replicas that start at once one is first; the others check that they have its key.
        sql("INSERT INTO mesh (id, trust_domain, revision, key_check) VALUES (1, $1, 0, $2) ON CONFLICT DO NOTHING")
            .bind(trust_domain.as_str())
            .bind(kek.check_value(trust_domain)?)
            .run(writer)
            .await
            .map_err(wrong)?;
    }
    let (found, check) = find().await.map_err(wrong)?.ok_or_else(|| wrong(sqlx::Error::RowNotFound))?;
    if found != trust_domain.as_str() {
        return Err(OpenError::OtherTrustDomain { path: place.to_owned(), found, wanted: trust_domain.to_string() });
    }
    let kek = Kek::load(key)?;
    kek.prove(trust_domain, &check)?;
    Ok(kek)
}

impl From<sqlx::Error> for OpenError {
    fn from(error: sqlx::Error) -> Self {
        StoreError::from(error).into()
    }
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        Self::Other { path: FILE.to_owned(), reason: outrider_runtime::tasks::chain(&error) }
    }
}
