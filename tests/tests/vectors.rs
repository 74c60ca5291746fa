//! The vectors of the policy over real sockets: what `decide` says of a call is what a caller gets and a program sees.
//!
//! A vector is a call as data. Those that a member of the mesh can make over HTTP/1.1 on this machine are made, as raw bytes
//! on a mesh connection to the agent of the service; the others are counted by the reason why not.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use outrider_agent::{http::SharedIo, tls::MeshProtocol};
use outrider_policy::{Effect, Protocol, ServicePolicy, StoredPolicy, testcase::TestCase};
use outrider_tests::{AgentOptions, AgentProcess, Answer, Backend, Mesh, MeshOptions, MeshPeer, Outcome, Seen, exchange};
use serde::Deserialize;

/// The service of nearly all vectors.
const SERVICE: &str = "shop/orders";
const PORT: u16 = 8080;
/// Callers of the vectors who can join.
const CALLERS: [&str; 6] = ["shop/web", "shop/api", "bank/web", "bank/api", "shop/a.b", "shop/axb"];
/// The harness has this trust domain, the vectors that one.
const DOMAINS: [&str; 2] = ["mesh.internal", "mesh.example"];

#[derive(Deserialize)]
struct Group {
    about: String,
    policies: Vec<ServicePolicy>,
    cases: Vec<TestCase>,
}

/// All groups, in our trust domain; those of one set of policies made into one.
fn groups() -> Vec<Group> {
    let mut sets: Vec<Group> = Vec::new();
    for group in written() {
        match sets.iter_mut().find(|set| set.policies == group.policies) {
            Some(set) => set.cases.extend(group.cases),
            None => sets.push(group),
        }
    }
    sets
}

fn written() -> Vec<Group> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy/vectors");
    let entries = std::fs::read_dir(folder).expect("the vectors").map(|entry| entry.expect("an entry").path());
    let files: BTreeSet<_> = entries.filter(|path| path.extension().is_some_and(|kind| kind == "json")).collect();
    let read = |file| std::fs::read_to_string(file).expect("a file").replace(DOMAINS[1], DOMAINS[0]);
    files.iter().flat_map(|file| serde_json::from_str::<Vec<Group>>(&read(file)).expect("vectors")).collect()
}

/// Why a call cannot be made here; nothing if it can.
fn out_of_reach(case: &TestCase) -> Option<&'static str> {
    let (source, destination) = (&case.given.source, &case.given.destination);
    let identity = source.identity.as_ref();
    let known = |id: &str| CALLERS.iter().any(|caller| id == spiffe(caller));
    let Some(request) = &case.given.request else { return Some("opaque TCP") };
    match request.method.as_str() {
        _ if destination.protocol != Protocol::Http => Some("another protocol"),
        _ if destination.service.to_string() != SERVICE || destination.port != PORT => Some("another service or port"),
        _ if !destination.labels.is_empty() => Some("labels of the workload"),
        _ if !source.ip.is_loopback() || source.ip.is_ipv6() => Some("another address"),
        _ if identity.is_none() => Some("no identity"),
        _ if !identity.is_some_and(|id| known(id.as_str())) => Some("an identity that is not issued"),
        "CONNECT" => Some("not served over HTTP/1.1"),
        _ if request.headers.iter().any(|(name, _)| name.contains('_')) => Some("refused by the codec: `_` in a name"),
        _ => None,
    }
}

fn spiffe(account: &str) -> String {
    let (namespace, name) = account.split_once('/').expect("namespace/name");
    format!("spiffe://{}/ns/{namespace}/sa/{name}", DOMAINS[0])
}

/// The request as it goes over the wire.
fn wire(case: &TestCase) -> Vec<u8> {
    let request = case.given.request.as_ref().expect("a request");
    let mut bytes = format!("{} ", request.method).into_bytes();
    bytes.extend_from_slice(request.path.as_ref().expect("a path").as_ref());
    bytes.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    match &request.host {
        Some(host) => bytes.extend_from_slice(host.as_ref()),
        None => bytes.extend_from_slice(b"orders.shop"),
    }
    for (name, value) in &request.headers {
        bytes.extend_from_slice(format!("\r\n{name}: ").as_bytes());
        bytes.extend_from_slice(value.as_ref());
    }
    bytes.extend_from_slice(b"\r\n\r\n");
    bytes
}

struct Scene {
    mesh: Mesh,
    orders: AgentProcess,
    backend: Backend,
    peers: BTreeMap<String, MeshPeer>,
    /// Names of the policies that are stored.
    stored: BTreeSet<String>,
}

impl Scene {
    async fn set() -> Self {
        let backend = Backend::start().await;
        let mesh = Mesh::start(MeshOptions::default()).await;
        let services = vec![format!("{SERVICE}:{PORT}/http={}", backend.address)];
        let orders = mesh.agent(SERVICE, AgentOptions { services, ..AgentOptions::default() }).await;
        let mut peers = BTreeMap::new();
        for caller in CALLERS {
            peers.insert(spiffe(caller), MeshPeer::join(&mesh, caller).await);
        }
        Self { mesh, orders, backend, peers, stored: BTreeSet::new() }
    }

