//! The mesh protocol as raw frames, from a member of the mesh straight at the agent of the service: what it may say, and that
//! everything else ends the connection and is recorded. `docs/mesh-protocol.md` is the contract.

#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use bytes::{Bytes, BytesMut};
use outrider_agent::{
    http::SharedIo,
    mesh::frame::{Kind, put, take},
    tls::MeshProtocol,
};
use outrider_tests::{AgentOptions, AgentProcess, Backend, Mesh, MeshOptions, MeshPeer, Outcome, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const POLICY: &str = r#"
apiVersion: outrider.dev/v1alpha1
kind: ServicePolicy
metadata: { name: orders, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  authorization:
    rules:
      - { name: all, action: Allow, from: [{ serviceAccounts: [shop/web] }] }
      - { name: private, action: Deny, to: [{ paths: ["/private/{rest=**}"] }] }
"#;

const PROTOCOL: u32 = 1;
const REFUSED: u32 = 4;

struct Scene {
    _mesh: Mesh,
    orders: AgentProcess,
    backend: Backend,
    /// A program that takes connections and never reads.
    _sink: std::net::TcpListener,
    peer: MeshPeer,
}

impl Scene {
    async fn set() -> Self {
        let backend = Backend::start().await;
        let mesh = Mesh::start(MeshOptions::default()).await;
        let sink = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        let services = vec![
            format!("shop/orders:80/http={}", backend.address),
            format!("shop/orders:81/http={}", sink.local_addr().expect("address")),
        ];
        // Streams whose bodies do not come stay for as long as a busy machine takes: else they are answered, and their places free.
        let more = ["stall-time", "connect-time", "response-time"].map(|limit| ["--limit".to_owned(), format!("{limit}=1h")]);
        let options = AgentOptions { services, more: more.concat(), ..AgentOptions::default() };
        let orders = mesh.agent("shop/orders", options).await;
        mesh.apply(POLICY);
        let peer = MeshPeer::join(&mesh, "shop/web").await;
        Self { _mesh: mesh, orders, backend, _sink: sink, peer }
    }

    async fn connect(&self) -> Connection {
        self.connect_to(80).await
    }

    async fn connect_to(&self, port: u16) -> Connection {
        let expected = "spiffe://mesh.internal/ns/shop/sa/orders";
        let connected = self.peer.connect(self.orders.mesh, "shop/orders", port, MeshProtocol::Mesh, expected).await;
        Connection { io: connected.expect("a mesh connection"), buf: BytesMut::new(), ended: false }
    }

    /// The control: a good request on a connection of its own is answered.
    async fn works(&self) {
        let mut connection = self.connect().await;
        connection.send(&get(1, "/fine")).await;
        assert_eq!(connection.answer(1).await, (200, b"ok\n".to_vec()));
    }
}

struct Connection {
    io: SharedIo,
    buf: BytesMut,
    ended: bool,
}

/// A frame that was read.
struct Frame {
    stream: u32,
    kind: Kind,
    end: bool,
    payload: Bytes,
}

impl Frame {
    /// The first four bytes of the payload as a number.
    fn number(&self) -> u32 {
        u32::from_be_bytes(*self.payload.first_chunk().expect("four bytes"))
    }
}

impl Connection {
    async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.expect("written");
        self.io.flush().await.expect("flushed");
    }

    /// The next frame; `None` at the end of the connection.
    async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = take(&mut self.buf).expect("an agent writes good frames") {
                let (stream, kind, end) = (frame.stream, frame.kind, frame.end);
                return Some(Frame { stream, kind, end, payload: frame.payload.take() });
            }
            if self.ended {
                return None;
            }
            let read = tokio::time::timeout(std::time::Duration::from_secs(60), self.io.read_buf(&mut self.buf)).await;
            self.ended = !matches!(read.expect("never silent"), Ok(count) if count > 0);
        }
    }

    /// Status and body of the answer on a stream.
    async fn answer(&mut self, stream: u32) -> (u16, Vec<u8>) {
        let (mut status, mut body) = (0, Vec::new());
        while let Some(frame) = self.frame().await {
            if frame.stream != stream {
                continue;
            }
            match frame.kind {
                Kind::Head => status = String::from_utf8_lossy(&frame.payload[9..12]).parse().expect("a status"),
                Kind::Data => body.extend_from_slice(&frame.payload),
                _ => {}
            }
            if frame.end || frame.kind == Kind::Reset {
                break;
            }
        }
        (status, body)
    }

    /// Reads to the end; returns the code of the goodbye.
    async fn goodbye(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.frame().await {
            if frame.kind == Kind::Goaway {
                code = frame.payload[4..].first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
            }
        }
        code
    }
}

fn frame(stream: u32, kind: Kind, end: bool, payload: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    put(&mut wire, stream, kind, end, payload);
    wire
}

fn head(stream: u32, end: bool, text: &str) -> Vec<u8> {
    frame(stream, Kind::Head, end, text.as_bytes())
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    head(stream, true, &format!("GET {path} HTTP/1.1\r\nhost: orders.shop\r\n\r\n"))
}

