//! What the certificate of a connection proves.

use std::{sync::Arc, time::Instant};

use outrider_proto::v1::issue_request::Evidence;

use super::{AttestError, Attested, Attestor, Presented, expect};
use crate::{
    limit::Limit,
    peer::Peer,
    registry::Revoked,
    store::{Redeem, Store},
};

/// Looks at certificates of connections.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    pub(crate) store: Store,
    pub(crate) revoked: Revoked,
    /// How often one identity may renew.
    pub(crate) limit: Arc<Limit>,
}

impl Connections {
    /// The certificate of a connection proves something while it lasts, and when we issued it.
    pub(crate) async fn attest_peer(&self, peer: &Peer, now: i64) -> Result<(), AttestError> {
        if self.revoked.holds(peer) {
            return Err(AttestError::Revoked(peer.identity.clone()));
        }
        if peer.not_after <= now {
            return Err(AttestError::ExpiredCertificate(peer.serial.clone()));
        }
        let known = self.store.certificate(&peer.serial).await?.is_some_and(|row| row.identity == peer.identity.as_str());
        if !known {
            return Err(AttestError::UnknownCertificate(peer.serial.clone()));
        }
        Ok(())
    }
}

/// The evidence of a renewal is the certificate of the connection: one that we issued and that has not ended.
#[tonic::async_trait]
impl Attestor for Connections {
    fn word(&self) -> &'static str {
        "renewal"
    }

    fn takes(&self, evidence: &Evidence) -> bool {
        matches!(evidence, Evidence::Renewal(_))
    }

    async fn attest(&self, presented: &Presented<'_>) -> Result<Attested, AttestError> {
        let peer = presented.peer.ok_or(AttestError::NoCertificate)?;
        expect(&peer.identity, presented.expected)?;
        if !self.limit.admit(&peer.identity, Instant::now()) {
            return Err(AttestError::TooOften(peer.identity.clone()));
        }
        self.attest_peer(peer, presented.now).await?;
        let redeem = Redeem::Certificate(peer.serial.clone());
        Ok(Attested { identity: peer.identity.clone(), evidence: self.word(), redeem })
    }
}
