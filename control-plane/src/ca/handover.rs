//! From one CA that somebody else makes to the next. What newly came into the files is believed by agents before anything is signed
//! by it, and what left them still is until its holders have renewed: the phases of a change of the trust anchor, as far as they
//! apply to a CA whose keys are not ours.

use std::sync::{Arc, MutexGuard, PoisonError};

use rustls_pki_types::CertificateDer;

use super::{
    Anchor, Authority, CaError, Phase,
    authority::{Refreshed, Root},
    external::{External, Mounted},
    going,
    signer::{Signer, describe},
};
use crate::store::{Author, Role, RotationRow};

/// How long the root that left the files is believed at most after the next CA signs, for agents that are slow to renew, in seconds.
const STAY: i64 = 600;

/// How far the change is.
#[derive(Default)]
pub(super) struct Handover {
    /// As the stored change of our own root; none before the first.
    row: Option<RotationRow>,
    /// What came into the files, until it is stored what becomes of it.
    found: Option<Mounted>,
    /// The CA that waits until it is believed.
    next: Option<Mounted>,
    /// Roots that the files hold.
    in_files: Vec<Anchor>,
    /// Roots that the other replicas were told of.
    told: Vec<Anchor>,
}

/// What the CA that was found in the files means.
enum Found {
    /// There is none in use yet.
    First,
    /// The one that signs: only the bundle is another one.
    Same,
    /// It waits until it is believed.
    Next(RotationRow),
}

impl Authority {
    /// Looks at the files, and at what other replicas found in theirs.
    pub(super) async fn look_at_files(&self, external: &External, now: i64) -> Result<Refreshed, CaError> {
        let before = self.anchors();
        if let Some(mounted) = external.look(self.trust_domain(), now) {
            self.hand().found = Some(mounted);
        }
        if before.is_empty() {
            self.resume(now).await?;
        }
        let issuing = self.take_found(now).await?;
        if self.store.is_shared() {
            self.share_roots(now).await?;
        }
        Ok(Refreshed { roots: before != self.anchors(), issuing })
    }

    fn hand(&self) -> MutexGuard<'_, Handover> {
        // Nothing in here can panic half-way.
        self.handover.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn anchors(&self) -> Vec<Anchor> {
        self.keys.load().roots.iter().map(|root| root.info.spki).collect()
    }

    /// Goes on with a change that this replica had under way when it stopped: the CA that goes is believed, and signs if the next
    /// one did not yet.
    async fn resume(&self, now: i64) -> Result<(), CaError> {
        let Some((row, going)) = self.store.handover(self.kek()).await? else { return Ok(()) };
        if row.phase.is_over() {
            self.hand().row = Some(row);
            return Ok(());
        }
        let old = going.map(going::restore).transpose()?;
        let lives = |old: &Root| old.issuing.as_ref().is_some_and(|issuing| now < issuing.info.not_after);
        let (phase, old) = (row.phase, old.filter(lives));
        if let Some(old) = old
            && self.resume_from(row, old)?
        {
            tracing::info!(phase = phase.as_str(), "the change of the mounted CA goes on");
            return Ok(());
        }
        // The CA has ended, or the files have moved on.
        Ok(self.store.forget_handover().await?)
    }

    /// False when the files have moved on.
    fn resume_from(&self, row: RotationRow, old: Root) -> Result<bool, CaError> {
        let mut hand = self.hand();
        let mut all = vec![old];
        if row.phase != Phase::Distributing {
            let Some(found) = hand.found.take_if(|found| found.root() == row.new_root) else { return Ok(false) };
            hand.in_files = found.roots.iter().map(|(info, _)| info.spki).collect();
            let mut fresh = of_files(&found.roots);
            fresh.retain(|root| root.info.id() != row.old_root);
            put_to_use(fresh.first_mut(), found.signer, found.via);
            all.splice(0..0, fresh);
        }
        hand.row = Some(row);
        self.use_roots(all).map(|()| true)
    }

