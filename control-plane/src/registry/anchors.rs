//! The trust bundle changes: stored and shown as one, so that nobody has a revision in force without the bundle of it.

use std::sync::Arc;

use outrider_proto::v1;
use prost::Message as _;
use tokio::sync::watch;

use super::{ChangeError, Encoded, Revocations, World};
use crate::{
    ca::{Authority, CaError},
    clock,
    publish::Publisher,
    store::{Author, Deed, Lease, RotationRow, StoreError},
};

/// The mesh as it is at the start, where revocations are told of, and who signs.
pub(crate) type Start = (World, watch::Sender<Arc<Revocations>>, Arc<Authority>);

/// The trust anchors as agents get them.
pub(crate) fn bundle(authority: &Authority) -> v1::TrustBundle {
    let roots = authority.roots().iter().map(|root| root.to_vec()).collect();
    v1::TrustBundle { trust_domain: authority.trust_domain().to_string(), roots }
}

impl Publisher {
    /// Takes a rotation on to its next phase. `None` when it is not in that phase any more.
    pub(super) async fn advance(&mut self, lease: &Lease, row: &RotationRow) -> Result<Option<u64>, ChangeError> {
        let Some(revision) = self.store.advance_rotation(lease, row, clock::now()).await? else { return Ok(None) };
        self.show_trust(revision).await?;
        Ok(Some(revision))
    }

    /// Takes a rotation back, as long as nothing was issued from the new root.
    pub(super) async fn abort(&mut self, row: &RotationRow, author: &Author) -> Result<Option<u64>, ChangeError> {
        let Some(revision) = self.store.abort_rotation(row, author, clock::now()).await? else { return Ok(None) };
        self.show_trust(revision).await?;
        Ok(Some(revision))
    }

    /// The roots of a mounted CA come from files: when they change, agents hear of it.
    pub(super) async fn follow_mounted(&mut self) {
        if !self.authority.is_mounted() {
            return;
        }
        let roots: Vec<Vec<u8>> = bundle(&self.authority).roots;
        if v1::TrustBundle::decode(self.world.bundle.body.as_slice()).is_ok_and(|shown| shown.roots == roots) {
            self.authority.shown(self.world.revision);
            return;
        }
        let followed = async {
            let subject = format!("{} roots", roots.len());
            let deed = Deed { author: &self.store.itself(), call: "MountedCa", subject: &subject };
            let revision = self.store.take_revision(deed, clock::now()).await?;
            self.show_trust(revision).await?;
            self.authority.shown(revision);
            Ok::<(), StoreError>(())
        };
        if let Err(error) = followed.await {
            tracing::warn!(error = outrider_runtime::tasks::chain(&error), "roots of the mounted CA not shown, trying again");
        }
    }

    /// Shows what was stored as this revision.
    pub(super) async fn show_trust(&mut self, revision: u64) -> Result<(), StoreError> {
        if self.store.is_shared() {
            self.catch_up().await?;
        } else {
            self.load_trust(revision).await?;
            self.world.revision = revision;
            self.show();
        }
        let revocations = Arc::clone(&self.world.revocations);
        // Whoever is revoked need not hear of it: its stream ends.
        let reach = self.world.reach(|_| true).into_iter().filter(|agent| {
            let serial = self.sessions.find(&agent.id).map(|session| session.serial).unwrap_or_default();
            !revocations.holds(&agent.identity, &serial)
        });
        self.sessions.remember(revision, reach.collect());
        Ok(())
    }

    /// Takes in who is believed, as the store has it now: roots and revocations.
    pub(super) async fn load_trust(&mut self, revision: u64) -> Result<(), StoreError> {
        self.authority.refresh(clock::now()).await.map_err(|error| match error {
            CaError::Store(error) => error,
            other => StoreError::Corrupt { table: "ca_keys", reason: outrider_runtime::tasks::chain(&other) },
        })?;
        let bundle = bundle(&self.authority);
        let encoded = Encoded::new(v1::ResourceKind::TrustBundle, bundle.trust_domain.clone(), revision, &bundle);
        if encoded.hash != self.world.bundle.hash {
            self.world.bundle = Arc::new(encoded);
        }
        let rows = self.store.revocations().await?;
        if rows != self.world.revocations.rows {
            let revocations = Arc::new(Revocations::new(rows, &self.world.bundle.name, revision));
            self.world.revocations = Arc::clone(&revocations);
            self.revoked.send_replace(revocations);
        }
        Ok(())
    }
}
