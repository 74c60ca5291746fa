//! Certificates that every contender can use: a P-256 CA, and leaves with a SPIFFE URI, a DNS name and a common name.

use std::{fs, path::Path};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// Writes `ca.pem`, and for `client` and `server` each `NAME.pem`, `NAME.key` and both in `NAME.bundle.pem`.
pub(crate) fn write(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory)?;
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, "bench-ca");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let root = parameters.self_signed(&key)?.pem();
    fs::write(directory.join("ca.pem"), &root)?;
    let issuer = Issuer::new(parameters, key);
    for name in ["client", "server"] {
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name = rcgen::DistinguishedName::new();
        leaf.distinguished_name.push(DnType::CommonName, name);
        leaf.subject_alt_names = vec![
            SanType::URI(format!("spiffe://mesh.local/ns/default/sa/{name}").try_into()?),
            SanType::DnsName(format!("{name}.mesh.local").try_into()?),
        ];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let now = time::OffsetDateTime::now_utc();
        (leaf.not_before, leaf.not_after) = (now - time::Duration::hours(1), now + time::Duration::days(2));
        let key = KeyPair::generate()?;
        let certificate = leaf.signed_by(&key, &issuer).context("a leaf")?.pem();
        fs::write(directory.join(format!("{name}.pem")), &certificate)?;
        fs::write(directory.join(format!("{name}.key")), key.serialize_pem())?;
        fs::write(directory.join(format!("{name}.bundle.pem")), certificate + &key.serialize_pem())?;
    }
    Ok(())
}
