//! HTTP/2 as raw frames, from a member of the mesh straight at the agent of the service: what HTTP/1.1 could not say, what
//! could be read in two ways, and what would name another target than was decided. None of it reaches the program.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use outrider_agent::tls::MeshProtocol;
use outrider_tests::{
    AgentOptions, AgentProcess, Backend, Ends,
    H2Answer::{self, GoAway, Reset, Status},
    Mesh, MeshOptions, MeshPeer, Outcome, h2_answer, h2_block, h2_data, h2_frame, h2_head, h2_headers, h2_opening, h2_request,
};
use tokio::io::AsyncWriteExt as _;

const POLICY: &str = r#"
apiVersion: outrider.dev/v1alpha1
kind: ServicePolicy
metadata: { name: orders, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  authorization:
    rules:
      - { name: all, action: Allow, from: [{ serviceAccounts: [shop/web] }] }
      - { name: private, action: Deny, to: [{ paths: ["/user/profile", "/private/{rest=**}"] }] }
"#;

/// RFC 9113 section 7.
const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

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
        let services = vec![format!("shop/orders:80/http={}", backend.address)];
        let orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
        mesh.apply(POLICY);
        let peer = MeshPeer::join(&mesh, "shop/web").await;
        let scene = Self { _mesh: mesh, orders, backend, peer };
        scene.works().await;
        scene
    }

    /// What comes back for these bytes on a connection of their own.
    async fn answer(&self, bytes: &[u8]) -> H2Answer {
        let expected = "spiffe://mesh.internal/ns/shop/sa/orders";
        let connected = self.peer.connect(self.orders.mesh, "shop/orders", 80, MeshProtocol::Http2, expected).await;
        let mut io = connected.expect("a mesh connection");
        io.write_all(bytes).await.expect("written");
        io.flush().await.expect("flushed");
        h2_answer(&mut io).await.unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(bytes)))
    }

    /// The control: a good request is answered, and the program has it.
    async fn works(&self) {
        self.backend.forget();
        assert_eq!(self.answer(&h2_request(&pseudo("/fine"), &[("x-a", "b")])).await, Status(200));
        let seen = self.backend.seen();
        let seen: Vec<_> = seen.iter().map(|seen| (seen.target.as_str(), seen.values("x-a"))).collect();
        assert_eq!(seen, [("/fine", vec!["b"])]);
        self.backend.forget();
    }

    /// These bytes get this answer and the program gets nothing.
    async fn refuses(&self, what: &str, bytes: &[u8], answer: H2Answer) {
        assert_eq!(self.answer(bytes).await, answer, "{what}");
        assert!(self.backend.seen().is_empty(), "{what} reached the program: {:?}", self.backend.seen());
    }
}

fn pseudo(path: &str) -> [(&str, &str); 4] {
    [(":method", "GET"), (":scheme", "http"), (":authority", "orders.shop"), (":path", path)]
}

#[tokio::test]
async fn fields_that_http1_could_not_carry_are_refused() -> Outcome {
    let scene = Scene::set().await;
    type Case = (&'static str, &'static [(&'static str, &'static str)], H2Answer);
    let cases: &[Case] = &[
        ("CR LF in a value", &[("x-a", "b\r\nGET /smuggled HTTP/1.1\r\nhost: orders.shop\r\n\r\n")], GoAway(PROTOCOL_ERROR)),
        ("LF in a value", &[("x-a", "b\nc: d")], GoAway(PROTOCOL_ERROR)),
        ("NUL in a value", &[("x-a", "b\0c")], GoAway(PROTOCOL_ERROR)),
        ("a colon in a name", &[("x:a", "b")], GoAway(PROTOCOL_ERROR)),
        ("a line break in a name", &[("x-a: b\r\nx-b", "c")], GoAway(PROTOCOL_ERROR)),
        ("a space in a name", &[("x a", "b")], GoAway(PROTOCOL_ERROR)),
        ("an upper-case name", &[("X-Upper", "b")], GoAway(PROTOCOL_ERROR)),
        ("an empty name", &[("", "b")], GoAway(PROTOCOL_ERROR)),
        ("an underscore in a name", &[("x_role", "b")], Status(400)),
        ("a space before a value", &[("x-a", " b")], Status(400)),
        ("a space after a value", &[("x-a", "b ")], Status(400)),
        ("a tab after a value", &[("x-a", "b\t")], Status(400)),
        ("transfer-encoding", &[("transfer-encoding", "chunked")], Reset(PROTOCOL_ERROR)),
        ("connection", &[("connection", "close")], Reset(PROTOCOL_ERROR)),
        ("upgrade", &[("upgrade", "h2c")], Reset(PROTOCOL_ERROR)),
        ("keep-alive", &[("keep-alive", "x")], Reset(PROTOCOL_ERROR)),
        ("proxy-connection", &[("proxy-connection", "x")], Reset(PROTOCOL_ERROR)),
        ("te other than trailers", &[("te", "gzip")], Reset(PROTOCOL_ERROR)),
        ("http2-settings", &[("http2-settings", "AAMAAABkAAQAAP__")], Status(400)),
        ("a second :path", &[(":path", "/second")], Reset(PROTOCOL_ERROR)),
        ("a pseudo field after the others", &[("x-a", "b"), (":status", "200")], Reset(PROTOCOL_ERROR)),
        ("an unknown pseudo field", &[(":target", "/x")], GoAway(PROTOCOL_ERROR)),
    ];
    for (what, fields, answer) in cases {
        scene.refuses(what, &h2_request(&pseudo("/x"), fields), *answer).await;
    }
    scene.works().await;
    Ok(())
}

