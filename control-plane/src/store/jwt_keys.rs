//! Keys of tokens at rest: sealed like CA keys, each bound to its row.

use zeroize::Zeroizing;

use super::{Kek, KeyError, Store, StoreError, sql::sql};

/// A key for tokens.
pub(crate) struct JwtKeyRow {
    /// Named by `kid`.
    pub(crate) id: String,
    /// P-256 point, uncompressed.
    pub(crate) point: Vec<u8>,
    /// PKCS#8 DER.
    pub(crate) key: Zeroizing<Vec<u8>>,
    /// Unix seconds.
    pub(crate) signs_from: i64,
}

fn seal_name(id: &str) -> String {
    format!("jwt-key/{id}")
}

impl Store {
    /// All keys, by the time from which they sign.
    pub(crate) async fn jwt_keys(&self, kek: &Kek) -> Result<Vec<JwtKeyRow>, StoreError> {
        let rows: Vec<(String, Vec<u8>, Vec<u8>, i64)> =
            sql("SELECT id, point, sealed_key, signs_from FROM jwt_keys ORDER BY signs_from, id").all(&self.writer).await?;
        let read = |(id, point, sealed, signs_from): (String, Vec<u8>, Vec<u8>, i64)| {
            let tampered = || KeyError::Tampered { what: format!("key `{id}` for tokens") };
            let key = kek.open(&seal_name(&id), &sealed).ok_or_else(tampered)?;
            Ok(JwtKeyRow { id, point, key, signs_from })
        };
        rows.into_iter().map(read).collect()
    }

    /// Stores a key, unless the newest is not the one that the caller saw. Says whether it did.
    pub(crate) async fn put_jwt_key(&self, key: &JwtKeyRow, newest: Option<&str>, kek: &Kek) -> Result<bool, StoreError> {
        let sealed = kek.seal(&seal_name(&key.id), &key.key)?;
        let mut change = self.begin().await?;
        // Whoever holds this row is alone.
        sql("UPDATE mesh SET id = id WHERE id = 1").run(&mut change).await?;
        let found: Option<(String,)> =
            sql("SELECT id FROM jwt_keys ORDER BY signs_from DESC, id DESC LIMIT 1").first(&mut change).await?;
        if found.as_ref().map(|(id,)| id.as_str()) != newest {
            return Ok(false);
        }
        sql("INSERT INTO jwt_keys (id, point, sealed_key, signs_from) VALUES ($1, $2, $3, $4)")
            .bind(&key.id)
            .bind(&key.point)
            .bind(sealed)
            .bind(key.signs_from)
            .run(&mut change)
            .await?;
        change.commit().await?;
        Ok(true)
    }

    /// Forgets keys.
    pub(crate) async fn drop_jwt_keys(&self, ids: &[&str]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut change = self.begin().await?;
        for id in ids {
            sql("DELETE FROM jwt_keys WHERE id = $1").bind(*id).run(&mut change).await?;
        }
        Ok(change.commit().await?)
    }
}
