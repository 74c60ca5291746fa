//! The trust bundle, and who is believed because of it.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use outrider_policy::TrustDomain;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tokio::sync::watch;

use super::{Leaf, LeafError, check_chain, provider};

/// Trust anchors of our trust domain. Empty at first: then nobody is believed.
#[derive(Debug)]
pub struct Trust {
    anchors: ArcSwapOption<Anchors>,
    changed: watch::Sender<u64>,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
struct Anchors {
    domain: TrustDomain,
    ders: Vec<Vec<u8>>,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

/// A bundle that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Nobody could ever be verified.
    #[error("the trust bundle holds no certificate")]
    Empty,
    /// Not a trust domain.
    #[error("trust domain: {0}")]
    Domain(String),
    /// Not a certificate that can be an anchor.
    #[error("trust anchor: {0}")]
    Anchor(String),
}

impl Default for Trust {
    fn default() -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self { anchors: ArcSwapOption::empty(), changed: watch::Sender::new(0), algorithms }
    }
}

impl Trust {
    /// Puts a bundle in force for all handshakes from now on.
    ///
    /// # Errors
    /// When it cannot be used; what was in force before still is.
    pub fn replace(&self, bundle: &outrider_proto::v1::TrustBundle) -> Result<(), TrustError> {
        let domain: TrustDomain = bundle.trust_domain.parse().map_err(|error| TrustError::Domain(format!("{error}")))?;
        let mut roots = RootCertStore::empty();
        for der in &bundle.roots {
            roots.add(CertificateDer::from(der.as_slice())).map_err(|error| TrustError::Anchor(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(TrustError::Empty);
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
        let clients = clients.build().map_err(|error| TrustError::Anchor(error.to_string()))?;
        self.anchors.store(Some(Arc::new(Anchors { domain, ders: bundle.roots.clone(), roots, clients })));
        self.changed.send_modify(|generation| *generation += 1);
        Ok(())
    }

    /// Told when a bundle is put in force; the value counts them.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The bundle in force.
    pub fn bundle(&self) -> Option<outrider_proto::v1::TrustBundle> {
        let anchors = self.anchors.load();
        anchors.as_ref().map(|anchors| outrider_proto::v1::TrustBundle {
            trust_domain: anchors.domain.to_string(),
            roots: anchors.ders.clone(),
        })
    }

    fn anchors(&self) -> Result<Arc<Anchors>, Error> {
        self.anchors.load_full().ok_or_else(|| Error::General("no trust bundle yet".to_owned()))
    }
}

impl Anchors {
    /// The identity rules that chain building knows nothing of.
    fn check_identity(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        let leaf = Leaf::parse(leaf)?;
        if leaf.id.trust_domain() != self.domain.as_str() {
            return Err(LeafError::TrustDomain(leaf.id.to_string()).into());
        }
        Ok(())
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let anchors = self.anchors()?;
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &anchors.roots, intermediates, now, self.algorithms.all)?;
        check_chain(intermediates)?;
        anchors.check_identity(leaf)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Trust {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let anchors = self.anchors()?;
        let verified = anchors.clients.verify_client_cert(leaf, intermediates, now)?;
        check_chain(intermediates)?;
        anchors.check_identity(leaf)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