#[tokio::test]
async fn targets_and_schemes_are_read_in_one_way() -> Outcome {
    let scene = Scene::set().await;
    let with = |name: &'static str, value: &'static str| {
        let fields = pseudo("/x").map(|field| if field.0 == name { (name, value) } else { field });
        h2_request(&fields, &[])
    };
    for (path, answer) in [
        ("/user/profile", Status(403)),
        ("/user/profile#s", Status(403)),
        ("/public/../user/profile", Status(400)),
        ("/public\\..\\user", Status(400)),
        ("//private/x", Status(400)),
        ("/private%2Fx", Status(400)),
        ("/privat\u{e9}", Status(400)),
        ("pkg.Svc/Del", Reset(PROTOCOL_ERROR)),
        ("http://orders.shop/user/profile", Reset(PROTOCOL_ERROR)),
        ("*", Status(400)),
        ("", Reset(PROTOCOL_ERROR)),
        ("/x y", Reset(PROTOCOL_ERROR)),
    ] {
        scene.refuses(path, &with(":path", path), answer).await;
    }
    for scheme in ["HTTPS", "hTTp", "ftp", "file", ""] {
        scene.refuses(scheme, &with(":scheme", scheme), Status(400)).await;
    }
    scene.refuses("a scheme with a colon", &with(":scheme", "http:"), Reset(PROTOCOL_ERROR)).await;
    scene.refuses("a method in lower case", &with(":method", "get"), Status(400)).await;
    for method in ["G T", "", "GET\r\n"] {
        scene.refuses(method, &with(":method", method), GoAway(PROTOCOL_ERROR)).await;
    }
    scene.works().await;
    Ok(())
}

#[tokio::test]
async fn connect_over_http2_reaches_no_program() -> Outcome {
    let scene = Scene::set().await;
    let connect = [(":method", "CONNECT"), (":authority", "orders.shop:80")];
    let whole = [connect[0], (":scheme", "http"), connect[1], (":path", "/x")];
    scene.refuses("CONNECT", &h2_request(&connect, &[]), Status(405)).await;
    scene.refuses("CONNECT with scheme and path", &h2_request(&whole, &[]), Reset(PROTOCOL_ERROR)).await;
    let extended = |protocol: &'static str| h2_request(&[&whole[..], &[(":protocol", protocol)]].concat(), &[]);
    scene.refuses("extended CONNECT to anything else than WebSocket", &extended("connect-udp"), Status(405)).await;
    scene.refuses("the same in capitals", &extended("WebSocket"), Status(405)).await;
    scene
        .refuses(
            "another method with :protocol",
            &h2_request(&[&pseudo("/x")[..], &[(":protocol", "websocket")]].concat(), &[]),
            Reset(PROTOCOL_ERROR),
        )
        .await;
    scene.works().await;
    Ok(())
}

