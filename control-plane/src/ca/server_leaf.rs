//! The control plane's own leaf: made by itself, renewed by itself, swapped without touching the listener.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use outrider_policy::identity::SpiffeId;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    crypto::aws_lc_rs::sign::any_ecdsa_type,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Authority, CaError, Leaf, schedule::renew_at};

/// The certificate that the listener shows.
pub(crate) struct ServerLeaf {
    identity: SpiffeId,
    current: ArcSwap<Current>,
}

struct Current {
    key: Arc<CertifiedKey>,
    not_before: i64,
    renew_at: i64,
    /// Common name of the CA that signed it.
    issuer: String,
}

impl fmt::Debug for ServerLeaf {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ServerLeaf({})", self.identity)
    }
}

impl ServerLeaf {
    /// Makes the first one. The caller records the leaf.
    pub(crate) fn make(authority: &Authority, identity: SpiffeId, now: i64) -> Result<(Self, Leaf), CaError> {
        let (current, leaf) = issue(authority, &identity, now)?;
        Ok((Self { identity, current: ArcSwap::from_pointee(current) }, leaf))
    }

    /// Makes a new one, with a new key, if the present one is past its renewal point, not valid yet because the clock was moved
    /// back, or of a CA that was replaced. The caller records the leaf.
    pub(crate) fn renew(&self, authority: &Authority, now: i64) -> Result<Option<Leaf>, CaError> {
        let present = self.current.load_full();
        if (present.not_before..present.renew_at).contains(&now) && present.issuer == authority.issuer() {
            return Ok(None);
        }
        let (current, leaf) = issue(authority, &self.identity, now)?;
        self.current.store(Arc::new(current));
        Ok(Some(leaf))
    }

    /// When the next one is due, Unix seconds.
    #[cfg(test)]
    pub(crate) fn renew_at(&self) -> i64 {
        self.current.load().renew_at
    }

    /// Whom it names.
    pub(crate) fn identity(&self) -> &SpiffeId {
        &self.identity
    }
}

fn issue(authority: &Authority, identity: &SpiffeId, now: i64) -> Result<(Current, Leaf), CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let leaf = authority.sign_key(&key, identity, now)?;
    let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing = any_ecdsa_type(&secret).map_err(|_| CaError::Sign(rcgen::Error::CouldNotParseKeyPair))?;
    // The root is sent too: who joins with a token holds no root yet, only its hash.
    let chain = leaf.chain.iter().cloned().chain(authority.roots()).collect();
    let current = Current {
        key: Arc::new(CertifiedKey::new(chain, signing)),
        not_before: leaf.not_before,
        renew_at: renew_at(leaf.not_before, leaf.not_after),
        issuer: leaf.issuer.clone(),
    };
    Ok((current, leaf))
}

impl ResolvesServerCert for ServerLeaf {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().key))
    }
}
