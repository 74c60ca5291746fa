//! Floods: frames that cost an agent much and their sender nothing, over HTTP/2 in plaintext and on the mesh port, and by the mesh
//! protocol. Each ends its own connection, or stays without consequence; the agent does not grow, and a neighbour is served.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a test fails by panicking, and says what it saw")]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use outrider_agent::{
    mesh::frame::{Kind, put},
    tls::MeshProtocol,
};
use outrider_tests::{AgentOptions, AgentProcess, Backend, Mesh, MeshOptions, MeshPeer, Outcome, free_port, h2_block};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

/// Frames of each flood.
const FRAMES: usize = 1500;
/// How much an agent may grow, in KiB.
const GROWTH: u64 = 10 << 10;
/// The same where each of 256 streams has a head of hundreds of fields: they are counted when the head is there.
const GROWTH_OF_FIELDS: u64 = 40 << 10;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: usize, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    let stream = u32::try_from(stream).expect("a stream").to_be_bytes();
    [&length[..], &[kind, flags], &stream, payload].concat()
}

fn opening() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat()
}

fn pseudo(method: &str) -> Vec<u8> {
    h2_block(&[(":method", method), (":scheme", "http"), (":authority", "orders.shop"), (":path", "/slow")])
}

/// What must become of a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The agent ends the connection.
    Closed,
    /// It may go on: each frame is answered, refused, or costs nothing.
    Bounded,
}

/// A flood: its name, what opens it, its frames one by one, and its end.
struct Flood {
    name: &'static str,
    before: Vec<u8>,
    each: Box<dyn Fn(usize) -> Vec<u8>>,
    end: End,
    /// Each frame has hundreds of fields.
    fields: bool,
}

fn flood(name: &'static str, end: End, before: Vec<u8>, each: impl Fn(usize) -> Vec<u8> + 'static) -> Flood {
    Flood { name, before, each: Box::new(each), end, fields: name.contains("fields") || name.contains("cookies") }
}

/// The rows of what was done to others over HTTP/2.
fn over_http2() -> Vec<Flood> {
    let post = || [opening(), frame(HEADERS, END_HEADERS, 1, &pseudo("POST"))].concat();
    let id = |number: usize| 2 * number + 1;
    // An entry of 4000 bytes in the table, and how often it is named: one byte each.
    let entry = [pseudo("GET"), vec![0x40, 1, b'a', 0x7f, 0xa1, 0x1e], vec![b'v'; 4000]].concat();
    let bomb = [pseudo("GET"), vec![0x80 | 62; 1000]].concat();
    let crumbs = [pseudo("GET"), h2_block(&[("cookie", "a")]).repeat(700)].concat();
    let tiny = [pseudo("GET"), h2_block(&[("a", "b")]).repeat(900)].concat();
    let trailers = h2_block(&[("x-a", "b")]).repeat(800);
    vec![
        flood("rapid reset", End::Closed, opening(), move |number| {
            let head = frame(HEADERS, END_HEADERS | END_STREAM, id(number), &pseudo("GET"));
            [head, frame(RST_STREAM, 0, id(number), &[0, 0, 0, 8])].concat()
        }),
        flood("resets that the agent is made to send", End::Closed, opening(), move |number| {
            let head = frame(HEADERS, END_HEADERS, id(number), &pseudo("POST"));
            [head, frame(WINDOW_UPDATE, 0, id(number), &[0; 4])].concat()
        }),
        flood("CONTINUATION without end", End::Closed, [opening(), frame(HEADERS, 0, 1, &pseudo("GET"))].concat(), |_| {
            frame(CONTINUATION, 0, 1, &h2_block(&[("x-a", "b")]))
        }),
        flood("empty CONTINUATION", End::Closed, [opening(), frame(HEADERS, 0, 1, &pseudo("GET"))].concat(), |_| {
            frame(CONTINUATION, 0, 1, &[])
        }),
        flood(
            "a small head that becomes a large one",
            End::Bounded,
            [opening(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &entry)].concat(),
            move |number| frame(HEADERS, END_HEADERS | END_STREAM, id(number + 1), &bomb),
        ),
        flood("crumbs of cookies", End::Bounded, opening(), move |number| {
            frame(HEADERS, END_HEADERS | END_STREAM, id(number), &crumbs)
        }),
        flood("many tiny fields", End::Bounded, opening(), move |number| {
            frame(HEADERS, END_HEADERS | END_STREAM, id(number), &tiny)
        }),
        flood("empty DATA", End::Closed, post(), |_| frame(DATA, 0, 1, &[])),
        flood("DATA of nothing but padding", End::Bounded, post(), |_| frame(DATA, 8, 1, &[200; 201])),
        flood("a byte of DATA at a time", End::Bounded, post(), |_| frame(DATA, 0, 1, b"x")),
        flood("trailers that do not end the stream", End::Bounded, post(), |_| {
            frame(HEADERS, END_HEADERS, 1, &h2_block(&[("x-a", "b")]))
        }),
        flood("trailers of many fields", End::Bounded, opening(), move |number| {
            let head = frame(HEADERS, END_HEADERS, id(number), &pseudo("POST"));
            [head, frame(HEADERS, END_HEADERS | END_STREAM, id(number), &trailers)].concat()
        }),
        flood("PING", End::Closed, opening(), |_| frame(PING, 0, 0, b"12345678")),
        flood("SETTINGS", End::Closed, opening(), |_| frame(SETTINGS, 0, 0, &[])),
        flood("SETTINGS that change the windows of all streams", End::Closed, post(), |number| {
            frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 1, u8::from(number % 2 == 0)])
        }),
        flood("PRIORITY", End::Closed, opening(), |_| frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1])),
        flood("WINDOW_UPDATE of one", End::Closed, opening(), |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        flood("WINDOW_UPDATE of nothing", End::Closed, opening(), |_| frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        flood("frames that nobody knows", End::Closed, opening(), |_| frame(0xfa, 0, 0, b"what?")),
        flood("GOAWAY", End::Closed, opening(), |_| frame(GOAWAY, 0, 0, &[0; 8])),
        flood("PUSH_PROMISE", End::Closed, opening(), |_| frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])),
        flood("RST_STREAM of one stream", End::Closed, post(), |_| frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])),
        flood("more streams than there may be", End::Bounded, opening(), move |number| {
            frame(HEADERS, END_HEADERS, id(number), &pseudo("POST"))
        }),
    ]
}

