//! Who takes its time, sends too much, or comes too often is let go, and nobody else notices.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use outrider_agent::{
    http::SharedIo,
    mesh::frame::{Kind, put, take},
    tls::MeshProtocol,
};
use outrider_tests::{
    AgentOptions, AgentProcess, Backend, Ends, Mesh, MeshOptions, MeshPeer, Outcome, allow, exchange, free_port, h2_body,
    h2_headers, h2_opening, large, through_proxy,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

/// Anybody may do anything at shop/orders, in plaintext as well.
struct Scene {
    mesh: Mesh,
    orders: AgentProcess,
    web: AgentProcess,
    plain: SocketAddr,
}

impl Scene {
    async fn set(program: SocketAddr, limits: &[&str]) -> Self {
        let mesh = Mesh::start(MeshOptions::default()).await;
        let port = free_port();
        let mut more = vec!["--plaintext".to_owned(), format!("127.0.0.1:{port}=shop/orders:80")];
        more.extend(limits.iter().flat_map(|limit| ["--limit".to_owned(), (*limit).to_owned()]));
        let services = vec![format!("shop/orders:80/http={program}")];
        let orders = mesh.agent("shop/orders", AgentOptions { services, more, ..AgentOptions::default() }).await;
        let web = mesh.agent("shop/web", AgentOptions::default()).await;
        mesh.apply(
            "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: { name: orders, namespace: shop }\nspec:\n  \
             targetRefs: [{ kind: Service, name: orders }]\n  mtls: { mode: Permissive }\n  authorization:\n    rules:\n      \
             - { name: nobody, action: Allow, from: [{ anonymous: true }] }\n      \
             - { name: web, action: Allow, from: [{ serviceAccounts: [shop/web] }] }\n",
        );
        Self { mesh, orders, web, plain: SocketAddr::from(([127, 0, 0, 1], port)) }
    }
}

/// A connection that takes in no more than it must.
async fn narrow(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4 << 10)?;
    socket.connect(address).await
}

/// One attacker: how it begins; it goes on by a byte now and then.
async fn attack(address: SocketAddr, begin: &'static [u8]) -> std::io::Result<Duration> {
    let mut stream = narrow(address).await?;
    let began = Instant::now();
    stream.write_all(begin).await?;
    loop {
        tokio::time::sleep(Duration::from_millis(400)).await;
        // What was said to us waits to be read; an end is seen here, a reset there.
        let ended = matches!(stream.try_read(&mut [0; 4096]), Ok(0));
        if ended || stream.write_all(b"a").await.is_err() {
            return Ok(began.elapsed());
        }
    }
}

const HEAD: &[u8] = b"GET / HTTP/1.1\r\nhost: orders.shop\r\nx-a: ";
const BODY: &[u8] = b"POST /body HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 1000000\r\n\r\n";

/// The beginning of HTTP/2 with windows as wide as they get.
const WIDE: [&[u8]; 3] = [
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff],
    &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0, 0, 0],
];

/// A program with large answers, for as long as the set is there.
async fn program() -> std::io::Result<(SocketAddr, JoinSet<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut program = JoinSet::new();
    program.spawn(large(listener));
    Ok((address, program))
}

