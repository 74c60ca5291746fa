//! The CAs: roots, which all replicas share, and the issuing CAs of each replica.

use zeroize::Zeroizing;

use super::{
    Kek, Role, Store, StoreError,
    keys::{CaRow, KeyError, seal_name},
    sql::{Change, sql},
};

/// What is to be known of a root to see that something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootMark {
    /// SHA-256 of the subject public key info, lower-case hex.
    pub(crate) id: String,
    /// It is in the trust bundle.
    pub(crate) trusted: bool,
    /// It signs issuing CAs.
    pub(crate) active: bool,
}

impl Store {
    /// Every root there ever was, oldest first.
    pub(crate) async fn root_marks(&self) -> Result<Vec<RootMark>, StoreError> {
        let rows: Vec<(String, i64, i64)> =
            sql("SELECT id, trusted, active FROM ca_keys WHERE role = 'root' ORDER BY created, id").all(self.readers()).await?;
        Ok(rows.into_iter().map(|(id, trusted, active)| RootMark { id, trusted: trusted == 1, active: active == 1 }).collect())
    }

    /// A root with its key; `None` when it is gone, or its key.
    pub(crate) async fn root(&self, id: &str, kek: &Kek) -> Result<Option<CaRow>, StoreError> {
        let row: Option<(String, Vec<u8>, Vec<u8>)> = sql("SELECT id, certificate, sealed_key FROM ca_keys
             WHERE role = 'root' AND id = $1 AND sealed_key IS NOT NULL")
        .bind(id)
        .first(&self.writer)
        .await?;
        row.map(|row| unsealed(Role::Root, row, kek)).transpose()
    }

    /// This replica's issuing CA below a root.
    pub(crate) async fn issuing(&self, root: &str, kek: &Kek) -> Result<Option<CaRow>, StoreError> {
        let row: Option<(String, Vec<u8>, Vec<u8>)> = sql("SELECT id, certificate, sealed_key FROM ca_keys
             WHERE role = 'issuing' AND replica = $1 AND root = $2 AND sealed_key IS NOT NULL ORDER BY created DESC, id LIMIT 1")
        .bind(self.replica())
        .bind(root)
        .first(&self.writer)
        .await?;
        row.map(|row| unsealed(Role::Issuing, row, kek)).transpose()
    }

    /// Stores an issuing CA of this replica below a root; it takes the place of the one before, whose key is erased. False
    /// when the root is not trusted any more.
    pub(crate) async fn put_issuing(&self, ca: &CaRow, root: &str, kek: &Kek, now: i64) -> Result<bool, StoreError> {
        let mut change = self.begin().await?;
        // An update rather than a look: the row is held until the end of the change.
        let held = sql("UPDATE ca_keys SET trusted = trusted WHERE role = 'root' AND id = $1 AND sealed_key IS NOT NULL");
        if held.bind(root).run(&mut change).await? == 0 {
            return Ok(false);
        }
        sql("UPDATE ca_keys SET sealed_key = NULL WHERE role = 'issuing' AND replica = $1 AND root = $2")
            .bind(self.replica())
            .bind(root)
            .run(&mut change)
            .await?;
        insert(&mut change, ca, (self.replica(), root), Use::Issuing, kek, now).await?;
        change.commit().await?;
        Ok(true)
    }

    /// Tells other replicas which roots this one found in its files, `(id, certificate)` each, in the place of those before.
    pub(crate) async fn put_mounted(&self, roots: &[(String, &[u8])], now: i64) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        sql("DELETE FROM ca_keys WHERE role = 'mounted' AND replica = $1").bind(self.replica()).run(&mut change).await?;
        for (id, certificate) in roots {
            sql("INSERT INTO ca_keys (id, role, certificate, created, replica, root) VALUES ($1, 'mounted', $2, $3, $4, $5)")
                .bind(format!("{}/{id}", self.replica()))
                .bind(*certificate)
                .bind(now)
                .bind(self.replica())
                .bind(id)
                .run(&mut change)
                .await?;
        }
        Ok(change.commit().await?)
    }

    /// Certificates of the roots that other replicas, of those that live, found in their files.
    pub(crate) async fn mounted_elsewhere(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        let rows: Vec<(String, Vec<u8>)> =
            sql("SELECT replica, certificate FROM ca_keys WHERE role = 'mounted' AND replica <> $1 ORDER BY root, replica")
                .bind(self.replica())
                .all(self.readers())
                .await?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let live = self.replicas().await?;
        let lives = |id: &str| live.iter().any(|replica| replica.id == id && replica.is_live());
        Ok(rows.into_iter().filter(|(replica, _)| lives(replica)).map(|(_, certificate)| certificate).collect())
    }

    /// Stores the first root, unless there is one already: of several replicas that start at once, one makes it.
    pub(crate) async fn found(&self, ca: &CaRow, kek: &Kek, now: i64) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        // Whoever holds this row is alone.
        sql("UPDATE mesh SET id = id WHERE id = 1").run(&mut change).await?;
        let there: Option<(i64,)> =
            sql("SELECT created FROM ca_keys WHERE role = 'root' AND active = 1").first(&mut change).await?;
        if there.is_none() {
            insert(&mut change, ca, ("", &ca.id), Use::Active, kek, now).await?;
            change.commit().await?;
        }
        Ok(())
    }
}

/// What a CA that is stored is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// A root that nobody trusts yet.
    Waiting,
    /// The root that signs.
    Active,
    /// An issuing CA.
    Issuing,
}

/// `owner` is the replica, empty for roots, and the root.
pub(super) async fn insert(
    change: &mut Change,
    ca: &CaRow,
    owner: (&str, &str),
    of: Use,
    kek: &Kek,
    now: i64,
) -> Result<(), StoreError> {
    let sealed = kek.seal(&seal_name(ca.role, &ca.id), &ca.key)?;
    sql("INSERT INTO ca_keys (id, role, certificate, sealed_key, created, replica, root, trusted, active)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)")
    .bind(&ca.id)
    .bind(ca.role.as_str())
    .bind(&ca.certificate)
    .bind(sealed)
    .bind(now)
    .bind(owner.0)
    .bind(owner.1)
    .bind(of == Use::Active)
    .run(change)
    .await?;
    Ok(())
}

fn unsealed(role: Role, (id, certificate, sealed): (String, Vec<u8>, Vec<u8>), kek: &Kek) -> Result<CaRow, StoreError> {
    let tampered = || KeyError::Tampered { what: format!("key of the {} CA", role.as_str()) };
    let key: Zeroizing<Vec<u8>> = kek.open(&seal_name(role, &id), &sealed).ok_or_else(tampered)?;
    Ok(CaRow { id, role, certificate, key })
}
