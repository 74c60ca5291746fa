//! How far a replica is from one mounted CA to the next.

use super::{super::GoingRow, *};
use crate::store::RotationRow;

fn row(phase: Phase) -> RotationRow {
    RotationRow {
        phase,
        goal: Phase::Done,
        old_root: "old".into(),
        new_root: "new".into(),
        started: 1,
        phase_started: 2,
        revision: 0,
        skip_away: false,
    }
}

fn going() -> GoingRow {
    let der = || {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default().self_signed(&key).unwrap().der().to_vec()
    };
    GoingRow { chain: vec![der(), der()], key: zeroize::Zeroizing::new(vec![7; 40]) }
}

on_both! {
    #[tokio::test]
    async fn the_ca_that_goes_is_kept_sealed_by_each_replica_for_itself_and_erased_at_the_end(place) {
        let (store, _claim, kek) = place.try_open_as("solo").await.unwrap();
        let (own, other) = (going(), store.as_replica("other"));
        assert!(store.handover(&kek).await.unwrap().is_none());
        store.begin_handover(&row(Phase::Distributing), &own, &kek, 1).await.unwrap();
        other.begin_handover(&row(Phase::Distributing), &going(), &kek, 1).await.unwrap();
        let (read, kept) = store.handover(&kek).await.unwrap().unwrap();
        let kept = kept.unwrap();
        assert_eq!((read, &kept.chain, kept.key.as_slice()), (row(Phase::Distributing), &own.chain, own.key.as_slice()));
        assert!(store.handover(&Kek::from_bytes(&[9; 32])).await.is_err(), "under another key it does not open");
        store.skip_away_in_handover(&Author::local(), 1).await.unwrap();
        let (read, _) = store.handover(&kek).await.unwrap().unwrap();
        assert_eq!(read, RotationRow { skip_away: true, ..row(Phase::Distributing) });
        store.advance_handover(&row(Phase::Done), 1).await.unwrap();
        let (read, kept) = store.handover(&kek).await.unwrap().unwrap();
        assert!(read.phase == Phase::Done && kept.is_none());
        let (read, kept) = other.handover(&kek).await.unwrap().unwrap();
        assert!(!read.skip_away && kept.is_some(), "another replica's own");
        other.forget_handover().await.unwrap();
        assert!(other.handover(&kek).await.unwrap().is_none());
        // A chain that somebody changed is not that of the key.
        let forged = going().chain.concat();
        store.begin_handover(&row(Phase::Distributing), &own, &kek, 1).await.unwrap();
        sql("UPDATE ca_handovers SET chain = $1").bind(forged).run(&store.writer).await.unwrap();
        assert!(store.handover(&kek).await.is_err());
    }

    #[tokio::test]
    async fn no_key_stays_of_a_replica_that_never_comes_back(place) {
        let (store, _claim, kek) = place.try_open_as("solo").await.unwrap();
        let (gone, late) = (store.as_replica("gone"), store.as_replica("late"));
        for replica in [&store, &gone, &late] {
            replica.heartbeat("a:1").await.unwrap();
            replica.begin_handover(&row(Phase::Distributing), &going(), &kek, 1).await.unwrap();
        }
        gone.farewell().await.unwrap();
        let lease = store.take_lease("prune", Duration::from_secs(60)).await.unwrap().unwrap();
        store.prune_handovers(&lease, 2).await.unwrap();
        assert!(gone.handover(&kek).await.unwrap().is_some(), "it may only have stopped for a moment");
        store.prune_handovers(&lease, 3).await.unwrap();
        assert!(gone.handover(&kek).await.unwrap().is_none());
        assert!(store.handover(&kek).await.unwrap().is_some() && late.handover(&kek).await.unwrap().is_some());
    }
}
