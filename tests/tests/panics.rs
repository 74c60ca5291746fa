//! A fault of the agent's own: a panic while one request is served ends that request and nothing else, whatever the protocol.

#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::{error::Error, path::Path, rc::Rc, sync::Arc, time::Duration};

use bytes::BytesMut;
use outrider_agent::{
    http::{Limits, Reply, Request, Service, SharedIo, h2, refused},
    mesh::{
        self,
        frame::{Kind, put, take},
    },
    refusal::{Reason, Refusal},
    telemetry::{AccessLog, AccessLogTarget, Metrics, Observer, Record, Sampler, Side, SpanQueue, report_queue},
    tls::{MeshAcceptor, MeshProtocol},
};
use outrider_runtime::{Drain, Tasks};
use outrider_tests::{Ends, Mesh, MeshOptions, MeshPeer, Outcome, h2_headers, h2_opening, until};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::LocalSet,
};

/// Panics over one path, and refuses the others.
struct Faulty(Rc<Observer>);

impl Service for Faulty {
    async fn call(&self, request: Request) -> Reply {
        let mut record = Record::new(&self.0, Side::Inbound);
        record.request(&request.head);
        tokio::task::yield_now().await;
        assert_ne!(&*request.head.target, "/fault", "a fault, for this test");
        refused(&Refusal::new(Reason::NoRoute, "not found"), record)
    }

    fn refuse(&self, refusal: Refusal) -> Reply {
        refused(&refusal, Record::new(&self.0, Side::Inbound))
    }

    async fn closing(&self) {
        std::future::pending().await
    }

    fn is_closing(&self) -> bool {
        false
    }
}

/// A callee's agent with a fault, and a member's connection to it.
async fn faulty(protocol: MeshProtocol, log: &Path) -> Result<SharedIo, Box<dyn Error + Send + Sync>> {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let (orders, web) = (MeshPeer::join(&mesh, "shop/orders").await, MeshPeer::join(&mesh, "shop/web").await);
    let acceptor = MeshAcceptor::new(orders.svids.clone(), orders.trust.clone())?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let tasks = Tasks::new();
    let log = AccessLog::start(&AccessLogTarget::File(log.to_owned()), 1, Arc::default(), &tasks)?;
    let ((reports, _), sampler) = (report_queue(0.0, Arc::default()), Sampler::new(false, 0.0, 0));
    let metrics = Metrics::new(&mut Default::default());
    let observer = Observer::new(log, metrics, reports, SpanQueue::off(), sampler, orders.svids.clone(), Drain::new());
    let (observer, serving) = (Rc::new(observer), tasks.clone());
    tasks.spawn_scoped_local(async move {
        let (stream, from) = listener.accept().await.expect("a connection");
        let secured = acceptor.accept(stream, from, Duration::from_secs(5)).await.expect("a member");
        let service = Rc::new(Faulty(observer.clone()));
        match secured.protocol {
            MeshProtocol::Http2 => h2::serve(secured.io, service, &Limits::default(), &serving).await,
            _ => mesh::serve(secured.io, service, &Limits::default(), |_| ()).await,
        }
        observer.log.flush();
    });
    Ok(web.connect(address, "shop/orders", 80, protocol, "spiffe://mesh.internal/ns/shop/sa/orders").await?)
}

/// The reasons in the log, once there are so many.
async fn reasons(log: &Path, wanted: usize) -> Vec<String> {
    let read = || {
        let lines = std::fs::read_to_string(log).unwrap_or_default();
        let reason = |line: &str| Some(serde_json::from_str::<serde_json::Value>(line).ok()?["reason"].as_str()?.to_owned());
        lines.lines().filter_map(reason).collect::<Vec<_>>()
    };
    until("the records", || read().len() >= wanted).await;
    read()
}

#[tokio::test]
async fn a_fault_ends_its_stream_of_a_mesh_connection_and_the_others_are_answered() -> Outcome {
    LocalSet::new()
        .run_until(async {
            let log = tempfile::NamedTempFile::new()?;
            let mut io = faulty(MeshProtocol::Mesh, log.path()).await?;
            let mut wire = Vec::new();
            for (stream, path) in [(1, "/fine"), (2, "/fault"), (3, "/fine"), (4, "/fault"), (5, "/fine")] {
                put(&mut wire, stream, Kind::Head, true, format!("GET {path} HTTP/1.1\r\nhost: orders.shop\r\n\r\n").as_bytes());
            }
            io.write_all(&wire).await?;
            io.flush().await?;
            let (mut heard, mut answered, mut reset) = (BytesMut::new(), Vec::new(), Vec::new());
            while answered.len() + reset.len() < 5 {
                assert_ne!(
                    tokio::time::timeout(Duration::from_secs(10), io.read_buf(&mut heard)).await??,
                    0,
                    "the connection ends"
                );
                while let Some(frame) = take(&mut heard)? {
                    assert!(!frame.payload.windows(9).any(|said| said == b"this test"), "the caller learns why");
                    match frame.kind {
                        Kind::Head => answered.push(frame.stream),
                        Kind::Reset => reset.push(frame.stream),
                        _ => {}
                    }
                }
            }
            answered.sort_unstable();
            reset.sort_unstable();
            assert_eq!((answered, reset), (vec![1, 3, 5], vec![2, 4]));
            drop(io);
            let said = reasons(log.path(), 5).await;
            let faults = said.iter().filter(|reason| *reason == "internal_fault").count();
            assert_eq!((faults, said.len()), (2, 5), "{said:?}");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn a_fault_ends_its_stream_of_an_http2_connection_alike() -> Outcome {
    LocalSet::new()
        .run_until(async {
            let log = tempfile::NamedTempFile::new()?;
            let mut io = faulty(MeshProtocol::Http2, log.path()).await?;
            let get = |path| {
                h2_headers(&[(":method", "GET"), (":scheme", "http"), (":authority", "orders.shop"), (":path", path)], Ends::Yes)
            };
            // On stream 1; then the same on stream 3.
            let (fault, mut fine) = (get("/fault"), get("/fine"));
            fine[8] = 3;
            io.write_all(&[h2_opening(), fault, fine].concat()).await?;
            io.flush().await?;
            let mut heard = Vec::new();
            let has = |heard: &[u8], kind: u8, stream: u8| {
                heard.windows(9).any(|head| head[3] == kind && head[5..] == [0, 0, 0, stream] && head[0] == 0)
            };
            // RST_STREAM of the one, HEADERS of the other.
            while !(has(&heard, 3, 1) && has(&heard, 1, 3)) {
                assert_ne!(
                    tokio::time::timeout(Duration::from_secs(10), io.read_buf(&mut heard)).await??,
                    0,
                    "the connection ends"
                );
            }
            drop(io);
            let said = reasons(log.path(), 2).await;
            assert!(said.contains(&"internal_fault".to_owned()), "{said:?}");
            Ok(())
        })
        .await
}