fn post(stream: u32, fields: &str) -> Vec<u8> {
    head(stream, false, &format!("POST /x HTTP/1.1\r\nhost: orders.shop\r\n{fields}\r\n"))
}

#[tokio::test]
async fn requests_share_a_connection_and_each_is_decided_for_itself() -> Outcome {
    let scene = Scene::set().await;
    let mut connection = scene.connect().await;
    // A slow one first: the others do not wait for it.
    let both = [get(3, "/slow"), get(7, "/quick"), get(8, "/private/x"), head(9, true, "GET /x HTTP/1.1\r\nhost: a b\r\n\r\n")];
    connection.send(&both.concat()).await;
    let mut order = Vec::new();
    while order.len() < 4 {
        let frame = connection.frame().await.expect("a frame");
        if frame.kind == Kind::Head {
            order.push((frame.stream, String::from_utf8_lossy(&frame.payload[9..12]).into_owned()));
        }
    }
    assert_eq!(order.pop().expect("an answer"), (3, "200".to_owned()));
    order.sort_unstable();
    let others = [(7, "200"), (8, "403"), (9, "400")].map(|(stream, status)| (stream, status.to_owned()));
    assert_eq!(order, others);
    let seen: Vec<String> = scene.backend.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(seen.len(), 2, "what was refused never reached the program: {seen:?}");
    Ok(())
}

#[tokio::test]
async fn what_the_other_agent_wrote_is_read_as_strictly_as_anybodys() -> Outcome {
    let scene = Scene::set().await;
    let mut connection = scene.connect().await;
    let heads = [
        "GET /a HTTP/1.1\r\nhost: orders.shop\r\n\r\nGET /b HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost: orders.shop\r\n",
        "GET /a HTTP/1.1\nhost: orders.shop\n\n",
        "GET /a HTTP/1.1\r\nhost: orders.shop\r\nhost: other.shop\r\n\r\n",
        "GET /a/../private/x HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
        "GET //private/x HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
        "get /a HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost: orders.shop\r\nx_role: admin\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 4\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n",
    ];
    for (stream, text) in (1..).zip(heads) {
        connection.send(&head(stream, true, text)).await;
        assert_eq!(connection.answer(stream).await.0, 400, "{text:?}");
    }
    assert!(scene.backend.seen().is_empty(), "nothing reached the program: {:?}", scene.backend.seen());
    connection
        .send(&head(
            20,
            true,
            "GET /a HTTP/1.1\r\nhost: orders.shop\r\nx-forwarded-client-cert: URI=spiffe://mesh.internal/ns/a/sa/b\r\n\r\n",
        ))
        .await;
    assert_eq!(connection.answer(20).await.0, 200);
    let seen = scene.backend.seen();
    let claims = seen[0].values("x-forwarded-client-cert");
    assert!(claims.len() == 1 && claims[0].contains("sa/web"), "the identity is the connection's: {claims:?}");
    Ok(())
}

#[tokio::test]
async fn each_broken_rule_of_the_protocol_ends_the_connection_and_is_recorded_and_counted() -> Outcome {
    let scene = Scene::set().await;
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("unknown kind of frame", "unknown_frame", vec![0, 0, 0, 1, 0, 0, 0, 9]),
        ("unknown kind of frame", "unknown_frame", b"GET / HTTP/1.1\r\nhost: orders.shop\r\n\r\n".to_vec()),
        ("frame of a length", "frame_length", vec![0, 0, 0, 1, 1, 0, 1, 2]),
        ("frame of a length", "frame_length", vec![0, 0, 0, 1, 0, 0, 3, 4, 0, 0, 0]),
        ("frame where its kind", "wrong_stream", frame(0, Kind::Data, false, b"x")),
        ("frame where its kind", "wrong_stream", frame(1, Kind::Ping, false, &[0; 8])),
        ("end bit", "end_bit", frame(1, Kind::Trailers, false, b"a: b\r\n")),
        ("stream number out of order", "stream_number", [get(5, "/a"), get(4, "/b")].concat()),
        ("stream number out of order", "stream_number", get(1 << 31, "/a")),
        ("second head", "second_head", [post(1, ""), get(1, "/b")].concat()),
        ("frame of a stream that was never opened", "no_such_stream", frame(3, Kind::Data, false, b"x")),
        ("frame of a stream that was never opened", "no_such_stream", frame(3, Kind::Reset, false, &[0; 4])),
        ("frame of a stream that was never opened", "no_such_stream", frame(3, Kind::Window, false, &[0, 0, 0, 1])),
        ("out of order", "out_of_order", [get(1, "/slow"), frame(1, Kind::Data, true, b"x")].concat()),
        (
            "trailers that cannot be read",
            "bad_trailers",
            [post(1, ""), frame(1, Kind::Trailers, true, b"content-length: 5\r\n")].concat(),
        ),
        ("trailers that cannot be read", "bad_trailers", [post(1, ""), frame(1, Kind::Trailers, true, b"a: b\n")].concat()),
        ("window update", "window_update", frame(0, Kind::Window, false, &[0; 4])),
        ("window update", "window_update", frame(0, Kind::Window, false, &[0, 0, 0, 1])),
        ("answer to no ping", "stray_pong", frame(0, Kind::Pong, false, &[7; 8])),
        ("too many frames", "flood", frame(0, Kind::Ping, false, &[7; 8]).repeat(3000)),
        ("too many frames", "flood", [post(1, ""), frame(1, Kind::Data, false, b"").repeat(3000)].concat()),
        (
            "too many frames",
            "flood",
            (1..3000).flat_map(|stream| [get(stream, "/slow"), frame(stream, Kind::Reset, false, &[0; 4])].concat()).collect(),
        ),
    ];
    for (what, _, bytes) in &cases {
        let mut connection = scene.connect().await;
        // The agent may have ended it before all of a flood is written.
        let _ = connection.io.write_all(bytes).await;
        let _ = connection.io.flush().await;
        let code = connection.goodbye().await;
        assert!(code == Some(PROTOCOL) || (code.is_none() && bytes.len() > 10_000), "{what}: {code:?}");
        scene.works().await;
    }
    let lines = scene.orders.access_log().await;
    for (what, ..) in &cases {
        let told = lines.iter().any(|line| {
            line["reason"] == if *what == "too many frames" { "control_flood" } else { "malformed" }
                && line["detail"].as_str().is_some_and(|detail| detail.starts_with("mesh protocol") && detail.contains(what))
        });
        assert!(told, "{what} is in no record");
    }
    for (_, word, _) in &cases {
        let wanted = cases.iter().filter(|(_, other, _)| other == word).count();
        let counted = format!("outrider_agent_mesh_violations_total{{side=\"inbound\",violation=\"{word}\"}}");
        assert_eq!(scene.orders.metric(&counted).await, wanted as f64, "{word}");
    }
    Ok(())
}

