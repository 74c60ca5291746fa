//! Puts leaves on record: none leaves the house before.

use crate::{
    attest::{AttestError, Attested},
    ca::{Authority, CaError, Leaf},
    issue::{Issuance, IssueError},
    store::{CertificateRow, StoreError},
};

impl Issuance {
    /// Signs a leaf and puts it on record. When the root that it was signed below signs no more, which a replica that stood still
    /// for a while learns only here, it is signed again below the one that does.
    pub(crate) async fn sign_and_record(
        &self,
        attested: &Attested,
        now: i64,
        sign: impl Fn(&Authority) -> Result<Leaf, CaError>,
    ) -> Result<Leaf, IssueError> {
        let leaf = sign(&self.authority)?;
        match self.record(&leaf, attested, now).await {
            Err(AttestError::Store(StoreError::RootRetired)) => {
                tracing::warn!(root = leaf.root, "the root that was signed below signs no more: looking which one does");
                self.authority.refresh(now).await?;
                let leaf = sign(&self.authority)?;
                self.record(&leaf, attested, now).await?;
                Ok(leaf)
            }
            recorded => Ok(recorded.map(|()| leaf)?),
        }
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
        if matches!(&recorded, Err(error) if !matches!(error, StoreError::TokenUsed | StoreError::RootRetired)) {
            self.metrics.store_errors.inc();
        }
        Ok(recorded?)
    }
}
