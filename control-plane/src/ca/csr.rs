//! Reading signing requests. Of a request only the public key is ever used; a request that asks for more than the
//! identity that was proved is refused, so that nobody believes to have got what was not given.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use outrider_policy::identity::SpiffeId;
use rcgen::{PublicKeyData as _, SubjectPublicKeyInfo};
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer as _,
};

/// Most bytes of a request.
const MAX_CSR: usize = 4096;
/// SubjectPublicKeyInfo of P-256 keys up to the point: ecPublicKey, prime256v1, uncompressed (RFC 5480).
const P256_SPKI: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03,
    0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];

/// Why a signing request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CsrError {
    /// Too many bytes.
    #[error("the signing request has {0} bytes, at most {MAX_CSR} are accepted")]
    TooLong(usize),
    /// Not PKCS#10.
    #[error("the signing request is not PKCS#10 in DER")]
    Malformed,
    /// Not P-256.
    #[error("the signing request's key is not ECDSA P-256")]
    Key,
    /// The requester does not hold the key.
    #[error("the signing request's signature does not match its key")]
    Signature,
    /// It asks for another identity.
    #[error("the signing request asks for the name `{0}`, which is not the identity that was proved")]
    ForeignName(String),
    /// It asks for more than one name.
    #[error("the signing request asks for {0} names, at most one is accepted")]
    SeveralNames(usize),
    /// It asks for a kind of name that leaves do not carry.
    #[error("the signing request asks for a {0} name: only the SPIFFE ID is accepted")]
    NameKind(&'static str),
    /// It asks to be a CA.
    #[error("the signing request asks to be a CA")]
    WantsCa,
    /// It asks to sign certificates.
    #[error("the signing request asks for the key usage `{0}`")]
    KeyUsage(&'static str),
    /// It has something that is not understood.
    #[error("the signing request carries an extension or attribute that is not accepted: {0}")]
    Extension(String),
}

/// A signing request that is in order but for the names, which need the proved identity.
#[derive(Debug)]
pub(crate) struct SigningRequest {
    pub(super) key: SubjectPublicKeyInfo,
    names: Vec<String>,
}

impl SigningRequest {
    /// Reads a request and checks everything that does not depend on who asks.
    ///
    /// # Errors
    /// Names what is wrong with it.
    pub(crate) fn read(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR {
            return Err(CsrError::TooLong(der.len()));
        }
        let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let spki = csr.certification_request_info.subject_pki.raw;
        if spki.len() != P256_SPKI.len() + 64 || !spki.starts_with(&P256_SPKI) {
            return Err(CsrError::Key);
        }
        let key = SubjectPublicKeyInfo::from_der(spki).map_err(|_| CsrError::Key)?;
        // The algorithm is ours, whatever the request says: a request signed otherwise does not verify.
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.der_bytes())
            .verify(csr.certification_request_info.raw, &csr.signature_value.data)
            .map_err(|_| CsrError::Signature)?;
        let mut names = Vec::new();
        for attribute in csr.certification_request_info.iter_attributes() {
            match attribute.parsed_attribute() {
                x509_parser::cri_attributes::ParsedCriAttribute::ExtensionRequest(_) => {}
                _ => return Err(CsrError::Extension(attribute.oid.to_id_string())),
            }
        }
        for extension in csr.requested_extensions().into_iter().flatten() {
            read_extension(extension, &mut names)?;
        }
        if names.len() > 1 {
            return Err(CsrError::SeveralNames(names.len()));
        }
        Ok(Self { key, names })
    }

    /// Checks that the request asks for no name, or for exactly the identity that was proved.
    pub(crate) fn asks_only_for(&self, identity: &SpiffeId) -> Result<(), CsrError> {
        match self.names.iter().find(|name| *name != identity.as_str()) {
            Some(name) => Err(CsrError::ForeignName(shown(name))),
            None => Ok(()),
        }
    }
}

fn read_extension(extension: &ParsedExtension<'_>, names: &mut Vec<String>) -> Result<(), CsrError> {
    match extension {
        ParsedExtension::SubjectAlternativeName(san) => {
            for name in &san.general_names {
                match name {
                    GeneralName::URI(uri) => names.push((*uri).to_owned()),
                    GeneralName::DNSName(_) => return Err(CsrError::NameKind("DNS")),
                    GeneralName::IPAddress(_) => return Err(CsrError::NameKind("IP")),
                    GeneralName::RFC822Name(_) => return Err(CsrError::NameKind("mail")),
                    _ => return Err(CsrError::NameKind("foreign")),
                }
            }
            Ok(())
        }
        ParsedExtension::BasicConstraints(constraints) if constraints.ca => Err(CsrError::WantsCa),
        ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() => Err(CsrError::KeyUsage("keyCertSign")),
        ParsedExtension::KeyUsage(usage) if usage.crl_sign() => Err(CsrError::KeyUsage("cRLSign")),
        ParsedExtension::BasicConstraints(_)
        | ParsedExtension::KeyUsage(_)
        | ParsedExtension::ExtendedKeyUsage(_)
        | ParsedExtension::SubjectKeyIdentifier(_) => Ok(()),
        ParsedExtension::UnsupportedExtension { oid } => Err(CsrError::Extension(oid.to_id_string())),
        _ => Err(CsrError::Extension("one that requests do not have".to_owned())),
    }
}

/// Strangers write these names: what goes back into messages is short and printable.
fn shown(name: &str) -> String {
    name.chars().take(200).flat_map(char::escape_debug).collect()
}
