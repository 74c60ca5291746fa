use std::time::Duration;

use outrider_policy::{SpiffeId, TrustDomain};
use rcgen::KeyPair;
use tempfile::TempDir;

use super::{Authority, ServerLeaf};
use crate::{
    config::KeySource,
    store::{Claim, Role, Store},
};

const DAY: i64 = 86_400;
const NOW: i64 = 1_800_000_000;

async fn authority(dir: &TempDir, ttl: u64, now: i64) -> (Authority, Store, Claim) {
    let trust_domain = TrustDomain::new("mesh.internal").unwrap();
    let claim = Claim::new(&dir.path().join("state")).unwrap();
    let key = KeySource::Given(zeroize::Zeroizing::new([7; 32]));
    let (store, kek) = Store::open(&claim, &trust_domain, &key).await.unwrap();
    let authority = Authority::open(store.clone(), kek, trust_domain, Duration::from_secs(ttl), now).await.unwrap();
    (authority, store, claim)
}

fn workload() -> SpiffeId {
    SpiffeId::new("spiffe://mesh.internal/ns/shop/sa/web").unwrap()
}

#[tokio::test]
async fn the_issuing_ca_is_renewed_at_half_of_its_life_under_another_name_and_its_old_key_is_erased() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, store, _claim) = authority(&dir, 3600, NOW).await;
    let first = authority.describe();
    assert!(!authority.renew_issuing(NOW + 3 * DAY).await.unwrap());
    assert!(authority.renew_issuing(NOW + 4 * DAY).await.unwrap());
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
    assert!(authority.renew_issuing(NOW + 30 * DAY).await.unwrap());
    let (leaf, _) = ServerLeaf::make(&authority, workload(), NOW + 30 * DAY).unwrap();
    let later = NOW + DAY;
    assert!(authority.renew_issuing(later).await.unwrap(), "it would not be valid for a month");
    let info = &authority.describe()[1];
    assert!(info.not_before <= later && later < info.not_after);
    let renewed = leaf.renew(&authority, later).unwrap().unwrap();
    assert!(renewed.not_before <= later && renewed.issuer == info.common_name);
    assert!(!authority.renew_issuing(later).await.unwrap() && leaf.renew(&authority, later).unwrap().is_none());
    assert!(!authority.renew_issuing(NOW - DAY).await.unwrap(), "before its root no issuing CA is valid");
}

#[tokio::test]
async fn an_issuing_ca_of_another_root_is_replaced() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, store, claim) = authority(&dir, 3600, NOW).await;
    let (_, foreign, _other_claim) = authority(&other, 3600, NOW).await;
    let kek = crate::store::Kek::from_bytes(&[7; 32]);
    let row = foreign.ca(Role::Issuing, &kek).await.unwrap().unwrap();
    store.put_ca(&row, &kek, NOW + 1).await.unwrap();
    store.close().await.unwrap();
    drop((first, claim));
    let (again, _store, _claim) = authority(&dir, 3600, NOW + 2).await;
    assert_ne!(super::hex(&again.describe()[1].spki), row.id);
}

#[tokio::test]
async fn the_own_leaf_is_renewed_at_half_of_its_life() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, _store, _claim) = authority(&dir, 3600, NOW).await;
    let (leaf, first) = ServerLeaf::make(&authority, workload(), NOW).unwrap();
    assert!(leaf.renew(&authority, NOW + 1799).unwrap().is_none());
    let second = leaf.renew(&authority, NOW + 1800).unwrap().unwrap();
    assert_ne!(first.serial, second.serial);
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
    assert!(store.ca(Role::Root, &crate::store::Kek::from_bytes(&[8; 32])).await.is_err(), "another key opens nothing");
}
