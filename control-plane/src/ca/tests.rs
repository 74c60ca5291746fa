use outrider_policy::{SpiffeId, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;

use super::{Authority, Lifetimes, Phase, ServerLeaf, authority::Refreshed};
use crate::{
    config::KeySource,
    store::{Author, Claim, Store},
};

const DAY: i64 = 86_400;
const NOW: i64 = 1_800_000_000;

fn lifetimes(leaf: u64) -> Lifetimes {
    Lifetimes { leaf: i64::try_from(leaf).unwrap(), issuing: 7 * DAY, root: 3650 * DAY }
}

async fn authority(dir: &TempDir, ttl: u64, now: i64) -> (Authority, Store, Claim) {
    let trust_domain = TrustDomain::new("mesh.internal").unwrap();
    let claim = Claim::new(&dir.path().join("state")).unwrap();
    let key = KeySource::Given(zeroize::Zeroizing::new([7; 32]));
    let (store, kek) = Store::open(&claim, &trust_domain, &key).await.unwrap();
    let authority = Authority::open(store.clone(), kek, trust_domain, lifetimes(ttl), None, now).await.unwrap();
    (authority, store, claim)
}

fn workload() -> SpiffeId {
    SpiffeId::new("spiffe://mesh.internal/ns/shop/sa/web").unwrap()
}

/// A CA that somebody else made.
pub(super) struct Made {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
}

/// A CA of this name, signed by another one or by itself.
pub(super) fn ca(name: &str, by: Option<&Made>) -> Made {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = match by {
        Some(by) => params.signed_by(&key, &by.issuer),
        None => params.self_signed(&key),
    };
    let pem = certificate.unwrap().pem();
    Made { issuer: Issuer::new(params, key), pem }
}

#[tokio::test]
async fn the_issuing_ca_is_renewed_at_half_of_its_life_under_another_name_and_its_old_key_is_erased() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, store, _claim) = authority(&dir, 3600, NOW).await;
    let first = authority.describe();
    assert!(!authority.refresh(NOW + 3 * DAY).await.unwrap().issuing);
    assert!(authority.refresh(NOW + 4 * DAY).await.unwrap().issuing);
    let second = authority.describe();
    assert_eq!(first[0], second[0], "the root stays");
    assert_ne!((&first[1].common_name, first[1].spki), (&second[1].common_name, second[1].spki));
    let keys = store.count("SELECT count(*) FROM ca_keys WHERE role = 'issuing' AND sealed_key IS NOT NULL").await;
    assert_eq!(keys, 1);
}

#[tokio::test]
async fn a_leaf_ends_with_its_issuer_even_when_its_lifetime_would_be_longer() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, _store, _claim) = authority(&dir, 24 * 3600, NOW).await;
    let key = KeyPair::generate().unwrap();
    let issuer_end = authority.describe()[1].not_after;
    let leaf = authority.sign_key(&key, &workload(), issuer_end - 100).unwrap();
    assert_eq!(leaf.not_after, issuer_end);
    assert!(authority.sign_key(&key, &workload(), issuer_end).is_err(), "an expired issuer signs nothing");
}

#[tokio::test]
async fn a_control_plane_that_slept_past_the_end_of_its_issuing_ca_makes_a_new_one_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let (first, store, claim) = authority(&dir, 3600, NOW).await;
    let root = first.root_pin();
    store.close().await.unwrap();
    drop(claim);
    let (second, store, _claim) = authority(&dir, 3600, NOW + 30 * DAY).await;
    assert_eq!(second.root_pin(), root);
    assert!(second.sign_key(&KeyPair::generate().unwrap(), &workload(), NOW + 30 * DAY).is_ok());
    assert!(second.describe()[1].not_after > NOW + 30 * DAY);
    drop(store);
}

#[tokio::test]
async fn a_clock_that_was_far_ahead_does_not_stop_the_mesh_when_it_is_put_right() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, _store, _claim) = authority(&dir, 3600, NOW).await;
    assert!(authority.refresh(NOW + 30 * DAY).await.unwrap().issuing);
    let (leaf, _) = ServerLeaf::make(&authority, workload(), NOW + 30 * DAY).unwrap();
    let later = NOW + DAY;
    assert!(authority.refresh(later).await.unwrap().issuing, "it would not be valid for a month");
    let info = &authority.describe()[1];
    assert!(info.not_before <= later && later < info.not_after);
    let renewed = leaf.renew(&authority, later).unwrap().remove(0);
    assert!(renewed.not_before <= later && renewed.issuer == info.common_name);
    assert_eq!(authority.refresh(later).await.unwrap(), Refreshed::default());
    assert!(leaf.renew(&authority, later).unwrap().is_empty());
    assert!(!authority.refresh(NOW - DAY).await.unwrap().issuing, "before its root no issuing CA is valid");
}

#[tokio::test]
async fn an_issuing_ca_of_another_root_is_replaced() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, store, claim) = authority(&dir, 3600, NOW).await;
    let (strange, foreign, _other_claim) = authority(&other, 3600, NOW).await;
    let strange_root = super::hex(&strange.root_pin());
    let row = foreign.issuing(&strange_root, strange.kek()).await.unwrap().unwrap();
    assert!(store.put_issuing(&row, &super::hex(&first.root_pin()), first.kek(), NOW + 1).await.unwrap());
    store.close().await.unwrap();
    drop((first, claim));
    let (again, _store, _claim) = authority(&dir, 3600, NOW + 2).await;
    assert_ne!(super::hex(&again.describe()[1].spki), row.id);
}

