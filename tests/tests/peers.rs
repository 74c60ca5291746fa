//! Who may speak on the mesh port: handshakes with every kind of wrong certificate, against the listener's own TLS, against
//! a real agent, and the other way round against an endpoint.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{net::SocketAddr, sync::Arc};

use outrider_agent::{
    identity::{Svid, Svids},
    refusal::Reason,
    tls::{MeshAcceptor, MeshConnector, MeshProtocol, Trust, server_name},
};
use outrider_tests::{
    AgentOptions, Authority, Backend, Identity, Mesh, MeshOptions, MeshPeer, Outcome, allow, careless_client, careless_server,
    exchange, good_leaf as good, tls12_hello,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use rustls::{ClientConfig, pki_types::ServerName};
use time::{Duration, OffsetDateTime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use zeroize::Zeroizing;

const WEB: &str = "spiffe://mesh.internal/ns/shop/sa/web";
const ORDERS: &str = "spiffe://mesh.internal/ns/shop/sa/orders";
const SECONDS: std::time::Duration = std::time::Duration::from_secs(5);

/// `protocol_version`, fatal (RFC 8446 section 6).
const NO_SUCH_VERSION: [u8; 7] = [21, 3, 3, 0, 2, 2, 70];

/// What an agent that has this certificate and trusts `ca` holds.
fn holding(ca: &Authority, identity: Identity) -> (Arc<Svids>, Arc<Trust>) {
    let (svids, trust): (Arc<Svids>, Arc<Trust>) = Default::default();
    let svid = Svid::new(identity.chain, Zeroizing::new(identity.key), std::time::SystemTime::now());
    svids.replace(Arc::new(svid.expect("an SVID")));
    trust.replace(&ca.bundle()).expect("a bundle");
    (svids, trust)
}

fn orders_port() -> ServerName<'static> {
    ServerName::try_from(server_name(&"shop/orders".parse().expect("a name"), 80)).expect("a name")
}

/// The listener of an agent that is `shop/orders` and trusts `ca`.
struct Listener {
    acceptor: MeshAcceptor,
    socket: TcpListener,
}

impl Listener {
    async fn of(ca: &Authority) -> Self {
        let (svids, trust) = holding(ca, ca.leaf(&good(&[ORDERS])));
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        Self { acceptor: MeshAcceptor::new(svids, trust).expect("TLS"), socket }
    }

    fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("an address")
    }

    /// What it makes of the next connection: who that is, or why it is refused.
    async fn verdict(&self) -> Result<String, String> {
        let (stream, address) = self.socket.accept().await.expect("accept");
        let secured = self.acceptor.accept(stream, address, SECONDS).await;
        secured.map(|secured| secured.peer.id().to_string()).map_err(|refusal| refusal.detail().to_owned())
    }

    /// What it makes of a client with this certificate; none for no certificate.
    async fn judges(&self, identity: Option<Identity>) -> Result<String, String> {
        let config = careless_client(identity);
        let client = async {
            let stream = TcpStream::connect(self.address()).await.expect("connect");
            let Ok(mut stream) = TlsConnector::from(Arc::new(config)).connect(orders_port(), stream).await else { return };
            // In TLS 1.3 a client learns only afterwards that it was refused.
            let _ = stream.write_all(b"x").await;
            let _ = stream.read_u8().await;
        };
        tokio::join!(self.verdict(), client).0
    }
}

/// A leaf for shop/web of this authority, with something wrong about it.
fn spoiled(ca: &Authority, spoil: impl FnOnce(&mut CertificateParams)) -> Identity {
    let mut parameters = good(&[WEB]);
    spoil(&mut parameters);
    ca.leaf(&parameters)
}

