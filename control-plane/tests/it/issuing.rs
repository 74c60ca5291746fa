//! Certificates: who gets one, what stands in it, and what is refused.

use std::time::Duration;

use outrider_proto::v1;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384,
    SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use crate::harness::{Plane, Svid, by_renewal, by_token, csr, hello, uri};

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

const ORDERS: &str = "spiffe://mesh.internal/ns/shop/sa/orders";

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_gives_exactly_the_identity_it_was_made_for() {
    let plane = Plane::start().await;
    let svid = plane.join("shop/orders", &[]).await;
    assert_eq!(svid.response.identity, ORDERS);
    let (_, leaf) = parse_x509_certificate(&svid.chain[0]).unwrap();
    let (_, issuer) = parse_x509_certificate(&svid.chain[1]).unwrap();
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.as_slice(), [GeneralName::URI(ORDERS)]);
    assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.client_auth && purposes.server_auth);
    assert!(leaf.subject().iter().next().is_none(), "a leaf has no subject but its SPIFFE ID");
    assert!(leaf.validity().not_after <= issuer.validity().not_after, "a leaf never outlives its issuer");
    assert_eq!(leaf.validity().not_after.timestamp(), svid.response.not_after);
    assert_eq!(leaf.raw_serial().len(), 16);
    assert_eq!(issuer.basic_constraints().unwrap().unwrap().value.path_len_constraint, Some(0));
    assert_ne!(issuer.subject(), issuer.issuer(), "each CA has its own name");
    assert_eq!(svid.response.bundle.as_ref().unwrap().roots.len(), 1);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_works_once() {
    let plane = Plane::start().await;
    let token = plane.token("shop/orders", &[]).await;
    let key = KeyPair::generate().unwrap();
    plane.issue(None, by_token(&token, csr(&key, |_| {}))).await.unwrap();
    let status = plane.issue(None, by_token(&token, csr(&key, |_| {}))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("used already"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_redeem_one_token_at_once_one_gets_a_certificate() {
    let plane = std::sync::Arc::new(Plane::start().await);
    let token = plane.token("shop/orders", &[]).await;
    let tries = (0..16).map(|_| {
        let (plane, token) = (std::sync::Arc::clone(&plane), token.clone());
        async move { plane.issue(None, by_token(&token, csr(&KeyPair::generate().unwrap(), |_| {}))).await }
    });
    let tries: Vec<_> = tries.map(|each| plane.tasks.spawn_scoped_result(each)).collect();
    let mut issued = 0;
    for each in tries {
        issued += usize::from(each.await.unwrap().is_ok());
    }
    assert_eq!(issued, 1);
}

trait SpawnResult {
    fn spawn_scoped_result<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> tokio::sync::oneshot::Receiver<T>;
}

impl SpawnResult for outrider_runtime::Tasks {
    fn spawn_scoped_result<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> tokio::sync::oneshot::Receiver<T> {
        let (send, receive) = tokio::sync::oneshot::channel();
        self.spawn_scoped(async move {
            let _ = send.send(future.await);
        });
        receive
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_another_identity_is_refused_and_not_used_up() {
    let plane = Plane::start().await;
    let token = plane.token("shop/orders", &[]).await;
    let key = KeyPair::generate().unwrap();
    for expected in
        ["spiffe://mesh.internal/ns/shop/sa/web", "spiffe://other/ns/shop/sa/orders", "../orders", &format!("{ORDERS}/")]
    {
        let request = v1::IssueRequest { expected_identity: expected.into(), ..by_token(&token, csr(&key, |_| {})) };
        assert_eq!(plane.issue(None, request).await.unwrap_err().code(), Code::PermissionDenied, "{expected}");
    }
    let request = v1::IssueRequest { expected_identity: ORDERS.into(), ..by_token(&token, csr(&key, |_| {})) };
    assert_eq!(plane.issue(None, request).await.unwrap().identity, ORDERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_hold_a_right_secret_learns_nothing() {
    let plane = Plane::start().await;
    let token = plane.token("shop/orders", &[]).await;
    let key = KeyPair::generate().unwrap();
    let other = token.replacen(&token[5..15], "AAAAAAAAAA", 1);
    let mut messages = Vec::new();
    for wrong in ["", "orj1", "orj1.x.y", &other, "not a token at all", &"a".repeat(5000)] {
        let status = plane.issue(None, by_token(wrong, csr(&key, |_| {}))).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        messages.push(status.message().to_owned());
    }
    messages.dedup();
    assert_eq!(messages.len(), 1, "the messages tell wrong tokens apart: {messages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signing_request_that_asks_for_more_than_was_proved_is_refused_and_the_token_still_works() {
    let plane = Plane::start().await;
    let token = plane.token("shop/orders", &[]).await;
    let key = KeyPair::generate().unwrap();
    type Tweak = fn(&mut CertificateParams);
    let table: [(&str, Tweak); 10] = [
        ("name", |params| params.subject_alt_names = vec![uri("spiffe://mesh.internal/ns/shop/sa/web")]),
        ("name", |params| params.subject_alt_names = vec![uri("spiffe://evil.example/ns/shop/sa/orders")]),
        ("names", |params| params.subject_alt_names = vec![uri(ORDERS), uri(ORDERS)]),
        ("names", |params| {
            params.subject_alt_names = vec![uri(ORDERS), uri("spiffe://mesh.internal/ns/shop/sa/web"), uri("https://x")]
        }),
        ("DNS", |params| params.subject_alt_names = vec![uri(ORDERS), SanType::DnsName("orders.shop".try_into().unwrap())]),
        ("IP", |params| params.subject_alt_names = vec![SanType::IpAddress([10, 0, 0, 1].into())]),
        ("mail", |params| params.subject_alt_names = vec![SanType::Rfc822Name("a@b".try_into().unwrap())]),
        ("CA", |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ("keyCertSign", |params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]),
        ("cRLSign", |params| params.key_usages = vec![KeyUsagePurpose::CrlSign]),
    ];
    for (named, tweak) in table {
        let status = plane.issue(None, by_token(&token, csr(&key, tweak))).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{named}");
        assert!(status.message().contains(named), "{named} is not named in {:?}", status.message());
    }
    // What only wishes, and what leaves have anyway, is passed over: it does not come out of the other end.
    let wishes = csr(&key, |params| {
        params.distinguished_name.push(DnType::CommonName, "spiffe://mesh.internal/ns/shop/sa/web");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning, ExtendedKeyUsagePurpose::Any];
        params.subject_alt_names = vec![uri(ORDERS)];
    });
    let issued = plane.issue(None, by_token(&token, wishes)).await.unwrap();
    let (_, leaf) = parse_x509_certificate(&issued.chain[0]).unwrap();
    assert_eq!((issued.identity.as_str(), leaf.subject().iter().count()), (ORDERS, 0));
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.client_auth && purposes.server_auth && !purposes.code_signing && !purposes.any);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signing_request_that_is_not_one_is_refused() {
    let plane = Plane::start().await;
    let token = plane.token("shop/orders", &[]).await;
    let key = KeyPair::generate().unwrap();
    let good = csr(&key, |_| {});
    let mut forged = good.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let mut trailing = good.clone();
    trailing.push(0);
    let p384 = csr(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(), |_| {});
    for (what, bytes) in [
        ("empty", Vec::new()),
        ("garbage", vec![0x30; 200]),
        ("long", vec![0x30; 4097]),
        ("forged", forged),
        ("trailing", trailing),
        ("P-384", p384),
    ] {
        let status = plane.issue(None, by_token(&token, bytes)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
    }
    let huge = plane.issue(None, by_token(&token, vec![0; 1 << 20])).await.unwrap_err();
    assert_eq!(huge.code(), Code::OutOfRange, "a request beyond the size cap is not even decoded");
    plane.issue(None, by_token(&token, good)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_takes_the_identity_from_the_connection_and_needs_a_certificate() {
    let plane = Plane::start().await;
    let svid = plane.join("shop/orders", &[]).await;
    let key = KeyPair::generate().unwrap();
    let renewed = plane.issue(Some(&svid), by_renewal(csr(&key, |_| {}))).await.unwrap();
    assert_eq!(renewed.identity, ORDERS);
    assert_ne!(renewed.serial, svid.response.serial);
    let foreign = csr(&key, |params| params.subject_alt_names = vec![uri("spiffe://mesh.internal/ns/shop/sa/web")]);
    assert_eq!(plane.issue(Some(&svid), by_renewal(foreign)).await.unwrap_err().code(), Code::InvalidArgument);
    let expected =
        v1::IssueRequest { expected_identity: "spiffe://mesh.internal/ns/shop/sa/web".into(), ..by_renewal(csr(&key, |_| {})) };
    assert_eq!(plane.issue(Some(&svid), expected).await.unwrap_err().code(), Code::PermissionDenied);
    let anonymous = plane.issue(None, by_renewal(csr(&key, |_| {}))).await.unwrap_err();
    assert_eq!(anonymous.code(), Code::Unauthenticated);
    let none = v1::IssueRequest { evidence: None, ..by_renewal(csr(&key, |_| {})) };
    assert_eq!(plane.issue(Some(&svid), none).await.unwrap_err().code(), Code::InvalidArgument);
    let request = v1::ListCertificatesRequest { all: false };
    let listed = plane.admin().await.list_certificates(request).await.unwrap().into_inner().certificates;
    let serials: Vec<&str> = listed.iter().filter(|one| one.identity == ORDERS).map(|one| one.serial.as_str()).collect();
    assert_eq!(serials, [renewed.serial.as_str()], "the replaced one is listed only with `all`");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_of_this_mesh_does_not_get_in() {
    let plane = Plane::start().await;
    let other = Plane::start().await;
    let own = plane.join("shop/orders", &[]).await;
    handshake(&plane, (own.chain.clone(), own.key.clone_key())).await.expect("a right certificate gets in");
    let foreign_root = other.join("shop/orders", &[]).await;
    refused(&plane, foreign_root.chain.clone(), foreign_root.key.clone_key()).await;
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(ORDERS)];
    let selfsigned = params.self_signed(&key).unwrap().der().clone();
    refused(&plane, vec![selfsigned], PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()))).await;
}

/// How the door answers a handshake with this certificate: its TLS error, if it refuses.
async fn handshake(plane: &Plane, identity: Identity) -> Result<(), std::io::Error> {
    let stream = TcpStream::connect(plane.running.address).await?;
    let tls = tokio_rustls::TlsConnector::from(std::sync::Arc::new(crate::harness::client_config(Some(identity))));
    let mut stream = tls.connect("x.invalid".try_into().unwrap(), stream).await?;
    // In TLS 1.3 the client learns of the refusal with its first read. An open door of HTTP/2 speaks first.
    let mut first = [0];
    let read = tokio::time::timeout(crate::harness::PATIENCE, stream.read(&mut first)).await.expect("no answer");
    read.map(|bytes| assert_eq!(bytes, 1, "the door neither spoke nor refused"))
}

async fn refused(plane: &Plane, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) {
    let error = handshake(plane, (chain, key)).await.expect_err("a wrong certificate got in");
    let alert = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    assert!(matches!(alert, Some(rustls::Error::AlertReceived(_))), "{error:?}");
}

/// A ClientHello (RFC 5246) of a client that knows no newer version: our own TLS library cannot say it.
fn hello_of_tls_1_2() -> Vec<u8> {
    let extensions: &[u8] = &[
        0, 10, 0, 4, 0, 2, 0, 23, // supported_groups: secp256r1
        0, 11, 0, 2, 1, 0, // ec_point_formats: uncompressed
        0, 13, 0, 6, 0, 4, 4, 3, 4, 1, // signature_algorithms: ecdsa_secp256r1_sha256, rsa_pkcs1_sha256
    ];
    let suites: &[u8] = &[0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x2c];
    let length = |bytes: usize| u8::try_from(bytes).unwrap();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, length(suites.len())]);
    body.extend(suites);
    body.extend([1, 0, 0, length(extensions.len())]);
    body.extend(extensions);
    let mut record = vec![0x16, 3, 1, 0, length(body.len() + 4), 1, 0, 0, length(body.len())];
    record.extend(body);
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_door_survives_garbage_and_speaks_only_tls_1_3_with_a_chain_to_the_pinned_root() {
    let plane = Plane::start().await;
    for round in 0..64 {
        let mut stream = TcpStream::connect(plane.running.address).await.unwrap();
        let bytes: &[u8] = match round % 4 {
            0 => b"GET / HTTP/1.1\r\n\r\n",
            1 => &[0x16, 0x03, 0x01, 0xff, 0xff, 0x01],
            2 => &[0xff; 4096],
            _ => b"",
        };
        // It may hang up before we have said all.
        let _ = stream.write_all(bytes).await;
    }
    let mut stream = TcpStream::connect(plane.running.address).await.unwrap();
    stream.write_all(&hello_of_tls_1_2()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(crate::harness::PATIENCE, stream.read_to_end(&mut answer)).await.expect("no answer");
    assert_eq!(answer, [0x15, 3, 3, 0, 2, 2, 70], "a fatal alert `protocol_version`");
    let stream = TcpStream::connect(plane.running.address).await.unwrap();
    let tls = tokio_rustls::TlsConnector::from(std::sync::Arc::new(crate::harness::client_config(None)));
    let stream = tls.connect("x.invalid".try_into().unwrap(), stream).await.unwrap();
    let (_, session) = stream.get_ref();
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(session.alpn_protocol(), Some(b"h2".as_slice()));
    let chain = session.peer_certificates().unwrap();
    let [leaf, _issuing, root] = chain else { panic!("{} certificates", chain.len()) };
    let (_, leaf) = parse_x509_certificate(leaf).unwrap();
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.as_slice(), [GeneralName::URI("spiffe://mesh.internal/ns/outrider-system/sa/control-plane")]);
    let (_, root) = parse_x509_certificate(root).unwrap();
    let pin = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, root.public_key().raw);
    let token = plane.token("shop/orders", &[]).await;
    use base64::Engine as _;
    let pinned = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(pin.as_ref());
    assert_eq!(token.rsplit('.').next(), Some(pinned.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_live_as_long_as_the_setting_says_and_the_own_leaf_is_renewed_without_a_restart() {
    let plane = Plane::start_with(|raw| raw.leaf_ttl = Some("2s".into())).await;
    let svid = plane.join("shop/orders", &[]).await;
    let (_, leaf) = parse_x509_certificate(&svid.chain[0]).unwrap();
    assert_eq!(leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp(), 62);
    let own = |certificates: Vec<v1::CertificateStatus>| {
        certificates
            .into_iter()
            .filter(|one| one.evidence == "self")
            .map(|one| one.serial)
            .collect::<std::collections::BTreeSet<_>>()
    };
    let mut seen = std::collections::BTreeSet::new();
    let mut poll = tokio::time::interval(Duration::from_millis(100));
    while seen.len() < 3 {
        poll.tick().await;
        let request = v1::ListCertificatesRequest { all: true };
        seen.extend(own(plane.admin().await.list_certificates(request).await.unwrap().into_inner().certificates));
    }
    plane.join("shop/web", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_neither_connects_nor_renews() {
    let plane = Plane::start_with(|raw| raw.leaf_ttl = Some("2s".into())).await;
    let svid: Svid = plane.join("shop/orders", &[]).await;
    let early = plane.connect(Some(&svid)).await.unwrap();
    let mut early = outrider_proto::v1::identity_client::IdentityClient::new(early);
    early.issue(by_renewal(csr(&KeyPair::generate().unwrap(), |_| {}))).await.unwrap();
    let mut poll = tokio::time::interval(Duration::from_millis(50));
    let status = loop {
        poll.tick().await;
        match early.issue(by_renewal(csr(&KeyPair::generate().unwrap(), |_| {}))).await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unauthenticated, "a connection from before must not renew for ever: {status:?}");
    // The last second of a certificate belongs to it.
    while handshake(&plane, (svid.chain.clone(), svid.key.clone_key())).await.is_ok() {
        poll.tick().await;
    }
    refused(&plane, svid.chain.clone(), svid.key.clone_key()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_grants_its_services_when_it_is_redeemed_and_a_caller_only_gets_none() {
    let plane = Plane::start().await;
    let svid = plane.join("shop/web", &["shop/web"]).await;
    let unused = plane.token("shop/web", &["shop/more"]).await;
    let refused = async || {
        let agent = plane.subscribe(&svid).await;
        agent.say(hello("00000000-0000-7000-8000-00000000000a", &["shop/more"], &[])).await;
        agent.end().await.code()
    };
    assert_eq!(refused().await, Code::PermissionDenied, "a token that nobody used changes nothing");
    plane.issue(None, by_token(&unused, csr(&KeyPair::generate().unwrap(), |_| {}))).await.unwrap();
    let mut agent = plane.subscribe(&svid).await;
    agent.say(hello("00000000-0000-7000-8000-00000000000b", &["shop/more"], &[])).await;
    agent.update().await;

    let request = v1::CreateTokenRequest { identity: "shop/cron".into(), caller_only: true, ..Default::default() };
    let token = plane.admin().await.create_token(request.clone()).await.unwrap().into_inner().token;
    let key = KeyPair::generate().unwrap();
    let caller = Svid::new(&key, plane.issue(None, by_token(&token, csr(&key, |_| {}))).await.unwrap());
    let agent = plane.subscribe(&caller).await;
    agent.say(hello("00000000-0000-7000-8000-00000000000c", &["shop/cron"], &[])).await;
    assert_eq!(agent.end().await.code(), Code::PermissionDenied);
    for wrong in [
        v1::CreateTokenRequest { services: vec!["shop/cron".into()], ..request.clone() },
        v1::CreateTokenRequest { identity: "outrider-system/control-plane".into(), ..request },
    ] {
        assert_eq!(plane.admin().await.create_token(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_has_expired_is_refused_and_says_so() {
    let plane = Plane::start().await;
    let token = plane.token("shop/orders", &[]).await;
    let url = format!("sqlite://{}", plane.state_dir().join("store.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    sqlx::query("UPDATE tokens SET expires = created - 1").execute(&pool).await.unwrap();
    pool.close().await;
    let status = plane.issue(None, by_token(&token, csr(&KeyPair::generate().unwrap(), |_| {}))).await.unwrap_err();
    assert!(status.code() == Code::Unauthenticated && status.message().contains("expired"), "{status:?}");
}
