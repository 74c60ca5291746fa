//! What is under way: half-sent bodies, answers that come early, callers that go away or do not read, floods, programs that
//! restart, and permissions that end meanwhile.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::Request;
use outrider_agent::{http::SharedIo, tls::MeshProtocol};
use outrider_tests::{
    AgentOptions, AgentProcess, Backend, Eager, Mesh, MeshOptions, MeshPeer, Outcome, allow, exchange, read_answer,
    through_proxy, until,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinSet, LocalSet},
};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const ORDERS: &str = "spiffe://mesh.internal/ns/shop/sa/orders";

/// A mesh in which shop/web may GET and POST anywhere at shop/orders, whose program listens at `program`.
struct Scene {
    mesh: Mesh,
    orders: AgentProcess,
    peer: MeshPeer,
}

impl Scene {
    async fn set(program: SocketAddr, protocol: &str) -> Self {
        let mesh = Mesh::start(MeshOptions::default()).await;
        let services = vec![format!("shop/orders:80/{protocol}={program}")];
        let orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
        mesh.apply(&permission("[shop/web]"));
        let peer = MeshPeer::join(&mesh, "shop/web").await;
        Self { mesh, orders, peer }
    }

    async fn connect(&self, protocol: MeshProtocol) -> SharedIo {
        self.peer.connect(self.orders.mesh, "shop/orders", 80, protocol, ORDERS).await.expect("a mesh connection")
    }

    /// An HTTP/2 connection to the agent; must run within a `LocalSet`.
    async fn http2(&self) -> h2::client::SendRequest<Bytes> {
        let (client, connection) = h2::client::handshake(self.connect(MeshProtocol::Http2).await).await.expect("HTTP/2");
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        client.ready().await.expect("ready")
    }

    fn revoke(&self) {
        self.mesh.apply(&permission("[shop/nobody]"));
    }
}

fn permission(from: &str) -> String {
    allow("orders", "shop/orders", from, "[GET, POST, HEAD]", "[\"/{rest=**}\"]")
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://orders.shop{path}")).body(()).expect("a request")
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://orders.shop{path}")).body(()).expect("a request")
}

