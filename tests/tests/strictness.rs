//! What a real agent makes of certificates that its own mesh's root has signed and a control plane never would: a table of
//! handshakes with the verdict and its reason, against the agent's own mesh port, and the other way round where an agent calls.

#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use outrider_agent::{
    identity::{Svid, Svids},
    tls::{MeshConnector, MeshProtocol, Trust, server_name},
};
use outrider_proto::v1::TrustBundle;
use outrider_tests::{
    AgentOptions, Authority, Backend, Identity, Mesh, MeshOptions, Outcome, allow, careless_client, careless_server, good_leaf,
    python,
};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose as Eku, GeneralSubtree, IsCa, KeyPair,
    KeyUsagePurpose as Ku, NameConstraints, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
};
use rustls::pki_types::ServerName;
use time::{Duration, OffsetDateTime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use zeroize::Zeroizing;

const WEB: &str = "spiffe://mesh.internal/ns/shop/sa/web";
const ORDERS: &str = "spiffe://mesh.internal/ns/shop/sa/orders";
const SAN: [u64; 4] = [2, 5, 29, 17];
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// What should come of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The peer is believed to be who the certificate names.
    Good,
    /// It is refused, and the record says so in these words.
    Refused(&'static str),
}
use Verdict::{Good, Refused};

const NO_ID: Verdict = Refused("is not a workload's SPIFFE ID");
const FOREIGN: Verdict = Refused("of another trust domain");
const URI_NAMES: Verdict = Refused("URI names instead of exactly one");
const KIND: Verdict = Refused("a name of a kind");
const BAD: Verdict = Refused("");
const SIGNS: Verdict = Refused("it may sign certificates");
const UNKNOWN: Verdict = Refused("signed by nobody in the trust bundle");

/// A row of the table.
struct Row {
    what: String,
    identity: Identity,
    as_caller: Verdict,
    /// Where the other direction makes another point than the same.
    as_endpoint: Option<Verdict>,
}

/// Who makes certificates here: the mesh's own root, a CA below it, and a stranger with the root's name.
struct Makers {
    root: Authority,
    issuing: Authority,
    stranger: Authority,
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key")
}

fn ca(name: &str, path: BasicConstraints) -> CertificateParams {
    let mut parameters = good_leaf(&[]);
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(path);
    parameters.key_usages = vec![Ku::KeyCertSign, Ku::CrlSign];
    parameters.extended_key_usages = vec![];
    parameters
}

impl Makers {
    fn of(mesh: &Mesh) -> Self {
        let state = mesh.dir.path().join("control-plane").display().to_string();
        let output = python("stolen_root.py", &[&state]).output().expect("python");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let stolen: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let part = |name: &str| STANDARD.decode(stolen[name].as_str().expect("text")).expect("base64");
        let root = Authority::stolen(part("certificate"), &part("key"));
        let issuing = root.below(key(), ca("issuing", BasicConstraints::Constrained(0)));
        let mut named_alike = CertificateParams::default();
        named_alike.distinguished_name.push(DnType::OrganizationName, "Outrider");
        named_alike.key_usages = vec![Ku::KeyCertSign];
        Self { root, issuing, stranger: Authority::of(named_alike) }
    }

    /// A leaf of the issuing CA, with its chain.
    fn leaf(&self, parameters: &CertificateParams) -> Identity {
        let mut identity = self.issuing.leaf(parameters);
        identity.chain.push(self.issuing.certificate());
        identity
    }

    /// A leaf below this intermediate, which is part of the chain.
    fn below(&self, intermediate: CertificateParams, key: KeyPair) -> Identity {
        let ca = self.root.below(key, intermediate);
        let mut identity = ca.leaf(&good_leaf(&[WEB]));
        identity.chain.push(ca.certificate());
        identity
    }
}

/// DER: a tag, a length, the content.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let head = match u8::try_from(length) {
        Ok(short @ 0..=127) => vec![tag, short],
        Ok(long) => vec![tag, 0x81, long],
        Err(_) => vec![tag, 0x82, u8::try_from(length >> 8).expect("short"), u8::try_from(length & 0xff).expect("a byte")],
    };
    [head, content.to_vec()].concat()
}

fn uri(text: &[u8]) -> Vec<u8> {
    der(0x86, text)
}

