//! Join tokens, of which only hashes are stored, and the grants that come with them.

use std::collections::BTreeSet;

use super::{Author, Deed, Store, StoreError, audit::enter, sql::sql};
use outrider_policy::{identity::SpiffeId, names::ServiceName};

/// SHA-256 of a token's secret.
pub(crate) type TokenHash = [u8; 32];

/// A join token.
#[derive(Clone, Debug)]
pub(crate) struct TokenRow {
    /// The identity that its bearer gets.
    pub(crate) identity: SpiffeId,
    /// Unix seconds.
    pub(crate) expires: i64,
    /// Unix seconds; `None` until it is redeemed.
    pub(crate) used_at: Option<i64>,
    /// Id of the root that it names.
    pub(crate) root: String,
}

impl Store {
    /// Stores a token. Its identity is granted the services when it is redeemed: a token that nobody uses changes nothing.
    pub(crate) async fn put_token(
        &self,
        hash: &TokenHash,
        token: &TokenRow,
        services: &[ServiceName],
        author: &Author,
        now: i64,
    ) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        // Long expired ones only cost space: nobody can tell them from unknown ones after a day.
        sql("DELETE FROM tokens WHERE expires < $1").bind(now - 86_400).run(&mut change).await?;
        let services: Vec<&str> = services.iter().map(ServiceName::as_str).collect();
        let services = serde_json::to_string(&services).map_err(|error| corrupt(error.to_string()))?;
        sql("INSERT INTO tokens (hash, identity, created, expires, services, root) VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(hash.as_slice())
            .bind(token.identity.as_str())
            .bind(now)
            .bind(token.expires)
            .bind(services)
            .bind(&token.root)
            .run(&mut change)
            .await?;
        enter(&mut change, Deed { author, call: "CreateToken", subject: token.identity.as_str() }, 0, now).await?;
        Ok(change.commit().await?)
    }

    /// Takes back all tokens of an identity that nobody has used. How many there were.
    pub(crate) async fn revoke_tokens(&self, identity: &str, author: &Author, now: i64) -> Result<u64, StoreError> {
        let mut change = self.begin().await?;
        let gone = sql("DELETE FROM tokens WHERE identity = $1 AND used_at IS NULL AND expires > $2")
            .bind(identity)
            .bind(now)
            .run(&mut change)
            .await?;
        if gone > 0 {
            enter(&mut change, Deed { author, call: "RevokeTokens", subject: identity }, 0, now).await?;
            change.commit().await?;
        }
        Ok(gone)
    }

    /// The token of that hash.
    pub(crate) async fn token(&self, hash: &TokenHash) -> Result<Option<TokenRow>, StoreError> {
        let row: Option<(String, i64, Option<i64>, String)> =
            sql("SELECT identity, expires, used_at, root FROM tokens WHERE hash = $1")
                .bind(hash.as_slice())
                .first(self.readers())
                .await?;
        let Some((identity, expires, used_at, root)) = row else { return Ok(None) };
        let identity = SpiffeId::new(&identity).map_err(|error| corrupt(error.to_string()))?;
        Ok(Some(TokenRow { identity, expires, used_at, root }))
    }

    /// Services that an identity may back.
    pub(crate) async fn grants(&self, identity: &SpiffeId) -> Result<BTreeSet<ServiceName>, StoreError> {
        let rows: Vec<(String,)> =
            sql("SELECT service FROM grants WHERE identity = $1").bind(identity.as_str()).all(self.readers()).await?;
        let corrupt = |reason: String| StoreError::Corrupt { table: "grants", reason };
        rows.into_iter().map(|(service,)| service.parse().map_err(|_| corrupt(format!("`{service}` is not a service")))).collect()
    }
}

fn corrupt(reason: String) -> StoreError {
    StoreError::Corrupt { table: "tokens", reason }
}