/// Takes a rotation from phase to phase, as the keeper does when nothing is waited for.
async fn advance(store: &Store, to: Phase) {
    let lease = store.take_lease("ca-rotation", std::time::Duration::from_secs(60)).await.unwrap().unwrap();
    while let Some(row) = store.rotation().await.unwrap().filter(|row| row.phase < to) {
        store.advance_rotation(&lease, &row, NOW).await.unwrap().unwrap();
        assert_eq!(store.advance_rotation(&lease, &row, NOW).await.unwrap(), None, "no step is made twice");
    }
}

#[tokio::test]
async fn a_rotation_changes_what_is_trusted_then_what_signs_and_then_erases_the_old_keys() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, store, _claim) = authority(&dir, 3600, NOW).await;
    let (leaf, _) = ServerLeaf::make(&authority, workload(), NOW).unwrap();
    let old = authority.root_pin();
    let root = authority.make_root(NOW).unwrap();
    let goal = (Phase::Done, false);
    assert!(store.begin_rotation(&root, goal, authority.kek(), &Author::local(), NOW).await.unwrap());
    assert!(
        !store.begin_rotation(&authority.make_root(NOW).unwrap(), goal, authority.kek(), &Author::local(), NOW).await.unwrap(),
        "one at a time"
    );
    authority.refresh(NOW).await.unwrap();
    assert_eq!(authority.roots().len(), 1, "nobody trusts it yet");

    advance(&store, Phase::Distributing).await;
    assert!(authority.refresh(NOW).await.unwrap().roots);
    assert_eq!((authority.roots().len(), authority.root_pin()), (2, old));
    assert_eq!(leaf.renew(&authority, NOW).unwrap().len(), 1, "one below each root");

    advance(&store, Phase::Issuing).await;
    authority.refresh(NOW).await.unwrap();
    assert_eq!(super::hex(&authority.root_pin()), root.id);
    let issued = authority.sign_key(&KeyPair::generate().unwrap(), &workload(), NOW).unwrap();
    assert_eq!(issued.root, root.id);
    let row = store.rotation().await.unwrap().unwrap();
    assert_eq!(store.abort_rotation(&row, &Author::local(), NOW).await.unwrap(), None, "too late");

    advance(&store, Phase::Done).await;
    authority.refresh(NOW).await.unwrap();
    assert_eq!((authority.roots().len(), authority.known_roots().len()), (1, 2));
    let keys = store.count("SELECT count(*) FROM ca_keys WHERE sealed_key IS NOT NULL").await;
    assert_eq!(keys, 2, "the old root's key and that of the CA below it are erased");
    assert!(
        store.begin_rotation(&authority.make_root(NOW).unwrap(), goal, authority.kek(), &Author::local(), NOW).await.unwrap()
    );
}

#[tokio::test]
async fn an_aborted_rotation_leaves_one_root_and_no_key_of_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, store, _claim) = authority(&dir, 3600, NOW).await;
    let old = authority.root_pin();
    let root = authority.make_root(NOW).unwrap();
    store.begin_rotation(&root, (Phase::Done, false), authority.kek(), &Author::local(), NOW).await.unwrap();
    advance(&store, Phase::Distributing).await;
    authority.refresh(NOW).await.unwrap();
    let row = store.rotation().await.unwrap().unwrap();
    assert!(store.abort_rotation(&row, &Author::local(), NOW).await.unwrap().is_some());
    authority.refresh(NOW).await.unwrap();
    assert_eq!((authority.roots().len(), authority.root_pin()), (1, old));
    assert!(store.root(&root.id, authority.kek()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_root_without_a_key_that_opens_is_not_trusted_whatever_the_store_says() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (authority, store, _claim) = authority(&dir, 3600, NOW).await;
    let (strange, ..) = authority_of(&other).await;
    let root = strange.make_root(NOW).unwrap();
    store
        .begin_rotation(&root, (Phase::Done, false), &crate::store::Kek::from_bytes(&[8; 32]), &Author::local(), NOW)
        .await
        .unwrap();
    advance(&store, Phase::Distributing).await;
    assert!(authority.refresh(NOW).await.is_err(), "it was sealed by somebody else");
    assert_eq!(authority.roots().len(), 1);
}

async fn authority_of(dir: &TempDir) -> (Authority, Store, Claim) {
    authority(dir, 3600, NOW).await
}

#[tokio::test]
async fn the_own_leaf_is_renewed_at_half_of_its_life() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, _store, _claim) = authority(&dir, 3600, NOW).await;
    let (leaf, first) = ServerLeaf::make(&authority, workload(), NOW).unwrap();
    assert!(leaf.renew(&authority, NOW + 1799).unwrap().is_empty());
    let second = leaf.renew(&authority, NOW + 1800).unwrap();
    assert_ne!(first[0].serial, second[0].serial);
    assert_eq!(leaf.renew_at(), NOW + 3600);
}

#[tokio::test]
async fn a_thousand_serials_are_all_different_and_of_full_length() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, store, _claim) = authority(&dir, 3600, NOW).await;
    let key = KeyPair::generate().unwrap();
    let serials: std::collections::BTreeSet<String> =
        (0..1000).map(|_| authority.sign_key(&key, &workload(), NOW).unwrap().serial).collect();
    assert!(serials.len() == 1000 && serials.iter().all(|serial| serial.len() == 32));
    let root = super::hex(&authority.root_pin());
    assert!(store.root(&root, &crate::store::Kek::from_bytes(&[8; 32])).await.is_err(), "another key opens nothing");
}