fn dns(text: &[u8]) -> Vec<u8> {
    der(0x82, text)
}

/// `otherName` of this type with a UTF-8 text.
fn other_name(oid: &[u8], text: &[u8]) -> Vec<u8> {
    der(0xa0, &[der(6, oid), der(0xa0, &der(12, text))].concat())
}

/// A leaf whose names are exactly these bytes.
fn with_names(names: &[Vec<u8>]) -> CertificateParams {
    let mut parameters = good_leaf(&[]);
    let content = der(0x30, &names.concat());
    parameters.custom_extensions.push(CustomExtension::from_oid_content(&SAN, content));
    parameters
}

fn spoiled(spoil: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut parameters = good_leaf(&[WEB]);
    spoil(&mut parameters);
    parameters
}

fn extension(oid: &[u64], critical: bool, content: Vec<u8>) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content);
    extension.set_criticality(critical);
    extension
}

/// SPIFFE IDs as they stand in the one URI name.
fn ids() -> Vec<(&'static [u8], Verdict)> {
    vec![
        (b"spiffe://mesh.internal/ns/shop/sa/web", Good),
        (b"spiffe://mesh.internal/ns/a-b/sa/c.d_e", Good),
        (b"spiffe://mesh.internal", NO_ID),
        (b"spiffe://mesh.internal/", NO_ID),
        (b"spiffe://mesh.internal//", NO_ID),
        (b"spiffe://mesh.internal/ns", NO_ID),
        (b"spiffe://mesh.internal/ns/shop", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web/", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web/x", NO_ID),
        (b"spiffe://mesh.internal/ns//sa/web", NO_ID),
        (b"spiffe://mesh.internal//ns/shop/sa/web", NO_ID),
        (b"spiffe://mesh.internal/./ns/shop/sa/web", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/.", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/..", NO_ID),
        (b"spiffe://mesh.internal/ns/x/../shop/sa/web", NO_ID),
        (b"spiffe://mesh.internal/NS/shop/SA/web", NO_ID),
        (b"spiffe://mesh.internal/sa/web/ns/shop", NO_ID),
        (b"spiffe://mesh.internal/operator/ann", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/%77eb", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web%00", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web\0", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web\0.evil", NO_ID),
        (b"spiffe://mesh.internal\0.evil/ns/shop/sa/web", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web?x=1", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web#x", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web;x", NO_ID),
        (b"spiffe://mesh.internal:443/ns/shop/sa/web", NO_ID),
        (b"spiffe://user@mesh.internal/ns/shop/sa/web", NO_ID),
        (b"spiffe://user:password@mesh.internal/ns/shop/sa/web", NO_ID),
        (b"spiffe://Mesh.Internal/ns/shop/sa/web", NO_ID),
        (b"spiffe://[::1]/ns/shop/sa/web", NO_ID),
        (b"spiffe:///ns/shop/sa/web", NO_ID),
        (b"spiffe:/mesh.internal/ns/shop/sa/web", NO_ID),
        (b"SPIFFE://mesh.internal/ns/shop/sa/web", NO_ID),
        (b"Spiffe://mesh.internal/ns/shop/sa/web", NO_ID),
        (b"http://mesh.internal/ns/shop/sa/web", NO_ID),
        (b"https://mesh.internal/ns/shop/sa/web", NO_ID),
        (b"urn:spiffe://mesh.internal/ns/shop/sa/web", NO_ID),
        (b"//mesh.internal/ns/shop/sa/web", NO_ID),
        (b" spiffe://mesh.internal/ns/shop/sa/web", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web ", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web\n", NO_ID),
        (b"", NO_ID),
        (b"spiffe://", NO_ID),
        (b"spiffe://mesh.internal./ns/shop/sa/web", FOREIGN),
        (b"spiffe://.mesh.internal/ns/shop/sa/web", FOREIGN),
        (b"spiffe://a.mesh.internal/ns/shop/sa/web", FOREIGN),
        (b"spiffe://internal/ns/shop/sa/web", FOREIGN),
        (b"spiffe://mesh.internal.evil.example/ns/shop/sa/web", FOREIGN),
        (b"spiffe://evil.example/ns/shop/sa/web", FOREIGN),
        (b"spiffe://mesh_internal/ns/shop/sa/web", FOREIGN),
        (b"spiffe://xn--mesh-internal/ns/shop/sa/web", FOREIGN),
    ]
}

/// Other ways to write names.
fn names(makers: &Makers) -> Vec<Row> {
    let web = || uri(WEB.as_bytes());
    let upn = [0x2b, 6, 1, 4, 1, 0x82, 0x37, 20, 2, 3];
    let long = format!("spiffe://mesh.internal/ns/shop/sa/{}", "w".repeat(2048));
    let twice = {
        let mut parameters = with_names(&[web()]);
        parameters.custom_extensions.push(CustomExtension::from_oid_content(&SAN, der(0x30, &uri(ORDERS.as_bytes()))));
        parameters
    };
    let critical = {
        let mut parameters = good_leaf(&[]);
        parameters.custom_extensions.push(extension(&SAN, true, der(0x30, &web())));
        parameters
    };
    let rows: Vec<(&str, CertificateParams, Verdict)> = vec![
        ("no names at all", good_leaf(&[]), URI_NAMES),
        ("an empty list of names", with_names(&[]), BAD),
        ("two URIs", with_names(&[web(), uri(ORDERS.as_bytes())]), URI_NAMES),
        ("the same URI twice", with_names(&[web(), web()]), URI_NAMES),
        ("a SPIFFE ID and another URI", with_names(&[web(), uri(b"https://example.com/")]), URI_NAMES),
        ("another URI and a SPIFFE ID", with_names(&[uri(b"https://example.com/"), web()]), URI_NAMES),
        ("a hundred URIs", with_names(&vec![web(); 100]), URI_NAMES),
        ("names in two extensions", twice, BAD),
        ("names marked critical", critical, Good),
        ("a DNS name beside the URI", with_names(&[web(), dns(b"web.shop")]), Good),
        ("a DNS name before the URI", with_names(&[dns(b"web.shop"), web()]), Good),
        ("an address beside the URI", with_names(&[web(), der(0x87, &[127, 0, 0, 1])]), Good),
        ("a mail name beside the URI", with_names(&[web(), der(0x81, b"web@shop.example")]), Good),
        ("a DNS name alone", with_names(&[dns(b"web.shop")]), URI_NAMES),
        ("the ID as DNS name", with_names(&[dns(WEB.as_bytes())]), URI_NAMES),
        ("the ID as mail name", with_names(&[der(0x81, WEB.as_bytes())]), URI_NAMES),
        ("the ID as otherName", with_names(&[other_name(&upn, WEB.as_bytes())]), KIND),
        ("an otherName beside the URI", with_names(&[web(), other_name(&upn, b"ann")]), KIND),
        (
            "an otherName with a NUL beside the URI",
            with_names(&[web(), other_name(&upn, b"spiffe://mesh.internal/a\0.evil")]),
            KIND,
        ),
        ("a registered id beside the URI", with_names(&[web(), der(0x88, &upn)]), KIND),
        ("a directory name beside the URI", with_names(&[web(), der(0xa4, &der(0x30, &[]))]), KIND),
        ("a name of a class that does not exist", with_names(&[web(), der(0x8f, b"x")]), BAD),
        ("an ID of more than 2048 bytes", with_names(&[uri(long.as_bytes())]), NO_ID),
        (
            "the ID in UTF-8 with a letter beyond ASCII",
            with_names(&[uri("spiffe://mesh.internal/ns/shop/sa/wéb".as_bytes())]),
            BAD,
        ),
        (
            "the ID in the common name only",
            {
                let mut parameters = good_leaf(&[]);
                parameters.distinguished_name.push(DnType::CommonName, WEB);
                parameters
            },
            URI_NAMES,
        ),
        ("another ID in the common name", spoiled(|leaf| leaf.distinguished_name.push(DnType::CommonName, ORDERS)), Good),
        (
            "a name that is cut off",
            {
                let mut parameters = good_leaf(&[]);
                parameters
                    .custom_extensions
                    .push(CustomExtension::from_oid_content(&SAN, vec![0x30, 0x20, 0x86, 0x1e, b's', b'p']));
                parameters
            },
            BAD,
        ),
        (
            "bytes after the names",
            {
                let mut parameters = good_leaf(&[]);
                let content = [der(0x30, &web()), vec![5, 0]].concat();
                parameters.custom_extensions.push(CustomExtension::from_oid_content(&SAN, content));
                parameters
            },
            BAD,
        ),
    ];
    rows.into_iter().map(|(what, parameters, verdict)| row(what, makers.leaf(&parameters), verdict)).collect()
}

fn row(what: impl Into<String>, identity: Identity, verdict: Verdict) -> Row {
    Row { what: what.into(), identity, as_caller: verdict, as_endpoint: None }
}

/// What a leaf may be used for, and when.
fn uses(makers: &Makers) -> Vec<Row> {
    let now = OffsetDateTime::now_utc();
    let eku = |purposes: Vec<Eku>| spoiled(|leaf| leaf.extended_key_usages = purposes);
    let ku = |purposes: Vec<Ku>| spoiled(|leaf| leaf.key_usages = purposes);
    let (client, server) = (
        Refused("does not allow extended key usage for client authentication"),
        Refused("does not allow extended key usage for server authentication"),
    );
    let no_signature = Refused("lacks digitalSignature");
    let rows: Vec<(&str, CertificateParams, Verdict, Verdict)> = vec![
        ("for clients and servers", eku(vec![Eku::ClientAuth, Eku::ServerAuth]), Good, Good),
        ("for servers and clients", eku(vec![Eku::ServerAuth, Eku::ClientAuth]), Good, Good),
        ("for whatever", eku(vec![]), Good, Good),
        ("for servers only", eku(vec![Eku::ServerAuth]), client, Good),
        ("for clients only", eku(vec![Eku::ClientAuth]), Good, server),
        ("for code only", eku(vec![Eku::CodeSigning]), client, server),
        ("for mail only", eku(vec![Eku::EmailProtection]), client, server),
        ("for time stamps and OCSP only", eku(vec![Eku::TimeStamping, Eku::OcspSigning]), client, server),
        ("for any purpose only", eku(vec![Eku::Any]), client, server),
        ("no key usage", ku(vec![]), no_signature, no_signature),
        ("key usage: agreement", ku(vec![Ku::KeyAgreement]), no_signature, no_signature),
        ("key usage: encipherment", ku(vec![Ku::KeyEncipherment]), no_signature, no_signature),
        ("key usage: content commitment", ku(vec![Ku::ContentCommitment]), no_signature, no_signature),
        ("key usage: signature and encipherment", ku(vec![Ku::DigitalSignature, Ku::KeyEncipherment]), Good, Good),
        ("key usage: signature and agreement", ku(vec![Ku::DigitalSignature, Ku::KeyAgreement]), Good, Good),
        ("key usage: signs certificates", ku(vec![Ku::DigitalSignature, Ku::KeyCertSign]), SIGNS, SIGNS),
        ("key usage: signs revocation lists", ku(vec![Ku::DigitalSignature, Ku::CrlSign]), SIGNS, SIGNS),
        ("a CA", spoiled(|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), BAD, BAD),
        ("a CA with nothing below it", spoiled(|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))), BAD, BAD),
        ("outright no CA", spoiled(|leaf| leaf.is_ca = IsCa::ExplicitNoCa), Good, Good),
        ("nothing said about being a CA", spoiled(|leaf| leaf.is_ca = IsCa::NoCa), Good, Good),
        (
            "expired a second ago",
            spoiled(|leaf| leaf.not_after = now - Duration::seconds(1)),
            Refused("expired"),
            Refused("expired"),
        ),
        (
            "expired a year ago",
            spoiled(|leaf| {
                leaf.not_before = now - Duration::days(400);
                leaf.not_after = now - Duration::days(365);
            }),
            Refused("expired"),
            Refused("expired"),
        ),
        (
            "valid in a minute",
            spoiled(|leaf| leaf.not_before = now + Duration::minutes(1)),
            Refused("not valid yet"),
            Refused("not valid yet"),
        ),
        (
            "valid in a year",
            spoiled(|leaf| {
                leaf.not_before = now + Duration::days(365);
                leaf.not_after = now + Duration::days(366);
            }),
            Refused("not valid yet"),
            Refused("not valid yet"),
        ),
        (
            "ends before it begins",
            spoiled(|leaf| {
                leaf.not_before = now + Duration::hours(1);
                leaf.not_after = now - Duration::hours(1);
            }),
            BAD,
            BAD,
        ),
        (
            "an unknown extension",
            spoiled(|leaf| leaf.custom_extensions.push(extension(&[1, 3, 9999, 1], false, vec![5, 0]))),
            Good,
            Good,
        ),
        (
            "an unknown critical extension",
            spoiled(|leaf| leaf.custom_extensions.push(extension(&[1, 3, 9999, 1], true, vec![5, 0]))),
            BAD,
            BAD,
        ),
        (
            "two unknown extensions of one kind",
            spoiled(|leaf| {
                leaf.custom_extensions.push(extension(&[1, 3, 9999, 1], false, vec![5, 0]));
                leaf.custom_extensions.push(extension(&[1, 3, 9999, 1], false, vec![5, 0]));
            }),
            Good,
            Good,
        ),
        (
            "key usage in two extensions",
            spoiled(|leaf| leaf.custom_extensions.push(extension(&[2, 5, 29, 15], true, vec![3, 2, 7, 0x80]))),
            BAD,
            BAD,
        ),
        (
            "a key usage that is not one",
            spoiled(|leaf| {
                leaf.key_usages = vec![];
                leaf.custom_extensions.push(extension(&[2, 5, 29, 15], true, vec![4, 1, 0x80]));
            }),
            BAD,
            BAD,
        ),
        (
            "basic constraints that are not ones",
            spoiled(|leaf| leaf.custom_extensions.push(extension(&[2, 5, 29, 19], true, vec![4, 1, 0]))),
            BAD,
            BAD,
        ),
    ];
    let row = |(what, parameters, as_caller, as_endpoint): (&str, CertificateParams, Verdict, Verdict)| Row {
        what: what.to_owned(),
        identity: makers.leaf(&parameters),
        as_caller,
        as_endpoint: Some(as_endpoint),
    };
    rows.into_iter().map(row).collect()
}

