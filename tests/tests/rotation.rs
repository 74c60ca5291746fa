//! Certificates are renewed under load without a lost request; without a control plane the mesh lives as long as they do.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use outrider_tests::{AgentOptions, AgentProcess, Backend, Mesh, MeshOptions, Outcome, allow, read_answer, through_proxy};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

async fn shop(backend: &Backend, ttl: &'static str) -> (Mesh, AgentProcess, AgentProcess) {
    let mesh = Mesh::start(MeshOptions { leaf_ttl: Some(ttl) }).await;
    let options = AgentOptions { services: vec![format!("shop/orders:80/http={}", backend.address)], ..AgentOptions::default() };
    let orders = mesh.agent("shop/orders", options).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    mesh.apply(&allow("reads", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"));
    (mesh, orders, web)
}

/// Calls one after the other on one keep-alive connection. Returns how many were made and how many failed.
async fn call_while(proxy: std::net::SocketAddr, mut go_on: impl AsyncFnMut(u64) -> bool) -> (u64, u64) {
    let (mut made, mut failed) = (0, 0);
    let mut stream = TcpStream::connect(proxy).await.expect("the proxy");
    let mut buf = Vec::new();
    while go_on(made).await {
        made += 1;
        let sent = stream.write_all(b"GET http://orders.shop/x HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await;
        let answer = match sent {
            Ok(()) => read_answer(&mut stream, &mut buf).await,
            Err(error) => Err(error),
        };
        if answer.is_ok_and(|answer| answer.status == 200) {
            continue;
        }
        failed += 1;
        buf.clear();
        stream = TcpStream::connect(proxy).await.expect("the proxy");
    }
    (made, failed)
}

/// Waits until calls pass: who calls hears a moment later than who is called where it is, and that it is back.
async fn passes(proxy: std::net::SocketAddr, when: &str) {
    let calling = async {
        loop {
            match through_proxy(proxy, "GET", "http://orders.shop/x", "").await {
                Ok(answer) if answer.status == 200 => return,
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), calling).await.is_ok(), "calls never pass, {when}");
}

#[tokio::test]
async fn ten_thousand_requests_during_twenty_renewals_lose_none() -> Outcome {
    let backend = Backend::start().await;
    let (_mesh, orders, web) = shop(&backend, "6s").await;
    let started = Instant::now();
    let renewals = async || {
        let prefix = "outrider_agent_certificate_renewals_total{result=\"ok\"}";
        web.metric(prefix).await + orders.metric(prefix).await
    };
    let mut enough = false;
    let (made, failed) = call_while(web.outbound, async |made| {
        if made % 500 == 0 {
            enough = made >= 10_000 && renewals().await >= 20.0;
        }
        assert!(started.elapsed() < Duration::from_secs(120), "after {made} requests");
        !enough
    })
    .await;
    let renewals = renewals().await;
    println!("{made} requests, {renewals} renewals, {failed} failed");
    assert!(made >= 10_000 && renewals >= 20.0);
    assert_eq!(failed, 0);
    Ok(())
}

#[tokio::test]
async fn without_a_control_plane_calls_pass_until_the_certificate_ends_and_then_none() -> Outcome {
    let backend = Backend::start().await;
    let (mut mesh, orders, web) = shop(&backend, "8s").await;
    assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop/x", "").await?.status, 200);
    mesh.control_plane.kill();
    let failures = "outrider_agent_certificate_renewals_total{result=\"failed\"}";
    let ends = web
        .metric("outrider_agent_certificate_not_after_seconds")
        .await
        .min(orders.metric("outrider_agent_certificate_not_after_seconds").await);
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    // Up to half a second before the end: a request that is under way at the very end may be cut.
    let (made, failed) = call_while(web.outbound, async |_| now() < ends - 0.5).await;
    assert_eq!(failed, 0, "of {made}");
    assert!(made > 100, "{made}");
    assert!(web.metric(failures).await >= 1.0, "the renewal point has passed");

    let deadline = Instant::now() + Duration::from_secs(15);
    while through_proxy(web.outbound, "GET", "http://orders.shop/x", "").await?.status == 200 {
        assert!(Instant::now() < deadline, "calls still pass after the certificate's end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(now() < ends + 5.0, "refused soon after the end");
    while web.readiness().await.0 == 200 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(web.readiness().await.1.contains("identity"));
    Ok(())
}

#[tokio::test]
async fn restarted_agents_serve_without_a_control_plane() -> Outcome {
    let backend = Backend::start().await;
    let (mut mesh, mut orders, mut web) = shop(&backend, "1h").await;
    assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop/x", "").await?.status, 200);
    mesh.control_plane.kill();
    for agent in [&mut orders, &mut web] {
        agent.process.kill();
        agent.restart();
        agent.ready().await;
    }
    assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop/x", "").await?.status, 200);
    assert_eq!(through_proxy(web.outbound, "POST", "http://orders.shop/x", "content-length: 0\r\n").await?.status, 403);

    mesh.restart_control_plane().await;
    orders.connected().await;
    mesh.apply(&allow("reads", "shop/orders", "[shop/web]", "[POST]", "[\"/{rest=**}\"]"));
    assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop/x", "").await?.status, 403, "the new policy is in force");
    assert_eq!(through_proxy(web.outbound, "POST", "http://orders.shop/x", "content-length: 0\r\n").await?.status, 200);
    Ok(())
}

/// What accidents and tampering make of a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Bit,
    Cut,
    Empty,
}

impl Damage {
    const ALL: [Self; 3] = [Self::Bit, Self::Cut, Self::Empty];

    /// Leaves the file damaged, and returns what is in it then.
    fn is_done_to(self, path: &std::path::Path) -> std::io::Result<Vec<u8>> {
        let mut bytes = std::fs::read(path)?;
        let middle = bytes.len() / 2;
        match self {
            Self::Bit => bytes.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 1),
            Self::Cut => bytes.truncate(middle),
            Self::Empty => bytes.clear(),
        }
        std::fs::write(path, &bytes)?;
        Ok(bytes)
    }
}

#[tokio::test]
async fn a_damaged_snapshot_is_not_used_and_is_replaced_by_the_control_plane() -> Outcome {
    let backend = Backend::start().await;
    let (mut mesh, mut orders, web) = shop(&backend, "1h").await;
    let call = async || through_proxy(web.outbound, "GET", "http://orders.shop/x", "").await;
    assert_eq!(call().await?.status, 200);
    let path = orders.state_dir.join("snapshot");
    for what in Damage::ALL {
        mesh.control_plane.kill();
        orders.process.kill();
        let bytes = what.is_done_to(&path)?;
        orders.restart();
        orders.process.wait_for("was changed");
        let (status, missing) = orders.readiness().await;
        assert_eq!((status, missing.as_str()), (503, "waiting for policy\n"), "{what:?}");
        assert_eq!(call().await?.status, 403, "{what:?}: fail closed");
        assert_eq!(std::fs::read(&path)?, bytes, "{what:?}: left for inspection");

        mesh.restart_control_plane().await;
        orders.ready().await;
        assert_eq!(call().await?.status, 200, "{what:?}: nothing is lost");
    }
    Ok(())
}

#[tokio::test]
async fn a_damaged_certificate_is_not_used_and_a_new_token_brings_another() -> Outcome {
    let backend = Backend::start().await;
    let (mut mesh, mut orders, web) = shop(&backend, "1h").await;
    let call = async || through_proxy(web.outbound, "GET", "http://orders.shop/x", "").await;
    passes(web.outbound, "before").await;
    let path = orders.state_dir.join("identity");
    for what in Damage::ALL {
        mesh.control_plane.kill();
        orders.process.kill();
        let bytes = what.is_done_to(&path)?;
        orders.restart_with_token(None);
        let ended = orders.process.wait(Duration::from_secs(30));
        assert!(!ended.success(), "{what:?}");
        let log = orders.process.log();
        assert!(log.contains(&format!("`{}` is truncated or was changed", path.display())), "{what:?}: {log}");
        assert!(log.contains("give it a join token"), "{what:?}: {log}");
        assert!(TcpStream::connect(orders.mesh).await.is_err(), "{what:?}: nothing is served");
        assert_eq!(call().await?.status, 503, "{what:?}: fail closed");
        assert_eq!(std::fs::read(&path)?, bytes, "{what:?}: left for inspection");

        mesh.restart_control_plane().await;
        orders.restart_with_token(Some(mesh.token("shop/orders", &["shop/orders"]).await));
        orders.ready().await;
        passes(web.outbound, &format!("{what:?}: nothing is lost")).await;
    }
    Ok(())
}
