//! A CA certificate with its key.

use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1, UnparsedPublicKey};
use outrider_policy::identity::TrustDomain;
use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::parse_x509_certificate;
use zeroize::Zeroizing;

use super::{
    CaError,
    certificate::{self, hex, spki_hash},
    schedule::{Validity, renew_at},
};
use crate::store::{CaRow, Role};

/// A CA certificate in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CaInfo {
    pub(crate) role: &'static str,
    pub(crate) common_name: String,
    /// Lower-case hex.
    pub(crate) serial: String,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// SHA-256 of the subject public key info.
    pub(crate) spki: [u8; 32],
    /// It signs now; the others are only trusted.
    pub(crate) signs: bool,
}

impl CaInfo {
    /// What identifies it in the store.
    pub(crate) fn id(&self) -> String {
        hex(&self.spki)
    }

    /// Whether it is valid and not due for renewal.
    pub(super) fn is_fresh(&self, now: i64) -> bool {
        (self.not_before..renew_at(self.not_before, self.not_after)).contains(&now)
    }
}

/// A CA that can sign.
pub(super) struct Signer {
    pub(super) info: CaInfo,
    pub(super) der: CertificateDer<'static>,
    pub(super) issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    pub(super) fn make_root(trust_domain: &TrustDomain, ttl: i64, now: i64) -> Result<CaRow, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?;
        let params = certificate::root(trust_domain, &key, Validity::starting(now, ttl, i64::MAX))?;
        let der = params.self_signed(&key)?.der().clone();
        Ok(row(Role::Root, &key, &der))
    }

    pub(super) fn make_issuing(&self, trust_domain: &TrustDomain, ttl: i64, now: i64) -> Result<(CaRow, Self), CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let validity = Validity::starting(now, ttl, self.info.not_after);
        if validity.not_after <= now {
            return Err(CaError::Stored { role: "root", reason: "it has expired".to_owned() });
        }
        let der = certificate::issuing(trust_domain, &key, validity)?.signed_by(&key, &self.issuer)?.der().clone();
        Ok((row(Role::Issuing, &key, &der), Self::new(Role::Issuing, key, der)?))
    }

    /// Whether a root of ours signed it, by name and by signature.
    pub(super) fn is_signed_by(&self, root: &Self) -> bool {
        let (Ok((_, own)), Ok((_, of))) = (parse_x509_certificate(&self.der), parse_x509_certificate(&root.der)) else {
            return false;
        };
        let key = UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, &of.public_key().subject_public_key.data);
        own.issuer() == of.subject() && key.verify(own.tbs_certificate.as_ref(), &own.signature_value.data).is_ok()
    }

    pub(super) fn load(row: CaRow) -> Result<Self, CaError> {
        let unusable = |reason: &str| CaError::Stored { role: row.role.as_str(), reason: reason.to_owned() };
        let algorithm = match row.role {
            Role::Root => &PKCS_ECDSA_P384_SHA384,
            Role::Issuing => &PKCS_ECDSA_P256_SHA256,
        };
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(row.key.as_slice()), algorithm)
            .map_err(|_| unusable("its key does not parse"))?;
        let signer = Self::new(row.role, key, CertificateDer::from(row.certificate))?;
        // The certificate is not sealed: that it is the one of the sealed key must be seen.
        if hex(&signer.info.spki) != row.id || spki_hash(signer.issuer.key()) != signer.info.spki {
            return Err(unusable("its certificate is not of its key"));
        }
        Ok(signer)
    }

    pub(super) fn new(role: Role, key: KeyPair, der: CertificateDer<'static>) -> Result<Self, CaError> {
        let info = describe(role, &der)?;
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self { info, der, issuer })
    }
}

fn row(role: Role, key: &KeyPair, der: &CertificateDer<'_>) -> CaRow {
    CaRow { id: hex(&spki_hash(key)), role, certificate: der.to_vec(), key: Zeroizing::new(key.serialize_der()) }
}

pub(super) fn describe(role: Role, der: &CertificateDer<'_>) -> Result<CaInfo, CaError> {
    let unusable = |reason: &str| CaError::Stored { role: role.as_str(), reason: reason.to_owned() };
    let (_, certificate) = parse_x509_certificate(der).map_err(|_| unusable("its certificate does not parse"))?;
    let common_name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let mut spki = [0; 32];
    spki.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.public_key().raw).as_ref());
    Ok(CaInfo {
        role: role.as_str(),
        common_name: common_name.ok_or_else(|| unusable("it has no common name"))?.to_owned(),
        serial: hex(certificate.raw_serial()),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        spki,
        signs: false,
    })
}
