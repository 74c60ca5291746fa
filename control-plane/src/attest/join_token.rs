//! Join tokens: single use, bound to an identity, stored as hashes.

use outrider_policy::{identity::SpiffeId, names::ServiceName};
use outrider_proto::v1::issue_request::Evidence;

use super::{AttestError, Attested, Attestor, Presented, Secret, TokenText, expect};
use crate::{
    ca::hex,
    store::{Author, Redeem, Store, StoreError, TokenRow},
};

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
        author: &Author,
        now: i64,
    ) -> Result<Option<(String, i64)>, StoreError> {
        let Some(secret) = Secret::random() else { return Ok(None) };
        let text = TokenText { secret, pin };
        let row = TokenRow { identity, expires: now + ttl, used_at: None, root: hex(&pin) };
        self.store.put_token(&text.secret.hash(), &row, services, author, now).await?;
        Ok(Some((text.format(), row.expires)))
    }
}

#[tonic::async_trait]
impl Attestor for JoinTokens {
    fn word(&self) -> &'static str {
        "join-token"
    }

    fn takes(&self, evidence: &Evidence) -> bool {
        matches!(evidence, Evidence::JoinToken(_))
    }

    async fn attest(&self, presented: &Presented<'_>) -> Result<Attested, AttestError> {
        let Evidence::JoinToken(token) = presented.evidence else { return Err(AttestError::Malformed) };
        let token = TokenText::parse(token.token.trim()).ok_or(AttestError::Malformed)?;
        let hash = token.secret.hash();
        let row = self.store.token(&hash).await?.ok_or(AttestError::Unknown)?;
        expect(&row.identity, presented.expected)?;
        match row {
            TokenRow { used_at: Some(_), identity, .. } => Err(AttestError::Used { identity }),
            TokenRow { expires, identity, .. } if expires <= presented.now => Err(AttestError::Expired { identity }),
            TokenRow { identity, .. } => Ok(Attested { identity, evidence: self.word(), redeem: Redeem::Token(hash) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use outrider_policy::TrustDomain;
    use outrider_proto::v1::JoinToken;

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
        let (text, expires) =
            tokens.create([0; 32], identity, &[], 600, &crate::store::Author::local(), 1000).await.unwrap().unwrap();
        assert_eq!(expires, 1600);
        let evidence = Evidence::JoinToken(JoinToken { token: text });
        let at = |now| Presented { evidence: &evidence, peer: None, expected: "", now };
        assert!(tokens.attest(&at(1599)).await.is_ok());
        assert!(matches!(tokens.attest(&at(1600)).await, Err(AttestError::Expired { .. })));
    }
}
