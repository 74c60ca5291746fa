//! What is revoked is believed by nobody: neither new handshakes nor what is under way, on both sides, with and without a
//! control plane.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use outrider_tests::{AgentOptions, AgentProcess, Backend, Mesh, MeshOptions, Outcome, free_port, through_proxy};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Shop orders, over HTTP and as opaque bytes, and the web in front of it.
struct Shop {
    mesh: Mesh,
    orders: AgentProcess,
    web: AgentProcess,
    /// Leads from the web's program to the opaque port.
    bytes: u16,
    _echo: JoinSet<()>,
    _backend: Backend,
}

async fn echo(tasks: &mut JoinSet<()>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            open.spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    address
}

impl Shop {
    async fn open() -> Self {
        let (backend, mut tasks, bytes) = (Backend::start().await, JoinSet::new(), free_port());
        let echo = echo(&mut tasks).await;
        let mesh = Mesh::start(MeshOptions::default()).await;
        let services = vec![format!("shop/orders:80/http={}", backend.address), format!("shop/orders:7/tcp={echo}")];
        let orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
        let upstreams = vec![format!("{bytes}=shop/orders:7")];
        let web = mesh.agent("shop/web", AgentOptions { upstreams, ..AgentOptions::default() }).await;
        mesh.apply(
            "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: { name: web, namespace: shop }\nspec:\n  targetRefs: \
             [{ kind: Service, name: orders }]\n  authorization:\n    rules:\n      - { name: web, action: Allow, from: [{ \
             serviceAccounts: [shop/web] }] }\n",
        );
        Self { mesh, orders, web, bytes, _echo: tasks, _backend: backend }
    }

    async fn call(&self) -> u16 {
        through_proxy(self.web.outbound, "GET", "http://orders.shop/x", "").await.map_or(0, |answer| answer.status)
    }

    /// An open connection to the opaque port.
    async fn stream(&self) -> Result<TcpStream, std::io::Error> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.bytes)).await?;
        stream.write_all(b"hello").await?;
        stream.read_exact(&mut [0; 5]).await?;
        Ok(stream)
    }

    fn certs(&self, arguments: &[&str]) -> String {
        let output = self.mesh.outrider(&[&["certs"], arguments].concat());
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{text}");
        text
    }

    async fn serves_again(&self) {
        let deadline = Instant::now() + Duration::from_secs(40);
        while self.call().await != 200 {
            assert!(Instant::now() < deadline, "{}\n{}", self.web.process.log(), self.orders.process.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// How the far end of a stream ends it.
async fn ends(mut stream: TcpStream) -> Duration {
    let began = Instant::now();
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 1])).await;
    assert_eq!(ended.expect("an end").unwrap_or(0), 0);
    began.elapsed()
}

#[tokio::test]
async fn a_revoked_caller_is_cut_off_at_once_and_comes_back_when_that_is_undone() -> Outcome {
    let shop = Shop::open().await;
    assert_eq!(shop.call().await, 200);
    let stream = shop.stream().await?;
    let began = Instant::now();
    let told = shop.certs(&["revoke", "shop/web", "--reason", "laptop stolen"]);
    assert!(told.contains("shop/web revoked") && told.contains("in force at the one agent"), "{told}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(ends(stream).await < Duration::from_secs(1), "it had ended when the command returned");
    assert_ne!(shop.call().await, 200);
    let log = shop.orders.access_log().await;
    let refused = log.iter().filter(|line| line["reason"] == "peer_revoked");
    assert!(
        refused.clone().any(|line| line["detail"].as_str().is_some_and(|detail| detail.contains("laptop stolen"))),
        "{log:?}"
    );
    assert!(shop.certs(&["list", "--revoked"]).contains("laptop stolen"));

    shop.certs(&["unrevoke", "shop/web"]);
    shop.serves_again().await;
    assert!(shop.certs(&["list", "--revoked"]).contains("nothing is revoked"));
    Ok(())
}

#[tokio::test]
async fn a_revoked_callee_is_called_by_nobody_and_what_is_under_way_with_it_ends() -> Outcome {
    let shop = Shop::open().await;
    assert_eq!(shop.call().await, 200);
    let stream = shop.stream().await?;
    let list = shop.certs(&["list", "-o", "json"]);
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let of_orders = list.as_array().expect("a list").iter();
    let of_orders = of_orders.filter(|one| one["identity"] == "spiffe://mesh.internal/ns/shop/sa/orders");
    let serial = of_orders.map(|one| one["serial"].as_str().expect("a serial").to_owned()).next().expect("a certificate");
    shop.certs(&["revoke", &serial, "--reason", "key leaked"]);
    assert!(ends(stream).await < Duration::from_secs(1));
    assert_ne!(shop.call().await, 200, "the callee is revoked");
    let unknown = shop.mesh.outrider(&["certs", "revoke", "00ff00ff", "--reason", "x"]);
    assert!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("no certificate of serial"));
    let own = shop.mesh.outrider(&["certs", "revoke", "outrider-system/control-plane", "--reason", "x"]);
    assert!(!own.status.success(), "a mesh does not cut itself off from its control plane");
    Ok(())
}

#[tokio::test]
async fn a_revocation_outlives_restarts_and_the_revoked_get_no_certificate() -> Outcome {
    let mut shop = Shop::open().await;
    assert_eq!(shop.call().await, 200);
    shop.certs(&["revoke", "shop/web", "--reason", "laptop stolen"]);
    // Without control plane, and after a restart, the agent knows it from its own snapshot.
    shop.mesh.control_plane.kill();
    shop.orders.process.kill();
    shop.orders.restart();
    shop.orders.ready().await;
    assert_ne!(shop.call().await, 200);
    // The control plane knows it from its store: neither an old certificate nor a new token gets anything.
    shop.mesh.restart_control_plane().await;
    shop.orders.connected().await;
    assert!(shop.certs(&["list", "--revoked"]).contains("laptop stolen"));
    let token = shop.mesh.token("shop/web", &[]).await;
    shop.web.process.kill();
    std::fs::remove_dir_all(&shop.web.state_dir)?;
    shop.web.restart_with_token(Some(token));
    assert!(!shop.web.process.wait(Duration::from_secs(10)).success());
    assert!(shop.web.process.log().contains("revoked"), "{}", shop.web.process.log());
    Ok(())
}
