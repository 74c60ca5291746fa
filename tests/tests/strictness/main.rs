//! What a real agent makes of certificates that its own mesh's root has signed and a control plane never would: a table of
//! handshakes with the verdict and its reason, against the agent's own mesh port, and the other way round where an agent calls.

#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod chains;
mod makers;
mod names;
mod uses;
mod weak;

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use chains::chains;
use makers::*;
use names::{bytes, ids, names};
use outrider_agent::{
    identity::{Svid, Svids},
    tls::{MeshConnector, MeshProtocol, Trust, server_name},
};
use outrider_proto::v1::TrustBundle;
use outrider_tests::{
    AgentOptions, Backend, Identity, Mesh, MeshOptions, Outcome, allow, careless_client, careless_server, good_leaf,
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use uses::{keys, uses};
use weak::weak;
use zeroize::Zeroizing;

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

fn table(makers: &Makers) -> Vec<Row> {
    let ids = ids().into_iter().map(|(id, verdict)| {
        row(format!("the ID {:?}", String::from_utf8_lossy(id)), makers.leaf(&with_names(&[uri(id)])), verdict)
    });
    ids.chain(names(makers))
        .chain(uses(makers))
        .chain(chains(makers))
        .chain(keys(makers))
        .chain(weak(makers))
        .chain(bytes(makers))
        .collect()
}

/// Whether a caller with this identity gets an answer out of the agent's mesh port.
async fn is_served(mesh: SocketAddr, identity: Identity) -> bool {
    let port = ServerName::try_from(server_name(&"shop/orders".parse().expect("a name"), 80)).expect("a name");
    let stream = TcpStream::connect(mesh).await.expect("connect");
    let Ok(mut stream) = TlsConnector::from(Arc::new(careless_client(Some(identity)))).connect(port, stream).await else {
        return false;
    };
    let _ = stream.write_all(b"GET /x HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n").await;
    let mut all = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("the agent ends it");
    all.starts_with(b"HTTP/1.1 ")
}

#[tokio::test]
async fn every_certificate_of_the_table_is_judged_as_it_should_be_by_a_real_agent() -> Outcome {
    let backend = Backend::start().await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/orders:80/http={}", backend.address)];
    let agent = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
    mesh.apply(&allow("all", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"));
    let rows = table(&Makers::of(&mesh));
    assert!(rows.len() >= 650, "{} rows", rows.len());
    let before = agent.access_log().await.len();
    let mut wrong = Vec::new();
    for row in &rows {
        let served = is_served(agent.mesh, row.identity.clone()).await;
        if served != (row.as_caller == Good) {
            wrong.push(format!("{}: {}", row.what, if served { "was believed" } else { "was refused" }));
        }
    }
    let log = agent.access_log().await.split_off(before);
    assert!(wrong.is_empty(), "{}\n{:#?}", wrong.join("\n"), log.last());
    assert_eq!(log.len(), rows.len(), "one line a connection");
    for (row, line) in rows.iter().zip(&log) {
        let (reason, detail) = (line["reason"].as_str().unwrap_or_default(), line["detail"].as_str().unwrap_or_default());
        match row.as_caller {
            Good => assert!(reason != "peer_identity", "{}: {line}", row.what),
            Refused(words) => {
                assert_eq!(reason, "peer_identity", "{}: {line}", row.what);
                assert!(!detail.is_empty() && detail.contains(words), "{}: {detail}", row.what);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_agent_that_calls_judges_endpoints_by_the_same_table() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let makers = Makers::of(&mesh);
    let (svids, trust): (Arc<Svids>, Arc<Trust>) = Default::default();
    let own = makers.leaf(&good_leaf(&[ORDERS]));
    svids.replace(Arc::new(Svid::new(own.chain, Zeroizing::new(own.key), SystemTime::now())?));
    trust.replace(&TrustBundle { trust_domain: "mesh.internal".to_owned(), roots: vec![makers.root.certificate()] })?;
    let connector = MeshConnector::new(svids, trust)?;
    let rows = names(&makers).into_iter().chain(uses(&makers)).chain(chains(&makers)).chain(keys(&makers)).chain(weak(&makers));
    for row in rows {
        let socket = TcpListener::bind("127.0.0.1:0").await?;
        let address = socket.local_addr()?;
        let endpoint = TlsAcceptor::from(Arc::new(careless_server(row.identity)));
        let client = async {
            let stream = TcpStream::connect(address).await.expect("connect");
            let (service, expected) = ("shop/web".parse().expect("a service"), WEB.parse().expect("an id"));
            connector.connect(stream, address, &service, 80, MeshProtocol::Http1, &expected).await.map(drop)
        };
        let server = async {
            let (stream, _) = socket.accept().await.expect("accept");
            let _ = endpoint.accept(stream).await;
        };
        let (verdict, ()) = tokio::join!(client, server);
        match (row.as_endpoint.unwrap_or(row.as_caller), verdict) {
            (Good, Ok(())) => {}
            (Good, Err(refusal)) => panic!("{} was refused: {refusal}", row.what),
            (Refused(_), Ok(())) => panic!("{} was believed", row.what),
            (Refused(words), Err(refusal)) => assert!(refusal.detail().contains(words), "{}: {refusal}", row.what),
        }
    }
    Ok(())
}
