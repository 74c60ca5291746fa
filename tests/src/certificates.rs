//! Certificates of every kind, and TLS ends that check nothing: what strangers and broken peers come with.

use std::sync::Arc;

use outrider_agent::tls::{MeshProtocol, provider};
use outrider_proto::v1::TrustBundle;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use time::{Duration, OffsetDateTime};

const TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// A chain, leaf first, and the leaf's key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// DER.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8, DER.
    pub key: Vec<u8>,
}

impl Identity {
    fn split(self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = self.chain.into_iter().map(CertificateDer::from).collect();
        (chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key)))
    }
}

/// A root that signs whatever it is told to.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

impl Authority {
    /// A new one.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(name: &str) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self::of(parameters)
    }

    /// One whose root certificate says all of this, and that it is a CA.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn of(mut parameters: CertificateParams) -> Self {
        let key = KeyPair::generate().expect("a key");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        let der = parameters.self_signed(&key).expect("a root").der().clone();
        Self { issuer: Issuer::new(parameters, key), der }
    }

    /// The authority of this certificate and key: somebody else's root, in the wrong hands.
    ///
    /// # Panics
    /// When they are not a CA's.
    pub fn stolen(certificate: Vec<u8>, key: &[u8]) -> Self {
        let (der, key) = (CertificateDer::from(certificate), PrivatePkcs8KeyDer::from(key));
        let key = KeyPair::try_from(&key).expect("a key");
        Self { issuer: Issuer::from_ca_cert_der(&der, key).expect("a CA"), der }
    }

    /// A certificate for this key.
    ///
    /// # Panics
    /// When it cannot be signed.
    pub fn leaf_for(&self, key: &KeyPair, parameters: &CertificateParams) -> Identity {
        let certificate = parameters.signed_by(key, &self.issuer).expect("a leaf");
        Identity { chain: vec![certificate.der().to_vec()], key: key.serialize_der() }
    }

    /// An authority below this one, with this key, whose certificate says all of this.
    ///
    /// # Panics
    /// When it cannot be signed.
    pub fn below(&self, key: KeyPair, parameters: CertificateParams) -> Self {
        let der = parameters.signed_by(&key, &self.issuer).expect("an intermediate").der().clone();
        Self { issuer: Issuer::new(parameters, key), der }
    }

    /// Its own certificate, DER.
    pub fn certificate(&self) -> Vec<u8> {
        self.der.to_vec()
    }

    /// Its root as the trust bundle of `mesh.internal`.
    pub fn bundle(&self) -> TrustBundle {
        TrustBundle { trust_domain: "mesh.internal".to_owned(), roots: vec![self.der.to_vec()] }
    }

    /// A certificate.
    ///
    /// # Panics
    /// When it cannot be signed.
    pub fn leaf(&self, parameters: &CertificateParams) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a leaf");
        Identity { chain: vec![certificate.der().to_vec()], key: key.serialize_der() }
    }

    /// The root's own certificate and key, as if it were a workload.
    pub fn itself(&self) -> Identity {
        Identity { chain: vec![self.der.to_vec()], key: self.issuer.key().serialize_der() }
    }

    /// A certificate that the holder of a leaf signed with it.
    ///
    /// # Panics
    /// When it cannot be signed.
    pub fn below_a_leaf(&self, signer: CertificateParams, parameters: &CertificateParams) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let signed = signer.signed_by(&key, &self.issuer).expect("a leaf").der().to_vec();
        let below = Self { issuer: Issuer::new(signer, key), der: signed.clone().into() };
        let mut identity = below.leaf(parameters);
        identity.chain.push(signed);
        identity
    }
}

/// A good leaf's parameters with these URI names, to be spoiled.
///
/// # Panics
/// When a name is not ASCII.
pub fn good_leaf(uris: &[&str]) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    parameters.not_before = now - Duration::minutes(1);
    parameters.not_after = now + Duration::hours(1);
    parameters.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("IA5"))).collect();
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    parameters
}

/// A client that believes anybody, and comes with this certificate or none.
///
/// # Panics
/// When key and certificate do not fit.
pub fn careless_client(identity: Option<Identity>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(TLS13)
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(Shows::of(identity))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![MeshProtocol::Http1.alpn().to_vec()];
    config
}

/// A server that takes anybody, and shows this certificate.
///
/// # Panics
/// When key and certificate do not fit.
pub fn careless_server(identity: Identity) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(TLS13)
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Shows::of(identity)));
    config.alpn_protocols = vec![MeshProtocol::Http1.alpn().to_vec()];
    config
}

/// A certificate and a key, whether they fit or not and whatever the certificate is.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl Shows {
    fn of(identity: Identity) -> Self {
        let (chain, key) = identity.split();
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).expect("a key");
        Self(Arc::new(CertifiedKey::new(chain, key)))
    }
}

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Shows {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The first bytes of a client that knows nothing newer than TLS 1.2, said outright (with `supported_versions`) or not.
pub fn tls12_hello(outright: bool) -> Vec<u8> {
    let prefixed = |width: usize, body: &[u8]| [&body.len().to_be_bytes()[8 - width..], body].concat();
    // P-256, and ECDSA over it with SHA-256.
    let mut extensions = [
        [&[0, 10][..], &prefixed(2, &prefixed(2, &[0, 23]))].concat(),
        [&[0, 13][..], &prefixed(2, &prefixed(2, &[4, 3]))].concat(),
    ]
    .concat();
    if outright {
        extensions.extend([&[0, 43][..], &prefixed(2, &prefixed(1, &[3, 3]))].concat());
    }
    // ECDHE-ECDSA with AES-128-GCM, and the signal of RFC 5746.
    let suites = prefixed(2, &[0xc0, 0x2b, 0, 0xff]);
    let hello = [&[3, 3][..], &[7; 32], &[0], &suites, &[1, 0], &prefixed(2, &extensions)].concat();
    let message = [&[1][..], &prefixed(3, &hello)].concat();
    [&[22, 3, 1][..], &prefixed(2, &message)].concat()
}