#[tokio::test]
async fn only_a_proper_certificate_of_our_trust_domain_is_let_in() -> Outcome {
    // The root is spoiled in nothing but that it is one.
    let mut root = good(&[WEB]);
    root.key_usages.push(KeyUsagePurpose::KeyCertSign);
    root.distinguished_name.push(DnType::CommonName, "ours");
    let (ca, foreign) = (Authority::of(root), Authority::new("theirs"));
    let listener = Listener::of(&ca).await;
    let control = async || assert_eq!(listener.judges(Some(ca.leaf(&good(&[WEB])))).await.as_deref(), Ok(WEB));
    control().await;

    let spoiled = |spoil: &dyn Fn(&mut CertificateParams)| Some(spoiled(&ca, spoil));
    let now = OffsetDateTime::now_utc();
    let named = |uris: &[&str]| Some(ca.leaf(&good(uris)));
    let self_signed = {
        let (key, parameters) = (KeyPair::generate()?, good(&[WEB]));
        Identity { chain: vec![parameters.self_signed(&key)?.der().to_vec()], key: key.serialize_der() }
    };
    let cases: Vec<(&str, &str, Option<Identity>)> = vec![
        ("no certificate", "peer sent no certificates", None),
        ("a foreign root", "signed by nobody in the trust bundle", Some(foreign.leaf(&good(&[WEB])))),
        ("self-signed", "signed by nobody in the trust bundle", Some(self_signed)),
        ("expired", "certificate expired", spoiled(&|leaf| leaf.not_after = now - Duration::seconds(1))),
        ("not yet valid", "certificate not valid yet", spoiled(&|leaf| leaf.not_before = now + Duration::hours(1))),
        ("two URI names", "2 URI names", named(&[WEB, ORDERS])),
        ("the same URI twice", "2 URI names", named(&[WEB, WEB])),
        ("no URI name", "0 URI names", named(&[])),
        ("another trust domain", "of another trust domain", named(&["spiffe://evil.example/ns/shop/sa/web"])),
        ("a subdomain as trust domain", "of another trust domain", named(&["spiffe://a.mesh.internal/ns/shop/sa/web"])),
        ("CA:TRUE", "CaUsedAsEndEntity", spoiled(&|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("keyCertSign", "it may sign certificates", spoiled(&|leaf| leaf.key_usages.push(KeyUsagePurpose::KeyCertSign))),
        ("cRLSign", "it may sign certificates", spoiled(&|leaf| leaf.key_usages.push(KeyUsagePurpose::CrlSign))),
        ("no digitalSignature", "lacks digitalSignature", spoiled(&|leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyAgreement])),
        ("no key usage", "lacks digitalSignature", spoiled(&|leaf| leaf.key_usages = vec![])),
        (
            "server use only",
            "does not allow extended key usage for client authentication",
            spoiled(&|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
        ),
        ("the root itself", "CaUsedAsEndEntity", Some(ca.itself())),
    ];
    for (what, why, identity) in cases {
        let verdict = listener.judges(identity).await;
        assert!(verdict.as_ref().is_err_and(|detail| detail.contains(why)), "{what}: {verdict:?}");
    }
    for id in [
        "spiffe://Mesh.internal/ns/shop/sa/web",
        "spiffe://mesh.internal",
        "spiffe://mesh.internal/",
        "spiffe://mesh.internal/ns/shop/sa/web/",
        "spiffe://mesh.internal/ns/shop/sa/../sa/web",
        "spiffe://mesh.internal/ns/shop/sa/%77eb",
        "spiffe://mesh.internal/ns/shop/sa/web?x",
        "spiffe://mesh.internal:1/ns/shop/sa/web",
        "spiffe://a@mesh.internal/ns/shop/sa/web",
        "https://mesh.internal/ns/shop/sa/web",
        "SPIFFE://mesh.internal/ns/shop/sa/web",
        "spiffe://mesh.internal/shop/web",
        "spiffe://mesh.internal/ns/shop/sa/web\0.evil",
    ] {
        let verdict = listener.judges(named(&[id])).await;
        let why = format!("{id:?} is not a workload's SPIFFE ID");
        assert!(verdict.as_ref().is_err_and(|detail| detail.contains(&why)), "{id}: {verdict:?}");
    }
    control().await;
    Ok(())
}

#[tokio::test]
async fn a_leaf_cannot_sign_another() -> Outcome {
    let ca = Authority::new("ours");
    let listener = Listener::of(&ca).await;
    let verdict = listener.judges(Some(ca.below_a_leaf(good(&[WEB]), &good(&[ORDERS])))).await;
    assert!(verdict.as_ref().is_err_and(|detail| detail.contains("EndEntityUsedAsCa")), "{verdict:?}");
    Ok(())
}

#[tokio::test]
async fn nothing_older_than_tls_1_3_is_spoken() -> Outcome {
    let ca = Authority::new("ours");
    let listener = Listener::of(&ca).await;
    for (outright, why) in [(false, "SupportedVersionsExtensionRequired"), (true, "Tls12NotOffered")] {
        let client = async {
            let mut stream = TcpStream::connect(listener.address()).await?;
            stream.write_all(&tls12_hello(outright)).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let (verdict, answer) = tokio::join!(listener.verdict(), client);
        assert!(verdict.as_ref().is_err_and(|detail| detail.contains(why)), "{verdict:?}");
        assert_eq!(answer?, NO_SUCH_VERSION);
    }
    Ok(())
}

#[tokio::test]
async fn handshakes_are_never_resumed() -> Outcome {
    let ca = Authority::new("ours");
    let listener = Listener::of(&ca).await;
    let mut config = careless_client(Some(ca.leaf(&good(&[WEB]))));
    // This client would resume if it were ever given a ticket.
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    let config = Arc::new(config);
    for _ in 0..3 {
        let client = async {
            let stream = TcpStream::connect(listener.address()).await?;
            let mut stream = TlsConnector::from(config.clone()).connect(orders_port(), stream).await?;
            stream.write_all(b"x").await?;
            let _ = stream.read_u8().await;
            Ok::<_, std::io::Error>((stream.get_ref().1.handshake_kind(), stream.get_ref().1.tls13_tickets_received()))
        };
        let (verdict, client) = tokio::join!(listener.verdict(), client);
        assert_eq!(verdict.as_deref(), Ok(WEB));
        let (kind, tickets) = client?;
        assert!(matches!(kind, Some(rustls::HandshakeKind::Full | rustls::HandshakeKind::FullWithHelloRetryRequest)), "{kind:?}");
        assert_eq!(tickets, 0);
    }
    Ok(())
}

/// What a client that is no member gets out of a real agent's mesh port after it has asked for something: every byte.
async fn gets(mesh: SocketAddr, config: ClientConfig) -> Vec<u8> {
    let stream = TcpStream::connect(mesh).await.expect("connect");
    let connected = TlsConnector::from(Arc::new(config)).connect(orders_port(), stream).await;
    let mut stream = connected.expect("in TLS 1.3 a client learns only afterwards that it was refused");
    let _ = stream.write_all(b"GET /x HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n").await;
    let mut all = Vec::new();
    let ended = tokio::time::timeout(SECONDS, stream.read_to_end(&mut all)).await.expect("the agent ends it");
    assert!(all.is_empty() || ended.is_ok());
    all
}

#[tokio::test]
async fn strangers_get_nothing_out_of_a_real_agent() -> Outcome {
    let backend = Backend::start().await;
    let mesh = Mesh::start(MeshOptions { leaf_ttl: Some("6s") }).await;
    let services = vec![format!("shop/orders:80/http={}", backend.address)];
    let orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
    mesh.apply(&allow("all", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"));
    let early = MeshPeer::join(&mesh, "shop/web").await;
    let svid = early.svids.latest().expect("a certificate");
    let proper = Identity { chain: svid.chain().to_vec(), key: svid.key().to_vec() };
    assert!(gets(orders.mesh, careless_client(Some(proper.clone()))).await.starts_with(b"HTTP/1.1 200"), "while it is valid");
    assert_eq!(backend.seen().len(), 1);
    backend.forget();
    let before = orders.access_log().await.len();

    let foreign = Authority::new("theirs");
    let left = svid.leaf.not_after.duration_since(std::time::SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left + std::time::Duration::from_secs(1)).await;
    for (what, identity) in [
        ("no certificate", None),
        ("a foreign root", Some(foreign.leaf(&good(&[WEB])))),
        ("expired, and proper a moment ago", Some(proper)),
    ] {
        assert_eq!(gets(orders.mesh, careless_client(identity)).await, b"", "{what}");
    }
    let mut stream = TcpStream::connect(orders.mesh).await?;
    stream.write_all(&tls12_hello(true)).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    assert_eq!(answer, NO_SUCH_VERSION);

    assert!(backend.seen().is_empty(), "{:?}", backend.seen());
    let log = orders.access_log().await.split_off(before);
    let details: Vec<_> = log.iter().map(|line| line["detail"].as_str().unwrap_or_default()).collect();
    assert_eq!(log.len(), 4, "{log:#?}");
    assert!(log.iter().all(|line| line["reason"] == "peer_identity"), "{log:#?}");
    for (detail, why) in
        details.iter().zip(["no certificates", "signed by nobody in the trust bundle", "certificate expired", "Tls12NotOffered"])
    {
        assert!(detail.contains(why), "{detail}");
    }

    let late = MeshPeer::join(&mesh, "shop/web").await;
    let mut io = late.connect(orders.mesh, "shop/orders", 80, MeshProtocol::Http1, ORDERS).await?;
    let answer = exchange(&mut io, b"GET /control HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?;
    assert_eq!((answer.status, backend.seen().len()), (200, 1), "a member is served");
    Ok(())
}

#[tokio::test]
async fn a_caller_refuses_an_endpoint_that_is_somebody_else() -> Outcome {
    let (ca, foreign) = (Authority::new("ours"), Authority::new("theirs"));
    let (svids, trust) = holding(&ca, ca.leaf(&good(&[WEB])));
    let connector = MeshConnector::new(svids, trust)?;
    let of_orders = |spoil: &dyn Fn(&mut CertificateParams)| {
        let mut parameters = good(&[ORDERS]);
        spoil(&mut parameters);
        ca.leaf(&parameters)
    };
    let now = OffsetDateTime::now_utc();
    let cases: Vec<(&str, Identity, &str)> = vec![
        ("the right one", ca.leaf(&good(&[ORDERS])), ""),
        ("another identity of ours", ca.leaf(&good(&[WEB])), "expected `spiffe://mesh.internal/ns/shop/sa/orders`"),
        ("the right name by a foreign root", foreign.leaf(&good(&[ORDERS])), "signed by nobody in the trust bundle"),
        ("expired", of_orders(&|leaf| leaf.not_after = now - Duration::seconds(1)), "certificate expired"),
        ("not yet valid", of_orders(&|leaf| leaf.not_before = now + Duration::hours(1)), "certificate not valid yet"),
        ("another trust domain", ca.leaf(&good(&["spiffe://evil.example/ns/shop/sa/orders"])), "of another trust domain"),
        ("two URI names", ca.leaf(&good(&[ORDERS, WEB])), "2 URI names"),
        ("no URI name", ca.leaf(&good(&[])), "0 URI names"),
        ("CA:TRUE", of_orders(&|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), "CaUsedAsEndEntity"),
        ("a leaf that signs", of_orders(&|leaf| leaf.key_usages.push(KeyUsagePurpose::KeyCertSign)), "it may sign certificates"),
        ("signed by a leaf", ca.below_a_leaf(good(&[WEB]), &good(&[ORDERS])), "EndEntityUsedAsCa"),
        (
            "for clients only",
            of_orders(&|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            "does not allow extended key usage for server authentication",
        ),
    ];
    for (what, identity, why) in cases {
        let socket = TcpListener::bind("127.0.0.1:0").await?;
        let address = socket.local_addr()?;
        let endpoint = TlsAcceptor::from(Arc::new(careless_server(identity)));
        let client = async {
            let stream = TcpStream::connect(address).await.expect("connect");
            let (service, expected) = ("shop/orders".parse().expect("a service"), ORDERS.parse().expect("an id"));
            connector.connect(stream, address, &service, 80, MeshProtocol::Http1, &expected).await.map(drop)
        };
        let server = async {
            let (stream, _) = socket.accept().await.expect("accept");
            let _ = endpoint.accept(stream).await;
        };
        let (verdict, ()) = tokio::join!(client, server);
        match verdict {
            Ok(()) => assert_eq!(why, "", "{what} was believed"),
            Err(refusal) => {
                assert!(!why.is_empty() && refusal.detail().contains(why), "{what}: {refusal}");
                assert_eq!(refusal.reason(), Reason::PeerIdentity, "{what}: {refusal}");
            }
        }
    }
    Ok(())
}
