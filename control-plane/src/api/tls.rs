//! TLS of the agents' door: 1.3 only, no tickets, no early data. A client certificate is optional, since a joining agent
//! has none; one that is shown must be right.

use std::sync::Arc;

use outrider_policy::{TrustDomain, svid::check_chain};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::aws_lc_rs,
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::{
    ca::{Authority, ServerLeaf},
    peer::{Peer, PeerError},
    registry::Revoked,
};

/// Whom a certificate names, of those that the door is for.
pub(crate) type Names = fn(&CertificateDer<'_>, &TrustDomain) -> Result<Peer, PeerError>;

/// Why the door cannot be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A root or the provider is not usable.
    #[error("TLS set-up failed")]
    Rustls(#[from] Error),
}

/// The door's configuration.
pub(crate) fn server_config(
    leaf: Arc<ServerLeaf>,
    authority: &Arc<Authority>,
    names: Names,
    revoked: Revoked,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = PeerVerifier { authority: Arc::clone(authority), names, revoked };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(leaf);
    // A resumed handshake does not look at the certificate again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Chain to our roots, as they are now, by webpki; then the rules for X509-SVIDs of our trust domain, which are those of
/// the agents.
#[derive(Debug)]
struct PeerVerifier {
    authority: Arc<Authority>,
    names: Names,
    revoked: Revoked,
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.authority.clients().verify_client_cert(end_entity, intermediates, now)?;
        let peer = (self.names)(end_entity, self.authority.trust_domain());
        let peer = peer.map_err(refused)?;
        check_chain(intermediates.iter().map(|der| &**der)).map_err(|problem| refused(problem.into()))?;
        if self.revoked.holds(&peer) {
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authority.clients().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authority.clients().supported_verify_schemes()
    }
}

fn refused(error: PeerError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}
