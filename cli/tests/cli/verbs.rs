//! The real `outrider` against a fake control plane: what is asked, what is shown, and the exit code.

use crate::fake::{Answers, Plane, golden, outrider};
use outrider_proto::v1::{diagnostic::Severity, resource_change::Change, *};

const POLICY: &str = "kind: ServicePolicy\nmetadata: { name: orders, namespace: shop }\nspec: { authorisation: {} }\n";

fn applied(change: Change) -> Option<Result<ApplyResponse, tonic::Status>> {
    let change = ResourceChange { kind: "ServicePolicy".into(), name: "shop/orders".into(), change: change.into() };
    Some(Ok(ApplyResponse { diagnostics: vec![], changes: vec![change], revision: 12 }))
}

fn step(agents: u32, in_force: u32, reason: Option<&str>, done: bool) -> RolloutStatus {
    let laggard = |reason: &str| Laggard {
        agent_id: "agent-1".into(),
        identity: "spiffe://mesh.internal/ns/shop/sa/orders".into(),
        reason: reason.into(),
    };
    RolloutStatus { revision: 12, agents, in_force, laggards: reason.map(laggard).into_iter().collect(), done }
}

#[tokio::test]
async fn apply_says_what_changed_and_at_which_revision() {
    let plane = Plane::start(Answers { apply: applied(Change::Created), ..Answers::default() });
    let file = plane.file("p.yaml", POLICY);
    let ran = plane.outrider(&["apply", "-f", &file]).await;
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "servicepolicy shop/orders created (revision 12)\n", ""));
    assert!(plane.asked()[0].contains("dry_run: false") && plane.asked()[0].contains("p.yaml"));
}

#[tokio::test]
async fn apply_reads_standard_input_and_says_what_a_dry_run_would_do() {
    let plane = Plane::start(Answers { apply: applied(Change::Updated), ..Answers::default() });
    let ran = plane.outrider_reading(&["apply", "-f", "-", "--dry-run"], POLICY).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "servicepolicy shop/orders would be updated\n"), "{ran:?}");
    assert!(plane.asked()[0].contains("<stdin>") && plane.asked()[0].contains("dry_run: true"));
}

