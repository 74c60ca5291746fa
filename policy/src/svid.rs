//! What a certificate says about who its holder is, checked as SPIFFE demands (X509-SVID, sections 2 to 5) beyond what chain
//! building checks. Agents and control plane ask the same questions at all their doors. No I/O, no clock.

use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer as _, X509Certificate},
};

use crate::SpiffeId;

/// Most certificates of a chain, the leaf among them.
const MAX_CHAIN: usize = 8;

/// What a leaf certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Svid {
    /// The one SPIFFE ID in it: a workload's, an operator's, or of a form that the door it came to does not know.
    pub id: SpiffeId,
    /// Serial number, lower-case hex without leading zeros.
    pub serial: String,
    /// Start of validity, Unix seconds.
    pub not_before: i64,
    /// End of validity, Unix seconds.
    pub not_after: i64,
}

/// A certificate, or a chain, that is not an X.509-SVID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidProblem {
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
    /// Not a SPIFFE ID.
    #[error("{0:?} is not a workload's SPIFFE ID")]
    Id(String),
    /// A CA certificate, or one that may sign.
    #[error("it may sign certificates")]
    Signs,
    /// Key usage without digital signature.
    #[error("key usage lacks digitalSignature")]
    KeyUsage,
}

/// Checks what a leaf came with: every further certificate is a CA's and says that it may sign certificates (X509-SVID, section
/// 4.3), and there are few of them. Takes their DER.
///
/// # Errors
/// Names the rule that they break.
pub fn check_chain<'a>(further: impl ExactSizeIterator<Item = &'a [u8]>) -> Result<(), SvidProblem> {
    if further.len() >= MAX_CHAIN {
        return Err(SvidProblem::ChainLength(further.len() + 1));
    }
    for der in further {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| SvidProblem::Encoding)?;
        let usage = certificate.key_usage().map_err(|_| SvidProblem::Encoding)?;
        if !rest.is_empty() || !certificate.is_ca() || !usage.is_some_and(|usage| usage.value.key_cert_sign()) {
            return Err(SvidProblem::ChainSigns);
        }
    }
    Ok(())
}

impl Svid {
    /// Reads a leaf from its DER. That it chains to a root is checked elsewhere.
    ///
    /// # Errors
    /// Names the rule for X.509-SVIDs that it breaks.
    pub fn parse(der: &[u8]) -> Result<Self, SvidProblem> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| SvidProblem::Encoding)?;
        if !rest.is_empty() {
            return Err(SvidProblem::Encoding);
        }
        let uris = read_extensions(&certificate)?;
        let [uri] = uris.as_slice() else { return Err(SvidProblem::UriNames(uris.len())) };
        let id: SpiffeId = uri.parse().map_err(|_| SvidProblem::Id((*uri).to_owned()))?;
        let validity = certificate.validity();
        let serial = certificate.raw_serial().iter().skip_while(|byte| **byte == 0).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { id, serial, not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() })
    }
}

/// The URI names; refuses what can sign, and what says too much or too little.
fn read_extensions<'a>(certificate: &X509Certificate<'a>) -> Result<Vec<&'a str>, SvidProblem> {
    let (mut uris, mut signature) = (Vec::new(), false);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::URI(uri) => uris.push(*uri),
                        // Others may read these; here they name nobody.
                        GeneralName::DNSName(_) | GeneralName::IPAddress(_) | GeneralName::RFC822Name(_) => {}
                        GeneralName::Invalid(..) => return Err(SvidProblem::Encoding),
                        _ => return Err(SvidProblem::NameKind),
                    }
                }
            }
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => return Err(SvidProblem::Signs),
            ParsedExtension::KeyUsage(usage) => {
                if usage.key_cert_sign() || usage.crl_sign() {
                    return Err(SvidProblem::Signs);
                }
                signature = usage.digital_signature();
            }
            ParsedExtension::ParseError { .. } => return Err(SvidProblem::Encoding),
            _ => {}
        }
    }
    if signature { Ok(uris) } else { Err(SvidProblem::KeyUsage) }
}
