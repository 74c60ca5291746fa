//! Everything about certificates that can change, changed under load: leaves, issuing CAs, the trust anchor, and the replicas
//! of the control plane that do it, each killed in its turn. Not one request may fail.

pub mod floods;
pub mod slow;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use outrider_proto::v1::{RotateCertificatesRequest, StatusRequest};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet};

use crate::{AgentOptions, AgentProcess, Backend, Cluster, Disk, Identity, Mesh, MeshOptions, allow, join, read_answer};

/// Between two renewals that are asked for.
const ASKED: Duration = Duration::from_secs(2);

/// A replica is killed again each time that this part of the requests was made.
const KILLS: u64 = 20;

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct RotationPlan {
    /// Requests at least.
    pub requests: u64,
    /// Leaf renewals at least.
    pub renewals: u64,
    /// Connections of the load.
    pub connections: usize,
    /// Control planes; more than one share a PostgreSQL.
    pub replicas: usize,
    /// Requests a second in all at most; as many as pass when none.
    pub rate: Option<u32>,
    /// `--leaf-ttl`.
    pub leaf_ttl: &'static str,
    /// `--issuing-ttl`.
    pub issuing_ttl: &'static str,
    /// After that long it has failed.
    pub patience: Duration,
}

/// What happened.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct RotationSeen {
    /// Requests made.
    pub requests: u64,
    /// Those that were not answered with 200.
    pub failed: u64,
    /// The first of them.
    pub first_failure: Option<String>,
    /// Leaves renewed.
    pub renewals: u64,
    /// Issuing CAs that came into another's place.
    pub issuing_cas: u64,
    /// Replicas that were killed.
    pub kills: u64,
    /// Whether the trust anchor is another one, and the old one is nobody's any more.
    pub anchor_changed: bool,
    /// Whether an agent lets in a leaf of the old trust anchor before the change and refuses it afterwards, though it is valid.
    pub old_root_refused: bool,
    /// The longest that one request took.
    pub slowest_ms: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Replicas, and what keeps their store.
struct Planes {
    meshes: Vec<Mesh>,
    _cluster: Option<Cluster>,
}

impl Planes {
    async fn start(plan: &RotationPlan) -> Self {
        let options = MeshOptions { leaf_ttl: Some(plan.leaf_ttl) };
        let ttl = ["--issuing-ttl", plan.issuing_ttl];
        if plan.replicas < 2 {
            return Self { meshes: vec![Mesh::start_with(options, &ttl).await], _cluster: None };
        }
        let cluster = Cluster::start(Disk::Fast, None);
        let url = cluster.database();
        let mut meshes: Vec<Mesh> = Vec::new();
        for number in 0..plan.replicas {
            let key = match meshes.first() {
                Some(first) => first.dir.path().join("control-plane/key").display().to_string(),
                None => String::new(),
            };
            let name = format!("replica-{number}");
            let mut flags = vec!["--store", &url, "--replica", &name];
            flags.extend(ttl);
            if !key.is_empty() {
                flags.extend(["--key-file", &key]);
            }
            meshes.push(Mesh::start_with(options.clone(), &flags).await);
        }
        let addresses: Vec<SocketAddr> = meshes.iter().map(|mesh| mesh.address).collect();
        for mesh in &mut meshes {
            mesh.others = addresses.iter().copied().filter(|address| *address != mesh.address).collect();
        }
        Self { meshes, _cluster: Some(cluster) }
    }

    fn first(&self) -> &Mesh {
        self.meshes.first().expect("a control plane")
    }

    /// kill -9. Others take over; alone, it must be back before the certificates end.
    async fn kill_and_restart(&mut self, number: usize, agents: [&AgentProcess; 2]) {
        let mesh = self.meshes.get_mut(number).expect("a replica");
        mesh.control_plane.kill();
        mesh.restart_control_plane().await;
        for agent in agents {
            agent.connected().await;
        }
    }

    /// The common names of all roots, and of the issuing CA of the first replica.
    async fn authorities(&self) -> (Vec<String>, Vec<String>) {
        let status = self.first().admin().await.status(StatusRequest {}).await.expect("the status").into_inner();
        let of = |role: &str| {
            let all = status.certificate_authorities.iter().filter(|ca| ca.role == role);
            all.map(|ca| ca.spki_sha256.clone()).collect::<Vec<_>>()
        };
        (of("root"), of("issuing"))
    }
}

/// Load until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    /// Milliseconds.
    slowest: Arc<AtomicU64>,
    calls: JoinSet<(u64, Option<String>)>,
}

impl Load {
    fn start(proxy: SocketAddr, connections: usize, rate: Option<u32>) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let slowest = Arc::new(AtomicU64::new(0));
        let mut running = JoinSet::new();
        let each = u32::try_from(connections).unwrap_or(1);
        let pause = rate.map(|rate| Duration::from_secs(1) * each / rate.max(1));
        for _ in 0..connections {
            running.spawn(calls(proxy, pause, stop.clone(), (made.clone(), slowest.clone())));
        }
        Self { stop, made, slowest, calls: running }
    }

    fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// How many failed, and how the first one did.
    async fn end(mut self) -> (u64, Option<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut failed, mut first) = (0, None);
        while let Some(seen) = self.calls.join_next().await {
            let (more, how) = seen.expect("the calls");
            failed += more;
            first = first.or(how);
        }
        (failed, first)
    }
}

