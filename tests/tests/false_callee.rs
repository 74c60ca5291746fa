//! The mesh protocol from the other side: a member that an agent calls, and that answers what it likes. Every broken rule ends the
//! connection and is counted; the request that was under way fails, and the next one is served.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{cell::RefCell, rc::Rc, time::Duration};

use bytes::BytesMut;
use outrider_agent::{
    http::SharedIo,
    mesh::frame::{Kind, put, take},
    tls::MeshAcceptor,
};
use outrider_tests::{AgentOptions, AgentProcess, Mesh, MeshOptions, MeshPeer, Outcome, allow, through_proxy};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::LocalSet,
};

const PROTOCOL: u32 = 1;

/// What a request on this stream is answered with.
type Script = Box<dyn Fn(u32) -> Vec<u8>>;

fn frame(stream: u32, kind: Kind, end: bool, payload: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    put(&mut wire, stream, kind, end, payload);
    wire
}

fn good(stream: u32) -> Vec<u8> {
    frame(stream, Kind::Head, true, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
}

/// An answer whose body is to come.
fn begun(stream: u32) -> Vec<u8> {
    frame(stream, Kind::Head, false, b"HTTP/1.1 200 OK\r\n\r\n")
}

fn cases() -> Vec<(&'static str, Script)> {
    let case = |word, script: fn(u32) -> Vec<u8>| (word, Box::new(script) as Script);
    vec![
        case("unknown_frame", |_| vec![0, 0, 0, 1, 0, 0, 0, 9]),
        case("unknown_frame", |_| b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        case("frame_length", |_| vec![0, 0, 0, 1, 1, 0, 1, 2]),
        case("wrong_stream", |_| frame(0, Kind::Data, false, b"x")),
        case("end_bit", |stream| [begun(stream), frame(stream, Kind::Trailers, false, b"a: b\r\n")].concat()),
        case("no_such_stream", |stream| good(stream + 1)),
        case("no_such_stream", |stream| frame(stream + 1, Kind::Reset, false, &[0; 4])),
        case("second_head", |stream| [begun(stream), begun(stream)].concat()),
        case("out_of_order", |stream| frame(stream, Kind::Data, true, b"before the head")),
        case("out_of_order", |stream| frame(stream, Kind::Trailers, true, b"a: b\r\n")),
        case("bad_head", |stream| frame(stream, Kind::Head, true, b"HTTP/1.1 2x0 OK\r\n\r\n")),
        case("bad_head", |stream| frame(stream, Kind::Head, true, b"GET / HTTP/1.1\r\nhost: orders.shop\r\n\r\n")),
        case("bad_trailers", |stream| [begun(stream), frame(stream, Kind::Trailers, true, b"a: b\n")].concat()),
        case("window_update", |_| frame(0, Kind::Window, false, &[0; 4])),
        case("window_update", |_| frame(0, Kind::Window, false, &[0, 0, 0, 1])),
        case("stray_pong", |_| frame(0, Kind::Pong, false, &[7; 8])),
        case("flood", |_| frame(0, Kind::Ping, false, &[7; 8]).repeat(3000)),
    ]
}

/// Answers each request by the script of the moment, to the end of the connection. Returns the code of the goodbye.
async fn answer(io: &mut SharedIo, script: &RefCell<Script>) -> Option<u32> {
    let (mut heard, mut code) = (BytesMut::new(), None);
    loop {
        let mut asked = Vec::new();
        while let Some(frame) = take(&mut heard).expect("an agent writes good frames") {
            match frame.kind {
                Kind::Head => asked.push(frame.stream),
                Kind::Goaway => {
                    code = frame.payload.get(4..8).and_then(|said| said.first_chunk()).map(|said| u32::from_be_bytes(*said))
                }
                _ => {}
            }
        }
        for stream in asked {
            let said = script.borrow()(stream);
            // The agent may have ended the connection before all of a flood is written.
            let _ = io.write_all(&said).await;
            let _ = io.flush().await;
        }
        if !matches!(io.read_buf(&mut heard).await, Ok(1..)) {
            return code;
        }
    }
}

/// A mesh in which shop/orders is what this test makes of it.
struct Scene {
    _mesh: Mesh,
    /// Says where shop/orders is, and is never asked.
    _orders: AgentProcess,
    web: AgentProcess,
    script: Rc<RefCell<Script>>,
    goodbyes: tokio::sync::mpsc::UnboundedReceiver<Option<u32>>,
}

impl Scene {
    async fn set() -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mesh = Mesh::start(MeshOptions::default()).await;
        let member = MeshPeer::join(&mesh, "shop/orders").await;
        let acceptor = MeshAcceptor::new(member.svids.clone(), member.trust.clone())?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let services = vec!["shop/orders:80/http=127.0.0.1:9".to_owned()];
        let more = vec!["--advertise".to_owned(), listener.local_addr()?.to_string()];
        let orders = mesh.agent("shop/orders", AgentOptions { services, more, ..AgentOptions::default() }).await;
        let more = vec!["--workers".to_owned(), "1".to_owned()];
        let web = mesh.agent("shop/web", AgentOptions { more, ..AgentOptions::default() }).await;
        mesh.apply(&allow("all", "shop/orders", "[shop/web]", "[POST]", "[\"/{rest=**}\"]"));
        let script: Rc<RefCell<Script>> = Rc::new(RefCell::new(Box::new(good)));
        let (told, goodbyes) = tokio::sync::mpsc::unbounded_channel();
        let scripted = script.clone();
        outrider_runtime::Tasks::new().spawn_scoped_local(async move {
            while let Ok((stream, from)) = listener.accept().await {
                let secured = acceptor.accept(stream, from, Duration::from_secs(5)).await;
                let _ = told.send(answer(&mut secured.expect("a member").io, &scripted).await);
            }
        });
        Ok(Self { _mesh: mesh, _orders: orders, web, script, goodbyes })
    }

    /// A request that is not sent twice.
    async fn ask(&self) -> std::io::Result<u16> {
        let url = "http://orders.shop/x";
        Ok(through_proxy(self.web.outbound, "POST", url, "content-length: 0\r\n").await?.status)
    }

    fn answers(&self, script: Script) {
        *self.script.borrow_mut() = script;
    }
}

#[tokio::test]
async fn a_callee_that_breaks_a_rule_loses_its_connection_is_counted_and_the_next_request_is_served() -> Outcome {
    LocalSet::new()
        .run_until(async {
            let mut scene = Scene::set().await?;
            let mut words: Vec<&str> = Vec::new();
            for (word, script) in cases() {
                scene.answers(Box::new(good));
                assert_eq!(scene.ask().await?, 200, "before {word}");
                scene.answers(script);
                // What had begun is cut, what had not is refused.
                let status = scene.ask().await.unwrap_or_default();
                assert!(matches!(status, 0 | 200 | 502), "{word}: {status}");
                let code = tokio::time::timeout(Duration::from_secs(10), scene.goodbyes.recv()).await?;
                assert!(code == Some(Some(PROTOCOL)) || (word == "flood" && code == Some(None)), "{word}: {code:?}");
                words.push(word);
                let counted = format!("outrider_agent_mesh_violations_total{{side=\"outbound\",violation=\"{word}\"}}");
                let wanted = words.iter().filter(|other| **other == word).count();
                assert_eq!(scene.web.metric(&counted).await, wanted as f64, "{word}");
            }
            scene.answers(Box::new(good));
            assert_eq!(scene.ask().await?, 200);
            Ok(())
        })
        .await
}
