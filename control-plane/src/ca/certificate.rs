//! What stands in each kind of certificate. Nothing here comes from a requester but a public key.

use aws_lc_rs::{digest, rand};
use outrider_policy::identity::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use time::OffsetDateTime;

use super::{CaError, schedule::Validity};

/// A fresh random serial: 128 bits, positive.
pub(super) fn serial() -> Result<[u8; 16], CaError> {
    let mut serial = [0; 16];
    rand::fill(&mut serial).map_err(|_| CaError::Random)?;
    if let Some(first) = serial.first_mut() {
        // Positive without a leading zero byte, and never zero: the text of a serial is always 32 digits.
        *first = (*first & 0x3f) | 0x40;
    }
    Ok(serial)
}

/// SHA-256 of a key's SubjectPublicKeyInfo.
pub(super) fn spki_hash(key: &impl PublicKeyData) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, &key.subject_public_key_info()).as_ref());
    hash
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A root: ten years, one CA below it.
pub(super) fn root(
    trust_domain: &TrustDomain,
    key: &impl PublicKeyData,
    validity: Validity,
) -> Result<CertificateParams, CaError> {
    ca("root CA", 1, trust_domain, key, validity)
}

/// An issuing CA: signs leaves only.
pub(super) fn issuing(
    trust_domain: &TrustDomain,
    key: &impl PublicKeyData,
    validity: Validity,
) -> Result<CertificateParams, CaError> {
    ca("issuing CA", 0, trust_domain, key, validity)
}

fn ca(
    what: &str,
    below: u8,
    trust_domain: &TrustDomain,
    key: &impl PublicKeyData,
    validity: Validity,
) -> Result<CertificateParams, CaError> {
    let mut params = blank(validity)?;
    // Two CAs with one name give a misleading signature error: each key has its own. A common name has at most 64 characters.
    let key_name: String = hex(&spki_hash(key)).chars().take(12).collect();
    params.distinguished_name.push(DnType::OrganizationName, "Outrider");
    params.distinguished_name.push(DnType::CommonName, format!("Outrider {what} {key_name}"));
    if trust_domain.as_str().len() <= 64 {
        params.distinguished_name.push(DnType::OrganizationalUnitName, trust_domain.as_str());
    }
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// A leaf: exactly one URI SAN, nothing else.
pub(super) fn leaf(identity: &SpiffeId, validity: Validity) -> Result<CertificateParams, CaError> {
    let mut params = blank(validity)?;
    params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

/// An operator's: a leaf for clients only.
pub(super) fn operator(identity: &SpiffeId, validity: Validity) -> Result<CertificateParams, CaError> {
    let mut params = leaf(identity, validity)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn blank(validity: Validity) -> Result<CertificateParams, CaError> {
    let time = |unix: i64| OffsetDateTime::from_unix_timestamp(unix).map_err(|_| CaError::Clock(unix));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = time(validity.not_before)?;
    params.not_after = time(validity.not_after)?;
    params.serial_number = Some(SerialNumber::from_slice(&serial()?));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}
