//! The way to a certificate: attest → ca → certificate.
//!
//! Who asks is decided by the evidence alone. Of the signing request only the public key is used, and a request that asks
//! for anything else than what was proved is refused. The leaf leaves the house only after it is on record and its evidence
//! is used up, both in one transaction.

use std::{sync::Arc, time::Instant};

use outrider_policy::SpiffeId;
use outrider_proto::v1::{IssueRequest, issue_request::Evidence};
use tonic::Status;

use crate::{
    attest::{AttestError, Attested, JoinTokens, expect},
    ca::{Authority, CaError, CsrError, Leaf, SigningRequest},
    limit::Limit,
    metrics::Metrics,
    peer::Peer,
    registry::Revoked,
    store::{CertificateRow, Redeem, Store, StoreError},
    turns::{NoTurn, Turns},
};

/// Issues leaves.
#[derive(Clone)]
pub(crate) struct Issuance {
    pub(crate) authority: Arc<Authority>,
    pub(crate) tokens: JoinTokens,
    pub(crate) limit: Arc<Limit>,
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
    #[error("the request carries no evidence: send a join token, or ask for renewal")]
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
        let evidence = match &request.evidence {
            Some(Evidence::JoinToken(_)) => "join-token",
            Some(Evidence::Renewal(_)) => "renewal",
            None => "none",
        };
        let issued = self.attest_and_sign(request, peer, now).await;
        self.metrics.issued(evidence, issued.as_ref().map_or_else(IssueError::reason, |_| "issued"));
        match &issued {
            Ok(Issued { leaf, identity }) => tracing::info!(%identity, evidence, serial = leaf.serial, "certificate issued"),
            Err(error) => tracing::warn!(evidence, error = outrider_runtime::tasks::chain(error), "certificate refused"),
        }
        issued
    }

    async fn attest_and_sign(&self, request: &IssueRequest, peer: Option<&Peer>, now: i64) -> Result<Issued, IssueError> {
        let attested = match &request.evidence {
            Some(Evidence::JoinToken(token)) => self.tokens.attest(&token.token, &request.expected_identity, now).await?,
            Some(Evidence::Renewal(_)) => self.attest_renewal(peer, &request.expected_identity, now).await?,
            None => return Err(IssueError::NoEvidence),
        };
        self.revoked.admit(peer, &attested.identity)?;
        let _turn = self.turns.take(&attested.identity).await?;
        let signing_request = SigningRequest::read(&request.csr)?;
        signing_request.asks_only_for(&attested.identity)?;
        let leaf = self.authority.sign(&signing_request, &attested.identity, now)?;
        self.record(&leaf, &attested, now).await?;
        Ok(Issued { leaf, identity: attested.identity })
    }

    /// The evidence of a renewal is the certificate of the connection: one that we issued and that has not ended.
    async fn attest_renewal(&self, peer: Option<&Peer>, expected: &str, now: i64) -> Result<Attested, AttestError> {
        let peer = peer.ok_or(AttestError::NoCertificate)?;
        expect(&peer.identity, expected)?;
        if !self.limit.admit(&peer.identity, Instant::now()) {
            return Err(AttestError::TooOften(peer.identity.clone()));
        }
        self.attest_peer(peer, now).await?;
        let redeem = Redeem::Certificate(peer.serial.clone());
        Ok(Attested { identity: peer.identity.clone(), evidence: "renewal", redeem })
    }

    /// Puts a leaf on record and uses its evidence up.
    pub(crate) async fn record(&self, leaf: &Leaf, attested: &Attested, now: i64) -> Result<(), AttestError> {
        let row = CertificateRow {
            serial: leaf.serial.clone(),
            identity: attested.identity.to_string(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            evidence: attested.evidence.to_owned(),
            issuer: leaf.issuer.clone(),
            agent_id: String::new(),
            replaced_by: None,
            replica: self.store.replica().to_owned(),
            root: leaf.root.clone(),
        };
        let recorded = self.store.issued(&row, &attested.redeem, now).await;
        if matches!(&recorded, Err(error) if !matches!(error, StoreError::TokenUsed)) {
            self.metrics.store_errors.inc();
        }
        Ok(recorded?)
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
