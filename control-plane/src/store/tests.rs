use std::process::Command;

use outrider_policy::{SpiffeId, TrustDomain};
use tempfile::TempDir;

use super::{CertificateRow, Claim, DecisionRow, Redeem, Store, StoreError, TokenRow, Written};
use crate::config::KeySource;

async fn store(dir: &TempDir) -> (Store, Claim) {
    let claim = Claim::new(&dir.path().join("state")).unwrap();
    let key = KeySource::File(dir.path().join("key"));
    let (store, _) = Store::open(&claim, &TrustDomain::new("mesh.internal").unwrap(), &key).await.unwrap();
    (store, claim)
}

fn decision(request: usize, denied: bool) -> DecisionRow {
    DecisionRow { request_id: format!("r{request}"), destination: "shop/orders".into(), denied, record: vec![u8::from(denied)] }
}

#[tokio::test]
async fn the_ring_of_decisions_drops_old_allows_first_and_denials_last() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _claim) = store(&dir).await;
    let batch: Vec<DecisionRow> = (0..100).map(|request| decision(request, request % 4 == 0)).collect();
    store.put_decisions(&batch).await.unwrap();
    assert_eq!(store.prune_decisions(50, i64::MAX).await.unwrap(), 50);
    let denials = store.decisions(1000, true, "").await.unwrap().len();
    assert_eq!((denials, store.decisions(1000, false, "").await.unwrap().len()), (25, 50));
    assert!(store.decisions_of("r1").await.unwrap().is_empty(), "the oldest allow is gone");
    store.prune_decisions(10, i64::MAX).await.unwrap();
    assert_eq!(store.decisions(1000, true, "").await.unwrap().len(), 10);
    assert_eq!(store.decisions_of("r96").await.unwrap().len(), 1, "the newest denial stays");
}

#[tokio::test]
async fn the_ring_is_bounded_in_bytes_too_and_strangers_do_not_push_denials_out() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _claim) = store(&dir).await;
    let sized = |request, denied, stranger: bool| DecisionRow {
        destination: if stranger { String::new() } else { "shop/orders".to_owned() },
        record: vec![0; 1000],
        ..decision(request, denied)
    };
    let rows =
        [sized(0, true, false), sized(1, false, false), sized(2, true, true), sized(3, false, false), sized(4, true, true)];
    store.put_decisions(&rows).await.unwrap();
    let left = async || {
        let rows: Vec<(String,)> =
            sqlx::query_as("SELECT request_id FROM decisions ORDER BY seq").fetch_all(store.readers()).await.unwrap();
        rows.into_iter().map(|(id,)| id).collect::<Vec<_>>()
    };
    assert_eq!(store.prune_decisions(100, 4500).await.unwrap(), 1);
    assert_eq!(left().await, ["r0", "r2", "r3", "r4"]);
    assert_eq!(store.prune_decisions(100, 2000).await.unwrap(), 2);
    assert_eq!(left().await, ["r0", "r4"], "the last allow, then the older stranger");
    store.prune_decisions(1, i64::MAX).await.unwrap();
    assert_eq!(left().await, ["r0"], "the denial of a known caller stays longest");
    assert_eq!(store.prune_decisions(1, 1000).await.unwrap(), 0);
}

#[tokio::test]
async fn every_write_has_one_revision_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _claim) = store(&dir).await;
    let put = |names: &[&str]| Written {
        puts: names.iter().map(|name| ("shop".to_owned(), (*name).to_owned(), "{}".to_owned())).collect(),
        deletes: Vec::new(),
    };
    assert_eq!(store.write_policies(&put(&["a", "b"]), "Apply", 0, 1).await.unwrap(), 1);
    assert_eq!(store.write_policies(&put(&["b"]), "Apply", 0, 1).await.unwrap(), 2);
    let delete = Written { puts: Vec::new(), deletes: vec![("shop".to_owned(), "a".to_owned())] };
    assert_eq!(store.write_policies(&delete, "Delete", 0, 1).await.unwrap(), 3);
    let rows = store.policies().await.unwrap();
    assert_eq!(rows.iter().map(|row| (row.name.as_str(), row.revision)).collect::<Vec<_>>(), [("b", 2)]);
    let trail: i64 = sqlx::query_scalar("SELECT count(*) FROM audit").fetch_one(store.readers()).await.unwrap();
    assert_eq!((trail, store.revision().await.unwrap()), (4, 3));
}

#[tokio::test]
async fn a_token_that_is_used_up_in_between_leaves_no_certificate_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _claim) = store(&dir).await;
    let identity = SpiffeId::new("spiffe://mesh.internal/ns/shop/sa/web").unwrap();
    store.put_token(&[1; 32], &TokenRow { identity: identity.clone(), expires: 100, used_at: None }, &[], 0, 1).await.unwrap();
    let row = |serial: &str| CertificateRow {
        serial: serial.to_owned(),
        identity: identity.to_string(),
        not_before: 0,
        not_after: 100,
        evidence: "join-token".to_owned(),
        issuer: "ca".to_owned(),
        agent_id: String::new(),
        replaced_by: None,
    };
    store.issued(&row("01"), &Redeem::Token([1; 32]), 2).await.unwrap();
    let again = store.issued(&row("02"), &Redeem::Token([1; 32]), 3).await;
    assert!(matches!(again, Err(StoreError::TokenUsed)));
    assert!(store.certificate("01").await.unwrap().is_some() && store.certificate("02").await.unwrap().is_none());
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (first, claim) = store(&dir).await;
    sqlx::raw_sql("PRAGMA user_version = 99").execute(&first.writer).await.unwrap();
    first.close().await.unwrap();
    let key = KeySource::File(dir.path().join("key"));
    let error = Store::open(&claim, &TrustDomain::new("mesh.internal").unwrap(), &key).await.unwrap_err().to_string();
    assert!(error.contains("schema 99"), "{error}");
}

/// A file system of one megabyte; `None` where this user may not mount one.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs"]).arg(dir.path()).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a store that still has a file open there lets go of it later.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[tokio::test]
async fn a_full_disk_fails_the_writes_that_it_fails_and_no_later_one() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("SKIPPED: a full disk cannot be had, this user may not mount one");
        return;
    };
    let (store, _claim) = store(&disk.0).await;
    let put = |bytes: usize| Written {
        puts: vec![("shop".to_owned(), "a".to_owned(), format!("{{\"x\":\"{}\"}}", "x".repeat(bytes)))],
        deletes: Vec::new(),
    };
    store.write_policies(&put(10), "Apply", 0, 1).await.unwrap();
    let filler = disk.0.path().join("filler");
    let _ = std::fs::write(&filler, vec![0; 2 << 20]);
    let mut failed = 0;
    for bytes in [10, 100_000, 10, 2000, 50_000, 10] {
        failed += usize::from(store.write_policies(&put(bytes), "Apply", 0, 1).await.is_err());
    }
    assert!(failed > 0, "the disk was not full");
    std::fs::remove_file(&filler).unwrap();
    let before = store.revision().await.unwrap();
    assert_eq!(store.write_policies(&put(1000), "Apply", 0, 1).await.unwrap(), before + 1);
    assert_eq!(store.write_policies(&put(10), "Apply", 0, 1).await.unwrap(), before + 2);
    store.close().await.unwrap();
}
