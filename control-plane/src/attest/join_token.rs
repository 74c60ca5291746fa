//! Join tokens: single use, bound to an identity, stored as hashes.

use outrider_policy::{identity::SpiffeId, names::ServiceName};

use super::{AttestError, Attested, Secret, TokenText, expect};
use crate::store::{Redeem, Store, StoreError, TokenRow};

/// The join tokens of a mesh.
#[derive(Clone, Debug)]
pub(crate) struct JoinTokens {
    store: Store,
}

impl JoinTokens {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    /// Makes a token that names the root of this hash; whoever redeems it may back the services. `None` when the system gives
    /// no randomness.
    pub(crate) async fn create(
        &self,
        pin: [u8; 32],
        identity: SpiffeId,
        services: &[ServiceName],
        ttl: i64,
        uid: u32,
        now: i64,
    ) -> Result<Option<(String, i64)>, StoreError> {
        let Some(secret) = Secret::random() else { return Ok(None) };
        let text = TokenText { secret, pin };
        let row = TokenRow { identity, expires: now + ttl, used_at: None };
        self.store.put_token(&text.secret.hash(), &row, services, uid, now).await?;
        Ok(Some((text.format(), row.expires)))
    }

    /// Looks a token up without using it up: the issuance does that, in the transaction that records the leaf.
    pub(crate) async fn attest(&self, text: &str, expected: &str, now: i64) -> Result<Attested, AttestError> {
        let token = TokenText::parse(text.trim()).ok_or(AttestError::Malformed)?;
        let hash = token.secret.hash();
        let row = self.store.token(&hash).await?.ok_or(AttestError::Unknown)?;
        expect(&row.identity, expected)?;
        match row {
            TokenRow { used_at: Some(_), identity, .. } => Err(AttestError::Used { identity }),
            TokenRow { expires, identity, .. } if expires <= now => Err(AttestError::Expired { identity }),
            TokenRow { identity, .. } => Ok(Attested { identity, evidence: "join-token", redeem: Redeem::Token(hash) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use outrider_policy::TrustDomain;

    use super::*;
    use crate::{config::KeySource, store::Claim};

    #[tokio::test]
    async fn a_token_is_good_until_the_second_it_expires_in() {
        let dir = tempfile::tempdir().unwrap();
        let claim = Claim::new(&dir.path().join("state")).unwrap();
        let key = KeySource::Given(zeroize::Zeroizing::new([7; 32]));
        let (store, _) = Store::open(&claim, &TrustDomain::new("td").unwrap(), &key).await.unwrap();
        let tokens = JoinTokens::new(store);
        let identity = SpiffeId::new("spiffe://td/ns/a/sa/b").unwrap();
        let (text, expires) = tokens.create([0; 32], identity, &[], 600, 0, 1000).await.unwrap().unwrap();
        assert_eq!(expires, 1600);
        assert!(tokens.attest(&text, "", 1599).await.is_ok());
        assert!(matches!(tokens.attest(&text, "", 1600).await, Err(AttestError::Expired { .. })));
    }
}
