//! A trust anchor, and who is verified against it.

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::{
    Error, RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, UnixTime},
    server::{ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    TrustError, check_chain,
    issuers::{Issuers, Use},
    provider,
};

/// SHA-256 over an anchor's name and key: a certificate that was made anew for the same key is the same anchor.
pub type AnchorId = [u8; 32];

/// A trust anchor.
#[derive(Debug)]
pub(super) struct Anchor {
    pub(super) id: AnchorId,
    /// SHA-256 of the public key, as join tokens pin it.
    pub(super) pin: [u8; 32],
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    pub(super) issuers: Issuers,
}

impl Anchor {
    pub(super) fn read(der: &[u8]) -> Result<Self, TrustError> {
        let unusable = |error: &dyn std::fmt::Display| TrustError::Anchor(error.to_string());
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| unusable(&error))?;
        let key = certificate.public_key().raw;
        let mut named = Context::new(&SHA256);
        named.update(certificate.subject().as_raw());
        named.update(key);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(der)).map_err(|error| unusable(&error))?;
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
        let clients = clients.build().map_err(|error| unusable(&error))?;
        let hash = |digest: aws_lc_rs::digest::Digest| {
            let mut hash = [0; 32];
            hash.copy_from_slice(digest.as_ref());
            hash
        };
        let pin = hash(aws_lc_rs::digest::digest(&SHA256, key));
        Ok(Self {
            id: hash(named.finish()),
            pin,
            roots,
            clients,
            issuers: Issuers::new(provider().signature_verification_algorithms),
        })
    }

    pub(super) fn verify_server(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<(), Error> {
        if self.issuers.vouch(Use::Server, leaf, intermediates, now) {
            return Ok(());
        }
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms.all)?;
        check_chain(intermediates)?;
        self.issuers.learn(&self.roots, Use::Server, leaf, intermediates, now);
        Ok(())
    }

    pub(super) fn verify_client(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.issuers.vouch(Use::Client, leaf, intermediates, now) {
            return Ok(());
        }
        self.clients.verify_client_cert(leaf, intermediates, now)?;
        check_chain(intermediates)?;
        self.issuers.learn(&self.roots, Use::Client, leaf, intermediates, now);
        Ok(())
    }
}
