//! The control plane's own leaves: made by itself, renewed by itself, swapped without touching the listener. There is one below
//! each root that is trusted, so that whoever believes only one of them finds it.

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

use super::{Authority, CaError, Leaf, authority::Line, certificate::hex, schedule::renew_at};

/// The certificates that the listener shows.
pub(crate) struct ServerLeaf {
    identity: SpiffeId,
    /// That of the root that signs first.
    current: ArcSwap<Vec<Arc<Current>>>,
}

struct Current {
    key: Arc<CertifiedKey>,
    not_before: i64,
    not_after: i64,
    line: Line,
}

impl fmt::Debug for ServerLeaf {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ServerLeaf({})", self.identity)
    }
}

impl ServerLeaf {
    /// Makes the first ones. The caller records the leaves.
    pub(crate) fn make(authority: &Authority, identity: SpiffeId, now: i64) -> Result<(Self, Vec<Leaf>), CaError> {
        let own = Self { identity, current: ArcSwap::default() };
        let leaves = own.renew(authority, now)?;
        if own.current.load().is_empty() {
            return Err(CaError::Expired);
        }
        Ok((own, leaves))
    }

    /// Makes new ones, with new keys, for those that are past their renewal point, not valid yet because the clock was moved
    /// back, or of a CA that was replaced. The caller records the leaves.
    pub(crate) fn renew(&self, authority: &Authority, now: i64) -> Result<Vec<Leaf>, CaError> {
        let present = self.current.load_full();
        let (mut next, mut leaves) = (Vec::new(), Vec::new());
        for line in authority.lines() {
            let good = |one: &&Arc<Current>| {
                one.line == line && (one.not_before..renew_at(one.not_before, one.not_after)).contains(&now)
            };
            if let Some(good) = present.iter().find(good) {
                next.push(Arc::clone(good));
            } else {
                let (made, leaf) = issue(authority, line, &self.identity, now)?;
                next.push(Arc::new(made));
                leaves.push(leaf);
            }
        }
        let same = next.len() == present.len() && next.iter().zip(present.iter()).all(|(new, old)| Arc::ptr_eq(new, old));
        if !same && !next.is_empty() {
            self.current.store(Arc::new(next));
        }
        Ok(leaves)
    }

    /// When the next one is due, Unix seconds.
    #[cfg(test)]
    pub(crate) fn renew_at(&self) -> i64 {
        self.current.load().first().map_or(0, |one| renew_at(one.not_before, one.not_after))
    }

    /// Unix seconds.
    pub(crate) fn not_after(&self) -> i64 {
        self.current.load().first().map_or(0, |one| one.not_after)
    }

    /// Whom it names.
    pub(crate) fn identity(&self) -> &SpiffeId {
        &self.identity
    }
}

fn issue(authority: &Authority, line: Line, identity: &SpiffeId, now: i64) -> Result<(Current, Leaf), CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let leaf = authority.sign_own(&line.root, &key, identity, now)?;
    let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing = any_ecdsa_type(&secret).map_err(|_| CaError::Sign(rcgen::Error::CouldNotParseKeyPair))?;
    // The root is sent too: who joins with a token holds no root yet, only its hash.
    let chain = leaf.chain.iter().cloned().chain(authority.roots()).collect();
    let key = Arc::new(CertifiedKey::new(chain, signing));
    Ok((Current { key, not_before: leaf.not_before, not_after: leaf.not_after, line }, leaf))
}

impl ResolvesServerCert for ServerLeaf {
    /// A caller may say which root it believes: the first label of the server's name is the first half of its key's hash in hex.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.load();
        let label = hello.server_name().and_then(|name| name.split('.').next()).unwrap_or_default();
        let named = |one: &&Arc<Current>| label.len() == 32 && hex(&one.line.root).starts_with(label);
        current.iter().find(named).or_else(|| current.first()).map(|one| Arc::clone(&one.key))
    }
}
