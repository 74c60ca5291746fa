//! The agent's resolver without capture rules: what it says, and to whom it does not talk.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{net::SocketAddr, time::Duration};

use outrider_tests::{AgentOptions, Mesh, MeshOptions, Outcome, free_port};
use tokio::net::UdpSocket;

/// A question for the IPv4 addresses of `name`.
fn question(name: &str) -> Vec<u8> {
    let mut bytes = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0".to_vec();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label"));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(b"\0\0\x01\0\x01");
    bytes
}

/// The code of the answer to it.
async fn code(server: SocketAddr, name: &str) -> std::io::Result<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.send_to(&question(name), server).await?;
    let mut answer = [0; 1500];
    let (length, _) = tokio::time::timeout(Duration::from_secs(10), socket.recv_from(&mut answer)).await??;
    assert!(length > 12 && answer[..2] == *b"\x12\x34");
    Ok(answer[3] & 15)
}

#[tokio::test]
async fn a_name_that_may_be_a_services_is_asked_of_nobody_outside() -> Outcome {
    let mut mesh = Mesh::start(MeshOptions::default()).await;
    // A server that says "no such name" to everything, in its own way: code 3, and remembers whom it was asked for.
    let server = UdpSocket::bind("127.0.0.1:0").await?;
    let address = server.local_addr()?;
    let (asked, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let mut background = tokio::task::JoinSet::new();
    background.spawn(async move {
        let mut bytes = [0; 1500];
        while let Ok((length, caller)) = server.recv_from(&mut bytes).await {
            let mut answer = bytes[..length].to_vec();
            answer[2] |= 0x80;
            answer[3] = 3;
            let _ = asked.send(String::from_utf8_lossy(&bytes[12..length]).into_owned());
            let _ = server.send_to(&answer, caller).await;
        }
    });
    let ports = [free_port(), free_port(), free_port()].map(|port| port.to_string());
    let more = ["--capture", "outbound", "--capture-outbound-port", &ports[0], "--capture-inbound-port", &ports[1]];
    let more = more.into_iter().chain(["--capture-dns-port", &ports[2]]).map(ToOwned::to_owned);
    let more = more.chain(["--dns-forward".to_owned(), address.to_string()]).collect();
    let _agent = mesh.agent("shop/web", AgentOptions { more, ..AgentOptions::default() }).await;
    let resolver = SocketAddr::from(([127, 0, 0, 1], ports[2].parse()?));

    assert_eq!(code(resolver, "www.example.com").await?, 3);
    assert!(heard.recv().await.expect("a question").contains("example"));
    // The control plane says that this is no service; then it may be somebody's domain.
    assert_eq!(code(resolver, "orders.shop").await?, 3);
    assert!(heard.recv().await.expect("a question").contains("orders"));
    mesh.control_plane.kill();
    assert_eq!(code(resolver, "files.shop").await?, 2, "nobody says whether it is a service");
    assert!(heard.try_recv().is_err(), "and nobody outside is asked");
    Ok(())
}