    /// Puts what was found to its use, when it is stored that it is. Says whether there was anything.
    async fn take_found(&self, now: i64) -> Result<bool, CaError> {
        let present = self.keys.load_full();
        let current = present.roots.first();
        let (meant, forgets) = {
            let hand = self.hand();
            let Some(found) = &hand.found else { return Ok(false) };
            let same = |root: &Root| root.issuing.as_ref().is_some_and(|issuing| issuing.der == found.signer.der);
            let live = hand.row.as_ref().filter(|row| !row.phase.is_over());
            match current {
                None => (Found::First, false),
                Some(current) if same(current) => (Found::Same, live.is_some_and(|row| row.phase == Phase::Distributing)),
                // One after the other: whoever holds a leaf of the one before still renews.
                Some(_) if live.is_some_and(|row| row.phase == Phase::Proving) => return Ok(false),
                Some(current) => {
                    let believed = present.roots.iter().any(|root| root.info.id() == found.root());
                    (Found::Next(distributing(live, current, found, believed, now)), false)
                }
            }
        };
        match (&meant, current.and_then(going::keep)) {
            (Found::Next(row), Some(going)) => self.store.begin_handover(row, &going, self.kek(), now).await?,
            (Found::Same, _) if forgets => self.store.forget_handover().await?,
            _ => {}
        }
        let found = self.hand().found.take();
        found.map_or(Ok(false), |found| self.mount(found, meant).map(|()| true))
    }

    fn mount(&self, found: Mounted, meant: Found) -> Result<(), CaError> {
        let mut hand = self.hand();
        hand.in_files = found.roots.iter().map(|(info, _)| info.spki).collect();
        let mut fresh = of_files(&found.roots);
        let present = self.keys.load_full();
        match (meant, present.roots.first()) {
            (Found::First, _) | (_, None) => {
                tracing::info!(issuer = found.signer.info.common_name, roots = fresh.len(), "mounted CA in use");
                put_to_use(fresh.first_mut(), found.signer, found.via);
            }
            (Found::Same, Some(current)) => {
                // A root that stays until its holders have renewed stays on.
                let proving = hand.row.take().filter(|row| row.phase.is_over() || row.phase == Phase::Proving);
                (hand.next, hand.row) = (None, proving);
                let stays =
                    |root: &&Root| hand.row.as_ref().is_some_and(|row| !row.phase.is_over() && root.info.id() == row.old_root);
                let mut kept: Vec<Root> = present.roots.iter().filter(|root| stays(root) || root.elsewhere).cloned().collect();
                // It goes on signing our own leaves for those who believe nobody else.
                fresh.retain(|new| !kept.iter().any(|root| stays(&root) && root.info.spki == new.info.spki));
                kept.retain(|root| !fresh.iter().any(|new| new.info.spki == root.info.spki));
                fresh.extend(kept);
                let current = Root { der: fresh.first().map_or(current.der.clone(), |root| root.der.clone()), ..current.clone() };
                if let Some(first) = fresh.first_mut() {
                    *first = current;
                }
            }
            (Found::Next(row), Some(current)) => {
                tracing::info!(issuer = found.signer.info.common_name, "a mounted CA signs as soon as agents believe it");
                hand.row = Some(row);
                hand.next = Some(found);
                fresh.retain(|root| root.info.spki != current.info.spki);
                fresh.insert(0, current.clone());
            }
        }
        self.use_roots(fresh)
    }

    /// Tells other replicas of our roots, and believes theirs: their files may change a moment earlier or later.
    async fn share_roots(&self, now: i64) -> Result<(), CaError> {
        let own: Vec<Root> = self.keys.load().roots.iter().filter(|root| !root.elsewhere).cloned().collect();
        let anchors: Vec<Anchor> = own.iter().map(|root| root.info.spki).collect();
        if self.hand().told != anchors {
            let ders: Vec<(String, &[u8])> = own.iter().map(|root| (root.info.id(), &*root.der)).collect();
            self.store.put_mounted(&ders, now).await?;
            self.hand().told = anchors;
        }
        let elsewhere = self.store.mounted_elsewhere().await?;
        // Only whoever holds this changes the roots.
        let _alone = self.hand();
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
        self.hand().row.clone()
    }

