//! Callers without a certificate: where the mode is Permissive they come in as nobody, elsewhere not at all.

use std::{net::SocketAddr, time::Duration};

use outrider_tests::{AgentOptions, AgentProcess, Backend, Eager, Mesh, MeshOptions, Outcome, exchange, free_port};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

fn policy(mode: &str, rules: &str) -> String {
    format!(
        "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: {{ name: orders, namespace: shop }}\nspec:\n  \
         targetRefs: [{{ kind: Service, name: orders }}]\n  mtls: {{ mode: {mode} }}\n  authorization:\n    rules:\n{rules}"
    )
}

const HEALTH: &str =
    "      - { name: health, action: Allow, from: [{ anonymous: true }], to: [{ methods: [GET], paths: [/healthz, /slow] }] }\n";

async fn set(program: SocketAddr, protocol: &str) -> (Mesh, AgentProcess, SocketAddr) {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let port = free_port();
    let options = AgentOptions {
        services: vec![format!("shop/orders:80/{protocol}={program}")],
        more: vec!["--plaintext".to_owned(), format!("127.0.0.1:{port}=shop/orders:80")],
        ..AgentOptions::default()
    };
    let orders = mesh.agent("shop/orders", options).await;
    (mesh, orders, ([127, 0, 0, 1], port).into())
}

async fn get(address: SocketAddr, path: &str) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    let claim = "x-forwarded-client-cert: URI=spiffe://mesh.internal/ns/shop/sa/web";
    let request = format!("GET {path} HTTP/1.1\r\nhost: orders.shop\r\n{claim}\r\n\r\n");
    Ok(exchange(&mut stream, request.as_bytes()).await?.status)
}

#[tokio::test]
async fn plaintext_comes_in_as_nobody_where_the_mode_is_permissive_and_nowhere_else() -> Outcome {
    let backend = Backend::start().await;
    let (mesh, orders, plain) = set(backend.address, "http").await;
    assert_eq!(get(plain, "/healthz").await?, 403, "before any policy");
    mesh.apply(&policy("Strict", HEALTH));
    assert_eq!(get(plain, "/healthz").await?, 403, "a rule for anonymous callers does not open a Strict port");
    assert!(backend.seen().is_empty());

    mesh.apply(&policy("Permissive", HEALTH));
    assert_eq!(get(plain, "/healthz").await?, 200);
    assert!(
        backend.seen()[0].values("x-forwarded-client-cert").is_empty(),
        "nobody is said to have called: {:?}",
        backend.seen()
    );
    assert_eq!(get(plain, "/orders").await?, 403);

    // No identity is neither somebody nor "not somebody".
    for from in ["serviceAccounts: [shop/web]", "notServiceAccounts: [shop/boss]", "notNamespaces: [bank]", "principals: ['*']"] {
        let rules = format!("      - {{ name: who, action: Allow, from: [{{ {from} }}] }}\n");
        mesh.apply(&policy("Permissive", &rules));
        assert_eq!(get(plain, "/healthz").await?, 403, "{from}");
    }
    let log = orders.access_log().await;
    assert!(log.iter().any(|line| line["reason"] == "plaintext_refused"), "{log:?}");
    let check = mesh.outrider(&["check"]);
    let text = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(text.contains("shop/orders lets plaintext in at every port"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_change_to_strict_ends_what_is_under_way() -> Outcome {
    let program = Eager::start(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
    let (mesh, _orders, plain) = set(program.address, "http").await;
    mesh.apply(&policy("Permissive", HEALTH));
    let mut stream = TcpStream::connect(plain).await?;
    stream.write_all(b"GET /slow HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    assert_eq!(&head, b"HTTP/1.1 200");
    mesh.apply(&policy("Strict", HEALTH));
    let end = async {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    };
    tokio::time::timeout(Duration::from_secs(3), end).await?;
    Ok(())
}

#[tokio::test]
async fn an_opaque_port_takes_plaintext_by_the_same_rule() -> Outcome {
    let program = Eager::start(b"220 hello\r\n").await;
    let (mesh, _orders, plain) = set(program.address, "tcp").await;
    let anybody = "      - { name: any, action: Allow, from: [{ anonymous: true }] }\n";
    mesh.apply(&policy("Strict", anybody));
    let mut stream = TcpStream::connect(plain).await?;
    let _ = stream.write_all(b"EHLO\r\n\r\n").await;
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0, "closed");
    mesh.apply(&policy("Permissive", anybody));
    let mut stream = TcpStream::connect(plain).await?;
    stream.write_all(b"EHLO\r\n\r\n").await?;
    let mut answer = [0; 11];
    tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut answer)).await??;
    assert_eq!(&answer, b"220 hello\r\n");
    Ok(())
}