/// The same by the mesh protocol.
fn over_mesh() -> Vec<Flood> {
    let wire = |stream: u32, kind, end, payload: &[u8]| {
        let mut wire = Vec::new();
        put(&mut wire, stream, kind, end, payload);
        wire
    };
    let number = |number: usize| u32::try_from(number).expect("a stream") + 1;
    let post = wire(1, Kind::Head, false, b"POST /slow HTTP/1.1\r\nhost: orders.shop\r\n\r\n");
    let get = b"GET /slow HTTP/1.1\r\nhost: orders.shop\r\n\r\n";
    let tiny = [&b"GET /slow HTTP/1.1\r\nhost: orders.shop\r\n"[..], &b"a: b\r\n".repeat(2000), b"\r\n"].concat();
    vec![
        flood("rapid reset", End::Closed, Vec::new(), move |at| {
            [wire(number(at), Kind::Head, true, get), wire(number(at), Kind::Reset, false, &[0; 4])].concat()
        }),
        flood("PING", End::Closed, Vec::new(), move |_| wire(0, Kind::Ping, false, &[7; 8])),
        flood("empty DATA", End::Closed, post.clone(), move |_| wire(1, Kind::Data, false, b"")),
        flood("a byte of DATA at a time", End::Bounded, post.clone(), move |_| wire(1, Kind::Data, false, b"x")),
        flood("WINDOW of one", End::Closed, post.clone(), move |_| wire(0, Kind::Window, false, &[0, 0, 0, 1])),
        flood("RESET of one stream", End::Closed, post, move |_| wire(1, Kind::Reset, false, &[0; 4])),
        flood("GOAWAY", End::Bounded, Vec::new(), move |_| wire(0, Kind::Goaway, false, &[0; 8])),
        flood("many tiny fields", End::Bounded, Vec::new(), move |at| wire(number(at), Kind::Head, true, &tiny)),
        flood("more streams than there may be", End::Bounded, Vec::new(), move |at| {
            wire(number(at), Kind::Head, false, b"POST /slow HTTP/1.1\r\nhost: orders.shop\r\n\r\n")
        }),
    ]
}

/// Sends a flood while what comes back is read. Whether the agent ended the connection.
async fn send(io: impl AsyncRead + AsyncWrite, flood: &Flood) -> bool {
    let (mut read, mut write) = tokio::io::split(io);
    let sending = async {
        write.write_all(&flood.before).await?;
        for at in 0..FRAMES {
            write.write_all(&(flood.each)(at)).await?;
        }
        write.flush().await?;
        // What a slow agent still has to read.
        tokio::time::sleep(if flood.end == End::Closed { Duration::from_secs(10) } else { Duration::from_millis(100) }).await;
        Ok::<(), std::io::Error>(())
    };
    let mut piece = vec![0; 16 << 10];
    let ended = async { while read.read(&mut piece).await.is_ok_and(|count| count > 0) {} };
    tokio::select! {
        sent = sending => sent.is_err(),
        () = ended => true,
    }
}