#[tokio::test]
async fn a_thousand_slow_heads_and_bodies_are_gone_in_30_s_and_a_neighbour_is_served() -> Outcome {
    let (address, _program) = program().await?;
    let scene = Scene::set(address, &["head-time=4s", "stall-time=4s"]).await;
    let mut attackers = JoinSet::new();
    for (begin, count) in [(HEAD, 500), (BODY, 500)] {
        for _ in 0..count {
            attackers.spawn(attack(scene.plain, begin));
        }
    }
    let (mut most, mut served, began) = (0.0, 0, Instant::now());
    loop {
        let asked = Instant::now();
        assert_eq!(through_proxy(scene.web.outbound, "GET", "http://orders.shop/small", "").await?.status, 200);
        assert!(asked.elapsed() < NEIGHBOUR, "a neighbour waits: {:?}", asked.elapsed());
        served += 1;
        let open = scene.orders.metric("outrider_agent_connections{side=\"inbound\"}").await;
        most = open.max(most);
        if most > 900.0 && open < 10.0 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{open} of {most} are there, {served} calls were served");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(served > 3);
    let reasons = |reason: &str| format!("outrider_agent_requests_total{{side=\"inbound\",outcome=\"{reason}\"");
    let (heads, others) =
        (scene.orders.metric(&reasons("head_timeout")).await, scene.orders.metric(&reasons("slow_caller")).await);
    // Some bodies end with their program's time-out instead.
    assert!(heads > 400.0 && others > 100.0, "{heads} heads, {others} others");
    Ok(())
}

/// How long a neighbour may wait on a machine that is busy with other things. When others hold it up it waits for as long as they may,
/// which is 20 s.
const NEIGHBOUR: Duration = Duration::from_secs(12);

/// Asks for more than any buffer holds, and reads a byte now and then, or none, until the connection is reset.
async fn read_slowly(address: SocketAddr, reads: bool) -> std::io::Result<()> {
    let mut stream = narrow(address).await?;
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?;
    while stream.take_error()?.is_none() {
        tokio::time::sleep(Duration::from_millis(400)).await;
        if reads && !matches!(stream.read(&mut [0; 1]).await, Ok(1)) {
            break;
        }
    }
    Ok(())
}

#[tokio::test]
async fn who_asks_for_much_and_reads_a_byte_now_and_then_or_none_is_let_go() -> Outcome {
    let (address, _program) = program().await?;
    let scene = Scene::set(address, &["take-time=4s"]).await;
    let mut attackers = JoinSet::new();
    for number in 0..100 {
        attackers.spawn(read_slowly(scene.plain, number % 2 == 0));
    }
    let slow = "outrider_agent_requests_total{side=\"inbound\",outcome=\"slow_caller\"";
    let (mut most, began) = (0.0, Instant::now());
    loop {
        let asked = Instant::now();
        assert_eq!(through_proxy(scene.web.outbound, "GET", "http://orders.shop/small", "").await?.status, 200);
        assert!(asked.elapsed() < NEIGHBOUR, "a neighbour waits: {:?}", asked.elapsed());
        let open = scene.orders.metric("outrider_agent_connections{side=\"inbound\"}").await;
        most = open.max(most);
        let let_go = scene.orders.metric(slow).await;
        if let_go >= 100.0 && open < 10.0 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{open} of {most} are there, {let_go} were let go");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The system keeps nothing for them either: they see a reset, and not what is left.
    let all = tokio::time::timeout(Duration::from_secs(10), attackers.join_all()).await?;
    all.into_iter().collect::<Result<Vec<()>, _>>()?;
    Ok(())
}

#[tokio::test]
async fn who_never_opens_the_window_of_http2_or_takes_nothing_at_all_is_let_go() -> Outcome {
    let (address, _program) = program().await?;
    let scene = Scene::set(address, &["take-time=4s"]).await;
    let pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", "orders.shop"), (":path", "/large")];
    // SETTINGS_INITIAL_WINDOW_SIZE 0: not a byte of the body.
    let closed = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]].concat();
    let mut stream = TcpStream::connect(scene.plain).await?;
    stream.write_all(&[closed, h2_headers(&pseudo, Ends::Yes)].concat()).await?;
    let began = Instant::now();
    let mut heard = Vec::new();
    // RST_STREAM of stream 1.
    while !heard.windows(9).any(|head| head == [0, 0, 4, 3, 0, 0, 0, 0, 1]) {
        assert_ne!(tokio::time::timeout(Duration::from_secs(30), stream.read_buf(&mut heard)).await??, 0);
    }
    assert!(began.elapsed() > Duration::from_secs(3), "it had its time");

    // And nobody reads: the connection itself is stuck.
    let mut stuck = narrow(scene.plain).await?;
    stuck.write_all(&[WIDE.concat(), h2_headers(&pseudo, Ends::Yes)].concat()).await?;
    let began = Instant::now();
    while stuck.take_error()?.is_none() {
        assert!(began.elapsed() < Duration::from_secs(30), "it is still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let log = scene.orders.access_log().await;
    assert_eq!(log.iter().filter(|line| line["reason"] == "slow_caller").count(), 2, "{log:#?}");
    Ok(())
}

#[tokio::test]
async fn who_reads_slowly_all_the_time_is_waited_for_and_so_is_a_program_that_is_silent() -> Outcome {
    let (address, _program) = program().await?;
    let scene = Scene::set(address, &["take-time=4s"]).await;
    // 16 KiB in each span are enough, but the system notices what is taken in larger steps, on loopback of 64 KiB and more. It goes on
    // for longer than all buffers last.
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(64 << 10)?;
    let mut slow = socket.connect(scene.plain).await?;
    slow.write_all(b"GET /large HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?;
    let began = Instant::now();
    let mut taken = 0;
    while began.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut piece = [0; 6 << 10];
        taken += tokio::time::timeout(Duration::from_secs(5), slow.read_exact(&mut piece)).await??;
    }
    assert!(taken > 800 << 10, "{taken}");
    // Events that come now and then: the caller takes all there is.
    let mut events = TcpStream::connect(scene.plain).await?;
    events.write_all(b"GET /events HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?;
    let mut heard = Vec::new();
    let began = Instant::now();
    while !heard.windows(6).any(|word| word == b"second") {
        assert_ne!(tokio::time::timeout(Duration::from_secs(10), events.read_buf(&mut heard)).await??, 0, "cut");
    }
    assert!(began.elapsed() > Duration::from_secs(4));
    Ok(())
}

#[tokio::test]
async fn answers_that_nobody_reads_hold_up_no_other_answer_from_the_same_agent() -> Outcome {
    let (address, _program) = program().await?;
    // With one worker each, all share a connection between the agents.
    let scene = Scene::set(address, &[]).await;
    let more = vec!["--workers".to_owned(), "1".to_owned()];
    let web = scene.mesh.agent("shop/other", AgentOptions { more, ..AgentOptions::default() }).await;
    scene.mesh.apply(&allow("other", "shop/orders", "[shop/other]", "[GET]", "[\"/{rest=**}\"]"));
    let mut unread = Vec::new();
    for _ in 0..300 {
        let mut stream = narrow(web.outbound).await?;
        stream.write_all(b"GET http://orders.shop/large HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?;
        unread.push(stream);
    }
    for _ in 0..10 {
        let asked = Instant::now();
        assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop/small", "").await?.status, 200);
        assert!(asked.elapsed() < NEIGHBOUR, "a neighbour waits: {:?}", asked.elapsed());
    }
    // One that is read goes on, too.
    let mut read = TcpStream::connect(web.outbound).await?;
    read.write_all(b"GET http://orders.shop/large HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?;
    let much = async {
        let (mut taken, mut piece) = (0, vec![0; 64 << 10]);
        while taken < 16 << 20 {
            taken += read.read(&mut piece).await?;
        }
        Ok::<(), std::io::Error>(())
    };
    tokio::time::timeout(Duration::from_secs(10), much).await??;
    drop(unread);
    Ok(())
}

/// A member's connection by the mesh protocol, with a GET for more than any buffer holds on each of so many streams.
async fn ask_by_mesh(scene: &Scene, streams: u32) -> std::io::Result<SharedIo> {
    let peer = MeshPeer::join(&scene.mesh, "shop/web").await;
    let expected = "spiffe://mesh.internal/ns/shop/sa/orders";
    let connected = peer.connect(scene.orders.mesh, "shop/orders", 80, MeshProtocol::Mesh, expected).await;
    let mut io = connected.map_err(std::io::Error::other)?;
    let mut wire = Vec::new();
    for stream in 1..=streams {
        put(&mut wire, stream, Kind::Head, true, b"GET /large HTTP/1.1\r\nhost: orders.shop\r\n\r\n");
    }
    io.write_all(&wire).await?;
    io.flush().await?;
    Ok(io)
}

#[tokio::test]
async fn a_member_that_opens_no_window_or_reads_nothing_is_let_go() -> Outcome {
    let (address, _program) = program().await?;
    let scene = Scene::set(address, &["take-time=4s"]).await;
    let mut closed = ask_by_mesh(&scene, 1).await?;
    let began = Instant::now();
    let mut heard = BytesMut::new();
    // It reads, and never says that more may come.
    let reset = async {
        loop {
            while let Some(frame) = take(&mut heard).expect("an agent writes good frames") {
                if frame.kind == Kind::Reset {
                    return;
                }
            }
            assert_ne!(closed.read_buf(&mut heard).await.expect("read"), 0, "the connection goes on");
        }
    };
    tokio::time::timeout(Duration::from_secs(15), reset).await?;
    assert!(began.elapsed() > Duration::from_secs(3), "it had its time");

    let stuck = ask_by_mesh(&scene, 64).await?;
    let connections = "outrider_agent_connections{side=\"inbound\"}";
    let began = Instant::now();
    while scene.orders.metric(connections).await > 1.0 {
        assert!(began.elapsed() < Duration::from_secs(15), "it is still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop((closed, stuck));
    let log = scene.orders.access_log().await;
    assert_eq!(log.iter().filter(|line| line["reason"] == "slow_caller").count(), 65, "{log:#?}");
    Ok(())
}

#[tokio::test]
async fn who_reads_after_a_while_over_http2_and_tls_gets_the_end_of_the_answer_too() -> Outcome {
    let (address, _program) = program().await?;
    let scene = Scene::set(address, &[]).await;
    let peer = MeshPeer::join(&scene.mesh, "shop/web").await;
    let expected = "spiffe://mesh.internal/ns/shop/sa/orders";
    // Whatever fits into the buffers of either system, of TLS and of the agent.
    for length in (1..=24_usize).map(|part| part * (32 << 10) + 1000) {
        let connected = peer.connect(scene.orders.mesh, "shop/orders", 80, MeshProtocol::Http2, expected).await;
        let mut io = connected.map_err(std::io::Error::other)?;
        let path = format!("/{length}");
        let pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", "orders.shop"), (":path", path.as_str())];
        io.write_all(&[WIDE.concat(), h2_headers(&pseudo, Ends::Yes)].concat()).await?;
        io.flush().await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let whole = tokio::time::timeout(Duration::from_secs(10), h2_body(&mut io)).await;
        assert_eq!(whole.map_err(|_| format!("the end of {length} bytes does not come"))??, length);
    }
    Ok(())
}

#[tokio::test]
async fn bodies_over_the_cap_get_413_whether_they_say_so_or_not() -> Outcome {
    let backend = Backend::start().await;
    let scene = Scene::set(backend.address, &["body=64KiB"]).await;
    let post = async |framing: &str, body: &[u8]| {
        let mut stream = TcpStream::connect(scene.plain).await?;
        let head = format!("POST /a HTTP/1.1\r\nhost: orders.shop\r\n{framing}\r\n\r\n");
        exchange(&mut stream, &[head.as_bytes(), body].concat()).await.map(|answer| answer.status)
    };
    let whole = vec![b'x'; 64 << 10];
    assert_eq!(post("content-length: 65536", &whole).await?, 200);
    assert_eq!(post("content-length: 65537", b"").await?, 413, "before a byte of it came");
    assert_eq!(post("content-length: 65537\r\nexpect: 100-continue", b"").await?, 413, "and before it was asked for");
    let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    let chunks = |more: &[u8]| [chunk(&whole), more.to_vec(), b"0\r\n\r\n".to_vec()].concat();
    assert_eq!(post("transfer-encoding: chunked", &chunks(b"")).await?, 200);
    assert_eq!(post("transfer-encoding: chunked", &chunks(&chunk(b"y"))).await?, 413);
    let log = scene.orders.access_log().await;
    assert_eq!(log.iter().filter(|line| line["reason"] == "body_too_large").count(), 3);
    Ok(())
}

#[tokio::test]
async fn a_thousand_callers_in_one_moment_wait_for_a_connection_to_the_program_and_none_is_refused() -> Outcome {
    let (address, _program) = program().await?;
    let scene = Scene::set(address, &[]).await;
    let mut callers = Vec::new();
    for _ in 0..1000 {
        callers.push(TcpStream::connect(scene.plain).await?);
    }
    // Each needs a connection of its own: none is free before the others have been answered.
    let mut asking = JoinSet::new();
    for mut caller in callers {
        asking.spawn(async move {
            let answer = exchange(&mut caller, b"GET /small HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?;
            Ok::<u16, std::io::Error>(answer.status)
        });
    }
    let all = tokio::time::timeout(Duration::from_secs(30), asking.join_all()).await?;
    let statuses = all.into_iter().collect::<Result<Vec<u16>, _>>()?;
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1000, "{statuses:?}");
    Ok(())
}

#[tokio::test]
async fn one_address_does_not_take_all_places() -> Outcome {
    let backend = Backend::start().await;
    let scene = Scene::set(backend.address, &["connections=12", "connections-per-address=4"]).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(scene.plain).await?;
        assert_eq!(exchange(&mut stream, b"GET / HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?.status, 200);
        held.push(stream);
    }
    let mut refused = TcpStream::connect(scene.plain).await?;
    assert_eq!(refused.read(&mut [0; 1]).await.unwrap_or(0), 0, "closed at once");
    // The own program is not counted with others, and a place that is free can be taken again.
    assert_eq!(through_proxy(scene.orders.outbound, "GET", "http://example.com/", "").await?.status, 404);
    held.pop();
    // What the agent answers by itself: the program waits for this thread.
    outrider_tests::until("a place", || {
        let mut stream = std::net::TcpStream::connect(scene.plain).expect("a connection");
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let asked = std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nhost: or ders\r\n\r\n");
        asked.is_ok() && matches!(std::io::Read::read(&mut stream, &mut [0; 12]), Ok(12))
    })
    .await;
    let log = scene.orders.access_log().await;
    assert!(log.iter().any(|line| line["reason"] == "overloaded" && line["stage"] == "accept"), "{log:#?}");
    Ok(())
}

#[tokio::test]
async fn an_old_connection_is_asked_to_go_and_not_cut() -> Outcome {
    let backend = Backend::start().await;
    let scene = Scene::set(backend.address, &["connection-age=2s"]).await;
    let mut stream = TcpStream::connect(scene.plain).await?;
    let began = Instant::now();
    loop {
        let answer = exchange(&mut stream, b"GET /slow HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?;
        assert_eq!((answer.status, answer.body.as_slice()), (200, b"ok\n".as_slice()), "whole, also the last one");
        if answer.field("connection") == Some("close") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "never asked to go");
    }
    assert!(began.elapsed() > Duration::from_millis(1500));
    assert_eq!(stream.read(&mut [0; 1]).await?, 0);
    drop(scene.mesh);
    Ok(())
}

#[tokio::test]
async fn a_flood_of_pings_gets_a_goaway_that_says_so() -> Outcome {
    let backend = Backend::start().await;
    let scene = Scene::set(backend.address, &["control-frames=100"]).await;
    let mut stream = TcpStream::connect(scene.plain).await?;
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    stream.write_all(&[h2_opening(), ping.repeat(1000)].concat()).await?;
    let mut heard = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut heard)).await??;
    let mut goaway = None;
    let mut rest = heard.as_slice();
    while let [a, b, c, kind, _, _, _, _, _, more @ ..] = rest {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        if *kind == 7 {
            goaway = more.get(4..8).map(<[u8]>::to_vec);
        }
        rest = more.get(length..).unwrap_or_default();
    }
    assert_eq!(goaway, Some(vec![0, 0, 0, 11]), "ENHANCE_YOUR_CALM");
    let log = scene.orders.access_log().await;
    assert!(log.iter().any(|line| line["reason"] == "control_flood"), "{log:#?}");
    Ok(())
}
