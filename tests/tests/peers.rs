//! Who may speak on the mesh port: handshakes with every kind of wrong certificate, against the listener's own TLS.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use outrider_agent::{
    http::SharedIo,
    identity::{Svid, Svids},
    tls::{MeshAcceptor, MeshConnector, MeshProtocol, Trust, provider, server_name},
};
use outrider_proto::v1::TrustBundle;
use outrider_tests::Outcome;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use time::{Duration, OffsetDateTime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

/// A chain, leaf first, and the leaf's key.
type Identity = (Vec<Vec<u8>>, Vec<u8>);

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

impl Ca {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let der = parameters.self_signed(&key).expect("a root").der().clone();
        Self { issuer: Issuer::new(parameters, key), der }
    }

    fn bundle(&self) -> TrustBundle {
        TrustBundle { trust_domain: "mesh.internal".to_owned(), roots: vec![self.der.to_vec()] }
    }

    fn leaf(&self, parameters: &CertificateParams) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a leaf");
        (vec![certificate.der().to_vec()], key.serialize_der())
    }
}

/// A good leaf's parameters, to be spoiled.
fn good(uris: &[&str]) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    parameters.not_before = now - Duration::minutes(1);
    parameters.not_after = now + Duration::hours(1);
    parameters.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("IA5"))).collect();
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    parameters
}

const WEB: &str = "spiffe://mesh.internal/ns/shop/sa/web";
const ORDERS: &str = "spiffe://mesh.internal/ns/shop/sa/orders";

/// The listener of an agent that is `shop/orders` and trusts `ca`.
struct Listener {
    acceptor: MeshAcceptor,
    socket: TcpListener,
}

impl Listener {
    async fn of(ca: &Ca) -> Self {
        let (svids, trust): (Arc<Svids>, Arc<Trust>) = Default::default();
        let (chain, key) = ca.leaf(&good(&[ORDERS]));
        svids.replace(Arc::new(Svid::new(chain, Zeroizing::new(key), std::time::SystemTime::now()).expect("an SVID")));
        trust.replace(&ca.bundle()).expect("a bundle");
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        Self { acceptor: MeshAcceptor::new(svids, trust).expect("TLS"), socket }
    }

    /// What the listener makes of a client with this certificate; none for no certificate.
    async fn judges(
        &self,
        identity: Option<Identity>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Result<String, String> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone));
        let mut config = match identity {
            Some((chain, key)) => {
                let chain = chain.into_iter().map(CertificateDer::from).collect();
                builder
                    .with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)))
                    .expect("a client certificate")
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![MeshProtocol::Http1.alpn().to_vec()];
        self.judges_config(config).await
    }

    async fn judges_config(&self, config: ClientConfig) -> Result<String, String> {
        let name = ServerName::try_from(server_name(&"shop/orders".parse().expect("a name"), 80)).expect("a name");
        let client = async {
            let stream = TcpStream::connect(self.socket.local_addr().expect("address")).await.expect("connect");
            let Ok(mut stream) = TlsConnector::from(Arc::new(config)).connect(name, stream).await else { return };
            // In TLS 1.3 a client learns only afterwards that it was refused.
            let _ = stream.write_all(b"x").await;
            let _ = stream.read_u8().await;
        };
        let server = async {
            let (stream, address) = self.socket.accept().await.expect("accept");
            let secured = self.acceptor.accept(stream, address, std::time::Duration::from_secs(5)).await;
            secured.map(|secured| secured.peer.id().to_string()).map_err(|refusal| refusal.detail().to_owned())
        };
        let (verdict, ()) = tokio::join!(server, client);
        verdict
    }
}

#[derive(Debug)]
struct Anyone;

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

const TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

