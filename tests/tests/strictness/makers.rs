//! Who makes certificates for the table, and the bytes that they are made of.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use outrider_tests::{Authority, Identity, Mesh, good_leaf, python};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, KeyPair, KeyUsagePurpose as Ku, PKCS_ECDSA_P256_SHA256,
};

pub(super) const WEB: &str = "spiffe://mesh.internal/ns/shop/sa/web";
pub(super) const ORDERS: &str = "spiffe://mesh.internal/ns/shop/sa/orders";
pub(super) const SAN: [u64; 4] = [2, 5, 29, 17];

/// What should come of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The peer is believed to be who the certificate names.
    Good,
    /// It is refused, and the record says so in these words.
    Refused(&'static str),
}
pub(super) use Verdict::{Good, Refused};

pub(super) const NO_ID: Verdict = Refused("is not a workload's SPIFFE ID");
pub(super) const FOREIGN: Verdict = Refused("of another trust domain");
pub(super) const URI_NAMES: Verdict = Refused("URI names instead of exactly one");
pub(super) const KIND: Verdict = Refused("a name of a kind");
pub(super) const BAD: Verdict = Refused("");
pub(super) const SIGNS: Verdict = Refused("it may sign certificates");
pub(super) const UNKNOWN: Verdict = Refused("signed by nobody in the trust bundle");

/// A row of the table.
pub(super) struct Row {
    pub(super) what: String,
    pub(super) identity: Identity,
    pub(super) as_caller: Verdict,
    /// Where the other direction makes another point than the same.
    pub(super) as_endpoint: Option<Verdict>,
}

/// Who makes certificates here: the mesh's own root, a CA below it, and a stranger with the root's name.
pub(super) struct Makers {
    pub(super) root: Authority,
    pub(super) issuing: Authority,
    pub(super) stranger: Authority,
}

pub(super) fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key")
}

pub(super) fn ca(name: &str, path: BasicConstraints) -> CertificateParams {
    let mut parameters = good_leaf(&[]);
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(path);
    parameters.key_usages = vec![Ku::KeyCertSign, Ku::CrlSign];
    parameters.extended_key_usages = vec![];
    parameters
}

impl Makers {
    pub(super) fn of(mesh: &Mesh) -> Self {
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
    pub(super) fn leaf(&self, parameters: &CertificateParams) -> Identity {
        let mut identity = self.issuing.leaf(parameters);
        identity.chain.push(self.issuing.certificate());
        identity
    }

    /// A leaf below this intermediate, which is part of the chain.
    pub(super) fn below(&self, intermediate: CertificateParams, key: KeyPair) -> Identity {
        let ca = self.root.below(key, intermediate);
        let mut identity = ca.leaf(&good_leaf(&[WEB]));
        identity.chain.push(ca.certificate());
        identity
    }
}

/// DER: a tag, a length, the content.
pub(super) fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let head = match u8::try_from(length) {
        Ok(short @ 0..=127) => vec![tag, short],
        Ok(long) => vec![tag, 0x81, long],
        Err(_) => vec![tag, 0x82, u8::try_from(length >> 8).expect("short"), u8::try_from(length & 0xff).expect("a byte")],
    };
    [head, content.to_vec()].concat()
}

pub(super) fn uri(text: &[u8]) -> Vec<u8> {
    der(0x86, text)
}

pub(super) fn dns(text: &[u8]) -> Vec<u8> {
    der(0x82, text)
}

/// `otherName` of this type with a UTF-8 text.
pub(super) fn other_name(oid: &[u8], text: &[u8]) -> Vec<u8> {
    der(0xa0, &[der(6, oid), der(0xa0, &der(12, text))].concat())
}

/// A leaf whose names are exactly these bytes.
pub(super) fn with_names(names: &[Vec<u8>]) -> CertificateParams {
    let mut parameters = good_leaf(&[]);
    let content = der(0x30, &names.concat());
    parameters.custom_extensions.push(CustomExtension::from_oid_content(&SAN, content));
    parameters
}

pub(super) fn spoiled(spoil: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut parameters = good_leaf(&[WEB]);
    spoil(&mut parameters);
    parameters
}

pub(super) fn extension(oid: &[u64], critical: bool, content: Vec<u8>) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content);
    extension.set_criticality(critical);
    extension
}

pub(super) fn row(what: impl Into<String>, identity: Identity, verdict: Verdict) -> Row {
    Row { what: what.into(), identity, as_caller: verdict, as_endpoint: None }
}
