//! Requests that two readers could understand differently, sent by a member of the mesh as raw bytes straight at the agent
//! of the service: they are refused or canonicalised, and the program never receives what the policy did not decide.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use outrider_agent::{http::SharedIo, tls::MeshProtocol};
use outrider_tests::{AgentOptions, AgentProcess, Backend, Mesh, MeshOptions, MeshPeer, Outcome, read_answer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const POLICY: &str = r#"
apiVersion: outrider.dev/v1alpha1
kind: ServicePolicy
metadata: { name: orders, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  authorization:
    rules:
      - name: all
        action: Allow
        from: [{ serviceAccounts: [shop/web] }]
      - name: private
        action: Deny
        to: [{ paths: ["/private", "/private/{rest=**}", "/admin", "/admin/{rest=**}", "/api/{rest=**}", "/user/profile"] }]
      - name: role
        action: Deny
        to: [{ headers: [{ name: x-role, exact: admin }] }]
      - name: host
        action: Deny
        to: [{ hosts: [secret.example.com] }]
"#;

const WEB: &str = "spiffe://mesh.internal/ns/shop/sa/web";

struct Scene {
    _mesh: Mesh,
    orders: AgentProcess,
    backend: Backend,
    peer: MeshPeer,
}

impl Scene {
    async fn set() -> Self {
        let backend = Backend::start().await;
        let mesh = Mesh::start(MeshOptions::default()).await;
        let options =
            AgentOptions { services: vec![format!("shop/orders:80/http={}", backend.address)], ..AgentOptions::default() };
        let orders = mesh.agent("shop/orders", options).await;
        mesh.apply(POLICY);
        let peer = MeshPeer::join(&mesh, "shop/web").await;
        Self { _mesh: mesh, orders, backend, peer }
    }

    async fn connect(&self) -> SharedIo {
        let expected = "spiffe://mesh.internal/ns/shop/sa/orders";
        let connected = self.peer.connect(self.orders.mesh, "shop/orders", 80, MeshProtocol::Http1, expected).await;
        connected.expect("a mesh connection")
    }

    /// Sends bytes on a connection of their own; the statuses of the first `expect` answers.
    async fn statuses(&self, bytes: &[u8], expect: usize) -> Vec<u16> {
        let mut io = self.connect().await;
        io.write_all(bytes).await.expect("written");
        io.flush().await.expect("flushed");
        let (mut statuses, mut buf) = (Vec::new(), Vec::new());
        while statuses.len() < expect {
            statuses.push(read_answer(&mut io, &mut buf).await.expect("an answer").status);
        }
        statuses
    }

    /// Sends bytes on a connection of their own, which the agent must end by itself: the statuses of all answers until then.
    async fn last_words(&self, bytes: &[u8]) -> Vec<u16> {
        let mut io = self.connect().await;
        io.write_all(bytes).await.expect("written");
        io.flush().await.expect("flushed");
        let mut all = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(2), io.read_to_end(&mut all)).await;
        let text = String::from_utf8_lossy(bytes);
        ended.unwrap_or_else(|_| panic!("left open after {text:?}")).unwrap_or_else(|error| panic!("{error} after {text:?}"));
        let (mut rest, mut buf, mut statuses) = (all.as_slice(), Vec::new(), Vec::new());
        while !(rest.is_empty() && buf.is_empty()) {
            statuses.push(read_answer(&mut rest, &mut buf).await.expect("whole answers").status);
        }
        statuses
    }

    async fn status(&self, target: &str, host: &str, fields: &str) -> u16 {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
        self.statuses(request.as_bytes(), 1).await.first().copied().unwrap_or_default()
    }
}

#[tokio::test]
async fn a_denied_path_stays_denied_in_every_spelling() -> Outcome {
    let scene = Scene::set().await;
    assert_eq!(scene.status("/public", "orders.shop", "").await, 200, "the control: what is not denied passes");
    assert_eq!(scene.status("/private", "orders.shop", "").await, 403, "the control: what is denied does not");
    scene.backend.forget();
    let hidden = [
        // dot segments
        "/public/../private",
        "/public/%2e%2e/private",
        "/public/%2E%2E/private",
        "/public/.%2e/private",
        "/public/./../private",
        "/./private",
        // double and encoded slashes, backslashes
        "//admin",
        "/x%2f..%2fadmin",
        "/x%2F..%2Fadmin",
        "/%5cadmin",
        "/%5Cadmin",
        "\\admin",
        "/\\admin",
        "/x/..%5cadmin",
        "//private//x",
        // fragments
        "/user/profile#s",
        "/user/profile%23s#",
        // queries
        "/private?",
        "/private?x",
        "/private?/../public",
        "/private#",
        // path parameters
        "/user/..;foo=bar/admin",
        "/admin;x=y/a",
        "/private;x",
        "/;x/admin",
        "/.;/private",
        "/private;/x",
        // every legal character in a template's segment
        "/api/a*b",
        "/api/!$&'()*+,;=:@",
        "/api/-._~",
        "/api/%2A",
        // authority forms
        "//admin/secret",
        "http://orders.shop//admin/secret",
        "http://orders.shop/private",
        // both hex cases, needless escapes
        "/%70rivate",
        "/%50rivate/../private",
        "/priv%61te",
        "/priv%61te/x",
        "/admin%2f",
        "/admin%2F",
        "/private%00",
        "/%C0%AE%C0%AE/private",
        "/x/%c0%ae%c0%ae%c0%afprivate",
        "/private%zz",
        "/private%2",
        "/%2570rivate",
        "/private%20",
    ];
    for target in hidden {
        let status = scene.status(target, "orders.shop", "").await;
        let reached: Vec<_> = scene.backend.seen().into_iter().map(|seen| seen.target).collect();
        let harmless = target == "/private%20" || target == "/user/profile%23s#";
        assert!(status == 403 || status == 400 || (harmless && status == 200), "{target}: {status}");
        assert!(reached.is_empty() || harmless, "{target} reached the program as {reached:?}");
        scene.backend.forget();
    }
    // A path without a leading slash is no request at all.
    for target in ["pkg.Svc/Del", "private", "*", "orders.shop:80", ""] {
        let status = scene.status(target, "orders.shop", "").await;
        assert_eq!(status, 400, "{target}");
    }
    assert!(scene.backend.seen().is_empty());
    Ok(())
}

#[tokio::test]
async fn the_program_gets_the_form_that_was_decided() -> Outcome {
    let scene = Scene::set().await;
    for (sent, received) in [
        ("/%61bc/%7Ed", "/abc/~d"),
        ("/a%c3%a9", "/a%C3%A9"),
        ("/a?q=%2e%2e/x%2fy", "/a?q=../x%2Fy"),
        ("/%61?d%65bug=%31", "/a?debug=1"),
        ("http://ORDERS.shop:80/x", "/x"),
    ] {
        scene.backend.forget();
        assert_eq!(scene.status(sent, "orders.shop", "").await, 200, "{sent}");
        assert_eq!(scene.backend.seen()[0].target, received);
        assert_eq!(scene.backend.seen()[0].values("host").len(), 1);
    }
    Ok(())
}

#[tokio::test]
async fn what_follows_a_tunnel_that_was_not_granted_is_no_request() -> Outcome {
    let scene = Scene::set().await;
    let connect = |host: &str| {
        format!(
            "CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\nGET http://orders.shop/public HTTP/1.1\r\nHost: orders.shop\r\n\r\n"
        )
    };
    assert_eq!(scene.last_words(connect("orders.shop:80").as_bytes()).await, [405], "into a program");
    for (host, status) in
        [("nowhere.shop:80", 404), ("orders.shop:80", 400), ("example.com.:443", 404), ("a.b.example.com:443", 403)]
    {
        let mut program = TcpStream::connect(scene.orders.outbound).await?;
        program.write_all(connect(host).as_bytes()).await?;
        let mut answers = Vec::new();
        tokio::time::timeout(Duration::from_secs(5), program.read_to_end(&mut answers)).await??;
        let answers = String::from_utf8_lossy(&answers).into_owned();
        assert!(answers.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answers}");
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{host}: {answers}");
    }
    // The same of a switch of protocols.
    let early = "GET /private HTTP/1.1\r\nHost: orders.shop\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\
                 GET /public HTTP/1.1\r\nHost: orders.shop\r\n\r\n";
    assert_eq!(scene.last_words(early.as_bytes()).await, [403]);
    let log = scene.orders.access_log().await;
    assert!(log.iter().all(|line| line["path"] != "/public"), "{log:?}");
    assert!(scene.backend.seen().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_caller_that_waits_for_100_gets_it_after_the_decision_only() -> Outcome {
    let scene = Scene::set().await;
    let head =
        |path: &str| format!("POST {path} HTTP/1.1\r\nHost: orders.shop\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(scene.last_words(head("/private").as_bytes()).await, [403]);
    assert_eq!(scene.last_words(head("/a//b").as_bytes()).await, [400]);
    let mut io = scene.connect().await;
    io.write_all(head("/public").as_bytes()).await?;
    io.flush().await?;
    let mut interim = [0; 25];
    io.read_exact(&mut interim).await?;
    assert_eq!(interim, *b"HTTP/1.1 100 Continue\r\n\r\n");
    io.write_all(b"body").await?;
    io.flush().await?;
    assert_eq!(read_answer(&mut io, &mut Vec::new()).await?.status, 200);
    let seen = scene.backend.seen();
    assert_eq!((seen.len(), seen[0].body.as_slice()), (1, b"body".as_slice()));
    Ok(())
}

#[tokio::test]
async fn a_member_that_asks_for_a_foreign_port_is_recorded_by_its_name() -> Outcome {
    let scene = Scene::set().await;
    let expected = "spiffe://mesh.internal/ns/shop/sa/orders";
    for (service, port, protocol) in
        [("shop/other", 80, MeshProtocol::Http1), ("shop/orders", 81, MeshProtocol::Mesh), ("shop/orders", 80, MeshProtocol::Tcp)]
    {
        let connected = scene.peer.connect(scene.orders.mesh, service, port, protocol, expected).await;
        let mut io = connected.expect("a handshake");
        let _ = io.read_to_end(&mut Vec::new()).await;
    }
    let log = scene.orders.access_log().await;
    let reasons: Vec<_> = log.iter().filter_map(|line| line["reason"].as_str()).collect();
    assert_eq!(reasons, ["unknown_service", "unknown_service", "protocol_mismatch"], "{log:?}");
    for line in &log {
        assert_eq!((line["source"].as_str(), line["peer_identity"].as_str()), (Some(WEB), Some(WEB)), "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn a_denied_host_stays_denied_in_every_spelling() -> Outcome {
    let scene = Scene::set().await;
    for (host, status) in [
        ("public.example.com", 200),
        ("secret.example.com", 403),
        ("Secret.EXAMPLE.com", 403),
        ("secret.example.com.", 403),
        ("secret.example.com:80", 403),
        ("secret.example.com:0080", 403),
        ("secret.example.com:1", 403),
        ("secret.example.com:65535", 403),
        ("secret.example.com:99999", 400),
        ("secret.example.com:", 400),
        ("secret.example.com:0", 400),
        ("a@secret.example.com", 400),
        ("secret.example.com/", 400),
        ("secret%2eexample.com", 400),
        ("other.shop", 421),
    ] {
        assert_eq!(scene.status("/public", host, "").await, status, "{host}");
    }
    // No host, two hosts, disagreeing hosts.
    for request in [
        "GET /public HTTP/1.1\r\n\r\n",
        "GET /public HTTP/1.0\r\n\r\n",
        "GET /public HTTP/1.1\r\nHost: orders.shop\r\nHost: orders.shop\r\n\r\n",
        "GET /public HTTP/1.1\r\nHost: orders.shop\r\nhost: secret.example.com\r\n\r\n",
        "GET http://secret.example.com/public HTTP/1.1\r\nHost: orders.shop\r\n\r\n",
        "GET http://orders.shop/public HTTP/1.1\r\nHost: secret.example.com\r\n\r\n",
    ] {
        assert_eq!(scene.last_words(request.as_bytes()).await, [400], "{request}");
    }
    assert_eq!(scene.status("/public", "orders.shop", "").await, 200, "the agent still serves");
    Ok(())
}

#[tokio::test]
async fn a_denied_header_value_stays_denied_in_every_form() -> Outcome {
    let scene = Scene::set().await;
    assert_eq!(scene.status("/public", "orders.shop", "X-Role: user\r\n").await, 200);
    // Many lines and lists, white space, underscores, folded lines.
    for (fields, status) in [
        ("X-Role: admin\r\n", 403),
        ("x-role: user\r\nX-Role: admin\r\n", 403),
        ("x-role: admin\r\nX-Role: user\r\n", 403),
        ("x-role: user,admin\r\n", 403),
        ("x-role: admin,user\r\n", 403),
        ("x-role: user , admin \r\n", 403),
        ("x-role: a\r\nx-role: admin\r\nx-role: b\r\n", 403),
        ("x-role: admin \r\n", 403),
        ("x-role:\tadmin\t\r\n", 403),
        ("x-role:admin\r\n", 403),
        ("X_Role: admin\r\n", 400),
        ("x-role : admin\r\n", 400),
        ("x-role: user\r\n admin\r\n", 400),
    ] {
        assert_eq!(scene.status("/public", "orders.shop", fields).await, status, "{fields:?}");
    }
    Ok(())
}

#[tokio::test]
async fn callers_cannot_say_who_they_are() -> Outcome {
    let scene = Scene::set().await;
    for fields in [
        "X-Forwarded-Client-Cert: URI=spiffe://mesh.internal/ns/shop/sa/boss\r\n",
        "x-forwarded-client-cert: a\r\nX-FORWARDED-CLIENT-CERT: b,c\r\nX-Envoy-Original-Path: /private\r\nl5d-client-id: x\r\nX-Outrider-Peer: x\r\n",
        "Connection: x-forwarded-client-cert\r\nx-forwarded-client-cert: a\r\n",
        "",
    ] {
        scene.backend.forget();
        let status = scene.status("/public", "orders.shop", fields).await;
        if fields.starts_with("Connection") {
            assert_eq!(status, 400, "an end-to-end field cannot be named away");
            continue;
        }
        assert_eq!(status, 200);
        let seen = &scene.backend.seen()[0];
        let claim = "By=spiffe://mesh.internal/ns/shop/sa/orders;URI=spiffe://mesh.internal/ns/shop/sa/web";
        assert_eq!(seen.values("x-forwarded-client-cert"), [claim], "{fields}");
        for name in ["x-envoy-original-path", "l5d-client-id", "x-outrider-peer"] {
            assert!(seen.values(name).is_empty(), "{name}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn doubtful_framing_ends_the_connection_and_smuggles_nothing() -> Outcome {
    let scene = Scene::set().await;
    let smuggled = "GET /private HTTP/1.1\r\nHost: orders.shop\r\n\r\n";
    let cases = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: , chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        "Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
        "Content-Length: 0, 0\r\n\r\n",
        "Content-Length: +0\r\n\r\n",
        "Content-Length: -0\r\n\r\n",
        "Content-Length: 0x0\r\n\r\n",
        "Content-Length: 0 0\r\n\r\n",
        "Content-Length:\r\n\r\n",
        "Content-Length: 18446744073709551616\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0;ext\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
        "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: x\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\r\n",
        "X: y\n\r\n",
        "X: y\rZ: w\r\n\r\n",
        "X: y\0z\r\n\r\n",
        ": empty\r\n\r\n",
    ];
    for case in cases {
        scene.backend.forget();
        let request = format!("POST /public HTTP/1.1\r\nHost: orders.shop\r\n{case}{smuggled}");
        assert_eq!(scene.last_words(request.as_bytes()).await, [400], "{case:?}");
        // Also where the head was good and only the body was not: no whole request came of it.
        let reached: Vec<_> = scene.backend.seen().into_iter().map(|seen| (seen.method, seen.target)).collect();
        assert!(reached.is_empty(), "{case:?} reached the program: {reached:?}");
    }
    // HTTP/1.0 has no chunks.
    let request = format!("POST /public HTTP/1.0\r\nHost: orders.shop\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}");
    assert_eq!(scene.last_words(request.as_bytes()).await, [400]);
    assert!(scene.backend.seen().is_empty());
    Ok(())
}

#[tokio::test]
async fn pipelined_requests_and_bodies_stay_apart() -> Outcome {
    let scene = Scene::set().await;
    let request = "POST /public/1 HTTP/1.1\r\nHost: orders.shop\r\nContent-Length: 3\r\n\r\nabcGET /public/2 HTTP/1.1\r\nHost: orders.shop\r\n\r\n\
                   POST /public/3 HTTP/1.1\r\nHost: orders.shop\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1\r\nf\r\n0\r\nX-T: 1\r\n\r\n\
                   GET /private HTTP/1.1\r\nHost: orders.shop\r\n\r\nGET /public/4 HTTP/1.1\r\nHost: orders.shop\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(scene.statuses(request.as_bytes(), 5).await, [200, 200, 200, 403, 200]);
    let seen: Vec<_> =
        scene.backend.seen().into_iter().map(|seen| (seen.target, String::from_utf8_lossy(&seen.body).into_owned())).collect();
    let expected = [("/public/1", "abc"), ("/public/2", ""), ("/public/3", "def"), ("/public/4", "hi")];
    assert_eq!(seen, expected.map(|(target, body)| (target.to_owned(), body.to_owned())));
    Ok(())
}

#[tokio::test]
async fn a_refused_body_is_never_read_as_the_next_request() -> Outcome {
    let scene = Scene::set().await;
    let inner = "GET /public HTTP/1.1\r\nHost: orders.shop\r\n\r\n";
    let request =
        format!("POST /private HTTP/1.1\r\nHost: orders.shop\r\nContent-Length: {}\r\n\r\n{inner}", inner.len() + (1 << 20));
    assert_eq!(scene.last_words(request.as_bytes()).await, [403], "the connection ends after the refusal");
    assert!(scene.backend.seen().is_empty());
    Ok(())
}

#[tokio::test]
async fn every_record_is_one_line_of_json() -> Outcome {
    let scene = Scene::set().await;
    let long = "x".repeat(8000);
    // What a caller can get into a line: the path, the host, the request id, and the detail of a refusal.
    let hostile = "x-forwarded-\"\\\u{9b}31m\u{202e}";
    let requests = [
        (format!("/{long}"), "orders.shop", String::new(), 200),
        ("/%22%5Cn%1B%5B31m%0A".to_owned(), "orders.shop", String::new(), 400),
        ("/%22%1B".to_owned(), "orders.shop", String::new(), 200),
        ("/a".to_owned(), "orders.shop\"", String::new(), 400),
        ("/b".to_owned(), "orders.shop", "x-request-id: \"}\\\r\n".to_owned(), 200),
        ("/c".to_owned(), "orders.shop", format!("connection: {hostile}\r\n"), 400),
        ("/d".to_owned(), "orders.shop", format!("connection: x-forwarded-{long}\r\n"), 400),
        ("/e".to_owned(), "orders.shop", "x-forwarded-\x1b: y\r\n".to_owned(), 400),
    ];
    for (target, host, fields, status) in &requests {
        assert_eq!(scene.status(target, host, fields).await, *status, "{target:.20} {host} {fields:.40}");
    }
    let log = scene.orders.access_log().await; // panics at a line that is not JSON
    assert_eq!(log.len(), requests.len(), "a line each: {log:#?}");
    let text = |line: usize, key: &str| log[line][key].as_str().unwrap_or_default().to_owned();
    assert_eq!((text(0, "path").len(), text(2, "path").as_str()), (1024, "/%22%1B"));
    assert!(text(5, "detail").contains(hostile), "the very text, escaped by JSON: {}", log[5]);
    assert!(text(6, "detail").starts_with("connection names") && text(6, "detail").len() == 1024, "{}", log[6]);
    let raw = std::fs::read_to_string(scene.orders.state_dir.with_extension("access.log"))?;
    assert!(raw.chars().all(|character| character == '\n' || !character.is_control()), "nothing that a terminal obeys");
    Ok(())
}
