//! WebSocket through a pair of agents: the same bytes arrive as without them, over HTTP/1.1 (RFC 6455) and over HTTP/2 (RFC 8441),
//! whichever of the two the program speaks.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use outrider_tests::{
    AgentOptions, AgentProcess, Ends, H2Answer, Mesh, MeshOptions, Outcome, allow, free_port, h2_answer, h2_headers, h2_request,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream},
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;

fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

/// A frame (RFC 6455 section 5.2); callers mask theirs.
fn frame(last: bool, opcode: u8, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let masked = u8::from(mask.is_some()) << 7;
    let mut frame = vec![u8::from(last) << 7 | opcode];
    match payload.len() {
        length @ ..126 => frame.push(masked | u8::try_from(length).expect("short")),
        length => {
            frame.push(masked | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(mask.iter().flatten());
    let key = mask.unwrap_or_default();
    frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// A conversation's one half: short, large, in fragments with a ping between them, and the closing handshake.
fn says(mask: Option<[u8; 4]>) -> Vec<u8> {
    let large: Vec<u8> = (0..1_u32 << 20).map(|at| (at % 251) as u8).collect();
    [
        frame(true, TEXT, mask, b"hello"),
        frame(true, BINARY, mask, &large),
        frame(false, TEXT, mask, b"frag"),
        frame(true, PING, mask, b"there?"),
        frame(false, 0, mask, b""),
        frame(true, 0, mask, b"ments"),
        frame(true, BINARY, mask, b""),
        frame(true, CLOSE, mask, &[3, 232]),
    ]
    .concat()
}

const MASK: [u8; 4] = [0xa5, 0x00, 0xff, 0x3c];

/// Says one half and hears the other. Who ends `early` says nothing after its own half and waits for the end.
async fn converse(io: impl AsyncRead + AsyncWrite, own: Vec<u8>, other: usize, early: bool) -> std::io::Result<Vec<u8>> {
    let (mut read, mut write) = tokio::io::split(io);
    let mut heard = vec![0; other];
    let (said, got) = tokio::join!(
        async {
            write.write_all(&own).await?;
            write.flush().await?;
            if early { write.shutdown().await } else { Ok(()) }
        },
        read.read_exact(&mut heard)
    );
    said?;
    got?;
    if !early {
        write.shutdown().await?;
    }
    read.read_to_end(&mut heard).await?;
    Ok(heard)
}

/// A program over HTTP/1.1. What it hears goes to `heard`.
async fn http1_program(listener: TcpListener, heard: UnboundedSender<Vec<u8>>) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        let heard = heard.clone();
        connections.spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let key = head.lines().find(|line| line.to_ascii_lowercase().starts_with("sec-websocket-key:"));
            let Some(key) = key.filter(|_| !head.contains("/plain")) else {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                return;
            };
            let key = if head.contains("/false") { "another" } else { key["sec-websocket-key:".len()..].trim() };
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
                accept(key)
            );
            let _ = stream.write_all(answer.as_bytes()).await;
            if let Ok(all) = converse(stream, says(None), says(Some(MASK)).len(), false).await {
                let _ = heard.send(all);
            }
        });
    }
}

