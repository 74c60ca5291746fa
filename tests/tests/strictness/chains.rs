//! Rows about the way from a leaf to the root.

use outrider_tests::{Identity, good_leaf};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Eku, GeneralSubtree, IsCa, KeyUsagePurpose as Ku,
    NameConstraints,
};
use time::{Duration, OffsetDateTime};

use super::makers::*;

/// Ways from a leaf to the root.
pub(super) fn chains(makers: &Makers) -> Vec<Row> {
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
pub(super) fn says_sha1(certificate: &[u8]) -> Vec<u8> {
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