#[tokio::test]
async fn only_a_proper_certificate_of_our_trust_domain_is_let_in() -> Outcome {
    let (ca, foreign) = (Ca::new("ours"), Ca::new("theirs"));
    let listener = Listener::of(&ca).await;
    assert_eq!(listener.judges(Some(ca.leaf(&good(&[WEB]))), TLS13).await.as_deref(), Ok(WEB), "the control");

    let spoiled = |spoil: &dyn Fn(&mut CertificateParams)| {
        let mut parameters = good(&[WEB]);
        spoil(&mut parameters);
        ca.leaf(&parameters)
    };
    let hour = Duration::hours(1);
    let cases: Vec<(&str, Option<Identity>)> = vec![
        ("no certificate", None),
        ("a foreign root", Some(foreign.leaf(&good(&[WEB])))),
        ("expired", Some(spoiled(&|leaf| leaf.not_after = OffsetDateTime::now_utc() - Duration::seconds(1)))),
        ("not yet valid", Some(spoiled(&|leaf| leaf.not_before = OffsetDateTime::now_utc() + hour))),
        ("two URI names", Some(ca.leaf(&good(&[WEB, ORDERS])))),
        ("the same URI twice", Some(ca.leaf(&good(&[WEB, WEB])))),
        ("no URI name", Some(ca.leaf(&good(&[])))),
        ("another trust domain", Some(ca.leaf(&good(&["spiffe://evil.example/ns/shop/sa/web"])))),
        ("a subdomain as trust domain", Some(ca.leaf(&good(&["spiffe://a.mesh.internal/ns/shop/sa/web"])))),
        ("upper case in the trust domain", Some(ca.leaf(&good(&["spiffe://Mesh.internal/ns/shop/sa/web"])))),
        ("a root path", Some(ca.leaf(&good(&["spiffe://mesh.internal"])))),
        ("a slash only", Some(ca.leaf(&good(&["spiffe://mesh.internal/"])))),
        ("a trailing slash", Some(ca.leaf(&good(&["spiffe://mesh.internal/ns/shop/sa/web/"])))),
        ("dot segments", Some(ca.leaf(&good(&["spiffe://mesh.internal/ns/shop/sa/../sa/web"])))),
        ("an escape", Some(ca.leaf(&good(&["spiffe://mesh.internal/ns/shop/sa/%77eb"])))),
        ("a query", Some(ca.leaf(&good(&["spiffe://mesh.internal/ns/shop/sa/web?x"])))),
        ("a port", Some(ca.leaf(&good(&["spiffe://mesh.internal:1/ns/shop/sa/web"])))),
        ("user information", Some(ca.leaf(&good(&["spiffe://a@mesh.internal/ns/shop/sa/web"])))),
        ("another scheme", Some(ca.leaf(&good(&["https://mesh.internal/ns/shop/sa/web"])))),
        ("an upper-case scheme", Some(ca.leaf(&good(&["SPIFFE://mesh.internal/ns/shop/sa/web"])))),
        ("another shape of path", Some(ca.leaf(&good(&["spiffe://mesh.internal/shop/web"])))),
        ("a NUL byte", Some(ca.leaf(&good(&["spiffe://mesh.internal/ns/shop/sa/web\0.evil"])))),
        ("CA:TRUE", Some(spoiled(&|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)))),
        ("keyCertSign", Some(spoiled(&|leaf| leaf.key_usages.push(KeyUsagePurpose::KeyCertSign)))),
        ("cRLSign", Some(spoiled(&|leaf| leaf.key_usages.push(KeyUsagePurpose::CrlSign)))),
        ("no digitalSignature", Some(spoiled(&|leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyAgreement]))),
        ("no key usage", Some(spoiled(&|leaf| leaf.key_usages = vec![]))),
        ("server use only", Some(spoiled(&|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]))),
        ("the root itself", {
            let key = KeyPair::generate()?;
            let mut own = good(&[WEB]);
            own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Some((vec![own.self_signed(&key)?.der().to_vec()], key.serialize_der()))
        }),
    ];
    for (what, identity) in cases {
        let verdict = listener.judges(identity, TLS13).await;
        assert!(verdict.is_err(), "{what} was let in as {verdict:?}");
    }
    assert_eq!(listener.judges(Some(ca.leaf(&good(&[WEB]))), TLS13).await.as_deref(), Ok(WEB), "the listener still serves");
    Ok(())
}

