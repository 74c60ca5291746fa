//! An agent that is told to stop: nothing new, an answer to what is under way, and an end at the deadline, whatever is spoken.

use std::time::Duration;

use outrider_tests::{AgentOptions, AgentProcess, Backend, Mesh, MeshOptions, Outcome, allow, exchange, read_answer, until};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

async fn shop(more: &[&str]) -> (Mesh, Backend, AgentProcess, AgentProcess) {
    let backend = Backend::start().await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/orders:80/http={}", backend.address)];
    let more: Vec<String> = more.iter().map(ToString::to_string).collect();
    let orders = mesh.agent("shop/orders", AgentOptions { services, more: more.clone(), ..AgentOptions::default() }).await;
    let web = mesh.agent("shop/web", AgentOptions { more, ..AgentOptions::default() }).await;
    mesh.apply(&allow("all", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"));
    (mesh, backend, orders, web)
}

#[tokio::test]
async fn http1_answers_what_is_under_way_and_says_that_it_was_the_last() -> Outcome {
    let (_mesh, backend, _orders, mut web) = shop(&[]).await;
    let (mut idle, mut busy) = (TcpStream::connect(web.outbound).await?, TcpStream::connect(web.outbound).await?);
    assert_eq!(exchange(&mut idle, b"GET http://orders.shop/ HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?.status, 200);
    busy.write_all(b"GET http://orders.shop/slow HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?;
    until("the request is at the program", || backend.seen().iter().any(|seen| seen.target == "/slow")).await;
    web.process.signal("TERM");
    let answer = read_answer(&mut busy, &mut Vec::new()).await?;
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap_or(0), 0, "a connection without a request ends");
    assert!(web.process.wait(Duration::from_secs(10)).success());
    assert!(TcpStream::connect(web.outbound).await.is_err(), "nobody listens");
    Ok(())
}

#[tokio::test]
async fn http2_says_goaway_and_finishes_its_streams() -> Outcome {
    let (_mesh, backend, _orders, mut web) = shop(&[]).await;
    let (mut send, connection) = h2::client::handshake(TcpStream::connect(web.outbound).await?).await?;
    let mut background = JoinSet::new();
    background.spawn(connection);
    let request = http::Request::get("http://orders.shop/slow").body(())?;
    let (answer, _) = send.send_request(request, true)?;
    until("the request is at the program", || !backend.seen().is_empty()).await;
    web.process.signal("TERM");
    assert_eq!(answer.await?.status(), 200);
    let ended = tokio::time::timeout(Duration::from_secs(10), background.join_next()).await?;
    assert!(matches!(ended, Some(Ok(Ok(())))), "GOAWAY without an error: {ended:?}");
    assert!(web.process.wait(Duration::from_secs(10)).success());
    Ok(())
}

#[tokio::test]
async fn opaque_connections_go_on_until_the_deadline_and_end_then() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let server = listener.local_addr()?;
    let mut background = JoinSet::new();
    background.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    });
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/mail:25/tcp={server}")];
    let _mail = mesh.agent("shop/mail", AgentOptions { services, ..AgentOptions::default() }).await;
    let more = vec!["--drain-seconds".to_owned(), "2".to_owned()];
    let mut web = mesh.agent("shop/web", AgentOptions { more, ..AgentOptions::default() }).await;
    mesh.apply(
        "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: { name: mail, namespace: shop }\nspec:\n  \
         targetRefs: [{ kind: Service, name: mail }]\n  authorization:\n    rules:\n      \
         - { name: web, action: Allow, from: [{ serviceAccounts: [shop/web] }] }\n",
    );
    let mut tunnel = TcpStream::connect(web.outbound).await?;
    assert_eq!(exchange(&mut tunnel, b"CONNECT mail.shop:25 HTTP/1.1\r\nhost: mail.shop:25\r\n\r\n").await?.status, 200);
    let mut echo = [0; 4];
    web.process.signal("TERM");
    web.process.wait_for("draining");
    tunnel.write_all(b"echo").await?;
    tunnel.read_exact(&mut echo).await?;
    assert_eq!(&echo, b"echo", "it goes on while the agent drains");
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), tunnel.read(&mut echo)).await?.unwrap_or(0), 0, "and ends");
    assert!(web.process.wait(Duration::from_secs(10)).success());
    until("what was cut", || web.process.log().contains("connections were cut")).await;
    Ok(())
}
