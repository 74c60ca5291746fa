//! From one CA that somebody else makes to the next. What newly came into the files is believed by agents before anything is signed
//! by it, and what left them still is until its holders have renewed: the phases of a change of the trust anchor, as far as they
//! apply to a CA whose keys are not ours.

use std::sync::{Arc, PoisonError};

use rustls_pki_types::CertificateDer;

use super::{
    Anchor, Authority, CaError, Phase,
    authority::{Refreshed, Root},
    external::{External, Mounted},
    signer::{Signer, describe},
};
use crate::store::{Role, RotationRow};

/// How long the root that left the files is believed at most after the next CA signs, for agents that are slow to renew, in seconds.
const STAY: i64 = 600;

/// How far the change is.
#[derive(Default)]
pub(super) struct Handover {
    /// As the stored change of our own root; none before the first.
    row: Option<RotationRow>,
    /// The CA that waits until it is believed.
    next: Option<Mounted>,
    /// Roots that the files hold.
    in_files: Vec<Anchor>,
    /// Roots that the other replicas were told of.
    told: Vec<Anchor>,
}

impl Authority {
    /// Looks at the files, and at what other replicas found in theirs.
    pub(super) async fn look_at_files(&self, external: &External, now: i64) -> Result<Refreshed, CaError> {
        let before = self.anchors();
        let mounted = external.look(self.trust_domain(), now);
        let issuing = mounted.is_some();
        if let Some(mounted) = mounted {
            self.mount(mounted, now)?;
        }
        if self.store.is_shared() {
            self.share_roots(now).await?;
        }
        Ok(Refreshed { roots: before != self.anchors(), issuing })
    }

    fn anchors(&self) -> Vec<Anchor> {
        self.keys.load().roots.iter().map(|root| root.info.spki).collect()
    }

    fn mount(&self, mounted: Mounted, now: i64) -> Result<(), CaError> {
        let Mounted { signer, via, roots } = mounted;
        let mut handover = self.handover.lock().unwrap_or_else(PoisonError::into_inner);
        handover.in_files = roots.iter().map(|(info, _)| info.spki).collect();
        let mut fresh: Vec<Root> = roots.iter().map(|(info, der)| Root::of_others(info.clone(), der.clone())).collect();
        let present = self.keys.load_full();
        let Some(current) = present.roots.first() else {
            tracing::info!(issuer = signer.info.common_name, roots = fresh.len(), "mounted CA in use");
            put_to_use(fresh.first_mut(), signer, via);
            return self.use_roots(fresh);
        };
        if current.issuing.as_ref().is_some_and(|issuing| issuing.der == signer.der) {
            // The same CA signs: only the bundle is another one. A root that stays until its holders have renewed stays on.
            let proving = handover.row.take().filter(|row| row.phase.is_over() || row.phase == Phase::Proving);
            (handover.next, handover.row) = (None, proving);
            let stays =
                |root: &&Root| handover.row.as_ref().is_some_and(|row| !row.phase.is_over() && root.info.id() == row.old_root);
            let kept: Vec<Root> = present
                .roots
                .iter()
                .filter(|root| stays(root) || root.elsewhere)
                .filter(|root| !fresh.iter().any(|new| new.info.spki == root.info.spki))
                .cloned()
                .collect();
            fresh.extend(kept);
            let current = Root { der: fresh.first().map_or(current.der.clone(), |root| root.der.clone()), ..current.clone() };
            if let Some(first) = fresh.first_mut() {
                *first = current;
            }
            return self.use_roots(fresh);
        }
        let new_root = fresh.first().map(|root| root.info.clone());
        let Some(new_root) = new_root else { return Ok(()) };
        let believed = present.roots.iter().any(|root| root.info.spki == new_root.spki);
        tracing::info!(issuer = signer.info.common_name, "a mounted CA signs as soon as agents believe it");
        handover.row = Some(RotationRow {
            phase: Phase::Distributing,
            goal: Phase::Done,
            old_root: current.info.id(),
            new_root: new_root.id(),
            started: now,
            phase_started: now,
            revision: 0,
            // Whoever is away had the root already.
            skip_away: believed,
        });
        handover.next = Some(Mounted { signer, via, roots });
        fresh.retain(|root| root.info.spki != current.info.spki);
        fresh.insert(0, current.clone());
        self.use_roots(fresh)
    }

