//! A root that was retired is retired: for replicas that slept through it, for connections made under it, and for join tokens that
//! name it.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use outrider_agent::tls::server_name;
use outrider_proto::v1;
use outrider_tests::{
    AgentOptions, AgentProcess, Backend, Cluster, Identity, Mesh, MeshOptions, Outcome, allow, careless_client, join, join_over,
    read_answer, through_proxy, to_control_plane,
};
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Nothing here takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `outrider`, which must end with this exit code.
fn outrider(mesh: &Mesh, arguments: &[&str], code: i32) -> String {
    let output = mesh.outrider(arguments);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{text}\n{}", mesh.control_plane.log());
    text
}

fn rotation(mesh: &Mesh) -> serde_json::Value {
    let text = outrider(mesh, &["ca", "status", "-o", "json"], 0);
    let status: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    status.get("rotation").cloned().expect("a rotation")
}

fn field(rotation: &serde_json::Value, name: &str) -> String {
    rotation.get(name).and_then(serde_json::Value::as_str).expect("text").to_owned()
}

fn phase(mesh: &Mesh) -> String {
    field(&rotation(mesh), "phase")
}

/// What replicas share beside the database.
struct Shared {
    url: String,
    dir: TempDir,
}

impl Shared {
    fn new() -> Self {
        Self { url: Cluster::shared().database(), dir: tempfile::tempdir().expect("a directory") }
    }

    async fn replica(&self, name: &str) -> Mesh {
        let key = self.dir.path().join("key").display().to_string();
        Mesh::start_with(MeshOptions { leaf_ttl: Some("60s") }, &["--store", &self.url, "--key-file", &key, "--replica", name])
            .await
    }
}

