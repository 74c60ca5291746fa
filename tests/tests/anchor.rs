//! The trust anchor is changed under load, and through any death of the control plane, without a lost request; afterwards
//! nobody believes the old one.

#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use outrider_agent::tls::server_name;
use outrider_tests::{
    AgentOptions, AgentProcess, Backend, Identity, Mesh, MeshOptions, Outcome, allow, careless_client, join, read_answer,
    through_proxy,
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

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

    /// Runs `outrider ca`, which must end with this exit code.
    fn ca(&self, arguments: &[&str], code: i32) -> String {
        let output = self.mesh.outrider(&[&["ca"], arguments].concat());
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{text}\n{}", self.mesh.control_plane.log());
        text
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.ca(&["status", "-o", "json"], 0)).expect("JSON")
    }

    fn roots(&self) -> Vec<String> {
        let status = self.status();
        let all = status["certificateAuthorities"].as_array().expect("a list");
        let roots = all.iter().filter(|one| one["role"] == "root");
        roots.map(|one| one["spkiSha256"].as_str().expect("text").to_owned()).collect()
    }

    async fn call(&self) -> u16 {
        through_proxy(self.web.outbound, "GET", "http://orders.shop/x", "").await.map_or(0, |answer| answer.status)
    }
}

/// Calls without a pause, over one connection, until it is told to end: how many were made and how many failed.
struct Load {
    task: JoinSet<(u64, u64)>,
    end: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
}

impl Load {
    fn on(proxy: SocketAddr) -> Self {
        let (end, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ending, counted) = (end.clone(), made.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let (mut failed, mut buf) = (0, Vec::new());
            let mut stream = TcpStream::connect(proxy).await.expect("the proxy");
            while !ending.load(Ordering::Relaxed) {
                counted.fetch_add(1, Ordering::Relaxed);
                let sent = stream.write_all(b"GET http://orders.shop/x HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await;
                let answer = match sent {
                    Ok(()) => read_answer(&mut stream, &mut buf).await,
                    Err(error) => Err(error),
                };
                if !answer.as_ref().is_ok_and(|answer| answer.status == 200) {
                    failed += 1;
                    buf.clear();
                    stream = TcpStream::connect(proxy).await.expect("the proxy");
                }
            }
            (counted.load(Ordering::Relaxed), failed)
        });
        Self { task, end, made }
    }

    async fn lost_none(mut self) -> Outcome {
        self.end.store(true, Ordering::Relaxed);
        let (made, failed) = self.task.join_next().await.expect("a task")?;
        assert!(made > 200, "{made}");
        assert_eq!(failed, 0, "of {made}");
        Ok(())
    }
}

