//! What the control plane hears of calls: all that was denied, called what it was, whatever else goes on.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use outrider_proto::v1::{DecisionRecord, ListDecisionsRequest};
use outrider_tests::{AgentOptions, Backend, Mesh, MeshOptions, Outcome, allow, free_port, through_proxy};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

/// The first record that is as wanted.
async fn recorded(mesh: &Mesh, what: &str, wanted: impl Fn(&DecisionRecord) -> bool) -> DecisionRecord {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut admin = mesh.admin().await;
    loop {
        let request = ListDecisionsRequest { limit: 1000, ..ListDecisionsRequest::default() };
        let decisions = admin.list_decisions(request).await.expect("decisions").into_inner().decisions;
        if let Some(found) = decisions.iter().find(|record| wanted(record)) {
            return found.clone();
        }
        assert!(Instant::now() < deadline, "{what} was not recorded: {decisions:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn strangers_at_the_door_do_not_cost_the_records_of_others() -> Outcome {
    let backend = Backend::start().await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/orders:80/http={}", backend.address)];
    let orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    for _ in 0..50 {
        let mut stranger = TcpStream::connect(orders.mesh).await?;
        // It may hang up before we have said all.
        let _ = stranger.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    }
    let denied = through_proxy(web.outbound, "GET", "http://orders.shop/a", "").await?;
    let id = denied.field("x-request-id").expect("a request id").to_owned();
    let inbound = i32::from(outrider_proto::v1::Side::Inbound);
    let record = recorded(&mesh, "the denied call", |record| record.request_id == id && record.side == inbound).await;
    assert_eq!((record.effect.as_str(), record.reason.as_str()), ("deny", "no_policy"));
    assert_eq!(record.detail, "no policy applies to this port");
    let stranger = recorded(&mesh, "a stranger", |record| record.destination.is_empty()).await;
    assert_eq!((stranger.effect.as_str(), stranger.source.as_str()), ("deny", ""));
    assert!(orders.metric("outrider_agent_reports_dropped").await < 0.5);
    Ok(())
}

#[tokio::test]
async fn a_call_that_got_no_further_than_its_own_agent_is_explained_too() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    for (url, reason) in [("http://nowhere.shop/", "unknown_service"), ("http://example.com/", "unknown_service")] {
        let refused = through_proxy(web.outbound, "GET", url, "").await?;
        let id = refused.field("x-request-id").expect("a request id").to_owned();
        recorded(&mesh, "the refusal", |record| record.request_id == id).await;
        let explained = mesh.outrider(&["explain", &id]);
        let text = String::from_utf8_lossy(&[explained.stdout, explained.stderr].concat()).into_owned();
        assert!(explained.status.success() && text.contains(reason) && text.contains("caller's own agent"), "{url}: {text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_call_that_was_allowed_and_failed_is_not_called_denied() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/orders:80/http=127.0.0.1:{}", free_port())];
    let _orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    mesh.apply(&allow("reads", "shop/orders", "[shop/web]", "[GET]", "[\"/a\"]"));
    let failed = through_proxy(web.outbound, "GET", "http://orders.shop/a", "").await?;
    assert_eq!(failed.status, 503);
    let id = failed.field("x-request-id").expect("a request id").to_owned();
    let inbound = i32::from(outrider_proto::v1::Side::Inbound);
    let record = recorded(&mesh, "the failed call", |record| record.request_id == id && record.side == inbound).await;
    let decided = (record.effect.as_str(), record.rule.as_str(), record.reason.as_str());
    assert_eq!(decided, ("allow", "shop/reads/rule", "connect_failed"));
    Ok(())
}

#[tokio::test]
async fn records_go_on_when_certificates_are_renewed_and_when_the_control_plane_was_away() -> Outcome {
    let backend = Backend::start().await;
    let mut mesh = Mesh::start(MeshOptions { leaf_ttl: Some("4s") }).await;
    let services = vec![format!("shop/orders:80/http={}", backend.address)];
    let _orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    let began = Instant::now();
    let mut ids = Vec::new();
    while began.elapsed() < Duration::from_secs(9) {
        if ids.len() == 8 {
            mesh.control_plane.kill();
        }
        if ids.len() == 10 {
            mesh.restart_control_plane().await;
        }
        let denied = through_proxy(web.outbound, "GET", "http://orders.shop/a", "").await?;
        ids.push(denied.field("x-request-id").expect("a request id").to_owned());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let inbound = i32::from(outrider_proto::v1::Side::Inbound);
    for id in ids {
        recorded(&mesh, &id, |record| record.request_id == id && record.side == inbound).await;
    }
    Ok(())
}

#[tokio::test]
async fn what_an_audit_rule_holds_for_is_recorded_whatever_share_of_calls_is() -> Outcome {
    let backend = Backend::start().await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/orders:80/http={}", backend.address)];
    let more = vec!["--report-allows".to_owned(), "0".to_owned()];
    let orders = mesh.agent("shop/orders", AgentOptions { services, more, ..AgentOptions::default() }).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    let policy = allow("all", "shop/orders", "[shop/web]", "[GET, POST]", "[\"*\"]");
    mesh.apply(&format!("{policy}      - {{ name: writes, action: Audit, to: [{{ methods: [POST] }}] }}\n"));

    let inbound = i32::from(outrider_proto::v1::Side::Inbound);
    for (method, status) in [("GET", 200), ("POST", 200)] {
        assert_eq!(through_proxy(web.outbound, method, "http://orders.shop/a", "").await?.status, status, "{method}");
    }
    let record = recorded(&mesh, "the audited call", |record| record.side == inbound).await;
    assert_eq!((record.method.as_str(), record.effect.as_str(), record.rule.as_str()), ("POST", "allow", "shop/all/rule"));
    assert_eq!(record.audited, ["shop/all/writes"]);
    let log = orders.access_log().await;
    let audited: Vec<_> = log.iter().map(|line| (line["method"].as_str(), line["audited"].as_str())).collect();
    assert_eq!(audited, [(Some("GET"), None), (Some("POST"), Some("shop/all/writes"))]);
    let explained = mesh.outrider(&["explain", "--from", "shop/web", "--to", "shop/orders", "POST", "/a"]);
    let text = String::from_utf8_lossy(&explained.stdout);
    assert!(text.contains("note: audited by shop/all/writes"), "{text}");
    Ok(())
}

/// Connections that somebody has to this port of loopback.
fn connections(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    // Its own address, port in hex, and 01 for an established one.
    let here = format!(":{port:04X}");
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields.filter(|row| matches!(row.as_slice(), [_, own, _, "01", ..] if own.ends_with(&here))).count()
}

#[tokio::test]
async fn an_agent_reports_on_the_connection_of_its_configuration_also_after_a_renewal_and_a_restart() -> Outcome {
    let mut mesh = Mesh::start(MeshOptions::default()).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    for when in ["at first", "after a renewal", "after a restart of the control plane"] {
        match when {
            "after a renewal" => assert!(mesh.outrider(&["certs", "rotate", "shop/web"]).status.success()),
            "after a restart of the control plane" => {
                mesh.control_plane.kill();
                mesh.restart_control_plane().await;
                web.connected().await;
            }
            _ => {}
        }
        let refused = through_proxy(web.outbound, "GET", "http://nowhere.shop/", "").await?;
        let id = refused.field("x-request-id").expect("a request id").to_owned();
        recorded(&mesh, when, |record| record.request_id == id).await;
        outrider_tests::until(when, || connections(mesh.address.port()) == 1).await;
    }
    Ok(())
}
