//! Who asks? Evidence in, identity out.

mod attestor;
mod connection;
mod join_token;
mod token;

use outrider_policy::identity::SpiffeId;

pub(crate) use attestor::{Attestor, Attestors, Presented};
pub(crate) use connection::Connections;
pub(crate) use join_token::JoinTokens;
pub(crate) use token::{Secret, TokenText};

use crate::store::{Redeem, StoreError};

/// An identity that was proved, and what the proof uses up.
#[derive(Debug)]
pub(crate) struct Attested {
    /// Who it is.
    pub(crate) identity: SpiffeId,
    /// What proved it, for the record and the metrics.
    pub(crate) evidence: &'static str,
    /// What the issuance must use up.
    pub(crate) redeem: Redeem,
}

/// Why evidence was not accepted. The operator's log gets all of it; the caller gets [`AttestError::outward`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttestError {
    /// Not a token at all.
    #[error("the join token is malformed")]
    Malformed,
    /// No such secret.
    #[error("the join token is unknown")]
    Unknown,
    /// It was redeemed before.
    #[error("the join token for `{identity}` has been used already: every token works once, create another")]
    Used {
        /// Whose it was.
        identity: SpiffeId,
    },
    /// It is too old.
    #[error("the join token for `{identity}` has expired: create another")]
    Expired {
        /// Whose it was.
        identity: SpiffeId,
    },
    /// The caller expects to be somebody else.
    #[error("the evidence proves `{proved}`, not `{expected}`")]
    OtherIdentity {
        /// Who it is.
        proved: SpiffeId,
        /// Who it thinks it is.
        expected: String,
    },
    /// A renewal without certificate.
    #[error("renewal needs the current certificate on the connection")]
    NoCertificate,
    /// A certificate that we did not record.
    #[error("certificate `{0}` is not one that this control plane issued")]
    UnknownCertificate(String),
    /// A certificate that ended while its connection lived.
    #[error("certificate `{0}` has expired: join again with a token")]
    ExpiredCertificate(String),
    /// It is no longer believed.
    #[error("`{0}` was revoked: `outrider certs unrevoke` undoes that")]
    Revoked(SpiffeId),
    /// A flood.
    #[error("`{0}` asks for certificates too often: try again in a second")]
    TooOften(SpiffeId),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AttestError {
    /// What the caller may know: who does not hold a right secret learns nothing.
    pub(crate) fn outward(&self) -> tonic::Status {
        match self {
            Self::Malformed | Self::Unknown => tonic::Status::unauthenticated("the join token is not accepted"),
            Self::Revoked(_) => tonic::Status::permission_denied("revoked"),
            Self::OtherIdentity { .. } => tonic::Status::permission_denied(self.to_string()),
            Self::TooOften(_) => tonic::Status::resource_exhausted(self.to_string()),
            Self::Store(StoreError::TokenUsed) => tonic::Status::unauthenticated("the join token has been used already"),
            Self::Store(_) => tonic::Status::unavailable("the control plane cannot answer now"),
            _ => tonic::Status::unauthenticated(self.to_string()),
        }
    }

    /// The closed set of reasons in metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Used { .. } | Self::Store(StoreError::TokenUsed) => "used",
            Self::Expired { .. } | Self::ExpiredCertificate(_) => "expired",
            Self::OtherIdentity { .. } => "other_identity",
            Self::NoCertificate => "no_certificate",
            Self::UnknownCertificate(_) => "unknown_certificate",
            Self::Revoked(_) => "revoked",
            Self::TooOften(_) => "too_often",
            Self::Store(_) => "store",
        }
    }
}

/// Compares what was proved with what the caller believes, if it says so. Nothing is used up by a disagreement.
pub(crate) fn expect(proved: &SpiffeId, expected: &str) -> Result<(), AttestError> {
    let account = proved.account().is_some_and(|account| account.to_string() == expected);
    if expected.is_empty() || expected == proved.as_str() || account {
        return Ok(());
    }
    let expected = expected.chars().take(200).flat_map(char::escape_debug).collect();
    Err(AttestError::OtherIdentity { proved: proved.clone(), expected })
}
