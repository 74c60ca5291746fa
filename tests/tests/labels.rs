//! Policies that are aimed at workloads by their labels, with real agents.

use outrider_tests::{AgentOptions, Backend, Mesh, MeshOptions, Outcome, through_proxy};
use serde_json::Value;

const BY_LABEL: &str = "apiVersion: outrider.dev/v1alpha1
kind: ServicePolicy
metadata: { name: canaries, namespace: shop }
spec:
  selector: { matchLabels: { track: canary } }
  authorization:
    rules:
      - { name: web, action: Allow, from: [{ serviceAccounts: [shop/web] }] }
---
apiVersion: outrider.dev/v1alpha1
kind: ServicePolicy
metadata: { name: tiers, namespace: outrider-system }
spec:
  selector: { matchLabels: { tier: back } }
  authorization:
    rules:
      - { name: no-admin, action: Deny, to: [{ paths: [/admin] }] }
---
apiVersion: outrider.dev/v1alpha1
kind: ServicePolicy
metadata: { name: blue, namespace: shop }
spec:
  authorization:
    rules:
      - { name: blue, action: Allow, to: [{ paths: [/blue] }], when: 'destination.labels[\"colour\"] == \"blue\"' }
";

#[tokio::test]
async fn a_policy_for_labels_is_in_force_at_the_workloads_that_have_them_and_at_no_others() -> Outcome {
    let backend = Backend::start().await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let options = |name: &str, labels: &[&str]| AgentOptions {
        services: vec![format!("shop/{name}:80/http={}", backend.address)],
        more: labels.iter().flat_map(|label| ["--label".to_owned(), (*label).to_owned()]).collect(),
        ..AgentOptions::default()
    };
    let _canary = mesh.agent("shop/one", options("one", &["track=canary", "tier=back"])).await;
    let _stable = mesh.agent("shop/two", options("two", &["track=stable", "colour=blue"])).await;
    let _plain = mesh.agent("shop/three", options("three", &[])).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    mesh.apply(BY_LABEL);

    for (url, status) in [
        ("http://one.shop/", 200),
        ("http://one.shop/admin", 403),
        ("http://one.shop/blue", 200),
        ("http://two.shop/", 403),
        ("http://two.shop/blue", 200),
        ("http://three.shop/", 403),
        ("http://three.shop/blue", 403),
    ] {
        assert_eq!(through_proxy(web.outbound, "GET", url, "").await?.status, status, "{url}");
        let (host, path) = url.trim_start_matches("http://").split_once('/').expect("a path");
        let service = format!("shop/{}", host.trim_end_matches(".shop"));
        let path = format!("/{path}");
        let explained = mesh.outrider(&["explain", "--from", "shop/web", "--to", &service, "GET", &path, "-o", "json"]);
        let explained: Value = serde_json::from_slice(&explained.stdout)?;
        assert_eq!(explained["effect"], if status == 200 { "allow" } else { "deny" }, "{url}: {explained}");
    }

    let listed = mesh.outrider(&["get", "policies", "-o", "json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout)?;
    let canaries = listed.as_array().into_iter().flatten().find(|policy| policy["name"] == "shop/canaries");
    let canaries = canaries.expect("the policy is listed");
    assert_eq!((&canaries["targets"], &canaries["inForce"]), (&serde_json::json!(["shop/one"]), &serde_json::json!(1)));
    Ok(())
}

#[tokio::test]
async fn workloads_of_one_service_with_different_labels_are_explained_and_replayed_apart() -> Outcome {
    let backend = Backend::start().await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let options = |label: &str| AgentOptions {
        services: vec![format!("shop/orders:80/http={}", backend.address)],
        more: vec!["--label".to_owned(), label.to_owned()],
        ..AgentOptions::default()
    };
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    let old = mesh.agent_of("shop/orders", "old", options("track=stable")).await;
    let policy =
        |track: &str| BY_LABEL.split("---").next().unwrap_or_default().replace("track: canary", &format!("track: {track}"));
    mesh.apply(&policy("stable"));
    let answer = through_proxy(web.outbound, "GET", "http://orders.shop/", "").await?;
    assert_eq!(answer.status, 200);
    let _new = mesh.agent_of("shop/orders", "new", options("track=canary")).await;

    let explain = mesh.outrider(&["explain", "--from", "shop/web", "--to", "shop/orders", "GET", "/"]);
    let text = String::from_utf8_lossy(&explain.stdout);
    assert!(text.contains("`track=stable`") && text.contains("`track=canary`") && text.contains("decide otherwise"), "{text}");

    // the record was made where the label is `stable`, so taking the policy from there denies it
    let file = mesh.dir.path().join("candidate.yaml");
    std::fs::write(&file, policy("canary"))?;
    let file = file.display().to_string();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let replayed: Value = serde_json::from_slice(&mesh.outrider(&["replay", "-f", &file, "-o", "json"]).stdout)?;
        if replayed["newlyDenied"] == 1 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{replayed}");
    }
    drop(old);
    Ok(())
}