async fn calls(
    proxy: SocketAddr,
    pause: Option<Duration>,
    stop: Arc<AtomicBool>,
    (made, slowest): (Arc<AtomicU64>, Arc<AtomicU64>),
) -> (u64, Option<String>) {
    let (mut failed, mut first, mut stream, mut buf) = (0, None, None, Vec::new());
    let mut tick = pause.map(tokio::time::interval);
    while !stop.load(Ordering::Relaxed) {
        if let Some(tick) = &mut tick {
            tick.tick().await;
        }
        let number = made.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let answer = call(proxy, &mut stream, &mut buf).await;
        slowest.fetch_max(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let how = match answer {
            Ok(200) => continue,
            Ok(status) => format!("request {number}: status {status}"),
            Err(error) => format!("request {number}: {error}"),
        };
        failed += 1;
        first.get_or_insert(how);
        stream = None;
        buf.clear();
    }
    (failed, first)
}

async fn call(proxy: SocketAddr, stream: &mut Option<TcpStream>, buf: &mut Vec<u8>) -> std::io::Result<u16> {
    let open = match stream {
        Some(open) => open,
        None => stream.insert(TcpStream::connect(proxy).await?),
    };
    open.write_all(b"GET http://orders.shop/x HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?;
    Ok(read_answer(open, buf).await?.status)
}

/// Runs it. `tell` hears what is being done, and how many requests were made so far.
///
/// # Panics
/// When a part of it never comes to its end.
pub async fn rotation(plan: RotationPlan, mut tell: impl FnMut(&str, u64)) -> RotationSeen {
    let begun = Instant::now();
    let backend = Backend::start().await;
    let mut planes = Planes::start(&plan).await;
    let options = AgentOptions { services: vec![format!("shop/orders:80/http={}", backend.address)], ..AgentOptions::default() };
    let orders = planes.first().agent("shop/orders", options).await;
    let web = planes.first().agent("shop/web", AgentOptions::default()).await;
    planes.first().apply(&allow("reads", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"));
    // The caller may be at another replica than the service: it hears of it a moment later.
    while !matches!(call(web.outbound, &mut None, &mut Vec::new()).await, Ok(200)) {
        assert!(begun.elapsed() < plan.patience, "calls never pass");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let agents = [&orders, &web];
    let mut seen = RotationSeen::default();
    let load = Load::start(web.outbound, plan.connections, plan.rate);

    let (old_roots, mut issuing) = planes.authorities().await;
    for number in 0..planes.meshes.len() {
        tell(&format!("replica {number} is killed"), load.made());
        planes.kill_and_restart(number, agents).await;
        seen.kills += 1;
    }

    tell("the trust anchor is changed", load.made());
    // Somebody who got a leaf of the old one, and is not heard of again.
    let stranger = join(planes.first().address, &planes.first().token("shop/web", &[]).await).await.expect("a leaf");
    let until = leaf_end(&stranger);
    assert!(orders.lets_in("shop/orders", 80, stranger.clone()).await, "before the change");
    let rotated = tokio::task::block_in_place(|| planes.first().outrider(&["ca", "rotate", "--skip-away", "--timeout", "5m"]));
    assert!(rotated.status.success(), "{}{}", String::from_utf8_lossy(&rotated.stdout), String::from_utf8_lossy(&rotated.stderr));
    let (new_roots, _) = planes.authorities().await;
    seen.old_root_refused = !orders.lets_in("shop/orders", 80, stranger).await && now() < until;
    seen.anchor_changed = new_roots.len() == 1 && new_roots.iter().all(|root| !old_roots.contains(root));

    let part = (plan.requests / KILLS).max(5_000);
    let mut next = part;
    loop {
        let (_, now) = planes.authorities().await;
        if now != issuing {
            seen.issuing_cas += 1;
            issuing = now;
        }
        seen.renewals = renewals(agents).await;
        tell(&format!("{} leaves renewed, {} issuing CAs", seen.renewals, seen.issuing_cas), load.made());
        if load.made() >= plan.requests && seen.renewals >= plan.renewals && seen.issuing_cas > 0 {
            break;
        }
        assert!(begun.elapsed() < plan.patience, "not done in time: {} requests, {seen:?}", load.made());
        if load.made() >= next {
            let number = usize::try_from(seen.kills).unwrap_or(0) % planes.meshes.len();
            tell(&format!("replica {number} is killed again"), load.made());
            planes.kill_and_restart(number, agents).await;
            seen.kills += 1;
            next += part;
        }
        // Beside those that are due, so that there are many in little time.
        for identity in ["shop/orders", "shop/web"] {
            let request = RotateCertificatesRequest { identity: identity.to_owned() };
            // A replica that has just come back may not know yet where the agents are.
            drop(planes.first().admin().await.rotate_certificates(request).await);
        }
        tokio::time::sleep(ASKED).await;
    }
    seen.requests = load.made();
    seen.slowest_ms = load.slowest.load(Ordering::Relaxed);
    (seen.failed, seen.first_failure) = load.end().await;
    seen.seconds = begun.elapsed().as_secs_f64();
    seen
}

fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

/// Unix seconds.
fn leaf_end(identity: &Identity) -> i64 {
    let leaf = identity.chain.first().expect("a leaf");
    x509_parser::parse_x509_certificate(leaf).expect("X.509").1.validity().not_after.timestamp()
}

async fn renewals(agents: [&AgentProcess; 2]) -> u64 {
    let mut all = 0.0;
    for agent in agents {
        all += agent.metric("outrider_agent_certificate_renewals_total{result=\"ok\"}").await;
    }
    all as u64
}
