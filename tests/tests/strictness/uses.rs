//! Rows about what a leaf may be used for, when, and with which kind of key.

use outrider_tests::good_leaf;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Eku, IsCa, KeyPair, KeyUsagePurpose as Ku,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
};
use time::{Duration, OffsetDateTime};

use super::makers::*;

/// Makes a key of one kind.
type Make = fn() -> KeyPair;

/// What a leaf may be used for, and when.
pub(super) fn uses(makers: &Makers) -> Vec<Row> {
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

/// Kinds of keys, of leaves and of CAs.
pub(super) fn keys(makers: &Makers) -> Vec<Row> {
    let kinds: [(&str, Make); 4] = [
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