    /// Puts these policies in force, and no others.
    fn replace(&mut self, policies: &[ServicePolicy]) {
        let names: BTreeSet<String> = policies.iter().map(ServicePolicy::full_name).collect();
        for gone in self.stored.difference(&names) {
            let output = self.mesh.outrider(&["delete", "servicepolicy", gone, "--wait"]);
            assert!(output.status.success(), "{output:?}");
        }
        let yaml: String = policies.iter().map(|policy| format!("---\n{}\n", policy.to_json().expect("JSON"))).collect();
        if !policies.is_empty() {
            self.mesh.apply(&yaml);
        }
        self.stored = names;
    }

    async fn connect(&self, identity: &str) -> SharedIo {
        let peer = self.peers.get(identity).expect("a peer");
        peer.connect(self.orders.mesh, SERVICE, PORT, MeshProtocol::Http1, &spiffe(SERVICE)).await.expect("a connection")
    }

    /// Makes the call; what came back, and what the program saw.
    async fn call(&self, open: &mut BTreeMap<String, SharedIo>, case: &TestCase) -> (Answer, Vec<Seen>) {
        self.backend.forget();
        let identity = case.given.source.identity.as_ref().expect("an identity").to_string();
        let mut io = match open.remove(&identity) {
            Some(io) => io,
            None => self.connect(&identity).await,
        };
        let bytes = wire(case);
        let answer = match exchange(&mut io, &bytes).await {
            Ok(answer) => answer,
            // it was closed while idle, for a policy that came
            Err(_) => {
                io = self.connect(&identity).await;
                exchange(&mut io, &bytes).await.unwrap_or_else(|error| panic!("{error}: {}", case.name))
            }
        };
        // what is refused ends the connection
        if !matches!(answer.status, 400 | 421) {
            open.insert(identity, io);
        }
        (answer, self.backend.seen())
    }
}

/// Whether the request would be answered with 421 before any rule: its host is a service, and not the one of the connection.
fn names_another_service(case: &TestCase) -> bool {
    let prepared = case.given.prepare().expect("a call");
    let host = prepared.call().http.map(|http| http.host).unwrap_or_default();
    let labels = host.split('.').count();
    host != "orders.shop" && labels == 2
}

/// How the answer, or what the program saw, differs from what `decide` says of the call.
fn difference(case: &TestCase, policies: &[StoredPolicy], answer: &Answer, seen: &[Seen]) -> Option<String> {
    let decided = case.given.answer(policies).expect("an answer");
    let expected = match (decided.refused.is_some(), decided.effect) {
        (true, _) => 400,
        _ if names_another_service(case) => 421,
        (false, Effect::Allow) => 200,
        (false, Effect::Deny) => 403,
    };
    if answer.status != expected {
        return Some(format!("expected {expected}, got {}", answer.status));
    }
    let one = match (expected, seen) {
        (200, [one]) => one,
        (400 | 403 | 421, []) => return None,
        _ => return Some(format!("after {expected} the program saw {} requests", seen.len())),
    };
    let prepared = case.given.prepare().expect("a call");
    let http = prepared.call().http.expect("a request");
    let target = http.query.map_or_else(|| http.path.to_owned(), |query| format!("{}?{query}", http.path));
    if (one.method.as_str(), one.target.as_str()) != (http.method, target.as_str()) {
        return Some(format!("decided on {} {target}, the program saw {} {}", http.method, one.method, one.target));
    }
    let sent = case.given.request.iter().flat_map(|request| &request.headers);
    for (name, value) in sent {
        let value = String::from_utf8_lossy(value.as_ref()).trim().to_owned();
        if !one.values(name).contains(&value.as_str()) {
            return Some(format!("the program did not see `{name}: {value}`, but {:?}", one.values(name)));
        }
    }
    None
}

#[tokio::test]
async fn the_vectors_come_out_over_real_sockets_as_they_are_decided() -> Outcome {
    let (mut scene, groups) = (Scene::set().await, groups());
    let all: usize = groups.iter().map(|group| group.cases.len()).sum();
    let (mut sent, mut left_out, mut differences) = (0, BTreeMap::<&str, usize>::new(), Vec::new());
    for Group { about, policies, cases } in groups {
        let stored: Vec<StoredPolicy> =
            policies.iter().map(|policy| StoredPolicy { policy: Arc::new(policy.clone()), revision: 1 }).collect();
        let mut within = Vec::new();
        for case in cases {
            let why = out_of_reach(&case).or_else(|| {
                // a pattern such as `*.example` means something else in the trust domain of the harness
                let answer = case.given.answer(&stored).expect("an answer");
                case.expect.unlike(&answer).map(|_| "another trust domain")
            });
            match why {
                Some(why) => *left_out.entry(why).or_default() += 1,
                None => within.push(case),
            }
        }
        if within.is_empty() {
            continue;
        }
        scene.replace(&policies);
        let mut open = BTreeMap::new();
        for case in within {
            let (answer, seen) = scene.call(&mut open, &case).await;
            if answer.status == 421 {
                *left_out.entry("a host that names another service").or_default() += 1;
            } else {
                sent += 1;
            }
            differences.extend(
                difference(&case, &stored, &answer, &seen).map(|difference| format!("{about}: {}: {difference}", case.name)),
            );
        }
    }
    assert!(differences.is_empty(), "{} of {sent} differ:\n{}", differences.len(), differences.join("\n"));
    assert!(sent * 10 >= all * 7, "only {sent} of {all} vectors were sent; left out: {left_out:?}");
    Ok(())
}