#[tokio::test]
async fn the_host_over_http2_is_named_once_and_alike() -> Outcome {
    let scene = Scene::set().await;
    let bad = "outrider_agent_requests_total{side=\"inbound\",outcome=\"bad_host\"";
    let before = scene.orders.metric(bad).await;
    let without = [(":method", "GET"), (":scheme", "http"), (":path", "/x")];
    let named = |authority: &'static str| [without[0], without[1], (":authority", authority), without[2]];
    let cases = [
        ("no host", h2_request(&without, &[])),
        ("another host", h2_request(&pseudo("/x"), &[("host", "secret.example.com")])),
        ("another port", h2_request(&pseudo("/x"), &[("host", "orders.shop:81")])),
        ("two hosts", h2_request(&without, &[("host", "orders.shop"), ("host", "orders.shop")])),
        ("user information", h2_request(&without, &[("host", "a@orders.shop")])),
        ("user information in :authority", h2_request(&named("a@orders.shop"), &[])),
    ];
    for (what, bytes) in &cases {
        scene.refuses(what, bytes, Status(400)).await;
    }
    assert_eq!(scene.orders.metric(bad).await - before, 6.0, "each for the reason that it has no good host");
    scene.refuses("an empty :authority", &h2_request(&named(""), &[]), Reset(PROTOCOL_ERROR)).await;
    let beside = h2_request(&named(""), &[("host", "orders.shop")]);
    scene.refuses("an empty :authority beside a host", &beside, Reset(PROTOCOL_ERROR)).await;
    scene.refuses("another service", &h2_request(&without, &[("host", "other.shop")]), Status(421)).await;

    for (what, bytes) in [
        ("only a host", h2_request(&without, &[("host", "Orders.shop:80")])),
        ("the same twice", h2_request(&pseudo("/x"), &[("host", "orders.shop:80")])),
    ] {
        scene.backend.forget();
        assert_eq!(scene.answer(&bytes).await, Status(200), "{what}");
        let hosts: Vec<_> = scene.backend.seen().iter().map(|seen| seen.values("host").join(" and ")).collect();
        assert_eq!(hosts.len(), 1, "{what}");
        assert!(hosts[0] == "orders.shop" || hosts[0] == "orders.shop:80", "{what}: {hosts:?}");
    }
    scene.works().await;
    Ok(())
}

#[tokio::test]
async fn bodies_and_trailers_over_http2_are_what_their_head_says() -> Outcome {
    let scene = Scene::set().await;
    let post = [(":method", "POST"), (":scheme", "http"), (":authority", "orders.shop"), (":path", "/x")];
    let open = |fields: &[(&str, &str)]| [h2_opening(), h2_headers(&[&post, fields].concat(), Ends::No)].concat();
    let three = ("content-length", "3");
    let cases: &[(&str, Vec<u8>, H2Answer)] = &[
        ("a length and no body", h2_request(&post, &[three]), Reset(PROTOCOL_ERROR)),
        ("a shorter body", [open(&[three]), h2_data("ab", Ends::Yes)].concat(), Reset(PROTOCOL_ERROR)),
        ("a longer body", [open(&[three]), h2_data("abcd", Ends::Yes)].concat(), Reset(PROTOCOL_ERROR)),
        ("two lengths", [open(&[three, three]), h2_data("abc", Ends::Yes)].concat(), Status(400)),
        ("a signed length", [open(&[("content-length", "+3")]), h2_data("abc", Ends::Yes)].concat(), Reset(PROTOCOL_ERROR)),
    ];
    for (what, bytes, answer) in cases {
        scene.refuses(what, bytes, *answer).await;
    }
    let trailed = |name: &'static str, ends| [open(&[]), h2_data("abc", Ends::No), h2_headers(&[(name, "3")], ends)].concat();
    for name in ["authorization", "content-length", "x-forwarded-client-cert", "host", "cookie"] {
        scene.refuses(name, &trailed(name, Ends::Yes), Status(400)).await;
    }
    for name in ["transfer-encoding", "connection", "te"] {
        scene.refuses(name, &trailed(name, Ends::Yes), Reset(PROTOCOL_ERROR)).await;
    }
    let many = |name: &str, value: &str, count| {
        let trailers = vec![(name.to_owned(), value.to_owned()); count];
        let trailers: Vec<(&str, &str)> = trailers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        [open(&[]), h2_data("abc", Ends::No), h2_headers(&trailers, Ends::Yes)].concat()
    };
    scene.refuses("more trailers than there may be", &many("x-sum", "3", 33), Status(400)).await;
    scene.refuses("longer trailers", &many("x-sum", &"3".repeat(9000), 1), GoAway(ENHANCE_YOUR_CALM)).await;
    let after_the_trailers = [trailed("x-sum", Ends::No), h2_data("def", Ends::Yes)].concat();
    for more in [trailed("x-sum", Ends::No), after_the_trailers] {
        scene.refuses("trailers that do not end the stream", &more, Reset(PROTOCOL_ERROR)).await;
    }
    assert_eq!(scene.answer(&trailed("x-sum", Ends::Yes)).await, Status(200), "proper trailers");
    assert_eq!(scene.backend.seen()[0].body, b"abc");
    scene.works().await;
    Ok(())
}

