//! The keys of this mesh's tokens, shared by all replicas.

use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::{
    digest,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use outrider_policy::{SpiffeId, TrustDomain};
use outrider_proto::v1;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::{Audience, JwtTimes, Token};
use crate::{
    ca::hex,
    registry::Encoded,
    store::{JwtKeyRow, Kek, Store, StoreError},
};

/// No token can be signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JwtError {
    /// A key in the store is not one.
    #[error("key `{0}` for tokens in the store is not usable (restore the store from a backup)")]
    Stored(String),
    /// No randomness, or the library failed.
    #[error("signing a token failed")]
    Sign,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

struct Key {
    id: String,
    signs_from: i64,
    pair: EcdsaKeyPair,
}

/// The keys in use, and the bundle that agents get.
pub(crate) struct JwtKeys {
    trust_domain: TrustDomain,
    store: Store,
    kek: Kek,
    times: JwtTimes,
    /// By the time from which they sign.
    keys: ArcSwap<Vec<Key>>,
    bundle: watch::Sender<Arc<Encoded>>,
}

impl std::fmt::Debug for JwtKeys {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "JwtKeys({})", self.trust_domain)
    }
}

impl JwtKeys {
    /// Finds the keys in the store, or makes the first.
    pub(crate) async fn open(
        store: Store,
        kek: Kek,
        trust_domain: TrustDomain,
        times: JwtTimes,
        now: i64,
    ) -> Result<Self, JwtError> {
        let bundle = watch::Sender::new(Arc::new(encode(&trust_domain, &[])));
        let keys = Self { trust_domain, store, kek, times, keys: ArcSwap::default(), bundle };
        keys.renew(now).await?;
        Ok(keys)
    }

    /// Takes what the other replicas did, and does what is due.
    pub(crate) async fn renew(&self, now: i64) -> Result<(), JwtError> {
        let rows = self.store.jwt_keys(&self.kek).await?;
        let times: Vec<i64> = rows.iter().map(|row| row.signs_from).collect();
        let due = self.times.due(&times, now);
        if due == super::schedule::Due::default() {
            return self.show(rows);
        }
        if let Some(signs_from) = due.make {
            let key = make(signs_from)?;
            // Of several replicas that find this due at once, one makes it.
            if self.store.put_jwt_key(&key, rows.last().map(|newest| newest.id.as_str()), &self.kek).await? {
                tracing::info!(kid = key.id, signs_from, "key for tokens made");
            }
        }
        let gone: Vec<&str> = rows.iter().take(due.drop).map(|row| row.id.as_str()).collect();
        self.store.drop_jwt_keys(&gone).await?;
        self.show(self.store.jwt_keys(&self.kek).await?)
    }

    fn show(&self, rows: Vec<JwtKeyRow>) -> Result<(), JwtError> {
        let same = self.keys.load().iter().map(|key| &key.id).eq(rows.iter().map(|row| &row.id));
        if same {
            return Ok(());
        }
        let read = |row: JwtKeyRow| {
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &row.key).ok();
            let pair = pair.filter(|pair| pair.public_key().as_ref() == row.point && id(&row.point) == row.id);
            let pair = pair.ok_or_else(|| JwtError::Stored(row.id.clone()))?;
            Ok(Key { id: row.id, signs_from: row.signs_from, pair })
        };
        let keys: Vec<Key> = rows.into_iter().map(read).collect::<Result<_, JwtError>>()?;
        let bundle = Arc::new(encode(&self.trust_domain, &keys));
        self.keys.store(Arc::new(keys));
        self.bundle.send_replace(bundle);
        Ok(())
    }

    /// A token that says that its bearer is `identity`.
    pub(crate) fn sign(&self, identity: &SpiffeId, audience: &Audience, now: i64) -> Result<Token, JwtError> {
        let keys = self.keys.load();
        let times: Vec<i64> = keys.iter().map(|key| key.signs_from).collect();
        let key = JwtTimes::signer(&times, now).and_then(|at| keys.get(at)).ok_or(JwtError::Sign)?;
        Token::sign(identity, audience, (&key.id, &key.pair), (now, self.times.ttl()))
    }

    /// The keys as agents get them.
    pub(crate) fn bundle(&self) -> watch::Receiver<Arc<Encoded>> {
        self.bundle.subscribe()
    }
}

fn make(signs_from: i64) -> Result<JwtKeyRow, JwtError> {
    let failed = |_| JwtError::Sign;
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).map_err(failed)?;
    let key = Zeroizing::new(document.as_ref().to_vec());
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key).map_err(|_| JwtError::Sign)?;
    let point = pair.public_key().as_ref().to_vec();
    Ok(JwtKeyRow { id: id(&point), point, key, signs_from })
}

/// A name that no other key has.
fn id(point: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, point).as_ref()).chars().take(32).collect()
}

fn encode(trust_domain: &TrustDomain, keys: &[Key]) -> Encoded {
    let key = |key: &Key| v1::JwtKey { id: key.id.clone(), point: key.pair.public_key().as_ref().to_vec() };
    let bundle = v1::JwtBundle { trust_domain: trust_domain.to_string(), keys: keys.iter().map(key).collect() };
    Encoded::new(v1::ResourceKind::JwtBundle, trust_domain.to_string(), 0, &bundle)
}
