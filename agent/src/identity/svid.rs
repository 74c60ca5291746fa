//! The agent's own certificate and key, as they are now.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{sync::watch, time::Instant};
use zeroize::Zeroizing;

use crate::tls::{Leaf, LeafError};

/// A certificate with its key: an X.509-SVID.
#[derive(Debug)]
pub struct Svid {
    /// What the leaf says.
    pub leaf: Leaf,
    /// When this agent got it.
    pub obtained: SystemTime,
    certified: Arc<CertifiedKey>,
    /// DER chain, leaf first.
    chain: Vec<Vec<u8>>,
    key: Zeroizing<Vec<u8>>,
}

/// A certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// Not an X.509-SVID.
    #[error("certificate: {0}")]
    Leaf(#[from] LeafError),
    /// No certificate at all.
    #[error("the chain is empty")]
    Empty,
    /// The key cannot be made or used, or does not fit the certificate.
    #[error("key: {0}")]
    Key(String),
}

/// A new key and the request to certify it.
#[derive(Debug)]
pub struct SigningRequest {
    key: Zeroizing<Vec<u8>>,
    /// PKCS#10, DER.
    pub csr: Vec<u8>,
}

impl SigningRequest {
    /// Makes a key. The request carries no name: the control plane takes the identity from the evidence.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new() -> Result<Self, SvidError> {
        let failed = |error: rcgen::Error| SvidError::Key(error.to_string());
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        let csr = parameters.serialize_request(&key).map_err(failed)?.der().to_vec();
        Ok(Self { key: Zeroizing::new(key.serialize_der()), csr })
    }

    /// PKCS#8 key, for who made the request and nobody else.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Joins the key with the chain that was issued for it.
    ///
    /// # Errors
    /// When the chain is not an X.509-SVID for this key.
    pub fn certified(self, chain: Vec<Vec<u8>>) -> Result<Svid, SvidError> {
        Svid::new(chain, self.key, SystemTime::now())
    }
}

impl Svid {
    /// Joins a chain and its key.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn new(chain: Vec<Vec<u8>>, key: Zeroizing<Vec<u8>>, obtained: SystemTime) -> Result<Self, SvidError> {
        let ders: Vec<CertificateDer<'static>> = chain.iter().cloned().map(CertificateDer::from).collect();
        let leaf = Leaf::parse(ders.first().ok_or(SvidError::Empty)?)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
        let signing = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der).map_err(|error| SvidError::Key(error.to_string()))?;
        let certified = CertifiedKey::new(ders, signing);
        certified.keys_match().map_err(|error| SvidError::Key(error.to_string()))?;
        Ok(Self { leaf, obtained, certified: Arc::new(certified), chain, key })
    }

    /// DER chain, leaf first.
    pub fn chain(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// PKCS#8 key, for the agent's own sealed state only.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Whether it is valid at `now`.
    pub fn is_valid(&self, now: SystemTime) -> bool {
        now < self.leaf.not_after
    }

    /// When its validity ends, on the monotonic clock.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.leaf.not_after.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO)
    }
}

/// The certificate in use. Handshakes read it; nothing restarts when it changes.
#[derive(Debug)]
pub struct Svids {
    current: ArcSwapOption<Svid>,
    generation: AtomicU64,
    changed: watch::Sender<u64>,
}

impl Default for Svids {
    fn default() -> Self {
        Self { current: ArcSwapOption::empty(), generation: AtomicU64::new(0), changed: watch::Sender::new(0) }
    }
}

impl Svids {
    /// Puts a certificate to use from the next handshake on.
    pub fn replace(&self, svid: Arc<Svid>) {
        self.current.store(Some(svid));
        self.generation.fetch_add(1, Release);
        self.changed.send_modify(|generation| *generation += 1);
    }

    /// The certificate, whether it is still valid or not.
    pub fn latest(&self) -> Option<Arc<Svid>> {
        self.current.load_full()
    }

    /// The certificate while it is valid. An expired one is no identity: fail closed.
    pub fn valid(&self) -> Option<Arc<Svid>> {
        self.latest().filter(|svid| svid.is_valid(SystemTime::now()))
    }

    /// Told at every replacement; the value counts them.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// How often the certificate was replaced.
    pub fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }
}

impl ResolvesServerCert for Svids {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.valid().map(|svid| svid.certified.clone())
    }
}

impl ResolvesClientCert for Svids {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.valid().map(|svid| svid.certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
