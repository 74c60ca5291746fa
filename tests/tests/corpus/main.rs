//! More than five hundred raw requests, at an agent, in front of programs that record what they saw: the program sees exactly the
//! requests that the agent's log says were sent on, each as the log has it, and never one that was hidden in another's body.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

mod h2;
mod raw;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use outrider_tests::{AgentOptions, AgentProcess, Backend, Mesh, MeshOptions, Outcome, Process, free_port, get};
use raw::Raw;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
};

const POLICY: &str = "\
apiVersion: outrider.dev/v1alpha1
kind: ServicePolicy
metadata: { name: orders, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  mtls: { mode: Permissive }
  authorization:
    rules: [{ name: anybody, action: Allow, from: [{ anonymous: true }] }]
";

/// How long nothing comes before a connection is given up.
const SILENCE: Duration = Duration::from_millis(500);

/// A request as a program saw it, or as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    method: String,
    /// Without query.
    path: String,
    host: String,
}

impl Line {
    fn new(method: &str, target: &str, host: &str) -> Self {
        let path = target.split('?').next().unwrap_or_default();
        let host = host.split(':').next().unwrap_or_default();
        Self { method: method.to_owned(), path: path.to_owned(), host: host.to_owned() }
    }
}

/// An agent in front of a program.
struct Scene {
    _mesh: Mesh,
    orders: AgentProcess,
    plain: SocketAddr,
}

impl Scene {
    async fn set(program: SocketAddr) -> Self {
        let mesh = Mesh::start(MeshOptions::default()).await;
        let port = free_port();
        let options = AgentOptions {
            services: vec![format!("shop/orders:80/http={program}")],
            more: vec!["--plaintext".to_owned(), format!("127.0.0.1:{port}=shop/orders:80")],
            ..AgentOptions::default()
        };
        let orders = mesh.agent("shop/orders", options).await;
        mesh.apply(POLICY);
        Self { _mesh: mesh, orders, plain: ([127, 0, 0, 1], port).into() }
    }

    /// Says all of it, each on a connection of its own.
    async fn say(&self, corpus: Vec<Raw>) {
        let turns = Arc::new(Semaphore::new(48));
        let mut running = JoinSet::new();
        for raw in corpus {
            running.spawn(say(self.plain, raw, turns.clone()));
        }
        while let Some(said) = running.join_next().await {
            said.expect("the connection");
        }
    }

    /// What the log says was sent on and answered, by request id.
    async fn sent_on(&self) -> BTreeMap<String, Line> {
        let text =
            |line: &serde_json::Value, key: &str| line.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        let log = self.orders.access_log().await;
        let sent = log.into_iter().filter(|line| line.get("reason").is_none() && line.get("status").is_some());
        sent.map(|line| (text(&line, "id"), Line::new(&text(&line, "method"), &text(&line, "path"), &text(&line, "host"))))
            .collect()
    }

    /// What the program saw is what the log says. Paths of `unread` are those that the program does not understand.
    async fn compare(&self, seen: Vec<(String, Line)>, unread: &[&str]) {
        let sent_on = self.sent_on().await;
        let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
        for (id, line) in &seen {
            assert_ne!(line.path, "/hidden", "a hidden request was seen");
            *counted.entry(id).or_default() += 1;
            // What was sent on and then broke off was seen as well, but is none of the answered ones.
            if let Some(logged) = sent_on.get(id) {
                assert_eq!(line, logged, "request {id}");
            }
        }
        assert!(counted.values().all(|count| *count == 1), "a request was seen twice: {counted:?}");
        let unseen =
            sent_on.iter().filter(|(id, line)| !counted.contains_key(id.as_str()) && !unread.contains(&line.path.as_str()));
        let unseen: Vec<_> = unseen.collect();
        assert!(unseen.is_empty(), "answered, but never seen: {unseen:?}");
        let logged: Vec<String> =
            self.orders.access_log().await.iter().filter_map(|line| Some(line.get("id")?.as_str()?.to_owned())).collect();
        for (id, line) in &seen {
            assert!(logged.contains(id), "seen, but not in the log: {id} {line:?}");
        }
        assert!(sent_on.len() >= 60, "only {} requests were sent on", sent_on.len());
    }
}

/// Writes the bytes, ends the sending side, and reads whatever comes until the agent closes.
async fn say(address: SocketAddr, raw: Raw, turns: Arc<Semaphore>) {
    let _turn = turns.acquire_owned().await.expect("a turn");
    let mut stream = TcpStream::connect(address).await.expect("the agent accepts");
    // The agent may close before it has taken all of it.
    let _ = stream.write_all(&raw.bytes).await;
    let mut answer = Vec::new();
    // Who ends its side is gone, and what it asked for with it: so only when nothing more comes.
    while matches!(tokio::time::timeout(SILENCE, stream.read_buf(&mut answer)).await, Ok(Ok(1..))) {}
    let _ = stream.shutdown().await;
    let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "left open after {}", raw.what);
    let text = String::from_utf8_lossy(&answer);
    let http2 = raw.bytes.starts_with(b"PRI * ");
    assert!(answer.is_empty() || http2 || text.starts_with("HTTP/1.1 "), "{}: {text}", raw.what);
}

#[tokio::test]
async fn what_a_program_sees_is_what_the_log_says_for_every_request_of_the_corpus() -> Outcome {
    is_what_the_log_says(raw::all()).await
}