#[tokio::test]
async fn whatever_the_library_refuses_leaves_one_record() -> Outcome {
    let scene = Scene::set().await;
    let post = [(":method", "POST"), (":scheme", "http"), (":authority", "orders.shop"), (":path", "/x")];
    let with = |path| [post[0], post[1], post[2], (":path", path)];
    let cases: &[(&str, Vec<u8>, H2Answer)] = &[
        ("CR LF in a value", h2_request(&post, &[("x-a", "b\r\nc: d")]), GoAway(PROTOCOL_ERROR)),
        ("no HPACK", [h2_opening(), h2_head(&[0xff; 20], Ends::Yes)].concat(), GoAway(PROTOCOL_ERROR)),
        ("DATA on no stream", [h2_opening(), h2_data("abc", Ends::Yes)].concat(), GoAway(PROTOCOL_ERROR)),
        ("a line break in the path", h2_request(&with("/x\r\ny"), &[]), Reset(PROTOCOL_ERROR)),
        ("connection", h2_request(&post, &[("connection", "close")]), Reset(PROTOCOL_ERROR)),
        ("transfer-encoding", h2_request(&post, &[("transfer-encoding", "chunked")]), Reset(PROTOCOL_ERROR)),
        ("a second :path", h2_request(&post, &[(":path", "/y")]), Reset(PROTOCOL_ERROR)),
        ("a space in the path", h2_request(&with("/x y"), &[]), Reset(PROTOCOL_ERROR)),
        ("a length and no body", h2_request(&post, &[("content-length", "3")]), Reset(PROTOCOL_ERROR)),
    ];
    scene.works().await;
    let mut before = scene.orders.access_log().await.len();
    for (what, bytes, answer) in cases {
        scene.refuses(what, bytes, *answer).await;
        let log = scene.orders.access_log().await;
        let new: Vec<_> = log.iter().skip(before).map(|line| (line["reason"].as_str(), line["source"].as_str())).collect();
        assert_eq!(new, [(Some("malformed"), Some("spiffe://mesh.internal/ns/shop/sa/web"))], "{what}");
        before = log.len();
    }
    // Many at once, which the library refuses and hands out nevertheless.
    let head = h2_block(&[&post[..], &[("content-length", "1")]].concat());
    let burst: Vec<u8> =
        (0..40).flat_map(|at| [h2_frame(1, 4, 2 * at + 1, &head), h2_frame(0, 1, 2 * at + 1, b"ab")].concat()).collect();
    scene.refuses("many longer bodies", &[h2_opening(), burst].concat(), Reset(PROTOCOL_ERROR)).await;
    scene.works().await;
    let recorded = async {
        while scene.orders.access_log().await.len() < before + 41 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), recorded).await.expect("each broken call is recorded");
    scene.works().await;
    assert_eq!(scene.orders.access_log().await.len(), before + 42, "forty broken calls, and the good ones");
    before += 42;
    // A call that breaks a rule later has its own record, and no second one.
    let short = [h2_opening(), h2_headers(&[&post[..], &[("content-length", "3")]].concat(), Ends::No)].concat();
    scene.refuses("a shorter body", &[short, h2_data("ab", Ends::Yes)].concat(), Reset(PROTOCOL_ERROR)).await;
    scene.works().await;
    assert_eq!(scene.orders.access_log().await.len(), before + 2, "the broken call, and the good one");
    let malformed = "outrider_agent_requests_total{side=\"inbound\",outcome=\"malformed\"";
    assert!(scene.orders.metric(malformed).await > 8.5);
    Ok(())
}