    /// Tells other replicas of our roots, and believes theirs: their files may change a moment earlier or later.
    async fn share_roots(&self, now: i64) -> Result<(), CaError> {
        let own: Vec<Root> = self.keys.load().roots.iter().filter(|root| !root.elsewhere).cloned().collect();
        let anchors: Vec<Anchor> = own.iter().map(|root| root.info.spki).collect();
        if self.handover.lock().unwrap_or_else(PoisonError::into_inner).told != anchors {
            let ders: Vec<(String, &[u8])> = own.iter().map(|root| (root.info.id(), &*root.der)).collect();
            self.store.put_mounted(&ders, now).await?;
            self.handover.lock().unwrap_or_else(PoisonError::into_inner).told = anchors;
        }
        let elsewhere = self.store.mounted_elsewhere().await?;
        // Only whoever holds this changes the roots.
        let _alone = self.handover.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut all, others): (Vec<Root>, Vec<Root>) = self.keys.load().roots.iter().cloned().partition(|root| !root.elsewhere);
        let own = all.len();
        for der in elsewhere {
            let der = CertificateDer::from(der);
            let info = describe(Role::Root, &der)?;
            if !all.iter().any(|root| root.info.spki == info.spki) {
                all.push(Root { elsewhere: true, ..Root::of_others(info, der) });
            }
        }
        if all.iter().skip(own).map(|root| root.info.spki).ne(others.iter().map(|root| root.info.spki)) {
            self.use_roots(all)?;
        }
        Ok(())
    }

    /// How far the last change from one mounted CA to the next is.
    pub(crate) fn handover(&self) -> Option<RotationRow> {
        self.handover.lock().unwrap_or_else(PoisonError::into_inner).row.clone()
    }

    /// The trust bundle as it is now is shown since this revision.
    pub(crate) fn shown(&self, revision: u64) {
        let mut handover = self.handover.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(row) = handover.row.as_mut().filter(|row| row.phase == Phase::Distributing && row.revision == 0) {
            row.revision = revision;
        }
    }

    /// An operator does not wait for those who are not connected.
    pub(crate) fn skip_away(&self) {
        if let Some(row) = &mut self.handover.lock().unwrap_or_else(PoisonError::into_inner).row {
            row.skip_away = true;
        }
    }

    /// Whether there is no time left to wait for laggards: the CA that signs ends, or the one that left has stayed for long.
    pub(crate) fn handover_presses(&self, now: i64) -> bool {
        let handover = self.handover.lock().unwrap_or_else(PoisonError::into_inner);
        match &handover.row {
            Some(row) if row.phase == Phase::Distributing => {
                let keys = self.keys.load();
                let issuing = keys.roots.first().and_then(|root| root.issuing.as_ref());
                issuing.is_none_or(|signs| signs.info.not_after - now < (signs.info.not_after - signs.info.not_before) / 10)
            }
            Some(row) => now - row.phase_started > STAY,
            None => false,
        }
    }

    /// Makes the next step of the change: the next CA signs, or the root of the one before leaves.
    pub(crate) fn advance_handover(&self, now: i64) -> Result<(), CaError> {
        let mut handover = self.handover.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut row) = handover.row.clone().filter(|row| !row.phase.is_over()) else { return Ok(()) };
        let mut roots = self.keys.load().roots.clone();
        if let Some(Mounted { signer, via, .. }) = handover.next.take() {
            let Some(at) = roots.iter().position(|root| root.info.id() == row.new_root) else { return Ok(()) };
            tracing::info!(issuer = signer.info.common_name, "mounted CA in use");
            roots.swap(0, at);
            put_to_use(roots.first_mut(), signer, via);
            row.phase = if row.old_root == row.new_root { Phase::Done } else { Phase::Proving };
            // Whoever is not connected now fetches the new bundle before it does anything else.
            row.skip_away = true;
        } else {
            let in_files = &handover.in_files;
            for root in roots.iter_mut().filter(|root| root.info.id() == row.old_root) {
                (root.issuing, root.via) = (None, Vec::new());
            }
            roots.retain(|root| root.elsewhere || in_files.contains(&root.info.spki));
            row.phase = Phase::Done;
        }
        row.phase_started = now;
        handover.row = Some(row);
        self.use_roots(roots)
    }
}

fn put_to_use(root: Option<&mut Root>, signer: Signer, via: Vec<CertificateDer<'static>>) {
    if let Some(root) = root {
        (root.issuing, root.via, root.elsewhere) = (Some(Arc::new(signer)), via, false);
    }
}