#[tokio::test]
async fn apply_shows_every_mistake_with_its_line_and_stores_nothing() {
    let diagnostic = |severity: Severity, line, column, message: &str, help: &str| Diagnostic {
        severity: severity.into(),
        source: String::new(),
        line,
        column,
        message: message.into(),
        help: help.into(),
    };
    let mut diagnostics = vec![
        diagnostic(Severity::Error, 3, 9, "unknown field `authorisation`", "did you mean `authorization`?"),
        diagnostic(Severity::Warning, 2, 11, "the policy has no rules: everything is denied", ""),
    ];
    let plane_of = |diagnostics: &[Diagnostic]| {
        let answer = ApplyResponse { diagnostics: diagnostics.to_vec(), changes: vec![], revision: 11 };
        Plane::start(Answers { apply: Some(Ok(answer)), ..Answers::default() })
    };
    // The control plane echoes the name of the file, so the fake has to know it first.
    let file = std::env::temp_dir().join(format!("outrider-cli-{}.yaml", std::process::id()));
    std::fs::write(&file, POLICY).unwrap();
    diagnostics.iter_mut().for_each(|one| one.source = file.display().to_string());
    let plane = plane_of(&diagnostics);
    let path = file.display().to_string();
    let ran = plane.outrider(&["apply", "-f", &path, "--wait"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    golden("apply-refused.txt", &ran.err.replace(&path, "p.yaml"));
    assert_eq!(plane.asked().len(), 1, "what was refused is not waited for");

    let ran = plane.outrider(&["apply", "-f", &path, "-o", "json"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (1, ""));
    golden("apply-refused.json", &ran.out.replace(&path, "p.yaml"));
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn apply_wait_returns_when_every_agent_has_it_in_force() {
    let rollout = vec![step(2, 0, Some(""), false), step(2, 2, None, true)];
    let plane = Plane::start(Answers { apply: applied(Change::Updated), rollout, stays_open: true, ..Answers::default() });
    let file = plane.file("p.yaml", POLICY);
    let ran = plane.outrider(&["apply", "-f", &file, "--wait"]).await;
    let out = "servicepolicy shop/orders updated (revision 12)\nin force at all 2 agents concerned (revision 12)\n";
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, out, ""));
    assert!(plane.asked()[1].contains("revision: 12"));
}

#[tokio::test]
async fn apply_wait_names_the_agents_that_lag_and_exits_with_4() {
    let rollout = vec![step(2, 1, Some(""), false)];
    let plane = Plane::start(Answers { apply: applied(Change::Updated), rollout, stays_open: true, ..Answers::default() });
    let file = plane.file("p.yaml", POLICY);
    let ran = plane.outrider(&["apply", "-f", &file, "--wait", "--timeout", "300ms"]).await;
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.out.contains("agent-1  shop/orders  has not answered"), "{ran:?}");
    assert!(ran.err.contains("error: revision 12 is stored, but 1 of 2 agents did not follow within 300ms"), "{ran:?}");
}

#[tokio::test]
async fn apply_wait_shows_why_an_agent_refused() {
    let rollout = vec![step(1, 0, Some("unknown field `limits`"), true)];
    let plane = Plane::start(Answers { apply: applied(Change::Updated), rollout, ..Answers::default() });
    let file = plane.file("p.yaml", POLICY);
    let ran = plane.outrider(&["apply", "-f", &file, "--wait", "-o", "json"]).await;
    assert_eq!(ran.code, 4, "{ran:?}");
    golden("apply-lagging.json", &ran.out);
    assert!(ran.err.contains("1 of 1 agent refused"), "{ran:?}");
}

#[tokio::test]
async fn a_control_plane_that_goes_away_while_waiting_is_not_taken_for_success() {
    let plane =
        Plane::start(Answers { apply: applied(Change::Updated), rollout: vec![step(1, 1, None, false)], ..Answers::default() });
    let file = plane.file("p.yaml", POLICY);
    assert_eq!(plane.outrider(&["apply", "-f", &file, "--wait"]).await.code, 4);
}

#[tokio::test]
async fn what_was_stored_is_told_also_when_the_control_plane_says_no_more() {
    let change = ResourceChange { kind: "ServicePolicy".into(), name: "shop/orders".into(), change: Change::Deleted.into() };
    let delete = Some(Ok(DeleteResponse { changes: vec![change], revision: 12 }));
    let plane = Plane::start(Answers { apply: applied(Change::Updated), delete, watch_fails: true, ..Answers::default() });
    let file = plane.file("p.yaml", POLICY);
    for words in [["apply", "-f", &file, "--wait", "-o", "json"], ["delete", "-f", &file, "--wait", "-o", "json"]] {
        let ran = plane.outrider(&words).await;
        assert_eq!(ran.code, 4, "{ran:?}");
        let told: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!((told["revision"].as_u64(), told["rollout"]["ending"].as_str()), (Some(12), Some("unknown")));
        assert!(ran.err.contains("revision 12 is stored"), "{ran:?}");
    }
}

#[tokio::test]
async fn an_agent_that_went_away_is_named() {
    let rollout = vec![step(2, 1, Some("not connected"), true)];
    let plane = Plane::start(Answers { apply: applied(Change::Updated), rollout, ..Answers::default() });
    let file = plane.file("p.yaml", POLICY);
    let ran = plane.outrider(&["apply", "-f", &file, "--wait"]).await;
    assert!(ran.code == 4 && ran.out.contains("not connected") && ran.err.contains("went away"), "{ran:?}");
}

#[tokio::test]
async fn a_reader_that_goes_away_changes_nothing_about_the_end() {
    let rollout = vec![step(1, 0, Some("unknown field `limits`"), true)];
    let plane = Plane::start(Answers { apply: applied(Change::Updated), rollout, ..Answers::default() });
    let file = plane.file("p.yaml", POLICY);
    for (words, code) in [(vec!["apply", "-f", &file, "--wait"], 4), (vec!["check"], 1), (vec!["apply", "-f", &file], 0)] {
        let ran = plane.outrider_unread(&words).await;
        assert_eq!((ran.code, ran.err.contains("cannot write")), (code, false), "{words:?}: {ran:?}");
    }
}

#[tokio::test]
async fn delete_names_what_it_deleted_and_passes_on_what_the_control_plane_refused() {
    let change = ResourceChange { kind: "ServicePolicy".into(), name: "shop/orders".into(), change: Change::Deleted.into() };
    let answer = DeleteResponse { changes: vec![change], revision: 13 };
    let plane = Plane::start(Answers { delete: Some(Ok(answer)), ..Answers::default() });
    let ran = plane.outrider(&["delete", "servicepolicy", "shop/orders"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "servicepolicy shop/orders deleted (revision 13)\n"), "{ran:?}");
    let file = plane.file("p.yaml", POLICY);
    assert_eq!(plane.outrider(&["delete", "-f", &file]).await.code, 0);
    assert_eq!(plane.asked()[0], plane.asked()[1]);

    let refusal = Err(tonic::Status::not_found("no policy `shop/ordesr`: the nearest name is `shop/orders`"));
    let plane = Plane::start(Answers { delete: Some(refusal), ..Answers::default() });
    let ran = plane.outrider(&["delete", "policy", "shop/ordesr"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: no policy `shop/ordesr`: the nearest name is `shop/orders`\n"));
}

#[tokio::test]
async fn the_token_stands_alone_on_standard_output() {
    let token = CreateTokenResponse {
        token: "orj1.abc.def".into(),
        expires: 1_800_000_000,
        identity: "spiffe://mesh.internal/ns/shop/sa/files".into(),
        control_plane: "127.0.0.1:15110".into(),
    };
    let plane = Plane::start(Answers { token: Some(token), ..Answers::default() });
    let ran = plane.outrider(&["token", "create", "--identity", "shop/files", "--ttl", "2m"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "orj1.abc.def\n"));
    assert!(ran.err.contains("once, within 2m") && ran.err.contains("--control-plane 127.0.0.1:15110"), "{ran:?}");
    assert!(plane.asked()[0].contains("ttl_seconds: 120"));
    assert_eq!(plane.outrider(&["token", "create", "--identity", "shop/cron", "--caller-only"]).await.code, 0);
    assert!(plane.asked()[1].contains("caller_only: true") && plane.asked()[0].contains("caller_only: false"));
    golden("token.json", &plane.outrider(&["token", "create", "--identity", "shop/files", "-o", "json"]).await.out);
}

#[tokio::test]
async fn rotation_is_followed_to_its_end() {
    let status = |renewed, done| RotationStatus { agents: 2, renewed, laggards: vec![], done };
    let plane = Plane::start(Answers { rotation: vec![status(0, false), status(2, true)], ..Answers::default() });
    let ran = plane.outrider(&["certs", "rotate", "shop/web"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "all 2 agents have a new certificate\n"), "{ran:?}");
    assert!(plane.asked()[0].contains("shop/web"));
    let plane = Plane::start(Answers { rotation: vec![status(1, false)], stays_open: true, ..Answers::default() });
    let ran = plane.outrider(&["certs", "rotate", "--timeout", "200ms"]).await;
    assert_eq!(ran.code, 4);
    assert!(ran.err.contains("1 of 2 agents did not follow within 200ms"), "{ran:?}");
}

#[tokio::test]
async fn explain_shows_the_verdict_the_rule_and_what_nearly_matched() {
    let miss = NearMiss {
        rule: "shop/orders/web-reads".into(),
        action: "allow".into(),
        held: 2,
        failed: "method `POST` is not one of `GET`, `HEAD`".into(),
    };
    let answer = ExplainResponse {
        effect: "deny".into(),
        revision: 12,
        near_misses: vec![miss],
        notes: vec!["the policy changed since".into()],
        ..ExplainResponse::default()
    };
    let plane = Plane::start(Answers { explain: Some(Ok(answer)), ..Answers::default() });
    let words = ["explain", "--from", "shop/web", "--to", "shop/orders", "POST", "/v1/orders"];
    let ran = plane.outrider(&words).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    golden("explain.txt", &ran.out);
    golden("explain.json", &plane.outrider(&[&words[..], &["-o", "json"]].concat()).await.out);
    assert!(plane.asked()[0].contains("host: \"orders.shop\""));
    assert_eq!(plane.outrider(&["explain"]).await.code, 2);
}

#[tokio::test]
async fn a_recorded_request_is_explained_by_its_id() {
    let record = DecisionRecord {
        request_id: "01932f6e".into(),
        side: Side::Inbound.into(),
        source: "spiffe://mesh.internal/ns/shop/sa/web".into(),
        destination: "shop/orders".into(),
        port: 80,
        protocol: Protocol::Http.into(),
        method: "GET".into(),
        path: "/v1/orders/7".into(),
        effect: "allow".into(),
        rule: "shop/orders/web-reads".into(),
        revision: 12,
        status: 200,
        ..DecisionRecord::default()
    };
    let answer = ExplainResponse {
        effect: "allow".into(),
        rule: "shop/orders/web-reads".into(),
        revision: 12,
        records: vec![record],
        ..ExplainResponse::default()
    };
    let plane = Plane::start(Answers { explain: Some(Ok(answer)), ..Answers::default() });
    let ran = plane.outrider(&["explain", "01932f6e"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    golden("explain-recorded.txt", &ran.out);
    assert!(plane.asked()[0].contains("RequestId(\"01932f6e\")"));
}

#[tokio::test]
async fn an_unreachable_control_plane_is_told_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let ran = outrider(directory.path().join("none.sock"), &["get", "agents"], "").await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.starts_with("error: no control plane here: `"), "{ran:?}");
    assert!(ran.err.contains(" help: start one with `outrider up` or `outrider-control-plane`"), "{ran:?}");
    let ran = outrider(directory.path().join("none.sock"), &["check"], "").await;
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("fail   control plane  no control plane here"), "{ran:?}");
}

#[tokio::test]
async fn a_control_plane_of_another_version_is_told_apart_from_a_broken_one() {
    let plane = Plane::start(Answers::default());
    let ran = plane.outrider(&["get", "agents"]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("does not know this call") && ran.err.contains("version"), "{ran:?}");
}

#[tokio::test]
async fn wrong_usage_exits_with_2_before_anything_is_sent() {
    let plane = Plane::start(Answers::default());
    for words in [
        &["apply"][..],
        &["frobnicate"],
        &["apply", "-f", "a.yaml", "--wait", "--dry-run"],
        &["apply", "-f", "a.yaml", "--wait", "--timeout", "soon"],
        &["delete", "servicepolicy"],
        &["delete", "service", "shop/orders"],
        &["delete", "policy", "orders"],
        &["get", "agents", "--denied"],
        &["get", "decisions", "--limit", "0"],
        &["token", "create"],
        &["explain", "--to", "shop/orders", "GET"],
    ] {
        let ran = plane.outrider(words).await;
        assert_eq!(ran.code, 2, "{words:?}: {ran:?}");
        assert!(!ran.err.is_empty(), "{words:?}");
    }
    assert!(plane.asked().is_empty());
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    let plane = Plane::start(Answers::default());
    let ran = plane.outrider(&["apply", "-f", "/nonexistent/p.yaml"]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("cannot read `/nonexistent/p.yaml`"), "{ran:?}");
}

#[tokio::test]
async fn completions_name_every_verb() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = outrider("unused".into(), &["completions", shell], "").await;
        assert_eq!(ran.code, 0);
        for verb in ["apply", "delete", "get", "explain", "certs", "token", "check", "completions"] {
            assert!(ran.out.contains(verb), "{shell}: {verb}");
        }
    }
}
