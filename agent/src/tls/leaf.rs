//! What a leaf certificate says to an agent: who its holder is, by the rules that all doors of the mesh share
//! ([`outrider_policy::svid`]).

use std::time::{Duration, SystemTime};

use outrider_policy::{
    SpiffeId,
    svid::{self, Svid, SvidProblem},
};
use rustls::{CertificateError, pki_types::CertificateDer};

/// Checks what a leaf came with, beyond what chain building checks ([`svid::check_chain`]).
///
/// # Errors
/// Names the rule that they break.
pub fn check_chain(further: &[CertificateDer<'_>]) -> Result<(), LeafError> {
    Ok(svid::check_chain(further.iter().map(|der| &**der))?)
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

/// A certificate that names no workload whom we believe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// Not an X.509-SVID.
    #[error(transparent)]
    Svid(#[from] SvidProblem),
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
}

impl From<LeafError> for rustls::Error {
    fn from(error: LeafError) -> Self {
        match error {
            LeafError::Svid(SvidProblem::Encoding) => CertificateError::BadEncoding.into(),
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
        let Svid { id, serial, not_before, not_after } = Svid::parse(der)?;
        if id.namespace().is_none() {
            return Err(SvidProblem::Id(id.to_string()).into());
        }
        let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        Ok(Self { id, serial, not_before: time(not_before), not_after: time(not_after) })
    }
}
