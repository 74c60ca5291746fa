//! Who is at the other end of a connection, by its certificate.

use outrider_policy::{
    SpiffeId, TrustDomain,
    svid::{Svid, SvidProblem},
};
use rustls_pki_types::CertificateDer;

use crate::operators::OperatorName;

/// A peer whose certificate chains to our roots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) identity: SpiffeId,
    /// Lower-case hex.
    pub(crate) serial: String,
    /// Unix seconds.
    pub(crate) not_after: i64,
}

/// Why a certificate names nobody of our mesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PeerError {
    /// Not an X509-SVID.
    #[error("the certificate is not acceptable: {0}")]
    Svid(#[from] SvidProblem),
    /// The name is not a SPIFFE ID of a workload.
    #[error("the certificate does not name a workload: {0}")]
    NotAWorkload(String),
    /// The name is not an operator's.
    #[error("the certificate of `{0}` is no operator's")]
    NotAnOperator(String),
    /// The name is of another mesh.
    #[error("the certificate is of trust domain `{0}`")]
    OtherTrustDomain(String),
}

impl Peer {
    /// Reads a leaf by the rules for X509-SVIDs. That it chains to a root is checked elsewhere.
    ///
    /// # Errors
    /// Names the rule that it breaks.
    pub(crate) fn read(leaf: &CertificateDer<'_>, trust_domain: &TrustDomain) -> Result<Self, PeerError> {
        let peer = Self::read_any(leaf, trust_domain)?;
        if peer.identity.account().is_none() {
            return Err(PeerError::NotAWorkload(format!("`{}` is not of the form spiffe://…/ns/…/sa/…", peer.identity)));
        }
        Ok(peer)
    }

    /// As [`Peer::read`], for operators: what names a workload names no operator.
    ///
    /// # Errors
    /// Names the rule that it breaks.
    pub(crate) fn read_operator(leaf: &CertificateDer<'_>, trust_domain: &TrustDomain) -> Result<Self, PeerError> {
        let peer = Self::read_any(leaf, trust_domain)?;
        match OperatorName::of(&peer.identity) {
            Some(_) => Ok(peer),
            None => Err(PeerError::NotAnOperator(peer.identity.to_string())),
        }
    }

    fn read_any(leaf: &CertificateDer<'_>, trust_domain: &TrustDomain) -> Result<Self, PeerError> {
        let Svid { id: identity, serial, not_after, .. } = Svid::parse(leaf)?;
        if !identity.belongs_to(trust_domain) {
            return Err(PeerError::OtherTrustDomain(identity.trust_domain().to_owned()));
        }
        Ok(Self { identity, serial, not_after })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};

    use super::*;

    const GOOD: &str = "spiffe://mesh.internal/ns/shop/sa/web";

    fn read(tweak: impl FnOnce(&mut CertificateParams)) -> Result<Peer, PeerError> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri(GOOD)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        tweak(&mut params);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Peer::read(certificate.der(), &TrustDomain::new("mesh.internal").unwrap())
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    #[test]
    fn a_leaf_names_exactly_one_workload_of_our_trust_domain() {
        assert_eq!(read(|_| {}).unwrap().identity.as_str(), GOOD);
        for names in [vec![], vec![uri(GOOD), uri(GOOD)], vec![uri(GOOD), uri("https://example.com")]] {
            let count = names.len();
            assert_eq!(read(|params| params.subject_alt_names = names), Err(PeerError::Svid(SvidProblem::UriNames(count))));
        }
        for name in [
            "spiffe://other.example/ns/shop/sa/web",
            "spiffe://mesh.internal/",
            "spiffe://mesh.internal",
            "spiffe://mesh.internal/ns/shop/sa/web/",
            "spiffe://mesh.internal/ns/shop/../sa/web",
            "spiffe://mesh.internal/ns/shop/sa/web%2e",
            "spiffe://mesh.internal/ns//sa/web",
            "spiffe://MESH.internal/ns/shop/sa/web",
            "spiffe://mesh.internal/agent",
            "http://mesh.internal/ns/shop/sa/web",
            "spiffe://mesh.internal/ns/a/sa/b\0.evil",
        ] {
            assert!(read(|params| params.subject_alt_names = vec![uri(name)]).is_err(), "{name} was accepted");
        }
    }

    #[test]
    fn what_can_sign_is_no_workload() {
        assert_eq!(
            read(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            Err(PeerError::Svid(SvidProblem::Signs))
        );
        assert_eq!(
            read(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]),
            Err(PeerError::Svid(SvidProblem::Signs))
        );
        assert_eq!(read(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]), Err(PeerError::Svid(SvidProblem::Signs)));
        assert_eq!(read(|params| params.key_usages = vec![]), Err(PeerError::Svid(SvidProblem::KeyUsage)));
    }
}