/// Ways from a leaf to the root.
fn chains(makers: &Makers) -> Vec<Row> {
    let Makers { root, issuing, stranger } = makers;
    let web = || good_leaf(&[WEB]);
    let good = || makers.leaf(&web());
    let (issuing_der, root_der) = (issuing.certificate(), root.certificate());
    let with = |chain: Vec<Vec<u8>>| {
        let leaf = good();
        let chain = chain.into_iter().map(|der| if der.is_empty() { leaf.chain[0].clone() } else { der }).collect();
        Identity { chain, key: leaf.key }
    };
    let own = Vec::new;
    let spoiled_ca = |spoil: &dyn Fn(&mut CertificateParams)| {
        let mut parameters = ca("spoiled", BasicConstraints::Constrained(0));
        spoil(&mut parameters);
        makers.below(parameters, key())
    };
    let two_below = |first: BasicConstraints| {
        let upper = root.below(key(), ca("upper", first));
        let lower = upper.below(key(), ca("lower", BasicConstraints::Constrained(0)));
        let mut identity = lower.leaf(&web());
        identity.chain.extend([lower.certificate(), upper.certificate()]);
        identity
    };
    let now = OffsetDateTime::now_utc();
    let constrained = |permitted: Vec<GeneralSubtree>, excluded: Vec<GeneralSubtree>| {
        let constraints = NameConstraints { permitted_subtrees: permitted, excluded_subtrees: excluded };
        let mut parameters = ca("constrained", BasicConstraints::Constrained(0));
        parameters.name_constraints = Some(constraints);
        makers.below(parameters, key())
    };
    let uri_constraint = |at: u8, host: &[u8]| {
        let mut parameters = ca("constrained", BasicConstraints::Constrained(0));
        let content = der(0x30, &der(at, &der(0x30, &uri(host))));
        parameters.custom_extensions.push(extension(&[2, 5, 29, 30], true, content));
        makers.below(parameters, key())
    };
    let by_leaf = |signer: CertificateParams| {
        let mut identity = issuing.below_a_leaf(signer, &web());
        identity.chain.push(issuing_der.clone());
        identity
    };
    let self_signed = {
        let (key, parameters) = (key(), web());
        Identity { chain: vec![parameters.self_signed(&key).expect("a certificate").der().to_vec()], key: key.serialize_der() }
    };
    let flipped = |at: usize| {
        let mut identity = good();
        let length = identity.chain[0].len();
        identity.chain[0][length - at] ^= 1;
        identity
    };
    let other_key = Identity { key: key().serialize_der(), ..good() };
    let trailing = {
        let mut identity = good();
        identity.chain[0].push(0);
        identity
    };
    let sha1 = {
        let mut identity = good();
        identity.chain[0] = says_sha1(&identity.chain[0]);
        identity
    };
    vec![
        row("leaf and issuing CA", good(), Good),
        row("straight from the root", root.leaf(&web()), Good),
        row("the root is sent too", with(vec![own(), issuing_der.clone(), root_der.clone()]), Good),
        row("the root before the issuing CA", with(vec![own(), root_der.clone(), issuing_der.clone()]), Good),
        row("the issuing CA twice", with(vec![own(), issuing_der.clone(), issuing_der.clone()]), Good),
        row("the issuing CA is missing", with(vec![own()]), UNKNOWN),
        row("the root instead of the issuing CA", with(vec![own(), root_der.clone()]), UNKNOWN),
        row("the issuing CA first", with(vec![issuing_der.clone(), own()]), BAD),
        row("the issuing CA alone", with(vec![issuing_der.clone()]), BAD),
        row("the root alone", with(vec![root_der.clone()]), BAD),
        row("the root as a workload", root.itself(), BAD),
        row("another workload's leaf in the chain", with(vec![own(), issuing_der.clone(), good().chain[0].clone()]), BAD),
        row("a stranger's CA in the chain", with(vec![own(), issuing_der.clone(), stranger.certificate()]), Good),
        row("nothing that parses in the chain", with(vec![own(), issuing_der.clone(), vec![1, 2, 3]]), BAD),
        row("forty certificates", with([vec![own()], vec![issuing_der.clone(); 39]].concat()), BAD),
        row("a stranger's root of our root's name", stranger.leaf(&web()), UNKNOWN),
        row(
            "a stranger's root, sent too",
            {
                let mut identity = stranger.leaf(&web());
                identity.chain.push(stranger.certificate());
                identity
            },
            UNKNOWN,
        ),
        row("self-signed", self_signed, UNKNOWN),
        row("signed by a leaf", by_leaf(good_leaf(&[ORDERS])), BAD),
        row("signed by a leaf that says it may sign", by_leaf(spoiled(|leaf| leaf.key_usages.push(Ku::KeyCertSign))), BAD),
        row("below a CA that is none", spoiled_ca(&|ca| ca.is_ca = IsCa::ExplicitNoCa), BAD),
        row("below a CA that does not say it is one", spoiled_ca(&|ca| ca.is_ca = IsCa::NoCa), BAD),
        row("below a CA that may not sign certificates", spoiled_ca(&|ca| ca.key_usages = vec![Ku::CrlSign]), BAD),
        row("below a CA without key usage", spoiled_ca(&|ca| ca.key_usages = vec![]), BAD),
        row("below a CA that has expired", spoiled_ca(&|ca| ca.not_after = now - Duration::seconds(1)), Refused("expired")),
        row(
            "below a CA that is not valid yet",
            spoiled_ca(&|ca| ca.not_before = now + Duration::hours(1)),
            Refused("not valid yet"),
        ),
        row("below a CA for code only", spoiled_ca(&|ca| ca.extended_key_usages = vec![Eku::CodeSigning]), BAD),
        row(
            "below a CA with an unknown extension",
            spoiled_ca(&|ca| ca.custom_extensions.push(extension(&[1, 3, 9999, 1], false, vec![5, 0]))),
            Good,
        ),
        row(
            "below a CA with an unknown critical extension",
            spoiled_ca(&|ca| ca.custom_extensions.push(extension(&[1, 3, 9999, 1], true, vec![5, 0]))),
            BAD,
        ),
        row("two CAs, the upper unconstrained", two_below(BasicConstraints::Unconstrained), Good),
        row("two CAs, the upper lets one follow", two_below(BasicConstraints::Constrained(1)), Good),
        row("two CAs, the upper lets none follow", two_below(BasicConstraints::Constrained(0)), BAD),
        row(
            "names constrained to our trust domain, which is no DNS name of the leaf",
            constrained(vec![GeneralSubtree::DnsName("mesh.internal".into())], vec![]),
            Good,
        ),
        row(
            "our trust domain excluded as a DNS name",
            constrained(vec![], vec![GeneralSubtree::DnsName("mesh.internal".into())]),
            Good,
        ),
        row("URIs constrained to our trust domain", uri_constraint(0xa0, b"mesh.internal"), BAD),
        row("URIs constrained to another", uri_constraint(0xa0, b"evil.example"), BAD),
        row("our trust domain excluded for URIs", uri_constraint(0xa1, b"mesh.internal"), BAD),
        row("another excluded for URIs", uri_constraint(0xa1, b"evil.example"), BAD),
        row("another key than the certificate's", other_key, BAD),
        row("one bit of the signature is another", flipped(1), BAD),
        row("one bit within the certificate is another", flipped(200), BAD),
        row("a byte after the certificate", trailing, BAD),
        row("no certificate but bytes", Identity { chain: vec![b"certificate".to_vec()], key: key().serialize_der() }, BAD),
        row("an empty certificate", Identity { chain: vec![vec![]], key: key().serialize_der() }, BAD),
        row("a signature that says SHA-1", sha1, BAD),
    ]
}

