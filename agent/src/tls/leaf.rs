//! What a leaf certificate says, checked as SPIFFE demands (X509-SVID, sections 2 to 5) beyond what chain building checks.

use std::time::{Duration, SystemTime};

use outrider_policy::SpiffeId;
use rustls::{CertificateError, pki_types::CertificateDer};
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer as _, X509Certificate},
};

/// Most certificates of a chain, the leaf among them.
const MAX_CHAIN: usize = 8;

/// Checks what a leaf came with, beyond what chain building checks: every further certificate is a CA's and says that it may sign
/// certificates (X509-SVID, section 4.3), and there are few of them.
///
/// # Errors
/// Names the rule that they break.
pub fn check_chain(further: &[CertificateDer<'_>]) -> Result<(), LeafError> {
    if further.len() >= MAX_CHAIN {
        return Err(LeafError::ChainLength(further.len() + 1));
    }
    for der in further {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| LeafError::Encoding)?;
        let usage = certificate.key_usage().map_err(|_| LeafError::Encoding)?;
        if !rest.is_empty() || !certificate.is_ca() || !usage.is_some_and(|usage| usage.value.key_cert_sign()) {
            return Err(LeafError::ChainSigns);
        }
    }
    Ok(())
}

/// A leaf certificate's facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The one SPIFFE ID in it.
    pub id: SpiffeId,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// A certificate that is not an X.509-SVID leaf.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// Not a certificate.
    #[error("not an X.509 certificate")]
    Encoding,
    /// None, or more than one.
    #[error("{0} URI names instead of exactly one")]
    UriNames(usize),
    /// A name that nobody here reads, and that may say anything.
    #[error("it has a name of a kind that is not accepted beside a URI")]
    NameKind,
    /// Further certificates that are no CA's.
    #[error("the chain holds a certificate that may not sign certificates")]
    ChainSigns,
    /// More certificates than anybody needs.
    #[error("the chain holds {0} certificates, at most {MAX_CHAIN} are taken")]
    ChainLength(usize),
    /// Not a SPIFFE ID of a workload.
    #[error("{0:?} is not a workload's SPIFFE ID")]
    Id(String),
    /// Of a mesh that is not ours.
    #[error("`{0}` is of another trust domain")]
    TrustDomain(String),
    /// Somebody else than a control plane.
    #[error("`{0}` is not a control plane")]
    NotControlPlane(String),
    /// The operator has revoked it.
    #[error("{0}")]
    Revoked(String),
    /// Its chain leads to nobody who is trusted now.
    #[error("its trust anchor has left the bundle")]
    Anchor,
    /// A CA certificate, or one that may sign.
    #[error("it may sign certificates")]
    Signs,
    /// Key usage without digital signature.
    #[error("key usage lacks digitalSignature")]
    KeyUsage,
}

impl From<LeafError> for rustls::Error {
    fn from(error: LeafError) -> Self {
        match error {
            LeafError::Encoding => CertificateError::BadEncoding.into(),
            other => CertificateError::Other(rustls::OtherError(std::sync::Arc::new(other))).into(),
        }
    }
}

impl Leaf {
    /// Reads a leaf.
    ///
    /// # Errors
    /// When it is not an X.509-SVID of a workload.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, LeafError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| LeafError::Encoding)?;
        if !rest.is_empty() {
            return Err(LeafError::Encoding);
        }
        let mut uris = Vec::new();
        let mut signature = false;
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        match name {
                            GeneralName::URI(uri) => uris.push(*uri),
                            // Others may read these; here they name nobody.
                            GeneralName::DNSName(_) | GeneralName::IPAddress(_) | GeneralName::RFC822Name(_) => {}
                            GeneralName::Invalid(..) => return Err(LeafError::Encoding),
                            _ => return Err(LeafError::NameKind),
                        }
                    }
                }
                ParsedExtension::BasicConstraints(constraints) if constraints.ca => return Err(LeafError::Signs),
                ParsedExtension::KeyUsage(usage) => {
                    if usage.key_cert_sign() || usage.crl_sign() {
                        return Err(LeafError::Signs);
                    }
                    signature = usage.digital_signature();
                }
                ParsedExtension::ParseError { .. } => return Err(LeafError::Encoding),
                _ => {}
            }
        }
        if !signature {
            return Err(LeafError::KeyUsage);
        }
        let [uri] = uris.as_slice() else { return Err(LeafError::UriNames(uris.len())) };
        let id: SpiffeId = uri.parse().map_err(|_| LeafError::Id((*uri).to_owned()))?;
        if id.namespace().is_none() {
            return Err(LeafError::Id((*uri).to_owned()));
        }
        let validity = certificate.validity();
        let time = |time: x509_parser::time::ASN1Time| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or_default())
        };
        let serial = certificate.raw_serial().iter().skip_while(|byte| **byte == 0).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { id, serial, not_before: time(validity.not_before), not_after: time(validity.not_after) })
    }
}
