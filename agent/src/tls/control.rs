//! TLS to the control plane: before the first certificate by the pin in the join token, afterwards by the trust bundle.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Leaf, LeafError, Trust, check_chain, provider};
use crate::identity::Svids;

/// Namespace and service account of every control plane.
const CONTROL_PLANE: (&str, &str) = ("outrider-system", "control-plane");

/// Why a control plane is believed.
#[derive(Clone, Debug)]
pub enum ControlPlaneTrust {
    /// Its chain holds a root whose public key has this SHA-256.
    Pin([u8; 32]),
    /// It chains to the trust bundle.
    Bundle(Arc<Trust>),
}

#[derive(Debug)]
struct ControlPlaneVerifier {
    trust: ControlPlaneTrust,
    algorithms: WebPkiSupportedAlgorithms,
}

/// A TLS configuration for the control plane. With `svids` the agent proves who it is.
///
/// # Errors
/// When the provider lacks TLS 1.3.
pub fn control_plane_config(trust: ControlPlaneTrust, svids: Option<Arc<Svids>>) -> Result<ClientConfig, Error> {
    let algorithms = provider().signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous() // our verifier checks the chain, and the identity instead of a host name
        .with_custom_certificate_verifier(Arc::new(ControlPlaneVerifier { trust, algorithms }));
    let mut config = match svids {
        Some(svids) => builder.with_client_cert_resolver(svids),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

impl ControlPlaneVerifier {
    fn pinned_root(pin: &[u8; 32], chain: &[CertificateDer<'_>]) -> Option<RootCertStore> {
        let root = chain.iter().find(|der| {
            X509Certificate::from_der(der)
                .is_ok_and(|(_, certificate)| digest(&SHA256, certificate.public_key().raw).as_ref() == pin)
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned()).ok()?;
        Some(roots)
    }
}

impl ServerCertVerifier for ControlPlaneVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.trust {
            ControlPlaneTrust::Bundle(trust) => {
                ServerCertVerifier::verify_server_cert(&**trust, leaf, intermediates, name, ocsp, now)?;
            }
            ControlPlaneTrust::Pin(pin) => {
                let roots = Self::pinned_root(pin, intermediates).ok_or(CertificateError::UnknownIssuer)?;
                let parsed = ParsedCertificate::try_from(leaf)?;
                verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, self.algorithms.all)?;
                check_chain(intermediates)?;
            }
        }
        let id = Leaf::parse(leaf)?.id;
        if (id.namespace(), id.service_account()) != (Some(CONTROL_PLANE.0), Some(CONTROL_PLANE.1)) {
            return Err(LeafError::NotControlPlane(id.to_string()).into());
        }
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