#[tokio::test]
async fn a_sender_is_held_to_its_windows_and_a_body_to_its_length() -> Outcome {
    let scene = Scene::set().await;
    let mut connection = scene.connect_to(81).await;
    let piece = frame(1, Kind::Data, false, &vec![b'x'; 64 << 10]);
    // More than the window and all that the sockets to the program take.
    let mut bytes = head(1, false, "POST /x HTTP/1.1\r\nhost: orders.shop\r\n\r\n");
    bytes.extend(piece.repeat(256));
    let _ = connection.io.write_all(&bytes).await;
    let _ = connection.io.flush().await;
    assert!(matches!(connection.goodbye().await, None | Some(PROTOCOL)));
    let lines = scene.orders.access_log().await;
    let told = |line: &serde_json::Value| line["detail"].as_str().is_some_and(|detail| detail.contains("than the window allows"));
    assert!(lines.iter().any(told), "{lines:?}");

    let mut connection = scene.connect().await;
    let wrong = [(3, b"abcd".as_slice()), (0, b"a"), (5, b"abc")];
    for (stream, (length, body)) in (1..).step_by(2).zip(wrong) {
        let length = format!("content-length: {length}\r\n");
        connection.send(&[post(stream, &length), frame(stream, Kind::Data, true, body)].concat()).await;
        let frame = loop {
            let frame = connection.frame().await.expect("a frame");
            if frame.kind == Kind::Reset {
                break frame;
            }
        };
        assert_eq!((frame.stream, frame.number()), (stream, PROTOCOL), "the stream ends, the connection goes on");
        connection.send(&get(stream + 1, "/fine")).await;
        assert_eq!(connection.answer(stream + 1).await.0, 200);
    }
    // A request without a body may have been served before what is too much arrived.
    let seen = scene.backend.seen();
    assert!(
        seen.iter().all(|seen| seen.target == "/fine" || seen.body.is_empty()),
        "no program takes a part for the whole: {seen:?}"
    );
    Ok(())
}

#[tokio::test]
async fn streams_above_the_limit_are_refused_and_the_others_are_served() -> Outcome {
    let scene = Scene::set().await;
    let mut connection = scene.connect().await;
    // Bodies that do not end keep their streams open.
    let opened: Vec<u8> = (1..=1030).flat_map(|stream| post(stream, "content-length: 5\r\n")).collect();
    connection.send(&opened).await;
    let mut refused = Vec::new();
    while refused.len() < 6 {
        let frame = connection.frame().await.expect("a frame");
        let what = String::from_utf8_lossy(&frame.payload);
        assert!(
            frame.stream == 0 || frame.kind == Kind::Reset,
            "stream {}: {what:?}, {:#?}",
            frame.stream,
            scene.orders.access_log().await
        );
        if frame.kind == Kind::Reset {
            assert_eq!(frame.number(), REFUSED, "stream {}", frame.stream);
            refused.push(frame.stream);
        }
    }
    assert_eq!(refused, (1025..=1030).collect::<Vec<_>>());
    connection.send(&frame(17, Kind::Data, true, b"hello")).await;
    assert_eq!(connection.answer(17).await.0, 200);
    until("the program has it", || scene.backend.seen().iter().any(|seen| seen.body == b"hello")).await;
    Ok(())
}
