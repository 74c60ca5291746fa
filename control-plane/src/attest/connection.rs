//! What the certificate of a connection proves.

use super::AttestError;
use crate::{issue::Issuance, peer::Peer};

impl Issuance {
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
