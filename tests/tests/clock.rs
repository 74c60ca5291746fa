//! Clocks that are a day off, on either side: what is refused, what is served, and that it mends when the clock is put right.

use std::time::{Duration, Instant};

use outrider_tests::{AgentOptions, AgentProcess, Backend, Mesh, MeshOptions, Outcome, allow, through_proxy};

struct Shop {
    mesh: Mesh,
    orders: AgentProcess,
    web: AgentProcess,
    _backend: Backend,
}

impl Shop {
    async fn open() -> Self {
        let backend = Backend::start().await;
        let mesh = Mesh::start(MeshOptions::default()).await;
        let services = vec![format!("shop/orders:80/http={}", backend.address)];
        let orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
        let web = mesh.agent("shop/web", AgentOptions::default()).await;
        mesh.apply(&allow("reads", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"));
        Self { mesh, orders, web, _backend: backend }
    }

    async fn call(&self) -> u16 {
        through_proxy(self.web.outbound, "GET", "http://orders.shop/x", "").await.map_or(0, |answer| answer.status)
    }
}

#[tokio::test]
async fn a_control_plane_a_day_off_is_not_believed_and_the_mesh_serves_on_until_its_clock_is_right() -> Outcome {
    let mut shop = Shop::open().await;
    assert_eq!(shop.call().await, 200);
    for clock in ["+1d", "-1d"] {
        shop.mesh.control_plane.kill();
        shop.mesh.restart_control_plane_at(clock).await;
        // Its handshakes fail on one side or the other: nobody is connected, and everything that was in force is.
        for agent in [&mut shop.web, &mut shop.orders] {
            agent.process.wait_for("no stream from the control plane");
        }
        assert_eq!(shop.call().await, 200, "{clock}");
        let agents = shop.mesh.outrider(&["get", "agents", "-o", "json"]);
        let agents: serde_json::Value = serde_json::from_slice(&agents.stdout)?;
        assert!(agents.as_array().expect("a list").iter().all(|agent| agent["connected"] == false), "{clock}: {agents}");

        shop.mesh.control_plane.kill();
        shop.mesh.restart_control_plane().await;
        for agent in [&shop.web, &shop.orders] {
            agent.connected().await;
        }
        assert_eq!(shop.call().await, 200, "after {clock}");
    }
    Ok(())
}

#[tokio::test]
async fn an_agent_a_day_ahead_serves_nothing_and_one_a_day_behind_believes_nobody() -> Outcome {
    let mut shop = Shop::open().await;
    assert_eq!(shop.call().await, 200);
    shop.orders.process.kill();
    shop.orders.restart_at("+1d");
    assert!(!shop.orders.process.wait(Duration::from_secs(20)).success(), "its certificate has ended, and its token is used");
    let log = shop.orders.process.log();
    assert!(log.contains("has expired"), "{log}");
    assert_ne!(shop.call().await, 200);

    shop.orders.restart_at("-1d");
    // Its own certificate is not valid yet for itself as little as those of others: nothing passes.
    let deadline = Instant::now() + Duration::from_secs(3);
    while Instant::now() < deadline {
        assert_ne!(shop.call().await, 200, "{}", shop.orders.process.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    shop.orders.process.kill();
    shop.orders.restart();
    shop.orders.ready().await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while shop.call().await != 200 {
        assert!(Instant::now() < deadline, "{}", shop.orders.process.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
