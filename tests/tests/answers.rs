//! Heads of answers at the edge of what agents take: whoever makes a program say too much harms its own request, and nobody
//! else's on the same connection between the agents.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use outrider_tests::{AgentOptions, Mesh, MeshOptions, Outcome, allow, through_proxy};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinSet,
};

/// A program that answers `/N/M` with N fields, one of M bytes more than it needs, and `/slow` when it is told.
async fn program(told: Arc<Notify>, programs: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address");
    programs.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(answer(stream, told.clone()));
        }
    });
    address
}

async fn answer(mut stream: TcpStream, told: Arc<Notify>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut numbers = text.split(['/', ' ']).filter_map(|word| word.parse::<usize>().ok());
    let fields = if text.starts_with("GET /slow") {
        told.notified().await;
        String::new()
    } else {
        let (count, more) = (numbers.next().expect("fields"), numbers.next().expect("bytes"));
        // `content-length` and the large one are among them.
        let small: String = (2..count).map(|number| format!("x-{number}: y\r\n")).collect();
        format!("{small}x-large: {}\r\n", "y".repeat(more))
    };
    let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{fields}\r\nok").as_bytes()).await;
}

/// A program that does the same over HTTP/2, and `/status/N` with that status.
async fn http2_program(told: Arc<Notify>, programs: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address");
    programs.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let told = told.clone();
            connections.spawn(async move {
                let mut streams = JoinSet::new();
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let told = told.clone();
                    streams.spawn(async move {
                        let path = request.uri().path().to_owned();
                        let numbers: Vec<usize> = path.split('/').filter_map(|word| word.parse().ok()).collect();
                        let mut response = http::Response::new(());
                        match *numbers {
                            [status] => *response.status_mut() = http::StatusCode::from_u16(status as u16).expect("a status"),
                            [count, more] => {
                                for number in 1..count {
                                    let name = http::HeaderName::try_from(format!("x-{number}")).expect("a name");
                                    response.headers_mut().insert(name, http::HeaderValue::from_static("y"));
                                }
                                let large = http::HeaderValue::try_from("y".repeat(more)).expect("a value");
                                response.headers_mut().insert("x-large", large);
                            }
                            _ => told.notified().await,
                        }
                        let _ = respond.send_response(response, true);
                    });
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_with_too_large_a_head_harms_nobody_else() -> Outcome {
    let told = Arc::new(Notify::new());
    let mut programs = JoinSet::new();
    let (http1, http2) = (program(told.clone(), &mut programs).await, http2_program(told.clone(), &mut programs).await);
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/orders:80/http={http1}"), format!("shop/orders:81/http2={http2}")];
    // One worker each, so that all requests share a connection between the agents.
    let more = vec!["--workers".to_owned(), "1".to_owned()];
    let _orders = mesh.agent("shop/orders", AgentOptions { services, more: more.clone(), ..AgentOptions::default() }).await;
    let web = mesh.agent("shop/web", AgentOptions { more, ..AgentOptions::default() }).await;
    mesh.apply(&allow("orders", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"));

    let kib = 1 << 10;
    for (port, path, expected) in [
        (80, "98/0".to_owned(), 200),
        (80, "100/0".to_owned(), 200),
        (80, "101/0".to_owned(), 502),
        (80, "150/0".to_owned(), 502),
        (80, format!("3/{}", 32 * kib - 100), 200),
        (80, format!("3/{}", 33 * kib), 502),
        (81, "99/0".to_owned(), 200),
        (81, "100/0".to_owned(), 200),
        (81, "101/0".to_owned(), 502),
        (81, format!("1/{}", 34 * kib), 502),
        (81, "999".to_owned(), 502),
        (81, "600".to_owned(), 502),
        (81, "299".to_owned(), 299),
    ] {
        let url = |path: &str| format!("http://orders.shop:{port}/{path}");
        let slow = url("slow");
        let neighbour = through_proxy(web.outbound, "GET", &slow, "");
        let own = async {
            // The neighbour is under way.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let own = through_proxy(web.outbound, "GET", &url(&path), "").await;
            told.notify_one();
            own
        };
        let (neighbour, own) = tokio::join!(neighbour, own);
        assert_eq!(own.expect(&path).status, expected, "{port} {path}");
        assert_eq!(neighbour.expect(&path).status, 200, "beside {port} {path}");
    }
    // Requests that the first agent takes are taken by the second.
    let fields: String = (0..98).map(|number| format!("x-{number}: y\r\n")).collect();
    assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop/2/0", &fields).await.expect("an answer").status, 200);
    let large = format!("x: {}\r\n", "y".repeat(32 * kib - 200));
    assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop/2/0", &large).await.expect("an answer").status, 200);
    Ok(())
}
