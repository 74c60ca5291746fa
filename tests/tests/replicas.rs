//! Several control planes on one PostgreSQL, and what may befall them: real processes, real servers, real signals.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use outrider_proto::v1;
use outrider_tests::{
    AgentOptions, AgentProcess, Backend, Cluster, Disk, Mesh, MeshOptions, Outcome, allow, free_port, get, read_answer,
    through_proxy,
};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Nothing here takes this long.
const PATIENCE: Duration = Duration::from_secs(40);

/// What replicas share beside the database.
struct Shared {
    url: String,
    dir: TempDir,
}

impl Shared {
    fn on(url: String) -> Self {
        Self { url, dir: tempfile::tempdir().expect("a directory") }
    }

    async fn replica(&self, name: &str) -> Mesh {
        let key = self.dir.path().join("key").display().to_string();
        let options = MeshOptions { leaf_ttl: Some("20s") };
        Mesh::start_with(options, &["--store", &self.url, "--key-file", &key, "--replica", name]).await
    }

    /// Two replicas that know of each other.
    async fn pair(&self) -> (Mesh, Mesh) {
        let (mut one, mut two) = (self.replica("one").await, self.replica("two").await);
        one.others.push(two.address);
        two.others.push(one.address);
        (one, two)
    }
}

async fn shop(mesh: &Mesh, backend: &Backend) -> (AgentProcess, AgentProcess) {
    let options = AgentOptions { services: vec![format!("shop/orders:80/http={}", backend.address)], ..AgentOptions::default() };
    let orders = mesh.agent("shop/orders", options).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    mesh.apply(&allow("reads", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"));
    // The caller may be at another replica than the service: it hears of it a moment later.
    until("calls pass", async || {
        through_proxy(web.outbound, "GET", "http://orders.shop/x", "").await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
    (orders, web)
}

async fn until(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let looking = async {
        let mut poll = tokio::time::interval(Duration::from_millis(50));
        loop {
            poll.tick().await;
            if look().await {
                return;
            }
        }
    };
    timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Load through an agent, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    calls: tokio::task::JoinHandle<Vec<String>>,
}

impl Load {
    #[expect(clippy::disallowed_methods, reason = "a test waits for its tasks itself")]
    fn start(proxy: SocketAddr) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let calls = tokio::spawn(calls(proxy, stop.clone(), made.clone()));
        Self { stop, made, calls }
    }

    /// How many were made, and what failed.
    async fn end(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.calls.await.expect("the calls");
        (self.made.load(Ordering::Relaxed), failed)
    }
}

async fn calls(proxy: SocketAddr, stop: Arc<AtomicBool>, made: Arc<AtomicU64>) -> Vec<String> {
    let mut failed = Vec::new();
    let mut stream = TcpStream::connect(proxy).await.expect("the proxy");
    let mut buf = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        made.fetch_add(1, Ordering::Relaxed);
        let answer = match stream.write_all(b"GET http://orders.shop/x HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await {
            Ok(()) => read_answer(&mut stream, &mut buf).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) if answer.status == 200 => continue,
            Ok(answer) => failed.push(format!("{} {}", answer.status, answer.body_text())),
            Err(error) => failed.push(error.to_string()),
        }
        buf.clear();
        stream = TcpStream::connect(proxy).await.expect("the proxy");
    }
    failed
}

async fn connected(mesh: &Mesh) -> usize {
    let agents = mesh.admin().await.list_agents(v1::ListAgentsRequest {}).await.expect("agents").into_inner().agents;
    agents.iter().filter(|agent| agent.connected).count()
}

async fn metric(health: SocketAddr, line: &str) -> Option<String> {
    let text = get(health, "/metrics").await.ok()?.body_text();
    text.lines().find_map(|one| one.strip_prefix(line).map(|value| value.trim().to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_is_killed_in_turn_under_load_and_no_request_is_lost() -> Outcome {
    let backend = Backend::start().await;
    let shared = Shared::on(Cluster::shared().database());
    let (mut one, mut two) = shared.pair().await;
    let (_orders, web) = shop(&one, &backend).await;
    let load = Load::start(web.outbound);
    for round in 0..4 {
        one.control_plane.kill();
        until("the other one has both agents", async || connected(&two).await == 2).await;
        // What is applied there is in force at once.
        two.apply(&allow(&format!("more-{round}"), "shop/orders", "[shop/web]", "[POST]", "[\"/{rest=**}\"]"));
        one.restart_control_plane().await;
        until("it is back", async || connected(&one).await == 2).await;
        std::mem::swap(&mut one, &mut two);
    }
    let (made, failed) = load.end().await;
    assert_eq!(failed, Vec::<String>::new(), "of {made}");
    assert!(made > 200, "{made}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_replica_loses_its_lease_and_its_agents_and_is_one_of_all_again_when_it_wakes() -> Outcome {
    let backend = Backend::start().await;
    let shared = Shared::on(Cluster::shared().database());
    let one = shared.replica("one").await;
    let lease = "outrider_control_plane_lease_held{lease=\"prune\"}";
    until("the only one holds the lease", async || metric(one.health(), lease).await.as_deref() == Some("1")).await;
    let mut two = shared.replica("two").await;
    two.others.push(one.address);
    let (_orders, web) = shop(&two, &backend).await;
    let load = Load::start(web.outbound);
    one.control_plane.signal("STOP");
    until("the lease passes on", async || metric(two.health(), lease).await.as_deref() == Some("1")).await;
    until("its agents have turned to the other", async || connected(&two).await == 2).await;
    two.apply(&allow("meanwhile", "shop/orders", "[shop/web]", "[POST]", "[\"/{rest=**}\"]"));
    one.control_plane.signal("CONT");
    until("it knows that it lost the lease", async || metric(one.health(), lease).await.as_deref() == Some("0")).await;
    until("it knows what was applied", async || {
        let listed = one.admin().await.list_policies(v1::ListPoliciesRequest::default()).await;
        listed.is_ok_and(|listed| listed.get_ref().policies.len() == 2)
    })
    .await;
    until("it sees the agents of the other", async || connected(&one).await == 2).await;
    one.apply(&allow("after", "shop/orders", "[shop/web]", "[PUT]", "[\"/{rest=**}\"]"));
    let (made, failed) = load.end().await;
    assert_eq!(failed, Vec::<String>::new(), "of {made}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgres_is_away_calls_pass_and_changes_fail_and_afterwards_both_work() -> Outcome {
    let backend = Backend::start().await;
    let cluster = Cluster::start(Disk::Durable, None);
    let shared = Shared::on(cluster.database());
    let one = shared.replica("one").await;
    let (_orders, web) = shop(&one, &backend).await;
    let load = Load::start(web.outbound);
    cluster.crash();
    let file = one.dir.path().join("other.yaml");
    std::fs::write(&file, allow("other", "shop/orders", "[shop/web]", "[POST]", "[\"/{rest=**}\"]"))?;
    let refused = one.outrider(&["apply", "-f", &file.display().to_string(), "--wait"]);
    assert!(!refused.status.success(), "nothing is acknowledged that is not stored");
    cluster.restart();
    until("a change is stored again", async || {
        one.outrider(&["apply", "-f", &file.display().to_string(), "--wait"]).status.success()
    })
    .await;
    assert_eq!(through_proxy(web.outbound, "POST", "http://orders.shop/x", "content-length: 0\r\n").await?.status, 200);
    // The same when it turns read-only, as a full or failing disk makes administrators do.
    cluster.sql("postgres", "ALTER SYSTEM SET default_transaction_read_only = on");
    cluster.sql("postgres", "SELECT pg_reload_conf()");
    std::fs::write(&file, allow("third", "shop/orders", "[shop/web]", "[PUT]", "[\"/{rest=**}\"]"))?;
    let apply = || one.outrider(&["apply", "-f", &file.display().to_string(), "--wait"]);
    until("it is read-only", async || !apply().status.success()).await;
    cluster.sql("postgres", "ALTER SYSTEM RESET default_transaction_read_only");
    cluster.sql("postgres", "SELECT pg_reload_conf()");
    until("a change is stored again", async || apply().status.success()).await;
    let (made, failed) = load.end().await;
    assert_eq!(failed, Vec::<String>::new(), "of {made}");
    Ok(())
}

/// What `/readyz` of a control plane says.
async fn readiness(mesh: &Mesh) -> (u16, String) {
    match get(mesh.health(), "/readyz").await {
        Ok(answer) => (answer.status, answer.body_text()),
        Err(_) => (0, String::new()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lost_its_store_is_not_ready_and_who_joins_goes_to_another() -> Outcome {
    let port = free_port();
    let cluster = Cluster::start(Disk::Fast, Some(port));
    let url = cluster.database();
    let shared = Shared::on(url.clone());
    let two = shared.replica("two").await;
    // The way of this one to the database can be closed.
    let silencer = Silencer::before(SocketAddr::from(([127, 0, 0, 1], port))).await;
    let cut = Shared { url: url.replace(&format!(":{port}/"), &format!(":{}/", silencer.address.port())), dir: shared.dir };
    let one = cut.replica("one").await;
    until("both are ready", async || readiness(&one).await.0 == 200 && readiness(&two).await.0 == 200).await;
    silencer.stop();
    until("it says that it is not ready, and why", async || {
        let (status, text) = readiness(&one).await;
        status == 503 && text.starts_with("waiting for store (it does not ")
    })
    .await;
    assert_eq!(readiness(&two).await.0, 200, "the other one is");
    // The first to be asked is chosen at random: two of three names are those of the one that cannot issue.
    let away = one.address.port();
    let names = format!("127.0.0.1:{away},localhost:{away},{}", two.address);
    for number in 0..3 {
        let options = AgentOptions { more: vec!["--control-plane".to_owned(), names.clone()], ..AgentOptions::default() };
        two.agent(&format!("shop/late-{number}"), options).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn when_postgres_fails_over_to_a_standby_nothing_acknowledged_is_lost_and_the_mesh_goes_on() -> Outcome {
    let (first, second) = (free_port(), free_port());
    let primary = Cluster::start(Disk::Durable, Some(first));
    let url = primary.database().replace(&format!(":{first}/"), &format!(":{first},127.0.0.1:{second}/"));
    let standby = Cluster::standby_of(&primary, second);
    // A commit counts once the standby has it too: that is what makes a failover lose nothing.
    primary.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'");
    primary.sql("postgres", "SELECT pg_reload_conf()");
    until("it follows", async || {
        primary.sql("postgres", "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == "1"
    })
    .await;
    let backend = Backend::start().await;
    let shared = Shared::on(url);
    let one = shared.replica("one").await;
    let (_orders, web) = shop(&one, &backend).await;
    let load = Load::start(web.outbound);
    let mut revisions = Vec::new();
    for number in 0..5 {
        let yaml = allow(&format!("before-{number}"), "shop/orders", "[shop/web]", "[POST]", "[\"/{rest=**}\"]");
        let request = v1::ApplyRequest { manifests: vec![v1::Manifest { source: "t".into(), yaml }], ..Default::default() };
        revisions.push(one.admin().await.apply(request).await?.into_inner().revision);
    }
    primary.crash();
    standby.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = ''");
    standby.promote();
    let file = one.dir.path().join("after.yaml");
    std::fs::write(&file, allow("after", "shop/orders", "[shop/web]", "[PUT]", "[\"/{rest=**}\"]"))?;
    until("changes are stored at the new primary", async || {
        one.outrider(&["apply", "-f", &file.display().to_string(), "--wait"]).status.success()
    })
    .await;
    let listed = one.admin().await.list_policies(v1::ListPoliciesRequest::default()).await?.into_inner();
    assert_eq!(listed.policies.len(), 7, "{revisions:?}");
    let newest = standby.sql("mesh_0", "SELECT max(revision) FROM policy_history").parse::<u64>()?;
    assert!(revisions.iter().all(|revision| *revision < newest));
    assert_eq!(through_proxy(web.outbound, "PUT", "http://orders.shop/x", "content-length: 0\r\n").await?.status, 200);
    let (made, failed) = load.end().await;
    assert_eq!(failed, Vec::<String>::new(), "of {made}");
    Ok(())
}

/// Said instead of a count when connections end.
const ENDED: u64 = u64::MAX;

/// Passes connections on, until those that there are fall silent without an end, as behind a router that lost its state.
struct Silencer {
    address: SocketAddr,
    silent: tokio::sync::watch::Sender<u64>,
    accepting: tokio::task::AbortHandle,
}

impl Silencer {
    #[expect(clippy::disallowed_methods, reason = "a test's own tasks end with its runtime")]
    async fn before(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let silent = tokio::sync::watch::Sender::new(0);
        let told = silent.subscribe();
        let accepting = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut told = told.clone();
                told.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(upstream).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = told.changed() => {
                            if *told.borrow() == ENDED { return }
                            // Neither side hears anything any more, not even an end.
                            std::future::pending::<()>().await;
                        }
                    }
                });
            }
        });
        Self { address, silent, accepting: accepting.abort_handle() }
    }

    /// Ends all connections, and takes none any more.
    fn stop(&self) {
        self.accepting.abort();
        self.silent.send_replace(ENDED);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_to_a_replica_is_found_and_replaced() -> Outcome {
    let backend = Backend::start().await;
    let mut mesh = Mesh::start(MeshOptions::default()).await;
    let silencer = Silencer::before(mesh.address).await;
    mesh.address = silencer.address;
    let (orders, _web) = shop(&mesh, &backend).await;
    orders.connected().await;
    silencer.silent.send_modify(|count| *count += 1);
    // In force at both within the minute that `apply --wait` gives: they have noticed.
    mesh.apply(&allow("more", "shop/orders", "[shop/web]", "[POST]", "[\"/{rest=**}\"]"));
    Ok(())
}