/// Both halves of a stream of HTTP/2 as one stream of bytes.
fn bridge(mut receive: h2::RecvStream, mut send: h2::SendStream<Bytes>, tasks: &mut JoinSet<()>) -> DuplexStream {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (mut read, mut write) = tokio::io::split(far);
    tasks.spawn(async move {
        while let Some(Ok(data)) = receive.data().await {
            let _ = receive.flow_control().release_capacity(data.len());
            if write.write_all(&data).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    });
    tasks.spawn(async move {
        let mut piece = vec![0; 16 << 10];
        while let Ok(count @ 1..) = read.read(&mut piece).await {
            let mut data = Bytes::copy_from_slice(piece.get(..count).unwrap_or_default());
            while !data.is_empty() {
                send.reserve_capacity(data.len());
                let Some(Ok(capacity)) = std::future::poll_fn(|cx| send.poll_capacity(cx)).await else { return };
                if send.send_data(data.split_to(capacity.min(data.len())), false).is_err() {
                    return;
                }
            }
        }
        let _ = send.send_data(Bytes::new(), true);
    });
    near
}

/// A program over HTTP/2 that takes extended CONNECT.
async fn http2_program(listener: TcpListener, heard: UnboundedSender<Vec<u8>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let heard = heard.clone();
        connections.spawn(async move {
            let built = h2::server::Builder::new().enable_connect_protocol().handshake::<_, Bytes>(stream).await;
            let Ok(mut connection) = built else { return };
            let mut tasks = JoinSet::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let protocol = request.extensions().get::<h2::ext::Protocol>().map(|protocol| protocol.as_str().to_owned());
                let keyed = request.headers().contains_key("sec-websocket-key");
                if request.method() != http::Method::CONNECT || protocol.as_deref() != Some("websocket") || keyed {
                    let refused = http::Response::builder().status(400).body(()).expect("a response");
                    let _ = respond.send_response(refused, true);
                    continue;
                }
                let send = respond.send_response(http::Response::new(()), false).expect("sent");
                let io = bridge(request.into_body(), send, &mut tasks);
                let heard = heard.clone();
                tasks.spawn(async move {
                    if let Ok(all) = converse(io, says(None), says(Some(MASK)).len(), false).await {
                        let _ = heard.send(all);
                    }
                });
            }
        });
    }
}

/// What a caller over HTTP/1.1 hears.
async fn over_http1(address: SocketAddr, early: bool) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let mut stream = TcpStream::connect(address).await?;
    let head = format!(
        "GET /chat HTTP/1.1\r\nHost: orders.shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await?);
    }
    let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    let accepted = format!("sec-websocket-accept: {}\r\n", accept(KEY).to_ascii_lowercase());
    assert_eq!(answer.matches(&accepted).count(), 1, "{answer}");
    Ok(converse(stream, says(Some(MASK)), says(None).len(), early).await?)
}

/// What a caller over HTTP/2 hears.
async fn over_http2(address: SocketAddr, early: bool) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let mut tasks = JoinSet::new();
    let (client, connection) = h2::client::handshake(TcpStream::connect(address).await?).await?;
    tasks.spawn(async move {
        let _ = connection.await;
    });
    let mut client = client.ready().await?;
    while !client.is_extended_connect_protocol_enabled() {
        tokio::task::yield_now().await;
    }
    let request = http::Request::connect("http://orders.shop/chat")
        .header("sec-websocket-version", "13")
        .extension(h2::ext::Protocol::from_static("websocket"))
        .body(())?;
    let (response, send) = client.send_request(request, false)?;
    let response = response.await?;
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("sec-websocket-accept"), "HTTP/2 knows no key: {:?}", response.headers());
    let io = bridge(response.into_body(), send, &mut tasks);
    Ok(converse(io, says(Some(MASK)), says(None).len(), early).await?)
}

struct Scene {
    mesh: Mesh,
    orders: AgentProcess,
    _web: AgentProcess,
    /// Leads from shop/web to the program.
    port: SocketAddr,
    program: SocketAddr,
    heard: UnboundedReceiver<Vec<u8>>,
    _tasks: JoinSet<()>,
}

impl Scene {
    async fn set(protocol: &str) -> Self {
        let (listener, mut tasks, (tell, heard)) =
            (TcpListener::bind("127.0.0.1:0").await.expect("listen"), JoinSet::new(), unbounded_channel());
        let program = listener.local_addr().expect("address");
        match protocol {
            "http2" => tasks.spawn(http2_program(listener, tell)),
            _ => tasks.spawn(http1_program(listener, tell)),
        };
        let mesh = Mesh::start(MeshOptions::default()).await;
        let services = vec![format!("shop/orders:80/{protocol}={program}")];
        let orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
        let port = free_port();
        let upstreams = vec![format!("{port}=shop/orders:80")];
        let web = mesh.agent("shop/web", AgentOptions { upstreams, ..AgentOptions::default() }).await;
        mesh.apply(&allow("chat", "shop/orders", "[shop/web]", "[GET]", "[/chat, /plain, /false]"));
        let port = SocketAddr::from(([127, 0, 0, 1], port));
        Self { mesh, orders, _web: web, port, program, heard, _tasks: tasks }
    }

