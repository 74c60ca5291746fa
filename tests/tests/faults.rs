//! The disk under an embedded store is full, or cannot be written to: what is known is served on, and nothing is promised that is
//! not stored.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use outrider_tests::{AgentOptions, AgentProcess, Backend, Mesh, Outcome, allow, get, join, through_proxy};

async fn shop(mesh: &Mesh, backend: &Backend) -> (AgentProcess, AgentProcess) {
    let services = vec![format!("shop/orders:80/http={}", backend.address)];
    let orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    mesh.apply(&allow("reads", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"));
    (orders, web)
}

async fn call(web: &AgentProcess) -> u16 {
    through_proxy(web.outbound, "GET", "http://orders.shop/x", "").await.map_or(0, |answer| answer.status)
}

/// Applies a policy of this name; whether that was acknowledged.
fn apply(mesh: &Mesh, name: &str) -> bool {
    let file = mesh.dir.path().join("more.yaml");
    std::fs::write(&file, allow(name, "shop/orders", "[shop/web]", "[PUT]", "[\"/{rest=**}\"]")).expect("a file");
    mesh.outrider(&["apply", "-f", &file.display().to_string()]).status.success()
}

fn policies(mesh: &Mesh) -> Vec<String> {
    let output = mesh.outrider(&["get", "policies", "-o", "json"]);
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let names = list.as_array().expect("a list").iter();
    names
        .map(|one| one.get("name").and_then(serde_json::Value::as_str).expect("text").trim_start_matches("shop/").to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_disk_is_full_calls_pass_nothing_is_acknowledged_or_issued_that_is_not_stored_and_room_mends_it() -> Outcome {
    let backend = Backend::start().await;
    let (mut mesh, disk) = Mesh::start_on_disk_of("1m").await;
    let (_orders, web) = shop(&mesh, &backend).await;
    let mut tokens = Vec::new();
    for _ in 0..8 {
        tokens.push(mesh.token("shop/late", &[]).await);
    }
    assert_eq!(call(&web).await, 200);
    disk.fill();
    // Room in the write-ahead log may last for some changes: what is acknowledged is stored all the same.
    let mut acknowledged = vec!["reads".to_owned()];
    let mut refused = None;
    for number in 0..400 {
        let name = format!("more-{number}");
        if !apply(&mesh, &name) {
            refused = Some(name);
            break;
        }
        acknowledged.push(name);
    }
    let refused = refused.expect("in the end there is no room");
    let mut issued = 0;
    for token in &tokens {
        issued += usize::from(join(mesh.address, token).await.is_ok());
    }
    assert!(issued < tokens.len(), "nothing is issued that is not on record");
    assert_eq!(call(&web).await, 200, "what is known is served on");
    let known = policies(&mesh);
    assert!(acknowledged.iter().all(|name| known.contains(name)) && !known.contains(&refused), "{known:?}");
    let metrics = get(mesh.health(), "/metrics").await?.body_text();
    let failed =
        metrics.lines().any(|line| line.starts_with("outrider_control_plane_store_errors_total") && !line.ends_with(" 0"));
    assert!(failed, "{metrics}");
    let log = mesh.control_plane.log();
    assert!(log.contains("full"), "it says so:\n{log}");

    disk.empty();
    assert!(apply(&mesh, "after"), "{}", mesh.control_plane.log());
    acknowledged.push("after".to_owned());
    let fresh = mesh.token("shop/late", &[]).await;
    assert!(join(mesh.address, &fresh).await.is_ok());
    mesh.control_plane.kill();
    mesh.restart_control_plane().await;
    let known = policies(&mesh);
    assert!(acknowledged.iter().all(|name| known.contains(name)) && !known.contains(&refused), "{known:?}");
    web.connected().await;
    assert_eq!(call(&web).await, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_does_not_start_on_a_store_that_it_cannot_write_to_and_agents_serve_on() -> Outcome {
    let backend = Backend::start().await;
    let (mut mesh, disk) = Mesh::start_on_disk_of("8m").await;
    let (_orders, web) = shop(&mesh, &backend).await;
    // Its agent asks for a service when it is called.
    assert_eq!(call(&web).await, 200);
    mesh.control_plane.kill();
    disk.read_only();
    mesh.start_control_plane();
    let ended = mesh.control_plane.wait(Duration::from_secs(20));
    let log = mesh.control_plane.log();
    assert!(!ended.success() && log.to_lowercase().contains("read-only"), "{ended}: {log}");
    assert_eq!(call(&web).await, 200);
    disk.read_write();
    mesh.restart_control_plane().await;
    web.connected().await;
    assert!(apply(&mesh, "after"));
    assert_eq!(call(&web).await, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_disk_turns_read_only_calls_pass_nothing_is_acknowledged_and_after_the_repair_all_that_was_is_there() -> Outcome
{
    let backend = Backend::start().await;
    let Some((mut mesh, disk)) = Mesh::start_on_failing_disk().await else {
        eprintln!("SKIPPED: a disk that fails cannot be had here");
        return Ok(());
    };
    let (_orders, web) = shop(&mesh, &backend).await;
    let token = mesh.token("shop/late", &[]).await;
    assert!(apply(&mesh, "before"));
    assert_eq!(call(&web).await, 200);
    disk.fail();
    for number in 0..3 {
        assert!(!apply(&mesh, &format!("more-{number}")), "nothing is acknowledged that is not stored");
        assert!(join(mesh.address, &token).await.is_err(), "nothing is issued that is not on record");
        assert_eq!(call(&web).await, 200, "what is known is served on");
    }
    let says = async {
        while !get(mesh.health(), "/readyz")
            .await
            .is_ok_and(|answer| answer.body_text().contains("does not take what is to be stored"))
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), says).await.expect("it is not ready, and says why");
    let known = policies(&mesh);
    assert_eq!(known, ["before", "reads"], "{}", mesh.control_plane.log());
    let log = mesh.control_plane.log();
    assert!(log.contains("readonly") || log.contains("read-only") || log.contains("disk I/O"), "it says so:\n{log}");

    mesh.control_plane.kill();
    disk.mend();
    mesh.restart_control_plane().await;
    assert_eq!(policies(&mesh), known);
    assert!(apply(&mesh, "after"), "{}", mesh.control_plane.log());
    assert!(join(mesh.address, &token).await.is_ok(), "a token that bought nothing is still good");
    web.connected().await;
    assert_eq!(call(&web).await, 200);
    Ok(())
}