#[tokio::test]
async fn what_a_program_sees_is_what_the_log_says_for_every_request_of_the_corpus_over_http2() -> Outcome {
    is_what_the_log_says(h2::all()).await
}

async fn is_what_the_log_says(corpus: Vec<Raw>) -> Outcome {
    assert!(corpus.len() >= 400, "{}", corpus.len());
    let backend = Backend::start().await;
    let scene = Scene::set(backend.address).await;
    scene.say(corpus).await;
    let first = |seen: &outrider_tests::Seen, name: &str| seen.values(name).first().copied().unwrap_or_default().to_owned();
    for seen in backend.seen() {
        let single = ["host", "x-request-id"].iter().all(|name| seen.values(name).len() == 1);
        let framings = seen.values("content-length").len() + seen.values("transfer-encoding").len();
        assert!(single && framings <= 1, "{seen:?}");
        for gone in ["upgrade", "http2-settings", "keep-alive", "proxy-connection", "x-forwarded-client-cert"] {
            let may = gone == "upgrade" && seen.values(gone) != ["h2c"];
            assert!(may || seen.values(gone).is_empty(), "{gone}: {seen:?}");
        }
    }
    let seen = backend.seen();
    let seen =
        seen.iter().map(|one| (first(one, "x-request-id"), Line::new(&one.method, &one.target, &first(one, "host")))).collect();
    scene.compare(seen, &[]).await;
    Ok(())
}

/// Waits until a program answers at all.
async fn serving(address: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while get(address, "/").await.is_err() {
        assert!(Instant::now() < deadline, "nothing serves on {address}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Lines `ID METHOD TARGET HOST` of a program's own log.
fn lines(text: &str) -> Vec<(String, Line)> {
    let read = |line: &str| {
        let words: Vec<&str> = line.split('|').collect();
        let [id, method, target, host] = words.as_slice() else { return None };
        (id.len() > 8).then(|| ((*id).to_owned(), Line::new(method, target, host)))
    };
    text.lines().filter_map(read).collect()
}

#[tokio::test]
async fn nginx_sees_what_the_log_says() -> Outcome {
    let dir = tempfile::tempdir()?;
    let address: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    fs::create_dir(dir.path().join("html"))?;
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {kind};")).concat();
    let conf = format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr;\nevents {{}}\nhttp {{ {temporary}\n  \
         log_format seen escape=none '$http_x_request_id|$request_method|$request_uri|$http_host';\n  access_log seen.log seen;\n  \
         server {{ listen {address}; location / {{ return 200 'ok'; }} }}\n}}\n"
    );
    fs::write(dir.path().join("nginx.conf"), conf)?;
    let mut start = Command::new("nginx");
    start.arg("-p").arg(dir.path()).args(["-c", "nginx.conf", "-e", "stderr"]);
    let _nginx = Process::start("nginx", &mut start);
    serving(address).await;
    let scene = Scene::set(address).await;
    scene.say(raw::all()).await;
    // It does not read `OPTIONS *` at all, and logs nothing of it.
    scene.compare(lines(&fs::read_to_string(dir.path().join("seen.log"))?), &["*"]).await;
    Ok(())
}

#[tokio::test]
async fn apache_sees_what_the_log_says() -> Outcome {
    let dir = tempfile::tempdir()?;
    let address: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let modules = ["mpm_event", "authz_core"]
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .concat();
    let root = dir.path().display();
    fs::create_dir(dir.path().join("html"))?;
    let conf = format!(
        "{modules}ServerRoot {root}\nListen {address}\nServerName orders.shop\nPidFile {root}/pid\nErrorLog {root}/error.log\nDefaultRuntimeDir {root}\n\
         User nobody\nGroup nogroup\nDocumentRoot {root}/html\nLogFormat \"%{{x-request-id}}i|%m|%U|%{{host}}i\" seen\nCustomLog {root}/seen.log seen\n\
         TraceEnable on\n"
    );
    let file = dir.path().join("apache.conf");
    fs::write(&file, conf)?;
    let mut start = Command::new("/usr/sbin/apache2");
    start.arg("-f").arg(&file).arg("-DFOREGROUND");
    let apache = Process::start("apache2", &mut start);
    serving(address).await;
    let scene = Scene::set(address).await;
    scene.say(raw::all()).await;
    // Apache writes its log when it is done with a request, which is after its answer.
    apache.signal("TERM");
    let deadline = Instant::now() + Duration::from_secs(10);
    while dir.path().join("pid").exists() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It logs the path as it decoded it: only who asked what in number and by name can be compared.
    let seen = lines(&fs::read_to_string(dir.path().join("seen.log"))?);
    let sent_on = scene.sent_on().await;
    assert!(sent_on.len() >= 60, "{}", sent_on.len());
    for (id, logged) in &sent_on {
        let of_it: Vec<&Line> = seen.iter().filter(|(other, _)| other == id).map(|(_, line)| line).collect();
        assert_eq!(of_it.len(), 1, "request {id} {logged:?}");
        assert!(of_it.iter().all(|line| (&line.method, &line.host) == (&logged.method, &logged.host)), "{of_it:?} {logged:?}");
    }
    assert!(seen.iter().all(|(_, line)| line.path != "/hidden"), "a hidden request was seen");
    Ok(())
}
