use std::path::Path;

use outrider_policy::{SpiffeId, TrustDomain};
use rcgen::KeyPair;
use tempfile::TempDir;

use super::*;
use crate::{
    ca::{
        CaFiles, Lifetimes, ServerLeaf,
        tests::{Made, ca},
    },
    config::KeySource,
    store::{Claim, Store},
};

const NOW: i64 = 1_800_000_000;

/// A root and the CA below it.
struct House {
    root: Made,
    issuing: Made,
}

impl House {
    fn new(name: &str) -> Self {
        let root = ca(&format!("{name} root"), None);
        let issuing = ca(name, Some(&root));
        Self { root, issuing }
    }

    /// Writes its files, with these roots in the bundle.
    fn mount(&self, dir: &TempDir, bundle: &[&Self]) {
        let files = files(dir.path());
        std::fs::write(files.certificate, &self.issuing.pem).unwrap();
        std::fs::write(files.key, self.issuing.issuer.key().serialize_pem()).unwrap();
        std::fs::write(files.bundle, bundle.iter().map(|house| house.root.pem.as_str()).collect::<String>()).unwrap();
    }
}

fn files(dir: &Path) -> CaFiles {
    CaFiles { certificate: dir.join("tls.crt"), key: dir.join("tls.key"), bundle: dir.join("ca.crt") }
}

/// Starts; what ran before was killed.
async fn start(dir: &TempDir) -> (Authority, Store, Claim) {
    let trust_domain = TrustDomain::new("mesh.internal").unwrap();
    let claim = Claim::new(&dir.path().join("state")).unwrap();
    let key = KeySource::Given(zeroize::Zeroizing::new([7; 32]));
    let (store, kek) = Store::open(&claim, &trust_domain, &key).await.unwrap();
    let lifetimes = Lifetimes { leaf: 3600, issuing: 86_400, root: 8_640_000 };
    let authority = Authority::open(store.clone(), kek, trust_domain, lifetimes, Some(files(dir.path())), NOW).await.unwrap();
    (authority, store, claim)
}

fn names(authority: &Authority) -> Vec<String> {
    authority.keys.load().roots.iter().map(|root| root.info.common_name.replace(" root", "")).collect()
}

/// Who signs leaves, and who signs our own for those that believe nobody else.
fn signers(authority: &Authority) -> Vec<String> {
    authority.lines().into_iter().map(|line| line.issuing).collect()
}

fn phase(authority: &Authority) -> Option<Phase> {
    authority.handover().map(|row| row.phase)
}

async fn going_keys(store: &Store) -> i64 {
    store.count("SELECT count(*) FROM ca_handovers WHERE sealed_key IS NOT NULL").await
}

#[tokio::test]
async fn a_change_of_mounted_files_goes_on_where_it_was_when_a_lone_control_plane_is_killed_in_any_phase() {
    let (dir, old, new) = (tempfile::tempdir().unwrap(), House::new("old"), House::new("new"));
    old.mount(&dir, &[&old]);
    let (authority, store, claim) = start(&dir).await;
    new.mount(&dir, &[&new]);
    authority.refresh(NOW + 1).await.unwrap();
    let began = authority.handover().unwrap();
    assert_eq!((names(&authority), signers(&authority)), (vec!["old".into(), "new".into()], vec!["old".into()]));
    drop((authority, store, claim));

    // Killed while agents hear of the new root: the old one signs, though its files are gone.
    let (authority, store, claim) = start(&dir).await;
    assert_eq!((names(&authority), signers(&authority)), (vec!["old".into(), "new".into()], vec!["old".into()]));
    assert_eq!(authority.handover(), Some(began.clone()));
    let identity = SpiffeId::new("spiffe://mesh.internal/ns/shop/sa/web").unwrap();
    let leaf = authority.sign_key(&KeyPair::generate().unwrap(), &identity, NOW + 2).unwrap();
    assert_eq!((leaf.issuer.as_str(), leaf.root.as_str()), ("old", began.old_root.as_str()));
    assert_eq!(leaf.chain.len(), 2);
    authority.advance_handover(NOW + 10).await.unwrap();
    assert_eq!(signers(&authority), ["new", "old"]);
    drop((authority, store, claim));

    // Killed while agents renew: the new one signs, and whoever believes only the old one finds its way.
    let (authority, store, claim) = start(&dir).await;
    assert_eq!((names(&authority), signers(&authority)), (vec!["new".into(), "old".into()], vec!["new".into(), "old".into()]));
    let row = authority.handover().unwrap();
    assert_eq!((row.phase, row.phase_started, row.skip_away), (Phase::Proving, NOW + 10, true), "the ten minutes go on");
    let (_, leaves) = ServerLeaf::make(&authority, identity, NOW + 11).unwrap();
    assert_eq!(leaves.iter().map(|leaf| leaf.issuer.as_str()).collect::<Vec<_>>(), ["new", "old"]);
    assert_eq!(going_keys(&store).await, 1);
    authority.advance_handover(NOW + 20).await.unwrap();
    assert_eq!((names(&authority), phase(&authority)), (vec!["new".into()], Some(Phase::Done)));
    assert_eq!(going_keys(&store).await, 0, "its key is erased");
    drop((authority, store, claim));

    let (authority, _store, _claim) = start(&dir).await;
    assert_eq!((names(&authority), signers(&authority)), (vec!["new".into()], vec!["new".into()]));
    assert_eq!(phase(&authority), Some(Phase::Done));
}

