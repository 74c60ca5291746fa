//! HTTP/2, trailers, and opaque TCP through the whole path; and what is open obeys a change of policy.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use outrider_agent::tls::MeshProtocol;
use outrider_tests::{
    AgentOptions, AgentProcess, Backend, Mesh, MeshOptions, MeshPeer, Outcome, allow, exchange, free_port, through_proxy,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

fn from_web(service: &str) -> String {
    let (_, name) = service.split_once('/').expect("namespace/name");
    format!(
        "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: {{ name: {name}, namespace: shop }}\nspec:\n  \
         targetRefs: [{{ kind: Service, name: {name} }}]\n  authorization:\n    rules:\n      - {{ name: web, action: Allow, from: [{{ serviceAccounts: [shop/web] }}] }}\n"
    )
}

fn nobody(service: &str) -> String {
    from_web(service).replace("shop/web", "shop/nobody")
}

/// A server that greets first, then echoes.
async fn greeter(tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address");
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let _ = stream.write_all(b"220 hello\r\n").await;
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    address
}

/// An HTTP/2 server that echoes the body and ends with trailers.
async fn h2_echo(tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address");
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                let mut streams = JoinSet::new();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    streams.spawn(async move {
                        let mut head = http::Response::new(());
                        let peer = request.headers().get("x-forwarded-client-cert").cloned();
                        if let Some(peer) = peer {
                            head.headers_mut().insert("x-seen-peer", peer);
                        }
                        let mut body = request.into_body();
                        let mut send = respond.send_response(head, false).expect("response");
                        while let Some(Ok(data)) = body.data().await {
                            let _ = body.flow_control().release_capacity(data.len());
                            send.send_data(data, false).expect("data");
                        }
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                        send.send_trailers(trailers).expect("trailers");
                    });
                }
            });
        }
    });
    address
}

async fn web(mesh: &Mesh, upstreams: Vec<String>) -> AgentProcess {
    mesh.agent("shop/web", AgentOptions { upstreams, ..AgentOptions::default() }).await
}

#[tokio::test]
async fn servers_that_speak_first_work_and_end_when_the_policy_ends_them() -> Outcome {
    let mut tasks = JoinSet::new();
    let server = greeter(&mut tasks).await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/mail:25/tcp={server}")];
    let mail = mesh.agent("shop/mail", AgentOptions { services, ..AgentOptions::default() }).await;
    let port = free_port();
    let web = web(&mesh, vec![format!("{port}=shop/mail:25")]).await;

    let mut denied = TcpStream::connect(("127.0.0.1", port)).await?;
    assert_eq!(denied.read(&mut [0; 16]).await.unwrap_or(0), 0, "no rule, no byte");

    mesh.apply(&from_web("shop/mail"));
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting).await?;
    assert_eq!(&greeting, b"220 hello\r\n");
    stream.write_all(b"echo").await?;
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await?;
    assert_eq!(&echo, b"echo");

    // CONNECT leads there too.
    let mut tunnel = TcpStream::connect(web.outbound).await?;
    let answer = exchange(&mut tunnel, b"CONNECT mail.shop:25 HTTP/1.1\r\nhost: mail.shop:25\r\n\r\n").await?;
    assert_eq!(answer.status, 200);

    mesh.apply(&nobody("shop/mail"));
    let ended = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut echo)).await?;
    assert_eq!(ended.unwrap_or(0), 0, "the open connection ends with the permission");
    let log = mail.access_log().await;
    assert!(log.iter().any(|line| line["reason"] == "policy_revoked" && line["protocol"] == "tcp"), "{log:?}");
    Ok(())
}

#[tokio::test]
async fn half_closed_connections_deliver_the_rest() -> Outcome {
    let mut tasks = JoinSet::new();
    let server = greeter(&mut tasks).await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/mail:25/tcp={server}")];
    let _mail = mesh.agent("shop/mail", AgentOptions { services, ..AgentOptions::default() }).await;
    let port = free_port();
    let _web = web(&mesh, vec![format!("{port}=shop/mail:25")]).await;
    mesh.apply(&from_web("shop/mail"));
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let sent = vec![b'x'; 3 << 20];
    let (mut read, mut write) = stream.split();
    let mut received = Vec::new();
    let (written, all) = tokio::join!(
        async {
            write.write_all(&sent).await?;
            write.shutdown().await
        },
        read.read_to_end(&mut received)
    );
    written?;
    all?;
    assert_eq!(received.len(), 11 + sent.len());
    Ok(())
}

