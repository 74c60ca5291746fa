//! Who is no longer believed, as the control plane itself and its agents see it.

use std::{collections::BTreeSet, sync::Arc};

use outrider_policy::SpiffeId;
use outrider_proto::v1;
use tokio::sync::watch;

use super::{ChangeError, Encoded, TrustChange};
use crate::{
    attest::AttestError,
    clock,
    peer::Peer,
    publish::Publisher,
    store::{Author, MAX_REVOCATIONS, RevocationRow},
};

/// Clocks of members may differ by this: a certificate is revoked for that much longer than it lives.
const SKEW: i64 = 120;

/// The revocations at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Revocations {
    pub(crate) rows: Vec<RevocationRow>,
    subjects: BTreeSet<String>,
    /// What agents get; none while nobody is revoked.
    pub(crate) resource: Option<Arc<Encoded>>,
}

impl Revocations {
    /// `trust_domain` names the resource.
    pub(crate) fn new(rows: Vec<RevocationRow>, trust_domain: &str, revision: u64) -> Self {
        use v1::revocation::Subject;
        let revocation = |row: &RevocationRow| {
            let subject = row.subject.clone();
            let subject = if row.is_identity() { Subject::Identity(subject) } else { Subject::Serial(subject) };
            v1::Revocation { subject: Some(subject), reason: row.reason.clone() }
        };
        let list = v1::RevocationList { revocations: rows.iter().map(revocation).collect() };
        let encode = || Encoded::new(v1::ResourceKind::Revocations, trust_domain.to_owned(), revision, &list);
        let resource = (!rows.is_empty()).then(|| Arc::new(encode()));
        Self { subjects: rows.iter().map(|row| row.subject.clone()).collect(), rows, resource }
    }

    /// Whether nobody of this identity is believed.
    pub(crate) fn holds_identity(&self, identity: &SpiffeId) -> bool {
        self.subjects.contains(identity.as_str())
    }

    /// Whether this certificate, or everybody of its identity, is not believed.
    pub(crate) fn holds(&self, identity: &SpiffeId, serial: &str) -> bool {
        self.subjects.contains(serial) || self.holds_identity(identity)
    }
}

/// The revocations as they are now. Clones see the same.
#[derive(Clone, Debug)]
pub(crate) struct Revoked(watch::Receiver<Arc<Revocations>>);

impl Revoked {
    pub(crate) fn new(now: watch::Receiver<Arc<Revocations>>) -> Self {
        Self(now)
    }

    /// Whether this peer is revoked.
    pub(crate) fn holds(&self, peer: &Peer) -> bool {
        self.0.borrow().holds(&peer.identity, &peer.serial)
    }

    /// # Errors
    /// When the peer that asks, or the identity that it would get a certificate for, is revoked.
    pub(crate) fn admit(&self, peer: Option<&Peer>, identity: &SpiffeId) -> Result<(), AttestError> {
        let revoked = peer.is_some_and(|peer| self.holds(peer)) || self.0.borrow().holds_identity(identity);
        if revoked { Err(AttestError::Revoked(identity.clone())) } else { Ok(()) }
    }

    /// Ends when this peer is revoked.
    pub(crate) async fn fall(&mut self, peer: &Peer) {
        // The sender lives as long as the control plane.
        if self.0.wait_for(|revocations| revocations.holds(&peer.identity, &peer.serial)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Publisher {
    /// Makes a change of who is believed.
    pub(crate) async fn change_trust(&mut self, change: TrustChange) {
        // Nobody waits any more: what was stored stays stored.
        match change {
            TrustChange::Revoke { row, author, reply } => drop(reply.send(self.revoke(row, &author).await)),
            TrustChange::Unrevoke { subject, author, reply } => drop(reply.send(self.unrevoke(&subject, &author).await)),
            TrustChange::Advance { lease, row, reply } => drop(reply.send(self.advance(&lease, &row).await)),
            TrustChange::Abort { row, author, reply } => drop(reply.send(self.abort(&row, &author).await)),
        }
    }

    /// Revokes a certificate or an identity, for everybody who is connected and whoever comes.
    async fn revoke(&mut self, row: RevocationRow, author: &Author) -> Result<u64, ChangeError> {
        let revision = self.store.revoke(&row, author).await?.ok_or(ChangeError::TooManyRevocations(MAX_REVOCATIONS))?;
        tracing::warn!(subject = row.subject, identity = row.identity, reason = row.reason, revision, "revoked");
        self.show_trust(revision).await?;
        Ok(revision)
    }

    /// Undoes a revocation.
    async fn unrevoke(&mut self, subject: &str, author: &Author) -> Result<u64, ChangeError> {
        let nothing = || ChangeError::NotFound(format!("`{subject}` is not revoked: see `outrider certs list --revoked`"));
        let revision = self.store.unrevoke(subject, author, clock::now()).await?.ok_or_else(nothing)?;
        tracing::info!(subject, revision, "revocation undone");
        self.show_trust(revision).await?;
        Ok(revision)
    }

    /// Forgets revocations of certificates that have ended.
    pub(crate) async fn prune_revocations(&mut self) {
        let before = clock::now() - SKEW;
        if !self.world.revocations.rows.iter().any(|row| row.ends.is_some_and(|ends| ends < before)) {
            return;
        }
        let pruned = async {
            match self.store.prune_revocations(before).await? {
                Some(revision) => self.show_trust(revision).await,
                None => Ok(()),
            }
        };
        if let Err(error) = pruned.await {
            tracing::warn!(error = outrider_runtime::tasks::chain(&error), "revocations not pruned, trying again");
        }
    }
}