    /// The trust bundle as it is now is shown since this revision.
    pub(crate) fn shown(&self, revision: u64) {
        let mut handover = self.hand();
        if let Some(row) = handover.row.as_mut().filter(|row| row.phase == Phase::Distributing && row.revision == 0) {
            row.revision = revision;
        }
    }

    /// An operator does not wait for those who are not connected. `None` when no change is under way.
    pub(crate) async fn skip_away(&self, author: &Author, now: i64) -> Result<Option<RotationRow>, CaError> {
        let _one = self.looking.lock().await;
        let live = |row: &RotationRow| !row.phase.is_over();
        if !self.hand().row.as_ref().is_some_and(live) {
            return Ok(None);
        }
        self.store.skip_away_in_handover(author, now).await?;
        let mut hand = self.hand();
        if let Some(row) = &mut hand.row {
            row.skip_away = true;
        }
        Ok(hand.row.clone())
    }

    /// Whether there is no time left to wait for laggards: the CA that signs ends, or the one that left has stayed for long.
    pub(crate) fn handover_presses(&self, now: i64) -> bool {
        let handover = self.hand();
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
    pub(crate) async fn advance_handover(&self, now: i64) -> Result<(), CaError> {
        let _one = self.looking.lock().await;
        let Some(row) = self.next_step(now) else { return Ok(()) };
        self.store.advance_handover(&row, now).await?;
        let mut hand = self.hand();
        let mut roots = self.keys.load().roots.clone();
        if let Some(Mounted { signer, via, .. }) = hand.next.take() {
            tracing::info!(issuer = signer.info.common_name, "mounted CA in use");
            let at = roots.iter().position(|root| root.info.id() == row.new_root);
            roots.swap(0, at.unwrap_or_default());
            put_to_use(roots.first_mut(), signer, via);
        } else {
            let in_files = &hand.in_files;
            for root in roots.iter_mut().filter(|root| root.info.id() == row.old_root) {
                (root.issuing, root.via) = (None, Vec::new());
            }
            roots.retain(|root| root.elsewhere || in_files.contains(&root.info.spki));
        }
        hand.row = Some(row);
        self.use_roots(roots)
    }

    /// What the change is after its next step.
    fn next_step(&self, now: i64) -> Option<RotationRow> {
        let hand = self.hand();
        let row = hand.row.clone()?;
        match (row.phase, &hand.next) {
            (Phase::Distributing, Some(next)) => {
                let known = self.keys.load().roots.iter().any(|root| root.info.id() == next.root());
                let phase = if row.old_root == row.new_root { Phase::Done } else { Phase::Proving };
                // Whoever is not connected now fetches the new bundle before it does anything else.
                known.then_some(RotationRow { phase, phase_started: now, skip_away: true, ..row })
            }
            (Phase::Proving, None) => Some(RotationRow { phase: Phase::Done, phase_started: now, ..row }),
            // The files are refused for now, or nothing is under way.
            _ => None,
        }
    }
}

/// A change from the CA in use to another one, or what is known of it already.
fn distributing(live: Option<&RotationRow>, current: &Root, found: &Mounted, believed: bool, now: i64) -> RotationRow {
    let known = live.filter(|row| row.phase == Phase::Distributing && row.new_root == found.root());
    RotationRow {
        phase: Phase::Distributing,
        goal: Phase::Done,
        old_root: current.info.id(),
        new_root: found.root(),
        started: known.map_or(now, |row| row.started),
        phase_started: known.map_or(now, |row| row.phase_started),
        revision: 0,
        // Whoever is away had the root already.
        skip_away: believed || known.is_some_and(|row| row.skip_away),
    }
}

fn of_files(roots: &[(super::CaInfo, CertificateDer<'static>)]) -> Vec<Root> {
    roots.iter().map(|(info, der)| Root::of_others(info.clone(), der.clone())).collect()
}

fn put_to_use(root: Option<&mut Root>, signer: Signer, via: Vec<CertificateDer<'static>>) {
    if let Some(root) = root {
        (root.issuing, root.via, root.elsewhere) = (Some(Arc::new(signer)), via, false);
    }
}

#[cfg(test)]
mod tests;