#[tokio::test]
async fn http2_streams_bodies_and_trailers_both_ways() -> Outcome {
    let mut tasks = JoinSet::new();
    let server = h2_echo(&mut tasks).await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/echo:50051/grpc={server}")];
    let _echo = mesh.agent("shop/echo", AgentOptions { services, ..AgentOptions::default() }).await;
    let port = free_port();
    let _web = web(&mesh, vec![format!("{port}=shop/echo:50051")]).await;
    mesh.apply(&allow("echo", "shop/echo", "[shop/web]", "[POST]", "[\"/pkg.Echo/Say\"]"));

    let (client, connection) = h2::client::handshake(TcpStream::connect(("127.0.0.1", port)).await?).await?;
    tasks.spawn(async move {
        let _ = connection.await;
    });
    let mut client = client.ready().await?;
    let request =
        |path: &str| http::Request::post(format!("http://echo.shop{path}")).header("te", "trailers").body(()).expect("a request");
    let (response, mut send) = client.send_request(request("/pkg.Echo/Say"), false)?;
    send.send_data(Bytes::from_static(b"one"), false)?;
    let response = response.await?;
    assert_eq!(response.status(), 200);
    assert!(response.headers()["x-seen-peer"].to_str()?.contains("sa/web"));
    let mut body = response.into_body();
    assert_eq!(body.data().await.expect("data")?, "one", "an answer while the request goes on");
    let big = Bytes::from(vec![7; 1 << 20]);
    let (sent, received) = tokio::join!(
        async {
            send.reserve_capacity(big.len());
            let mut rest = big.clone();
            while !rest.is_empty() {
                let capacity = std::future::poll_fn(|cx| send.poll_capacity(cx)).await.expect("capacity")?;
                let piece = rest.split_to(capacity.min(rest.len()));
                send.send_data(piece, rest.is_empty())?;
            }
            Ok::<_, h2::Error>(())
        },
        async {
            let mut length = 0;
            while let Some(data) = body.data().await {
                let data = data.expect("data");
                body.flow_control().release_capacity(data.len()).expect("capacity");
                length += data.len();
            }
            length
        }
    );
    sent?;
    assert_eq!(received, big.len());
    assert_eq!(body.trailers().await?.expect("trailers")["grpc-status"], "0");

    let (refused, _) = client.send_request(request("/pkg.Echo/Delete"), true)?;
    assert_eq!(refused.await?.status(), 403, "another method of the same connection");
    Ok(())
}

#[tokio::test]
async fn http2_callers_reach_http1_programs_and_cannot_smuggle() -> Outcome {
    let backend = Backend::start().await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/orders:80/http={}", backend.address)];
    let orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
    mesh.apply(&allow("all", "shop/orders", "[shop/web]", "[GET, POST]", "[\"/{rest=**}\"]"));
    let peer = MeshPeer::join(&mesh, "shop/web").await;
    let open = async || {
        peer.connect(orders.mesh, "shop/orders", 80, MeshProtocol::Http2, "spiffe://mesh.internal/ns/shop/sa/orders")
            .await
            .expect("a connection")
    };
    tokio::task::LocalSet::new()
        .run_until(async move {
            let (client, connection) = h2::client::handshake(open().await).await?;
            tokio::task::spawn_local(async move {
                let _ = connection.await;
            });
            let mut client = client.ready().await?;
            let ok = http::Request::post("http://orders.shop/fine?q").body(())?;
            let (response, mut send) = client.send_request(ok, false)?;
            send.send_data(Bytes::from_static(b"body"), true)?;
            assert_eq!(response.await?.status(), 200);
            let seen = backend.seen();
            assert_eq!((seen[0].target.as_str(), seen[0].body.as_slice()), ("/fine?q", b"body".as_slice()));
            backend.forget();
            // The client's own crate refuses the worst; these it sends.
            for (name, value) in [
                ("x-a", " padded"),
                ("x-a", "padded "),
                ("x_role", "admin"),
                ("content-length", "+4"),
                ("te", "gzip"),
                ("host", "secret.example.com"),
            ] {
                let request = http::Request::get("http://orders.shop/x").header(name, value).body(())?;
                let outcome = async { client.clone().ready().await?.send_request(request, true)?.0.await }.await;
                let refused = outcome.as_ref().map_or(true, |response| response.status() == 400);
                assert!(refused, "{name}: {value:?} gave {outcome:?}");
            }
            assert!(backend.seen().is_empty(), "{:?}", backend.seen());
            Ok(())
        })
        .await
}

#[tokio::test]
async fn opaque_bytes_do_not_reach_a_port_with_http_rules() -> Outcome {
    let backend = Backend::start().await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/orders:80/http={}", backend.address)];
    let orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
    mesh.apply(&from_web("shop/orders"));
    let peer = MeshPeer::join(&mesh, "shop/web").await;
    let expected = "spiffe://mesh.internal/ns/shop/sa/orders";
    for (service, port, protocol) in [
        ("shop/orders", 80, MeshProtocol::Tcp),
        ("shop/orders", 81, MeshProtocol::Http1),
        ("shop/other", 80, MeshProtocol::Http1),
    ] {
        let mut io = peer.connect(orders.mesh, service, port, protocol, expected).await.expect("the handshake itself");
        let _ = io.write_all(b"GET / HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await;
        let _ = io.flush().await;
        let read = tokio::time::timeout(Duration::from_secs(2), io.read(&mut [0; 64])).await?;
        assert_eq!(read.unwrap_or(0), 0, "{service}:{port} {protocol:?}");
    }
    assert!(backend.seen().is_empty());

    let web = web(&mesh, Vec::new()).await;
    let mut stream = TcpStream::connect(web.outbound).await?;
    let answer = exchange(&mut stream, b"CONNECT orders.shop:80 HTTP/1.1\r\nhost: orders.shop:80\r\n\r\n").await?;
    assert_eq!(answer.status, 400);
    assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop/", "").await?.status, 200, "the control");
    Ok(())
}