#[tokio::test]
async fn a_connection_with_a_half_sent_body_never_serves_another_request() -> Outcome {
    let program = Eager::start(ANSWER).await;
    let scene = Scene::set(program.address, "http").await;
    LocalSet::new()
        .run_until(async {
            // Over HTTP/2: the head announces a body, the program answers at once, the caller resets instead of sending it.
            let mut client = scene.http2().await;
            let half = Request::post("http://orders.shop/half").header("content-length", "60").body(())?;
            let (response, mut send) = client.send_request(half, false)?;
            assert_eq!(response.await?.status(), 200);
            send.send_reset(h2::Reason::CANCEL);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let (response, _) = client.ready().await?.send_request(get("/second"), true)?;
            assert_eq!(response.await?.status(), 200);
            // Over HTTP/1.1: the caller goes away instead.
            let mut io = scene.connect(MeshProtocol::Http1).await;
            let answer = exchange(&mut io, b"POST /half HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 60\r\n\r\nabc").await?;
            assert_eq!(answer.status, 200);
            drop(io);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let mut io = scene.connect(MeshProtocol::Http1).await;
            let answer = exchange(&mut io, b"GET /fourth HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?;
            assert_eq!(answer.status, 200);
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        })
        .await?;
    let heard = program.heard();
    let heads: Vec<Vec<String>> = heard
        .iter()
        .map(|one| one.text().lines().filter(|line| line.contains(" HTTP/1.1")).map(str::to_owned).collect())
        .collect();
    assert_eq!(heads.iter().flatten().count(), 4, "{heads:?}");
    for lines in &heads {
        let after = lines.iter().skip_while(|line| !line.contains("/half")).count();
        assert!(after <= 1, "a request follows a half-sent body: {heads:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_next_requests_body_does_not_leak_into_the_request_before() -> Outcome {
    let program = Eager::start(ANSWER).await;
    let scene = Scene::set(program.address, "http").await;
    LocalSet::new()
        .run_until(async {
            let mut io = scene.connect(MeshProtocol::Http1).await;
            let first = "POST /first HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 5\r\n\r\nhello";
            let second =
                "PUT /denied HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 32\r\n\r\nGET /smuggled HTTP/1.1\r\nx: y\r\n\r\n";
            io.write_all(format!("{first}{second}").as_bytes()).await?;
            io.flush().await?;
            let mut buf = Vec::new();
            assert_eq!(read_answer(&mut io, &mut buf).await?.status, 200);
            assert_eq!(read_answer(&mut io, &mut buf).await?.status, 403);
            Ok::<_, std::io::Error>(())
        })
        .await?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(program.heard().iter().all(|one| !one.text().contains("smuggled")), "{:?}", program.heard());
    Ok(())
}

#[tokio::test]
async fn a_head_may_arrive_in_any_pieces() -> Outcome {
    let backend = Backend::start().await;
    let scene = Scene::set(backend.address, "http").await;
    LocalSet::new()
        .run_until(async {
            let mut io = scene.connect(MeshProtocol::Http1).await;
            for byte in b"GET /slowly HTTP/1.1\r\nHost: orders.shop\r\nX-A: b\r\n\r\n" {
                io.write_all(&[*byte]).await?;
                io.flush().await?;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(read_answer(&mut io, &mut Vec::new()).await?.status, 200);
            Ok::<_, std::io::Error>(())
        })
        .await?;
    Ok(())
}

/// An HTTP/2 program that answers when the request has ended, counts the bytes it gets, and says how many calls it began.
async fn counting_h2(listener: TcpListener, bytes: std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let bytes = bytes.clone();
        connections.spawn(async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            let mut streams = JoinSet::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let bytes = bytes.clone();
                streams.spawn(async move {
                    let mut body = request.into_body();
                    while let Some(Ok(data)) = body.data().await {
                        bytes.fetch_add(data.len(), std::sync::atomic::Ordering::SeqCst);
                        let _ = body.flow_control().release_capacity(data.len());
                    }
                    let _ = respond.send_response(http::Response::new(()), true);
                });
            }
        });
    }
}

#[tokio::test]
async fn an_http2_program_may_restart() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut program = JoinSet::new();
    program.spawn(counting_h2(listener, std::sync::Arc::default()));
    let scene = Scene::set(address, "http2").await;
    LocalSet::new()
        .run_until(async {
            let mut client = scene.http2().await;
            let (response, _) = client.send_request(get("/one"), true)?;
            assert_eq!(response.await?.status(), 200);
            program.shutdown().await;
            let listener = TcpListener::bind(address).await?;
            program.spawn(counting_h2(listener, std::sync::Arc::default()));
            for call in 0..3 {
                let (response, _) = client.clone().ready().await?.send_request(get("/two"), true)?;
                assert_eq!(response.await?.status(), 200, "call {call} after the restart");
            }
            Ok(())
        })
        .await
}

#[tokio::test]
async fn an_upload_ends_with_the_permission() -> Outcome {
    let bytes = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let count = || bytes.load(std::sync::atomic::Ordering::SeqCst);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut program = JoinSet::new();
    program.spawn(counting_h2(listener, bytes.clone()));
    let scene = Scene::set(address, "http2").await;
    LocalSet::new()
        .run_until(async {
            let mut client = scene.http2().await;
            let (response, mut send) = client.send_request(post("/upload"), false)?;
            send.send_data(Bytes::from_static(b"before"), false)?;
            until("the first bytes arrive", || count() == 6).await;
            scene.revoke();
            assert_eq!(response.await?.status(), 403);
            for _ in 0..20 {
                let _ = send.send_data(Bytes::from_static(b"after"), false);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(count(), 6, "nothing reaches the program after the permission has ended");
            Ok(())
        })
        .await
}

/// A program that writes a body without end as fast as it is taken; says when its caller is gone.
async fn endless(listener: TcpListener, gone: tokio::sync::mpsc::UnboundedSender<()>) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        let gone = gone.clone();
        connections.spawn(async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            let piece = [b"1000\r\n".as_slice(), &[b'x'; 4096], b"\r\n"].concat();
            while stream.write_all(&piece).await.is_ok() {}
            let _ = gone.send(());
        });
    }
}