    /// Both halves of a conversation were heard to the byte, also when the caller ends its half first.
    async fn carries(&mut self, what: &str, address: SocketAddr, http2: bool) -> Outcome {
        for early in [false, true] {
            let heard = if http2 { over_http2(address, early).await } else { over_http1(address, early).await };
            let heard = heard.map_err(|error| format!("{what}, early {early}: {error}"))?;
            assert!(heard == says(None), "{what}, early {early}: the caller heard {} bytes", heard.len());
            let program = self.heard.recv().await.ok_or("no program")?;
            assert!(program == says(Some(MASK)), "{what}, early {early}: the program heard {} bytes", program.len());
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_program_of_http1_hears_and_says_the_same_bytes_directly_and_through_the_pair() -> Outcome {
    let mut scene = Scene::set("http").await;
    let (program, port) = (scene.program, scene.port);
    scene.carries("directly", program, false).await?;
    scene.carries("through the pair", port, false).await?;
    scene.carries("through the pair over HTTP/2", port, true).await
}

#[tokio::test]
async fn a_program_of_http2_hears_and_says_the_same_bytes_directly_and_through_the_pair() -> Outcome {
    let mut scene = Scene::set("http2").await;
    let (program, port) = (scene.program, scene.port);
    scene.carries("directly", program, true).await?;
    scene.carries("through the pair", port, true).await?;
    scene.carries("through the pair over HTTP/1.1", port, false).await
}

#[tokio::test]
async fn websockets_over_http2_are_decided_as_over_http1_and_switch_only_if_the_program_does() -> Outcome {
    let scene = Scene::set("http").await;
    let ask = async |path: &str, protocol: &str| {
        let mut stream = TcpStream::connect(scene.port).await?;
        let pseudo = [
            (":method", "CONNECT"),
            (":scheme", "http"),
            (":authority", "orders.shop"),
            (":path", path),
            (":protocol", protocol),
        ];
        stream.write_all(&h2_request(&pseudo, &[("sec-websocket-version", "13")])).await?;
        h2_answer(&mut stream).await
    };
    assert_eq!(ask("/chat", "websocket").await?, H2Answer::Status(200), "the control");
    assert_eq!(ask("/admin", "websocket").await?, H2Answer::Status(403), "no rule lets it");
    assert_eq!(ask("/chat/../admin", "websocket").await?, H2Answer::Status(400), "read as strictly as any path");
    assert_eq!(ask("/plain", "websocket").await?, H2Answer::Status(502), "2xx would say that it has switched");
    assert_eq!(ask("/false", "websocket").await?, H2Answer::Status(502), "the program did not read the key");
    assert_eq!(ask("/chat", "connect-udp").await?, H2Answer::Status(405));

    let mut stream = TcpStream::connect(scene.port).await?;
    let pseudo = [
        (":method", "CONNECT"),
        (":scheme", "http"),
        (":authority", "orders.shop"),
        (":path", "/chat"),
        (":protocol", "websocket"),
    ];
    // Windows as wide as they get, so that nobody waits for this caller to open them.
    let open = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(),
        &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff],
        &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0, 0, 0],
        &h2_headers(&pseudo, Ends::No),
    ];
    let open = open.concat();
    stream.write_all(&open).await?;
    assert_eq!(h2_answer(&mut stream).await?, H2Answer::Status(200));
    scene.mesh.apply(&allow("chat", "shop/orders", "[shop/nobody]", "[GET]", "[/chat]"));
    let mut rest = Vec::new();
    // RST_STREAM of stream 1.
    while !rest.windows(9).any(|head: &[u8]| head == [0, 0, 4, 3, 0, 0, 0, 0, 1]) {
        let read = tokio::time::timeout(std::time::Duration::from_secs(5), stream.read_buf(&mut rest)).await??;
        assert_ne!(read, 0, "the connection goes on, the stream ends with the permission");
    }
    let log = scene.orders.access_log().await;
    assert!(log.iter().any(|line| line["status"] == 101 && line["reason"] == "policy_revoked"), "{log:#?}");
    Ok(())
}
