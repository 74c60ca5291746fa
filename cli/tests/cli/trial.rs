//! Trying policies: replay, the gate, canaries, and going back.

use outrider_proto::v1::{
    ApplyResponse, CanaryStatus, FlipGroup, ListRevisionsResponse, RecordedRequest, ReplayResponse, ResourceChange, Revision,
    RollbackResponse, canary_status::Phase, resource_change::Change,
};
use tonic::Status;

use crate::{
    fake::{Answers, Plane, golden},
    files::POLICY,
};

fn flips() -> ReplayResponse {
    let request = |id: &str, path: &str| RecordedRequest {
        request_id: id.into(),
        time: 1_770_000_000_000_000_000,
        host: "orders.shop".into(),
        path: path.into(),
    };
    let group = FlipGroup {
        source: "spiffe://mesh.internal/ns/shop/sa/web".into(),
        destination: "shop/orders".into(),
        port: 80,
        method: "GET".into(),
        before: "allow".into(),
        rule_before: "shop/orders/web-reads".into(),
        after: "deny".into(),
        count: 3,
        requests: vec![request("r1", "/v1/orders/7"), request("r2", "/v1/orders/8"), request("r3", "/v1/orders/9")],
        ..FlipGroup::default()
    };
    ReplayResponse { replayed: 120, flips: vec![group], newly_denied: 3, ..ReplayResponse::default() }
}

#[tokio::test]
async fn a_replay_shows_what_would_flip_and_ends_well() {
    let plane = Plane::start(Answers { replay: Some(flips()), ..Answers::default() });
    let file = plane.file("p.yaml", POLICY);
    let ran = plane.outrider(&["replay", "-f", &file, "--since", "2h"]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    golden("replay.txt", &ran.out);
    assert!(plane.asked()[0].contains("since_seconds: 7200"), "{:?}", plane.asked());
    let json = plane.outrider(&["replay", "-f", &file, "-o", "json"]).await;
    let value: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((value["newlyDenied"].as_u64(), value["flips"][0]["requests"][2]["requestId"].as_str()), (Some(3), Some("r3")));
}

#[tokio::test]
async fn the_gate_refuses_what_would_deny_and_lets_through_what_would_not() {
    let applied = ApplyResponse { revision: 3, ..ApplyResponse::default() };
    let plane = Plane::start(Answers { replay: Some(flips()), apply: Some(Ok(applied.clone())), ..Answers::default() });
    let file = plane.file("p.yaml", POLICY);
    let ran = plane.outrider(&["apply", "-f", &file, "--gate-on-replay"]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("nothing was stored") && ran.out.contains("shop/web"), "{ran:?}");
    assert_eq!(plane.asked().len(), 1, "nothing but the replay was asked for");

    let harmless = ReplayResponse { replayed: 5, newly_allowed: 2, ..ReplayResponse::default() };
    let plane = Plane::start(Answers { replay: Some(harmless), apply: Some(Ok(applied)), ..Answers::default() });
    let file = plane.file("p.yaml", POLICY);
    assert_eq!(plane.outrider(&["apply", "-f", &file, "--gate-on-replay"]).await.code, 0);
    assert_eq!(plane.asked().len(), 2);
}

fn canary(phase: Phase) -> CanaryStatus {
    let change = ResourceChange { kind: "ServicePolicy".into(), name: "shop/orders".into(), change: Change::Updated.into() };
    let mut status = CanaryStatus {
        revision: 8,
        agents: 10,
        chosen: vec!["a1".into()],
        in_force: 1,
        changes: vec![change],
        ..CanaryStatus::default()
    };
    status.set_phase(phase);
    status
}

#[tokio::test]
async fn a_canary_ends_stored_or_taken_back_and_says_why() {
    let line = ["apply", "--canary", "10%", "--for", "5m", "--tolerate", "2", "-f"];
    let steps = vec![canary(Phase::Pushing), canary(Phase::Watching), canary(Phase::Promoted)];
    let plane = Plane::start(Answers { canary: steps, ..Answers::default() });
    let file = plane.file("p.yaml", POLICY);
    let ran = plane.outrider(&[&line[..], &[&file]].concat()).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.out.contains("servicepolicy shop/orders updated (revision 8)") && ran.out.contains("1 of 10 agents"),
        "{}",
        ran.out
    );
    let asked = &plane.asked()[0];
    assert!(asked.contains("percent: 10") && asked.contains("watch_seconds: 300") && asked.contains("tolerate: 2"), "{asked}");

    let mut back = canary(Phase::RolledBack);
    back.reason = "3 requests were denied that the stored policies allow, 2 are tolerated".into();
    back.examples = flips().flips.remove(0).requests;
    let plane = Plane::start(Answers { canary: vec![canary(Phase::Watching), back], ..Answers::default() });
    let file = plane.file("p.yaml", POLICY);
    let ran = plane.outrider(&[&line[..], &[&file]].concat()).await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.out.contains("newly denied: orders.shop /v1/orders/7 (request id r1)") && ran.out.contains("3 requests"),
        "{}",
        ran.out
    );

    let plane = Plane::start(Answers { canary: vec![canary(Phase::Watching)], ..Answers::default() });
    let file = plane.file("p.yaml", POLICY);
    assert_eq!(plane.outrider(&[&line[..], &[&file]].concat()).await.code, 4, "silence is not success");
}

#[tokio::test]
async fn going_back_says_what_changed_and_to_which_revision() {
    let change =
        |name: &str, change: Change| ResourceChange { kind: "ServicePolicy".into(), name: name.into(), change: change.into() };
    let changes = vec![change("shop/orders", Change::Updated), change("shop/new", Change::Deleted)];
    let answer = RollbackResponse { changes, revision: 9, restored: 7, canary_ended: false };
    let revision = Revision {
        revision: 8,
        time: 0,
        who: "spiffe://mesh.internal/operator/ann".into(),
        call: "Apply".into(),
        policies: vec!["shop/orders".into(), "shop/new".into()],
    };
    let plane = Plane::start(Answers {
        rollback: Some(Ok(answer)),
        revisions: Some(ListRevisionsResponse { revisions: vec![revision] }),
        ..Answers::default()
    });
    let ran = plane.outrider(&["rollback", "--to", "7"]).await;
    assert_eq!(ran.out, "servicepolicy shop/orders updated (revision 9)\nservicepolicy shop/new deleted (revision 9)\n");
    golden("revisions.txt", &plane.outrider(&["get", "revisions"]).await.out);

    let ended = RollbackResponse { canary_ended: true, ..RollbackResponse::default() };
    let plane = Plane::start(Answers { rollback: Some(Ok(ended)), ..Answers::default() });
    assert!(plane.outrider(&["rollback"]).await.out.contains("the canary was taken back"));
    let busy = Status::failed_precondition("a canary (revision 8) is under way: wait for its end");
    let plane = Plane::start(Answers { apply: Some(Err(busy)), ..Answers::default() });
    let file = plane.file("p.yaml", POLICY);
    let ran = plane.outrider(&["apply", "-f", &file]).await;
    assert!(ran.code == 1 && ran.err.contains("a canary (revision 8) is under way"), "{ran:?}");
}