#[tokio::test]
async fn files_that_went_back_or_moved_on_while_nobody_looked_end_the_change_and_bad_ones_do_not() {
    let (dir, old, new, third) = (tempfile::tempdir().unwrap(), House::new("old"), House::new("new"), House::new("third"));
    old.mount(&dir, &[&old]);
    let (authority, store, claim) = start(&dir).await;
    new.mount(&dir, &[&new]);
    authority.refresh(NOW).await.unwrap();
    drop((authority, store, claim));
    // The CA that goes signs on also while what takes its place cannot be read.
    std::fs::write(files(dir.path()).key, "nothing").unwrap();
    let (authority, store, claim) = start(&dir).await;
    authority.shown(7);
    authority.advance_handover(NOW).await.unwrap();
    assert_eq!((names(&authority), phase(&authority)), (vec!["old".into()], Some(Phase::Distributing)));
    old.mount(&dir, &[&old]);
    authority.refresh(NOW).await.unwrap();
    assert_eq!((names(&authority), phase(&authority), going_keys(&store).await), (vec!["old".into()], None, 0));
    new.mount(&dir, &[&new]);
    authority.refresh(NOW).await.unwrap();
    drop((authority, store, claim));
    old.mount(&dir, &[&old]);
    let (authority, store, claim) = start(&dir).await;
    assert_eq!((names(&authority), phase(&authority), going_keys(&store).await), (vec!["old".into()], None, 0));
    new.mount(&dir, &[&new]);
    authority.refresh(NOW).await.unwrap();
    authority.advance_handover(NOW).await.unwrap();
    drop((authority, store, claim));
    third.mount(&dir, &[&third]);
    let (authority, store, _claim) = start(&dir).await;
    assert_eq!((names(&authority), phase(&authority), going_keys(&store).await), (vec!["third".into()], None, 0));
}

#[tokio::test]
async fn a_second_change_of_the_files_drops_no_root_whose_leaves_are_still_held_and_a_third_ca_waits_for_its_turn() {
    let (dir, old, new, third) = (tempfile::tempdir().unwrap(), House::new("old"), House::new("new"), House::new("third"));
    old.mount(&dir, &[&old]);
    let (authority, _store, _claim) = start(&dir).await;
    new.mount(&dir, &[&new]);
    authority.refresh(NOW).await.unwrap();
    authority.advance_handover(NOW).await.unwrap();
    assert_eq!(names(&authority), ["new", "old"]);
    // The bundle alone changes, to and fro.
    for bundle in [&[&new, &third][..], &[&new, &old], &[&new]] {
        new.mount(&dir, bundle);
        authority.refresh(NOW).await.unwrap();
        assert!(names(&authority).contains(&"old".into()), "{:?}", names(&authority));
        assert_eq!(signers(&authority), ["new", "old"]);
        assert_eq!(phase(&authority), Some(Phase::Proving));
    }
    // Another CA altogether: the one under way comes to its end first.
    third.mount(&dir, &[&third]);
    authority.refresh(NOW).await.unwrap();
    assert_eq!((names(&authority), phase(&authority)), (vec!["new".into(), "old".into()], Some(Phase::Proving)));
    authority.advance_handover(NOW).await.unwrap();
    assert_eq!((names(&authority), phase(&authority)), (vec!["new".into()], Some(Phase::Done)));
    authority.refresh(NOW).await.unwrap();
    assert_eq!((names(&authority), phase(&authority)), (vec!["new".into(), "third".into()], Some(Phase::Distributing)));
}

#[tokio::test]
async fn who_is_away_is_skipped_only_with_an_entry_that_says_so_and_no_step_is_made_that_is_not_stored() {
    let (dir, old, new) = (tempfile::tempdir().unwrap(), House::new("old"), House::new("new"));
    old.mount(&dir, &[&old]);
    let (authority, store, claim) = start(&dir).await;
    let ann = Author::new("ann".to_owned(), "admin", "there".to_owned());
    assert!(authority.skip_away(&ann, NOW).await.unwrap().is_none(), "nothing is under way");
    store.meddle("ALTER TABLE audit_log RENAME TO away").await;
    new.mount(&dir, &[&new]);
    assert!(authority.refresh(NOW).await.is_err());
    assert_eq!((names(&authority), phase(&authority)), (vec!["old".into()], None));
    store.meddle("ALTER TABLE away RENAME TO audit_log").await;
    authority.refresh(NOW).await.unwrap();
    assert_eq!(phase(&authority), Some(Phase::Distributing), "it is tried again");

    store.meddle("ALTER TABLE audit_log RENAME TO away").await;
    assert!(authority.skip_away(&ann, NOW).await.is_err());
    assert!(!authority.handover().unwrap().skip_away && !ann.has_entered(), "they are still waited for");
    assert!(authority.advance_handover(NOW).await.is_err());
    assert_eq!((phase(&authority), signers(&authority)), (Some(Phase::Distributing), vec!["old".into()]));
    store.meddle("ALTER TABLE away RENAME TO audit_log").await;
    assert!(authority.skip_away(&ann, NOW).await.unwrap().unwrap().skip_away && ann.has_entered());
    let entry = store.audit_log(0, 1).await.unwrap().remove(0);
    assert_eq!((entry.who.as_str(), entry.call.as_str()), ("ann", "RotateCa"));
    drop((authority, store, claim));
    let (authority, ..) = start(&dir).await;
    assert!(authority.handover().unwrap().skip_away, "and it is remembered");
}