#[tokio::test]
async fn a_download_that_nobody_reads_ends_with_the_permission() -> Outcome {
    let (gone, mut is_gone) = tokio::sync::mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut program = JoinSet::new();
    program.spawn(endless(listener, gone));
    let scene = Scene::set(address, "http").await;
    LocalSet::new()
        .run_until(async {
            let mut http1 = scene.connect(MeshProtocol::Http1).await;
            http1.write_all(b"GET /endless HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?;
            http1.flush().await?;
            let mut client = scene.http2().await;
            let (response, _) = client.send_request(get("/endless"), true)?;
            let response = response.await?;
            // Both are written to until every buffer in between is full, and nobody reads.
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(is_gone.try_recv().is_err(), "both go on");
            scene.revoke();
            for _ in 0..2 {
                tokio::time::timeout(Duration::from_secs(3), is_gone.recv()).await.expect("the program's side has ended");
            }
            drop(response);
            Ok(())
        })
        .await
}

#[tokio::test]
async fn a_caller_that_goes_away_is_noticed_while_the_program_is_silent() -> Outcome {
    let silent = Eager::start(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await;
    let mute = Eager::start(b"").await;
    for program in [silent, mute] {
        let scene = Scene::set(program.address, "http").await;
        let web = scene.mesh.agent("shop/browser", AgentOptions::default()).await;
        scene.mesh.apply(&permission("[shop/web, shop/browser]"));
        let mut stream = TcpStream::connect(web.outbound).await?;
        stream.write_all(b"GET http://orders.shop/events HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?;
        until("the request arrives", || program.heard().len() == 1).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!program.heard()[0].ended);
        drop(stream);
        until("the program is told", || program.heard()[0].ended).await;
    }
    Ok(())
}

#[tokio::test]
async fn rapid_resets_end_the_connection_and_free_the_program() -> Outcome {
    let program = Eager::start(b"").await;
    let scene = Scene::set(program.address, "http").await;
    LocalSet::new()
        .run_until(async {
            let mut client = scene.http2().await;
            let mut ended = None;
            for number in 0..1500 {
                let Ok(mut ready) = client.clone().ready().await else {
                    ended = Some(number);
                    break;
                };
                let Ok((response, mut send)) = ready.send_request(post("/slow"), false) else {
                    ended = Some(number);
                    break;
                };
                // Long enough for the agent to have begun.
                tokio::time::sleep(Duration::from_millis(2)).await;
                send.send_reset(h2::Reason::CANCEL);
                drop(response);
                client = ready;
            }
            assert!(ended.is_some(), "1500 resets were taken");
            until("no request is left at the program", || program.heard().iter().all(|one| one.ended)).await;
            let mut other = scene.http2().await;
            let (response, _) = other.send_request(get("/%zz"), true)?;
            assert_eq!(response.await?.status(), 400, "others are served");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn control_frame_floods_end_the_connection_and_only_that() -> Outcome {
    let backend = Backend::start().await;
    let scene = Scene::set(backend.address, "http").await;
    let frames: [(&str, &[u8]); 4] = [
        ("PING", &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("SETTINGS", &[0, 0, 0, 4, 0, 0, 0, 0, 0]),
        ("PRIORITY", &[0, 0, 5, 2, 0, 0, 0, 0, 3, 0, 0, 0, 0, 1]),
        ("WINDOW_UPDATE", &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    ];
    LocalSet::new()
        .run_until(async {
            let neighbour = scene.http2().await;
            for (name, frame) in frames {
                let mut io = scene.connect(MeshProtocol::Http2).await;
                io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
                let (mut read, mut write) = tokio::io::split(io);
                let send = async {
                    for _ in 0..100 {
                        if write.write_all(&frame.repeat(20)).await.is_err() || write.flush().await.is_err() {
                            return;
                        }
                        tokio::task::yield_now().await;
                    }
                    // 2000 frames are out: now it must be over.
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    panic!("2000 {name} frames were taken");
                };
                let closed = async { while read.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {} };
                tokio::select! {
                    () = send => {}
                    () = closed => {}
                }
                let (response, _) = neighbour.clone().ready().await?.send_request(get("/fine"), true)?;
                assert_eq!(response.await?.status(), 200, "the neighbour after {name}");
            }
            Ok(())
        })
        .await
}

#[tokio::test]
async fn head_over_http2_has_a_length_and_no_body() -> Outcome {
    let program = Eager::start(b"HTTP/1.1 200 OK\r\ncontent-length: 42\r\n\r\n").await;
    let scene = Scene::set(program.address, "http").await;
    LocalSet::new()
        .run_until(async {
            let mut client = scene.http2().await;
            let head = |path: &str| Request::head(format!("http://orders.shop{path}")).body(());
            let (response, _) = client.send_request(head("/x")?, true)?;
            let response = response.await?;
            assert_eq!((response.status().as_u16(), &response.headers()["content-length"]), (200, &"42".parse()?));
            assert!(response.into_body().data().await.is_none());
            let (refused, _) = client.clone().ready().await?.send_request(head("/%zz")?, true)?;
            let refused = refused.await?;
            assert_eq!(refused.status(), 400);
            assert!(refused.into_body().data().await.is_none(), "and no broken stream");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn cookie_lines_of_http2_become_one() -> Outcome {
    let backend = Backend::start().await;
    let scene = Scene::set(backend.address, "http").await;
    LocalSet::new()
        .run_until(async {
            let mut client = scene.http2().await;
            let request = Request::get("http://orders.shop/").header("cookie", "a=1").header("cookie", "b=2").body(())?;
            let (response, _) = client.send_request(request, true)?;
            assert_eq!(response.await?.status(), 200);
            assert_eq!(backend.seen()[0].values("cookie"), ["a=1; b=2"]);
            Ok(())
        })
        .await
}

#[tokio::test]
async fn connect_leads_out_of_programs_and_never_into_one() -> Outcome {
    let backend = Backend::start().await;
    let scene = Scene::set(backend.address, "http").await;
    // No word about methods and paths: as wide as a rule can be.
    scene.mesh.apply(
        "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: { name: orders, namespace: shop }\nspec:\n  \
         targetRefs: [{ kind: Service, name: orders }]\n  authorization:\n    rules:\n      - { name: web, action: Allow, from: [{ serviceAccounts: [shop/web] }] }\n",
    );
    LocalSet::new()
        .run_until(async {
            let mut io = scene.connect(MeshProtocol::Http1).await;
            let answer = exchange(&mut io, b"CONNECT orders.shop:80 HTTP/1.1\r\nhost: orders.shop:80\r\n\r\n").await?;
            assert_eq!(answer.status, 405);
            let mut io = scene.connect(MeshProtocol::Http1).await;
            assert_eq!(exchange(&mut io, b"GET / HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?.status, 200, "the control");
            Ok::<_, std::io::Error>(())
        })
        .await?;
    assert_eq!(backend.seen().len(), 1, "{:?}", backend.seen());
    Ok(())
}

#[tokio::test]
async fn claims_of_identity_are_dropped_whatever_way_they_come() -> Outcome {
    let backend = Backend::start().await;
    let scene = Scene::set(backend.address, "http").await;
    let web = scene.mesh.agent("shop/browser", AgentOptions::default()).await;
    scene.mesh.apply(&permission("[shop/web, shop/browser]"));
    let claims = [
        "x-forwarded-client-cert",
        "x-original-url",
        "x-rewrite-url",
        "x-original-path",
        "l5d-client-id",
        "x-envoy-original-path",
    ];
    let fields: String = claims.iter().map(|name| format!("{name}: URI=spiffe://mesh.internal/ns/shop/sa/boss\r\n")).collect();
    assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop/proxied", &fields).await?.status, 200);
    LocalSet::new()
        .run_until(async {
            let mut client = scene.http2().await;
            let mut request = get("/direct");
            for name in claims {
                request.headers_mut().append(name, "URI=spiffe://mesh.internal/ns/shop/sa/boss".parse()?);
                request.headers_mut().append(name, "second".parse()?);
            }
            let (response, _) = client.send_request(request, true)?;
            assert_eq!(response.await?.status(), 200);
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        })
        .await?;
    let seen = backend.seen();
    assert_eq!(seen.len(), 2);
    for (request, caller) in seen.iter().zip(["browser", "web"]) {
        let certs = request.values("x-forwarded-client-cert");
        assert_eq!(certs, [format!("By={ORDERS};URI=spiffe://mesh.internal/ns/shop/sa/{caller}")], "{}", request.target);
        assert!(claims.iter().skip(1).all(|name| request.values(name).is_empty()), "{request:?}");
    }
    Ok(())
}

/// A program that switches protocols when asked to (and, on `/anyway`, when not), greets, and echoes.
async fn switcher(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        connections.spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
            let asked = head.contains("\r\nconnection: upgrade\r\n") && head.contains("\r\nupgrade: websocket\r\n");
            if !asked && !head.contains("/anyway") {
                let _ = stream.write_all(ANSWER).await;
                return;
            }
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                           Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello";
            let _ = stream.write_all(answer).await;
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
    }
}

fn upgrade(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: orders.shop\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n")
}

const WEBSOCKET: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n";

#[tokio::test]
async fn websockets_pass_both_agents_and_end_with_the_permission() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut program = JoinSet::new();
    program.spawn(switcher(listener));
    let scene = Scene::set(address, "http").await;
    let web = scene.mesh.agent("shop/browser", AgentOptions::default()).await;
    let target = "http://orders.shop/chat";

    let mut refused = TcpStream::connect(web.outbound).await?;
    assert_eq!(exchange(&mut refused, upgrade(target, WEBSOCKET).as_bytes()).await?.status, 403, "decided like any request");

    scene.mesh.apply(&permission("[shop/web, shop/browser]"));
    let mut stream = TcpStream::connect(web.outbound).await?;
    // The first frame may come before the answer to the handshake.
    stream.write_all(format!("{}early", upgrade(target, WEBSOCKET)).as_bytes()).await?;
    let mut received = Vec::new();
    while !received.ends_with(b"helloearly") {
        assert!(stream.read_buf(&mut received).await? > 0, "{}", String::from_utf8_lossy(&received));
    }
    let head = String::from_utf8_lossy(&received).to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    for line in ["connection: upgrade\r\n", "upgrade: websocket\r\n", "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"] {
        assert_eq!(head.matches(line).count(), 1, "{line}: {head}");
    }
    let frames: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
    let (mut read, mut write) = stream.split();
    let mut echoed = vec![0; frames.len()];
    let (sent, got) = tokio::join!(write.write_all(&frames), read.read_exact(&mut echoed));
    sent?;
    got?;
    assert_eq!(echoed, frames);

    scene.revoke();
    let rest = tokio::time::timeout(Duration::from_secs(3), stream.read(&mut [0; 16])).await?;
    assert_eq!(rest.unwrap_or(0), 0, "the open WebSocket ends with the permission");
    let log = scene.orders.access_log().await;
    assert!(log.iter().any(|line| line["status"] == 101 && line["reason"] == "policy_revoked"), "{log:?}");
    Ok(())
}

#[tokio::test]
async fn nobody_switches_protocols_to_hide_requests() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut program = JoinSet::new();
    program.spawn(switcher(listener));
    let scene = Scene::set(address, "http").await;
    LocalSet::new()
        .run_until(async {
            for (path, fields, status) in [
                ("/chat", "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", 200),
                ("/chat", "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n", 200),
                ("/chat", "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n", 200),
                ("/chat", "Upgrade: websocket\r\n", 200),
                ("/anyway", "", 502),
                ("/anyway", "Connection: Upgrade\r\nUpgrade: other\r\n", 502),
            ] {
                let mut io = scene.connect(MeshProtocol::Http1).await;
                assert_eq!(exchange(&mut io, upgrade(path, fields).as_bytes()).await?.status, status, "{path} {fields}");
            }
            Ok(())
        })
        .await
}