async fn certificates(mesh: &Mesh) -> Vec<v1::CertificateStatus> {
    let request = v1::ListCertificatesRequest { all: true };
    mesh.admin().await.list_certificates(request).await.expect("a list").into_inner().certificates
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_slept_through_a_rotation_records_and_hands_out_no_leaf_of_the_retired_root() -> Outcome {
    let shared = Shared::new();
    let (one, two) = (shared.replica("one").await, shared.replica("two").await);
    let mut asking = JoinSet::new();
    let mut connected = Vec::new();
    for _ in 0..12 {
        connected.push((to_control_plane(two.address).await, one.token("shop/web", &[]).await));
    }
    two.control_plane.signal("STOP");
    for (channel, token) in connected {
        // The request waits in the kernel until the replica wakes.
        asking.spawn(async move { join_over(channel, &token).await });
    }
    let told = outrider(&one, &["ca", "rotate", "--skip-away", "--timeout", "50s"], 0);
    assert!(told.contains("believed by nobody"), "{told}");
    let before: Vec<String> = certificates(&one).await.into_iter().map(|one| one.serial).collect();
    two.control_plane.signal("CONT");
    let mut issued = 0;
    while let Some(answer) = timeout(PATIENCE, asking.join_next()).await? {
        match answer? {
            Ok(_) => issued += 1,
            // It waited for a connection to the database when it fell asleep, and gives up when it wakes.
            Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}"),
        }
    }
    let new_root = field(&rotation(&one), "newRoot");
    let after: Vec<_> = certificates(&one).await.into_iter().filter(|one| !before.contains(&one.serial)).collect();
    let strays: Vec<_> = after.iter().filter(|one| one.root != new_root).collect();
    assert!(strays.is_empty() && issued > 0 && after.len() >= issued, "{issued} {strays:?}");
    let log = two.control_plane.log();
    assert!(log.contains("signs no more"), "it did not come to the fence:\n{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_are_killed_again_and_again_bring_a_rotation_to_its_end_and_no_call_is_lost() -> Outcome {
    let (backend, shared) = (Backend::start().await, Shared::new());
    let (mut one, mut two) = (shared.replica("one").await, shared.replica("two").await);
    one.others.push(two.address);
    two.others.push(one.address);
    let shop = Shop::of(&one, &backend).await;
    let request = v1::RotateCaRequest { skip_away: true, ..v1::RotateCaRequest::default() };
    drop(one.admin().await.rotate_ca(request).await?);
    let mut phases = vec![phase(&two)];
    while phases.last().is_some_and(|last| last != "done") {
        one.control_plane.kill();
        // The other one makes the next step, from wherever the dead one was.
        let stepped = async {
            while phases.last() == Some(&phase(&two)) {
                assert_eq!(shop.call().await, 200, "after {phases:?}");
            }
        };
        timeout(PATIENCE, stepped).await.map_err(|_| format!("stuck after {phases:?}:\n{}", two.control_plane.log()))?;
        phases.push(phase(&two));
        one.restart_control_plane().await;
        std::mem::swap(&mut one, &mut two);
    }
    for mesh in [&one, &two] {
        timeout(PATIENCE, async { while roots(mesh).await != 1 {} }).await?;
    }
    assert_eq!(shop.call().await, 200);
    assert!(phases.len() > 2, "{phases:?}");
    Ok(())
}

async fn roots(mesh: &Mesh) -> usize {
    tokio::time::sleep(Duration::from_millis(20)).await;
    let Ok(status) = mesh.admin().await.status(v1::StatusRequest {}).await else { return 0 };
    status.into_inner().certificate_authorities.iter().filter(|one| one.role == "root").count()
}

struct Shop {
    orders: AgentProcess,
    web: AgentProcess,
}

impl Shop {
    async fn of(mesh: &Mesh, backend: &Backend) -> Self {
        let services = vec![format!("shop/orders:80/http={}", backend.address)];
        let orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
        let web = mesh.agent("shop/web", AgentOptions::default()).await;
        mesh.apply(&allow("reads", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"));
        let shop = Self { orders, web };
        timeout(PATIENCE, async { while shop.call().await != 200 {} }).await.expect("calls pass");
        shop
    }

    async fn call(&self) -> u16 {
        through_proxy(self.web.outbound, "GET", "http://orders.shop/x", "").await.map_or(0, |answer| answer.status)
    }
}

async fn tls(address: SocketAddr, name: String, identity: Identity, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut config = careless_client(Some(identity));
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
}

/// Reads until the other side ends it.
async fn ended(mut stream: TlsStream<TcpStream>) {
    let mut buf = [0; 1024];
    while stream.read(&mut buf).await.is_ok_and(|read| read > 0) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_made_under_a_root_are_closed_when_it_is_retired_by_agents_and_by_the_control_plane() -> Outcome {
    let (backend, mesh) = (Backend::start().await, Mesh::start(MeshOptions::default()).await);
    let shop = Shop::of(&mesh, &backend).await;
    // Somebody who got a certificate and was not heard of since.
    let stranger = join(mesh.address, &mesh.token("shop/web", &[]).await).await?;
    let name = server_name(&"shop/orders".parse()?, 80);
    let mut to_agent = tls(shop.orders.mesh, name, stranger.clone(), b"http/1.1").await?;
    to_agent.write_all(b"GET /x HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?;
    assert_eq!(read_answer(&mut to_agent, &mut Vec::new()).await?.status, 200);
    let mut to_plane = tls(mesh.address, "control-plane.invalid".to_owned(), stranger.clone(), b"h2").await?;
    to_plane.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    let mut head = [0; 9];
    to_plane.read_exact(&mut head).await?;
    let mut open = JoinSet::new();
    for (who, stream) in [("agent", to_agent), ("control plane", to_plane)] {
        open.spawn(async move {
            ended(stream).await;
            who
        });
    }
    for _ in ["prepared", "distributing", "issuing", "proving"] {
        outrider(&mesh, &["ca", "rotate", "--step", "--skip-away", "--timeout", "30s"], 0);
    }
    assert!(open.try_join_next().is_none(), "as long as the root is believed");
    outrider(&mesh, &["ca", "rotate", "--skip-away", "--timeout", "30s"], 0);
    for _ in 0..2 {
        // Earlier than the control plane would miss an answer to its pings.
        timeout(Duration::from_secs(15), open.join_next()).await?.expect("two connections")?;
    }
    if let Ok(again) = tls(mesh.address, "control-plane.invalid".to_owned(), stranger, b"h2").await {
        // In TLS 1.3 a client learns only afterwards that it was refused.
        timeout(PATIENCE, ended(again)).await?;
    }
    assert_eq!(shop.call().await, 200, "whoever renewed goes on");
    for agent in [&shop.orders, &shop.web] {
        agent.connected().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unused_join_tokens_hold_a_rotation_by_name_and_are_taken_back_or_skipped_openly() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let (token, other) = (mesh.token("shop/web", &[]).await, mesh.token("shop/orders", &[]).await);
    let waits = outrider(&mesh, &["ca", "rotate", "--timeout", "3s"], 4);
    for way in ["outrider token revoke shop/web", "outrider token revoke shop/orders", "proving"] {
        assert!(waits.contains(way), "{way}: {waits}");
    }
    let gone = outrider(&mesh, &["token", "revoke", "shop/web"], 0);
    assert!(gone.contains("1 join token"), "{gone}");
    outrider(&mesh, &["token", "revoke", "shop/web"], 1);
    let refused = join(mesh.address, &token).await.expect_err("a refusal");
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    let waits = outrider(&mesh, &["ca", "rotate", "--timeout", "2s"], 4);
    assert!(!waits.contains("shop/web") && waits.contains("shop/orders"), "{waits}");
    let done = outrider(&mesh, &["ca", "rotate", "--skip-away", "--timeout", "30s"], 0);
    assert!(done.contains("believed by nobody"), "{done}");
    drop(other);
    Ok(())
}
