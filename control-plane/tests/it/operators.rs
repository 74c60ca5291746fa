//! What operators do: apply, delete, look, explain, create tokens.

use std::os::unix::fs::PermissionsExt as _;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use outrider_proto::v1::{self, resource_change::Change};
use tonic::Code;

use crate::harness::{Plane, policy};

#[tokio::test(flavor = "multi_thread")]
async fn of_two_documents_with_one_mistake_none_is_stored_and_the_mistake_has_a_position() {
    let plane = Plane::start().await;
    let bad = policy("shop/web", "web").replace("action: Allow", "acton: Allow");
    let applied = plane.apply(&format!("{}---\n{bad}", policy("shop/orders", "orders"))).await;
    assert_eq!((applied.changes.len(), applied.revision), (0, 0));
    let error = applied.diagnostics.iter().find(|one| one.severity() == v1::diagnostic::Severity::Error).unwrap();
    assert!(error.message.contains("acton") && error.line > 10 && error.source == "test.yaml", "{error:?}");
    let listed = plane.admin().await.list_policies(v1::ListPoliciesRequest::default()).await.unwrap().into_inner();
    assert!(listed.policies.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_kinds_and_names_written_twice_are_refused() {
    let plane = Plane::start().await;
    let kind = policy("shop/web", "web").replace("kind: ServicePolicy", "kind: ServerPolicy");
    for yaml in [kind, format!("{}---\n{}", policy("shop/a", "a"), policy("shop/a", "b")), "{".to_owned(), "- 1".to_owned()] {
        let applied = plane.apply(&yaml).await;
        assert!(applied.diagnostics.iter().any(|one| one.severity() == v1::diagnostic::Severity::Error), "{yaml}");
        assert_eq!(applied.revision, 0);
    }
    let manifests = ["one.yaml", "two.yaml"].map(|source| v1::Manifest { source: source.into(), yaml: policy("shop/a", "a") });
    let request = v1::ApplyRequest { manifests: manifests.into(), allow_unknown_services: true, ..v1::ApplyRequest::default() };
    let applied = plane.admin().await.apply(request).await.unwrap().into_inner();
    assert!(applied.diagnostics.iter().any(|one| one.message.contains("one.yaml")), "{:?}", applied.diagnostics);
}

#[tokio::test(flavor = "multi_thread")]
async fn applying_the_same_documents_again_changes_nothing() {
    let plane = Plane::start().await;
    let first = plane.apply(&policy("shop/orders", "orders")).await;
    assert_eq!(first.changes[0].change(), Change::Created);
    let again = plane.apply(&policy("shop/orders", "orders")).await;
    assert_eq!((again.changes[0].change(), again.revision), (Change::Unchanged, first.revision));
    let other = plane.apply(&policy("shop/orders", "files")).await;
    assert_eq!((other.changes[0].change(), other.revision), (Change::Updated, first.revision + 1));
    let manifests = vec![v1::Manifest { source: "t".into(), yaml: policy("shop/new", "files") }];
    let dry = plane
        .admin()
        .await
        .apply(v1::ApplyRequest { manifests, dry_run: true, allow_unknown_services: true })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((dry.changes[0].change(), dry.revision), (Change::Created, other.revision));
    let listed = plane.admin().await.list_policies(v1::ListPoliciesRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.policies.len(), 1, "a dry run stores nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_what_is_not_there_deletes_nothing_and_names_the_nearest() {
    let plane = Plane::start().await;
    plane.apply(&format!("{}---\n{}", policy("shop/orders", "orders"), policy("shop/web", "web"))).await;
    let mut admin = plane.admin().await;
    let delete = |names: &[&str]| v1::DeleteRequest {
        kind: "ServicePolicy".into(),
        names: names.iter().map(ToString::to_string).collect(),
    };
    let status = admin.delete(delete(&["shop/web", "shop/ordres"])).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("`shop/ordres`") && status.message().contains("`shop/orders`"), "{status:?}");
    let listed = admin.list_policies(v1::ListPoliciesRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.policies.len(), 2);
    let deleted = admin.delete(delete(&["shop/web"])).await.unwrap().into_inner();
    assert_eq!((deleted.changes[0].change(), deleted.revision), (Change::Deleted, 2));
    let wrong = v1::DeleteRequest { kind: "Route".into(), names: vec![] };
    assert_eq!(admin.delete(wrong).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn explaining_a_described_call_names_the_rule_or_what_failed_first() {
    let plane = Plane::start().await;
    plane.apply(&policy("shop/orders", "orders")).await;
    let mut admin = plane.admin().await;
    let call = |source: &str, method: &str, path: &str| {
        let call = v1::CallDescription {
            source: source.into(),
            destination: "shop/orders".into(),
            method: method.into(),
            path: path.into(),
            ..v1::CallDescription::default()
        };
        v1::ExplainRequest { subject: Some(v1::explain_request::Subject::Call(call)) }
    };
    let allowed = admin.explain(call("shop/web", "GET", "/x")).await.unwrap().into_inner();
    assert_eq!((allowed.effect.as_str(), allowed.rule.as_str()), ("allow", "shop/orders/reads"));
    let denied = admin.explain(call("shop/web", "POST", "/x")).await.unwrap().into_inner();
    assert_eq!((denied.effect.as_str(), denied.rule.as_str()), ("deny", ""));
    assert!(denied.near_misses[0].failed.contains("POST"), "{:?}", denied.near_misses);
    let nobody = admin.explain(call("", "GET", "/x")).await.unwrap().into_inner();
    assert_eq!(nobody.effect, "deny");
    let refused = admin.explain(call("shop/web", "GET", "/a/../b")).await.unwrap().into_inner();
    assert_eq!((refused.effect.as_str(), refused.rule.as_str()), ("deny", ""));
    assert!(refused.refused.contains("dot segment"), "{refused:?}");
    for wrong in [call("not an id", "GET", "/x"), v1::ExplainRequest { subject: None }] {
        assert_eq!(admin.explain(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_made_only_for_workloads_of_this_mesh_and_for_a_bounded_time() {
    let plane = Plane::start_with(|raw| raw.advertise = Some("control.example:15110".into())).await;
    let mut admin = plane.admin().await;
    let request = |identity: &str, ttl_seconds| v1::CreateTokenRequest {
        identity: identity.into(),
        ttl_seconds,
        ..v1::CreateTokenRequest::default()
    };
    for (identity, ttl) in [
        ("", 0),
        ("shop", 0),
        ("spiffe://other/ns/shop/sa/web", 0),
        ("spiffe://mesh.internal/x", 0),
        ("spiffe://mesh.internal/ns/shop/sa/web/", 0),
        ("shop/web", 59),
        ("shop/web", 86_401),
    ] {
        let status = admin.create_token(request(identity, ttl)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{identity} {ttl}");
    }
    let made = admin.create_token(request("shop/web", 60)).await.unwrap().into_inner();
    assert_eq!(made.identity, "spiffe://mesh.internal/ns/shop/sa/web");
    assert_eq!(made.control_plane, "control.example:15110");
    let files = std::fs::read_dir(plane.state_dir()).unwrap().map(|file| file.unwrap().path());
    let files = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("store.db"));
    let store: Vec<u8> = files.flat_map(|path| std::fs::read(path).unwrap()).collect();
    let holds = |bytes: &[u8]| store.windows(bytes.len()).any(|window| window == bytes);
    let secret = made.token.split('.').nth(1).unwrap();
    let raw = URL_SAFE_NO_PAD.decode(secret).unwrap();
    assert!(!holds(secret.as_bytes()) && !holds(&raw), "the secret is in the store");
    assert!(holds(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &raw).as_ref()), "only its hash is");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_socket_and_all_state_are_private() {
    let plane = Plane::start().await;
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&plane.state_dir()), 0o700);
    for entry in std::fs::read_dir(plane.state_dir()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_the_authorities_and_what_to_look_at() {
    let plane = Plane::start_with(|raw| raw.leaf_ttl = Some("60s".into())).await;
    let status = plane.admin().await.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.trust_domain.as_str(), status.leaf_ttl_seconds), ("mesh.internal", 60));
    assert_eq!(status.address, plane.running.address.to_string());
    let roles: Vec<&str> = status.certificate_authorities.iter().map(|one| one.role.as_str()).collect();
    assert_eq!(roles, ["root", "issuing"]);
    assert!(status.warnings.iter().any(|warning| warning.contains("60 s")), "{:?}", status.warnings);
}