struct Scene {
    _mesh: Mesh,
    orders: AgentProcess,
    backend: Backend,
    peer: MeshPeer,
    plain: SocketAddr,
    neighbour: TcpStream,
}

impl Scene {
    async fn set() -> Self {
        let backend = Backend::start().await;
        let mesh = Mesh::start(MeshOptions::default()).await;
        let port = free_port();
        let more = vec!["--plaintext".to_owned(), format!("127.0.0.1:{port}=shop/orders:80")];
        let services = vec![format!("shop/orders:80/http={}", backend.address)];
        let orders = mesh.agent("shop/orders", AgentOptions { services, more, ..AgentOptions::default() }).await;
        mesh.apply(
            "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: { name: orders, namespace: shop }\nspec:\n  \
             targetRefs: [{ kind: Service, name: orders }]\n  mtls: { mode: Permissive }\n  authorization:\n    rules:\n      \
             - { name: nobody, action: Allow, from: [{ anonymous: true }] }\n      \
             - { name: web, action: Allow, from: [{ serviceAccounts: [shop/web] }] }\n",
        );
        let peer = MeshPeer::join(&mesh, "shop/web").await;
        let plain = SocketAddr::from(([127, 0, 0, 1], port));
        let neighbour = TcpStream::connect(plain).await.expect("a connection");
        Self { _mesh: mesh, orders, backend, peer, plain, neighbour }
    }

    /// Resident memory of the agent in KiB.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.orders.process.id())).expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
    }

    /// One request of the neighbour on the connection that it has had all along: how long it took.
    async fn neighbour(&mut self) -> Result<Duration, std::io::Error> {
        let asked = Instant::now();
        let answer = outrider_tests::exchange(&mut self.neighbour, b"GET /fine HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?;
        assert_eq!(answer.status, 200);
        Ok(asked.elapsed())
    }

    /// Each flood, with the neighbour asking meanwhile.
    async fn withstands(&mut self, floods: &[Flood], listener: &str, protocol: MeshProtocol) -> Outcome {
        for flood in floods {
            self.backend.forget();
            let before = self.memory();
            let what = format!("{} ({listener})", flood.name);
            let mut slowest = Duration::ZERO;
            let closed = {
                let sending = async {
                    if listener == "plaintext" {
                        return send(TcpStream::connect(self.plain).await.expect("a connection"), flood).await;
                    }
                    let expected = "spiffe://mesh.internal/ns/shop/sa/orders";
                    let connected = self.peer.connect(self.orders.mesh, "shop/orders", 80, protocol, expected).await;
                    send(connected.expect("a mesh connection"), flood).await
                };
                let neighbour = async {
                    let mut stream = TcpStream::connect(self.plain).await.expect("a connection");
                    loop {
                        let asked = Instant::now();
                        let request = b"GET /fine HTTP/1.1\r\nhost: orders.shop\r\n\r\n";
                        let answer = outrider_tests::exchange(&mut stream, request).await.expect("the neighbour is answered");
                        assert_eq!(answer.status, 200);
                        slowest = slowest.max(asked.elapsed());
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                tokio::select! {
                    closed = sending => closed,
                    () = neighbour => false,
                }
            };
            assert!(closed || flood.end == End::Bounded, "{what}: {FRAMES} frames were taken");
            assert!(slowest < Duration::from_secs(2), "{what}: the neighbour waited {slowest:?}");
            self.neighbour().await?;
            let grown = self.memory().saturating_sub(before);
            let bound = if flood.fields { GROWTH_OF_FIELDS } else { GROWTH };
            assert!(grown <= bound, "{what}: the agent grew by {grown} KiB");
            println!("{what}: closed {closed}, slowest {slowest:?}, grew {grown} KiB");
        }
        Ok(())
    }
}

#[tokio::test]
async fn floods_over_http2_in_plaintext_end_themselves_and_nobody_else_notices() -> Outcome {
    let mut scene = Scene::set().await;
    scene.withstands(&over_http2(), "plaintext", MeshProtocol::Http2).await
}

#[tokio::test]
async fn floods_over_http2_from_a_member_end_themselves_and_nobody_else_notices() -> Outcome {
    let mut scene = Scene::set().await;
    scene.withstands(&over_http2(), "mesh", MeshProtocol::Http2).await
}

#[tokio::test]
async fn floods_by_the_mesh_protocol_end_themselves_and_nobody_else_notices() -> Outcome {
    let mut scene = Scene::set().await;
    scene.withstands(&over_mesh(), "mesh protocol", MeshProtocol::Mesh).await
}