#[tokio::test]
async fn a_leaf_cannot_sign_another() -> Outcome {
    let ca = Ca::new("ours");
    let listener = Listener::of(&ca).await;
    let key = KeyPair::generate()?;
    let signer = good(&[WEB]);
    let signed = signer.signed_by(&key, &ca.issuer)?;
    let below = Issuer::new(signer, key);
    let victim_key = KeyPair::generate()?;
    let victim = good(&[ORDERS]).signed_by(&victim_key, &below)?;
    let chain = vec![victim.der().to_vec(), signed.der().to_vec()];
    assert!(listener.judges(Some((chain, victim_key.serialize_der())), TLS13).await.is_err());
    Ok(())
}

#[tokio::test]
async fn handshakes_are_never_resumed() -> Outcome {
    let ca = Ca::new("ours");
    let listener = Listener::of(&ca).await;
    let (chain, key) = ca.leaf(&good(&[WEB]));
    let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(TLS13)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)))?;
    config.alpn_protocols = vec![MeshProtocol::Http1.alpn().to_vec()];
    // This client would resume if it were ever given a ticket.
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    let config = Arc::new(config);
    let name = ServerName::try_from(server_name(&"shop/orders".parse()?, 80))?;
    for _ in 0..3 {
        let client = async {
            let stream = TcpStream::connect(listener.socket.local_addr()?).await?;
            let mut stream = TlsConnector::from(config.clone()).connect(name.clone(), stream).await?;
            stream.write_all(b"x").await?;
            let _ = stream.read_u8().await;
            Ok::<_, std::io::Error>((stream.get_ref().1.handshake_kind(), stream.get_ref().1.tls13_tickets_received()))
        };
        let server = async {
            let (stream, address) = listener.socket.accept().await.expect("accept");
            listener.acceptor.accept(stream, address, std::time::Duration::from_secs(5)).await.expect("accepted");
        };
        let (client, ()) = tokio::join!(client, server);
        let (kind, tickets) = client?;
        assert_ne!(kind, Some(rustls::HandshakeKind::Resumed));
        assert_eq!(tickets, 0);
    }
    Ok(())
}

#[tokio::test]
async fn a_caller_refuses_an_endpoint_that_is_somebody_else() -> Outcome {
    let (ca, foreign) = (Ca::new("ours"), Ca::new("theirs"));
    let (svids, trust): (Arc<Svids>, Arc<Trust>) = Default::default();
    let (chain, key) = ca.leaf(&good(&[WEB]));
    svids.replace(Arc::new(Svid::new(chain, Zeroizing::new(key), std::time::SystemTime::now())?));
    trust.replace(&ca.bundle())?;
    let connector = MeshConnector::new(svids, trust)?;
    for (what, issuer, expected, welcome) in [
        ("the right one", &ca, ORDERS, true),
        ("another identity of ours", &ca, "spiffe://mesh.internal/ns/shop/sa/files", false),
        ("the right name by a foreign root", &foreign, ORDERS, false),
    ] {
        let listener = Listener::of(issuer).await;
        let address = listener.socket.local_addr()?;
        let client = async {
            let stream = TcpStream::connect(address).await.expect("connect");
            let service = "shop/orders".parse().expect("a service");
            let secured =
                connector.connect(stream, address, &service, 80, MeshProtocol::Http1, &expected.parse().expect("an id")).await;
            secured.map(|secured| secured.io).map_err(|refusal| refusal.reason())
        };
        let server = async {
            let (stream, address) = listener.socket.accept().await.expect("accept");
            let _ = listener.acceptor.accept(stream, address, std::time::Duration::from_secs(5)).await;
        };
        let (client, ()): (Result<SharedIo, _>, ()) = tokio::join!(client, server);
        assert_eq!(client.is_ok(), welcome, "{what}: {client:?}");
        if let Err(reason) = client {
            assert_eq!(reason, outrider_agent::refusal::Reason::PeerIdentity, "{what}");
        }
    }
    Ok(())
}
