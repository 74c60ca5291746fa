//! In short what `cargo xtask soak` does in long.

use std::time::Duration;

use outrider_tests::{
    Outcome,
    soak::{RotationPlan, rotation},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaves_issuing_cas_and_the_trust_anchor_change_while_replicas_are_killed_and_no_request_fails() -> Outcome {
    let plan = RotationPlan {
        requests: 2_000,
        renewals: 10,
        connections: 2,
        replicas: 2,
        rate: None,
        leaf_ttl: "20s",
        issuing_ttl: "40s",
        patience: Duration::from_secs(180),
    };
    let seen = rotation(plan, |_, _| {}).await;
    println!("{seen:?}");
    assert_eq!((seen.failed, seen.first_failure.as_deref()), (0, None));
    assert!(
        seen.anchor_changed && seen.old_root_refused && seen.kills >= 2 && seen.renewals >= 10 && seen.issuing_cas > 0,
        "{seen:?}"
    );
    Ok(())
}