/// Whether the agent's mesh port lets this certificate in.
async fn is_let_in(agent: &AgentProcess, identity: Identity) -> bool {
    let name = server_name(&"shop/orders".parse().expect("a name"), 80);
    let name = ServerName::try_from(name).expect("a name");
    let stream = TcpStream::connect(agent.mesh).await.expect("the mesh port");
    let Ok(mut stream) = TlsConnector::from(Arc::new(careless_client(Some(identity)))).connect(name, stream).await else {
        return false;
    };
    // In TLS 1.3 a client learns only afterwards that it was refused.
    let sent = stream.write_all(b"GET /x HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await;
    let mut answer = [0; 12];
    sent.is_ok() && stream.read_exact(&mut answer).await.is_ok() && answer.starts_with(b"HTTP/1.1 ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_under_load_loses_no_request_and_the_old_root_is_believed_by_nobody_afterwards() -> Outcome {
    let shop = Shop::open().await;
    let before = shop.roots();
    // Somebody who got a certificate and was not heard of since.
    let stranger = join(shop.mesh.address, &shop.mesh.token("shop/web", &[]).await).await?;
    assert!(is_let_in(&shop.orders, stranger.clone()).await);
    let load = Load::on(shop.web.outbound);
    let waits = shop.ca(&["rotate", "--timeout", "3s"], 4);
    assert!(waits.contains("distributing") && waits.contains("its certificate"), "{waits}");
    assert_eq!(shop.roots().len(), 2);
    assert!(is_let_in(&shop.orders, stranger.clone()).await, "as long as both roots are believed");
    let done = shop.ca(&["rotate", "--skip-away"], 0);
    assert!(done.contains("the old root is believed by nobody"), "{done}");
    let more = load.made.load(Ordering::Relaxed) + 50;
    outrider_tests::until("50 more requests", || load.made.load(Ordering::Relaxed) > more).await;
    load.lost_none().await?;
    let after = shop.roots();
    assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
    assert!(!is_let_in(&shop.orders, stranger).await, "the old root is refused");
    // The new one carries everything: joining, calling, and what was kept on disk.
    let fresh = join(shop.mesh.address, &shop.mesh.token("shop/web", &[]).await).await?;
    assert!(is_let_in(&shop.orders, fresh).await);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_is_killed_in_any_phase_of_a_rotation_goes_on_where_it_was() -> Outcome {
    let mut shop = Shop::open().await;
    let load = Load::on(shop.web.outbound);
    for phase in ["prepared", "distributing", "issuing", "proving", "retiring", "done"] {
        let told = shop.ca(&["rotate", "--step", "--timeout", "30s"], 0);
        assert!(told.contains(phase), "{phase}: {told}");
        shop.mesh.control_plane.kill();
        shop.mesh.restart_control_plane().await;
        let status = shop.status();
        assert_eq!(status["rotation"]["phase"], phase, "{status}");
        for agent in [&shop.web, &shop.orders] {
            agent.connected().await;
        }
        assert_eq!(shop.call().await, 200, "{phase}");
    }
    load.lost_none().await?;
    assert_eq!(shop.roots().len(), 1);
    // Agents that start again believe the new root from their own disk.
    for agent in [&mut shop.orders, &mut shop.web] {
        agent.process.kill();
        agent.restart();
        agent.ready().await;
        agent.connected().await;
    }
    assert_eq!(shop.call().await, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_can_be_taken_back_until_something_is_issued_from_the_new_root() -> Outcome {
    let shop = Shop::open().await;
    let before = shop.roots();
    shop.ca(&["rotate", "--step"], 0);
    shop.ca(&["rotate", "--step", "--timeout", "30s"], 0);
    assert_eq!(shop.roots().len(), 2);
    let token = shop.mesh.token("shop/other", &[]).await;
    shop.ca(&["rotate", "--abort"], 0);
    assert_eq!(shop.roots(), before);
    assert!(join(shop.mesh.address, &token).await.is_ok(), "a token from in between still works");
    assert_eq!(shop.call().await, 200);
    shop.ca(&["rotate", "--abort"], 1);
    shop.ca(&["rotate", "--skip-away", "--timeout", "60s"], 0);
    let late = shop.ca(&["rotate", "--abort"], 1);
    assert!(late.contains("no rotation is under way"), "{late}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_comes_back_in_the_middle_of_a_rotation_finds_its_control_plane_by_the_root_it_knows() -> Outcome {
    let mut shop = Shop::open().await;
    shop.web.process.kill();
    for _ in ["prepared", "distributing", "issuing", "proving"] {
        shop.ca(&["rotate", "--step", "--skip-away", "--timeout", "30s"], 0);
    }
    // It believes the old root only, and the control plane has moved to the new one.
    shop.web.restart();
    shop.web.ready().await;
    shop.web.connected().await;
    let told = shop.ca(&["rotate", "--timeout", "60s"], 0);
    assert!(told.contains("done"), "{told}");
    assert_eq!(shop.call().await, 200);
    tokio::time::timeout(Duration::from_secs(10), async { while shop.call().await != 200 {} }).await?;
    Ok(())
}
