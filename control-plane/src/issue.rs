//! The way to a certificate: attest → ca → certificate.
//!
//! Who asks is decided by the evidence alone. Of the signing request only the public key is used, and a request that asks
//! for anything else than what was proved is refused. The leaf leaves the house only after it is on record and its evidence
//! is used up, both in one transaction.

use std::sync::Arc;

use outrider_policy::SpiffeId;
use outrider_proto::v1::IssueRequest;
use tonic::Status;

use crate::{
    attest::{AttestError, Attested, Attestors, Connections, Presented},
    ca::{Authority, CaError, CsrError, Leaf, SigningRequest},
    metrics::Metrics,
    peer::Peer,
    registry::Revoked,
    store::Store,
    turns::{NoTurn, Turns},
};

/// Issues leaves.
#[derive(Clone)]
pub(crate) struct Issuance {
    pub(crate) authority: Arc<Authority>,
    /// Every kind of evidence that is taken.
    pub(crate) attestors: Attestors,
    /// One of them, which other calls ask too.
    pub(crate) connections: Connections,
    pub(crate) revoked: Revoked,
    pub(crate) turns: Turns,
    pub(crate) store: Store,
    pub(crate) metrics: Metrics,
}

/// A leaf and whom it names.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) leaf: Leaf,
    pub(crate) identity: SpiffeId,
}

/// Why no leaf was issued.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    /// The request carries no evidence.
    #[error("the request carries no evidence that is taken here: send a join token, or ask for renewal")]
    NoEvidence,
    /// The signing request is not acceptable.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The evidence is not acceptable.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// It is nobody's turn.
    #[error(transparent)]
    Turn(#[from] NoTurn),
    /// We cannot sign.
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl Issuance {
    /// Issues a leaf to whoever the evidence proves; `peer` is who the connection's certificate names, if there is one.
    pub(crate) async fn issue(&self, request: &IssueRequest, peer: Option<&Peer>, now: i64) -> Result<Issued, IssueError> {
        let attestor = request.evidence.as_ref().and_then(|evidence| Some((evidence, self.attestors.of(evidence)?)));
        let word = attestor.map_or("none", |(_, attestor)| attestor.word());
        let issued = async {
            let (evidence, attestor) = attestor.ok_or(IssueError::NoEvidence)?;
            let presented = Presented { evidence, peer, expected: &request.expected_identity, now };
            self.sign_for(attestor.attest(&presented).await?, &request.csr, peer, now).await
        };
        let issued = issued.await;
        self.metrics.issued(word, issued.as_ref().map_or_else(IssueError::reason, |_| "issued"));
        match &issued {
            Ok(Issued { leaf, identity }) => {
                tracing::info!(%identity, evidence = word, serial = leaf.serial, "certificate issued")
            }
            Err(error) => tracing::warn!(evidence = word, error = outrider_runtime::tasks::chain(error), "certificate refused"),
        }
        issued
    }

    async fn sign_for(&self, attested: Attested, csr: &[u8], peer: Option<&Peer>, now: i64) -> Result<Issued, IssueError> {
        let identity = attested.identity.clone();
        self.revoked.admit(peer, &identity)?;
        let _turn = self.turns.take(&identity).await?;
        let request = SigningRequest::read(csr)?;
        request.asks_only_for(&identity)?;
        let leaf = self.sign_and_record(&attested, now, |authority| authority.sign(&request, &identity, now)).await?;
        Ok(Issued { leaf, identity })
    }
}

impl IssueError {
    /// What the caller may know.
    pub(crate) fn outward(&self) -> Status {
        match self {
            Self::NoEvidence | Self::Csr(_) => Status::invalid_argument(self.to_string()),
            Self::Attest(error) => error.outward(),
            Self::Turn(error) => error.outward(),
            Self::Ca(_) => Status::unavailable("the control plane cannot sign now"),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NoEvidence => "no_evidence",
            Self::Csr(_) => "bad_request",
            Self::Attest(error) => error.reason(),
            Self::Turn(error) => error.reason(),
            Self::Ca(_) => "ca",
        }
    }
}
