//! Revoking, and the change of the trust anchor, as operators see them.

use outrider_proto::v1::{CaRotation, CaStatus, Laggard, RevokeResponse, RolloutStatus, StatusResponse, ca_rotation::Phase};

use crate::fake::{Answers, Plane};

const WEB: &str = "spiffe://mesh.internal/ns/shop/sa/web";

fn rollout(agents: u32, in_force: u32, done: bool) -> RolloutStatus {
    RolloutStatus { revision: 7, agents, in_force, laggards: vec![], done }
}

#[tokio::test]
async fn revoking_tells_whom_it_hit_and_waits_for_the_agents() {
    let revoke = Some(Ok(RevokeResponse { revision: 7, subject: WEB.into(), identity: WEB.into() }));
    let answers =
        Answers { revoke: revoke.clone(), rollout: vec![rollout(2, 1, false), rollout(2, 2, true)], ..Answers::default() };
    let plane = Plane::start(answers);
    let ran = plane.outrider(&["certs", "revoke", "shop/web", "--reason", "laptop stolen"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "shop/web revoked (revision 7)\nin force at all 2 agents\n"), "{ran:?}");
    assert!(plane.asked()[0].contains("laptop stolen"));
    let ran = plane.outrider(&["certs", "revoke", "shop/web"]).await;
    assert_eq!(ran.code, 2, "a reason is needed: {ran:?}");

    let plane = Plane::start(Answers { revoke, rollout: vec![rollout(2, 1, false)], stays_open: true, ..Answers::default() });
    let ran = plane.outrider(&["certs", "unrevoke", "shop/web", "--timeout", "200ms"]).await;
    assert_eq!(ran.code, 4, "{ran:?}");
    let ran = plane.outrider(&["certs", "unrevoke", "shop/web", "--no-wait", "-o", "json"]).await;
    assert_eq!(ran.code, 0);
    let told: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&told["revision"], &told["rollout"]), (&7.into(), &serde_json::Value::Null));
}

fn step(phase: Phase, done: u32, reached: bool) -> CaRotation {
    let laggard = Laggard { agent_id: "a1".into(), identity: WEB.into(), reason: String::new() };
    CaRotation {
        phase: phase.into(),
        goal: Phase::Done.into(),
        agents: 2,
        done,
        laggards: if done == 2 { vec![] } else { vec![laggard] },
        waiting: vec![],
        reached,
        ..CaRotation::default()
    }
}

#[tokio::test]
async fn a_rotation_is_followed_through_its_phases_and_who_is_waited_for_is_named() {
    let steps = vec![step(Phase::Distributing, 1, false), step(Phase::Proving, 2, false), step(Phase::Done, 2, true)];
    let plane = Plane::start(Answers { ca_rotation: steps, ..Answers::default() });
    let ran = plane.outrider(&["ca", "rotate"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("done") && ran.out.contains("the old root is believed by nobody"), "{ran:?}");

    let steps = vec![step(Phase::Proving, 1, false)];
    let plane = Plane::start(Answers { ca_rotation: steps, stays_open: true, ..Answers::default() });
    let ran = plane.outrider(&["ca", "rotate", "--timeout", "200ms"]).await;
    assert_eq!(ran.code, 4);
    assert!(ran.out.contains("1 of 2 followed") && ran.out.contains("shop/web"), "{ran:?}");
    assert!(ran.err.contains("it goes on"), "{ran:?}");
}

#[tokio::test]
async fn the_state_of_the_authority_is_shown_with_and_without_a_rotation() {
    let ca = |role: &str, signs| CaStatus { role: role.into(), common_name: format!("the {role}"), signs, ..CaStatus::default() };
    let status =
        StatusResponse { certificate_authorities: vec![ca("root", true), ca("root", false)], ..StatusResponse::default() };
    let plane = Plane::start(Answers { status: Some(status.clone()), ..Answers::default() });
    let ran = plane.outrider(&["ca", "status", "-o", "json"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let told: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((told["certificateAuthorities"].as_array().unwrap().len(), &told["rotation"]), (2, &serde_json::Value::Null));

    let steps = vec![step(Phase::Distributing, 1, false)];
    let plane = Plane::start(Answers { status: Some(status), ca_rotation: steps, ..Answers::default() });
    let ran = plane.outrider(&["ca", "status"]).await;
    for part in ["signs", "trusted", "distributing", "both roots", "1 of 2 followed", "shop/web"] {
        assert!(ran.out.contains(part), "{part}: {ran:?}");
    }
}
