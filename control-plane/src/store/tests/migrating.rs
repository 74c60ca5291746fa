//! Stores that move to another database.

use super::*;
use crate::{
    ca::Phase,
    store::{MigrateError, Moved, RevocationRow, migrate},
};

fn at(place: &Place) -> crate::store::Place {
    match &place.backend {
        Backend::Sqlite => crate::store::Place::Sqlite(place.dir.path().join("state/store.db")),
        Backend::Postgres(url) => crate::store::Place::Postgres(url.clone()),
    }
}

/// Something in every table.
async fn fill(store: &Store, kek: &Kek) {
    for number in 1..=40 {
        token(store, number).await;
        store.issued(&leaf(&format!("{number:02}")), &Redeem::Token([number; 32]), 2).await.unwrap();
    }
    store.issued(&leaf("renewed"), &Redeem::Certificate("07".into()), 3).await.unwrap();
    let written = Written { puts: vec![("shop".into(), "a".into(), "{\"naïve\":\"→\"}".into())], deletes: Vec::new() };
    store.write_policies(&written, 0, Deed { author: &Author::local(), call: "Apply", subject: "" }, 1).await.unwrap();
    store.put_decisions(&(0..450).map(|number| decision(number, number % 3 == 0)).collect::<Vec<_>>()).await.unwrap();
    let key = zeroize::Zeroizing::new(vec![7; 40]);
    store.found(&CaRow { id: "root".into(), role: Role::Root, certificate: vec![0, 255], key }, kek, 1).await.unwrap();
    let row = RevocationRow {
        subject: "aa".into(),
        identity: identity().to_string(),
        reason: "lost".into(),
        created: 1,
        ends: Some(9),
    };
    store.revoke(&row, &Author::local()).await.unwrap().unwrap();
    let next = CaRow { id: "next".into(), role: Role::Root, certificate: vec![1], key: zeroize::Zeroizing::new(vec![8]) };
    assert!(store.begin_rotation(&next, (Phase::Done, false), kek, &Author::local(), 1).await.unwrap());
    store.heartbeat("a:1").await.unwrap();
}

#[tokio::test]
async fn a_store_moves_to_postgres_and_back_whole_and_the_source_is_not_touched() {
    let (old, new) = (Place::sqlite(), Place::postgres());
    let (store, claim, kek) = old.try_open_as("solo").await.unwrap();
    fill(&store, &kek).await;
    store.farewell().await.unwrap();
    assert!(matches!(migrate(&at(&old), &at(&new), |_, _| {}).await, Err(MigrateError::InUse(_))), "while it runs");
    store.close().await.unwrap();
    drop(claim);
    let file = old.dir.path().join("state/store.db");
    let before = std::fs::read(&file).unwrap();
    let (mut steps, mut last) = (0, (0, 0));
    let moved = migrate(&at(&old), &at(&new), |done, all| (steps, last) = (steps + 1, (done, all))).await.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert!(steps > 5 && last.0 == last.1, "{steps} {last:?}");
    assert!(moved.contains(&Moved { table: "decisions".into(), rows: 450 }), "{moved:?}");
    assert!(moved.iter().all(|one| one.table != "leases"));
    assert!(matches!(migrate(&at(&old), &at(&new), |_, _| {}).await, Err(MigrateError::NotEmpty(_))), "twice");
    // The key of before opens it, and it goes on where it was.
    std::fs::copy(old.dir.path().join("key"), new.dir.path().join("key")).unwrap();
    let (store, claim, kek) = new.try_open_as("solo").await.unwrap();
    assert_eq!(store.root("root", &kek).await.unwrap().unwrap().key.as_slice(), [7; 40]);
    assert_eq!(store.certificate("07").await.unwrap().unwrap().replaced_by.as_deref(), Some("renewed"));
    assert_eq!(store.mesh().await.unwrap().1[0].json, "{\"naïve\":\"→\"}");
    let batch = [decision(999, true)];
    store.put_decisions(&batch).await.unwrap();
    assert_eq!(store.decisions(1, true, "").await.unwrap(), [batch[0].record.clone()], "places are counted on");
    store.heartbeat("b:1").await.unwrap();
    let back = Place::sqlite();
    assert!(matches!(migrate(&at(&new), &at(&back), |_, _| {}).await, Err(MigrateError::InUse(_))), "while it runs");
    store.farewell().await.unwrap();
    store.close().await.unwrap();
    drop(claim);
    let moved = migrate(&at(&new), &at(&back), |_, _| {}).await.unwrap();
    assert!(moved.contains(&Moved { table: "decisions".into(), rows: 451 }), "{moved:?}");
    std::fs::copy(old.dir.path().join("key"), back.dir.path().join("key")).unwrap();
    let (store, _claim, kek) = back.try_open_as("solo").await.unwrap();
    assert_eq!(store.root("root", &kek).await.unwrap().unwrap().id, "root");
    assert_eq!(store.grants(&identity()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_no_store_is_not_moved() {
    let (nothing, target) = (Place::sqlite(), Place::postgres());
    assert!(matches!(migrate(&at(&nothing), &at(&target), |_, _| {}).await, Err(MigrateError::NoSource(_))));
    let empty = Place::postgres();
    assert!(matches!(migrate(&at(&empty), &at(&target), |_, _| {}).await, Err(MigrateError::Open(OpenError::Foreign { .. }))));
    for wrong in ["", "sqlite:", "/var/lib", "mysql://a/b", "file:/nowhere"] {
        assert!(crate::store::Place::parse(wrong).is_err(), "{wrong}");
    }
    assert_eq!(crate::store::Place::parse("sqlite:/var/lib/outrider").unwrap().to_string(), "/var/lib/outrider/store.db");
}