/// The certificate, saying that it is signed by ECDSA with SHA-1.
fn says_sha1(certificate: &[u8]) -> Vec<u8> {
    let (sha256, sha1) = (b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02", b"\x30\x09\x06\x07\x2a\x86\x48\xce\x3d\x04\x01");
    let mut out = certificate.to_vec();
    while let Some(at) = out.windows(sha256.len()).position(|window| window == sha256) {
        out.splice(at..at + sha256.len(), sha1.iter().copied());
    }
    // Both lengths have two bytes: of all of it, and of what is signed.
    let shorten = |out: &mut Vec<u8>, at: usize, by: u16| {
        let length = u16::from_be_bytes([out[at], out[at + 1]]) - by;
        out.splice(at..at + 2, length.to_be_bytes());
    };
    shorten(&mut out, 2, 2);
    shorten(&mut out, 6, 1);
    out
}

/// Kinds of keys, of leaves and of CAs.
fn keys(makers: &Makers) -> Vec<Row> {
    let kinds: [(&str, fn() -> KeyPair); 4] = [
        ("P-256", || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key")),
        ("P-384", || KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key")),
        ("Ed25519", || KeyPair::generate_for(&PKCS_ED25519).expect("a key")),
        ("RSA of 2048 bits", || KeyPair::generate_for(&PKCS_RSA_SHA256).expect("a key")),
    ];
    let mut rows = Vec::new();
    for (kind, make) in kinds {
        let mut identity = makers.issuing.leaf_for(&make(), &good_leaf(&[WEB]));
        identity.chain.push(makers.issuing.certificate());
        rows.push(row(format!("a leaf with a key of {kind}"), identity, Good));
        rows.push(row(
            format!("a CA with a key of {kind}"),
            makers.below(ca("other", BasicConstraints::Constrained(0)), make()),
            Good,
        ));
    }
    rows
}

/// Every byte in the trust domain and in the path.
fn bytes(makers: &Makers) -> Vec<Row> {
    let mut rows = Vec::new();
    for byte in 0..=255_u8 {
        let c = char::from(byte);
        let domain = [&b"spiffe://mesh"[..], &[byte], b"internal/ns/shop/sa/web"].concat();
        let verdict = match byte {
            b'.' => Good,
            _ if c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_".contains(&byte) => FOREIGN,
            // The domain ends there, and another path begins.
            _ => BAD,
        };
        rows.push(row(format!("byte {byte:#04x} in the trust domain"), makers.leaf(&with_names(&[uri(&domain)])), verdict));
        let path = [&b"spiffe://mesh.internal/ns/shop/sa/w"[..], &[byte], b"b"].concat();
        let verdict = if c.is_ascii_alphanumeric() || b".-_".contains(&byte) { Good } else { BAD };
        rows.push(row(format!("byte {byte:#04x} in the path"), makers.leaf(&with_names(&[uri(&path)])), verdict));
    }
    rows
}

fn table(makers: &Makers) -> Vec<Row> {
    let ids = ids().into_iter().map(|(id, verdict)| {
        row(format!("the ID {:?}", String::from_utf8_lossy(id)), makers.leaf(&with_names(&[uri(id)])), verdict)
    });
    ids.chain(names(makers)).chain(uses(makers)).chain(chains(makers)).chain(keys(makers)).chain(bytes(makers)).collect()
}

/// Whether a caller with this identity gets an answer out of the agent's mesh port.
async fn is_served(mesh: SocketAddr, identity: Identity) -> bool {
    let port = ServerName::try_from(server_name(&"shop/orders".parse().expect("a name"), 80)).expect("a name");
    let stream = TcpStream::connect(mesh).await.expect("connect");
    let Ok(mut stream) = TlsConnector::from(Arc::new(careless_client(Some(identity)))).connect(port, stream).await else {
        return false;
    };
    let _ = stream.write_all(b"GET /x HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n").await;
    let mut all = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("the agent ends it");
    all.starts_with(b"HTTP/1.1 ")
}

#[tokio::test]
async fn every_certificate_of_the_table_is_judged_as_it_should_be_by_a_real_agent() -> Outcome {
    let backend = Backend::start().await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/orders:80/http={}", backend.address)];
    let agent = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
    mesh.apply(&allow("all", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"));
    let rows = table(&Makers::of(&mesh));
    assert!(rows.len() >= 650, "{} rows", rows.len());
    let before = agent.access_log().await.len();
    let mut wrong = Vec::new();
    for row in &rows {
        let served = is_served(agent.mesh, row.identity.clone()).await;
        if served != (row.as_caller == Good) {
            wrong.push(format!("{}: {}", row.what, if served { "was believed" } else { "was refused" }));
        }
    }
    let log = agent.access_log().await.split_off(before);
    assert!(wrong.is_empty(), "{}\n{:#?}", wrong.join("\n"), log.last());
    assert_eq!(log.len(), rows.len(), "one line a connection");
    for (row, line) in rows.iter().zip(&log) {
        let (reason, detail) = (line["reason"].as_str().unwrap_or_default(), line["detail"].as_str().unwrap_or_default());
        match row.as_caller {
            Good => assert!(reason != "peer_identity", "{}: {line}", row.what),
            Refused(words) => {
                assert_eq!(reason, "peer_identity", "{}: {line}", row.what);
                assert!(!detail.is_empty() && detail.contains(words), "{}: {detail}", row.what);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_agent_that_calls_judges_endpoints_by_the_same_table() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let makers = Makers::of(&mesh);
    let (svids, trust): (Arc<Svids>, Arc<Trust>) = Default::default();
    let own = makers.leaf(&good_leaf(&[ORDERS]));
    svids.replace(Arc::new(Svid::new(own.chain, Zeroizing::new(own.key), SystemTime::now())?));
    trust.replace(&TrustBundle { trust_domain: "mesh.internal".to_owned(), roots: vec![makers.root.certificate()] })?;
    let connector = MeshConnector::new(svids, trust)?;
    let rows = names(&makers).into_iter().chain(uses(&makers)).chain(chains(&makers)).chain(keys(&makers));
    for row in rows {
        let socket = TcpListener::bind("127.0.0.1:0").await?;
        let address = socket.local_addr()?;
        let endpoint = TlsAcceptor::from(Arc::new(careless_server(row.identity)));
        let client = async {
            let stream = TcpStream::connect(address).await.expect("connect");
            let (service, expected) = ("shop/web".parse().expect("a service"), WEB.parse().expect("an id"));
            connector.connect(stream, address, &service, 80, MeshProtocol::Http1, &expected).await.map(drop)
        };
        let server = async {
            let (stream, _) = socket.accept().await.expect("accept");
            let _ = endpoint.accept(stream).await;
        };
        let (verdict, ()) = tokio::join!(client, server);
        match (row.as_endpoint.unwrap_or(row.as_caller), verdict) {
            (Good, Ok(())) => {}
            (Good, Err(refusal)) => panic!("{} was refused: {refusal}", row.what),
            (Refused(_), Ok(())) => panic!("{} was believed", row.what),
            (Refused(words), Err(refusal)) => assert!(refusal.detail().contains(words), "{}: {refusal}", row.what),
        }
    }
    Ok(())
}
