//! What operators see of calls: traces, metrics and log lines that belong together, and that cost callers nothing.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    process::Command,
    time::{Duration, Instant},
};

use outrider_proto::v1::{ListDecisionsRequest, Side};
use outrider_tests::{
    AgentOptions, AgentProcess, Answer, Backend, Collector, Mesh, MeshOptions, Outcome, allow, read_answer, through_proxy,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// shop/web may GET /a of shop/orders; both agents send spans to the collector.
struct Scene {
    mesh: Mesh,
    backend: Backend,
    collector: Collector,
    orders: AgentProcess,
    web: AgentProcess,
}

impl Scene {
    async fn set(share: &str) -> Self {
        let (backend, collector) = (Backend::start().await, Collector::start().await);
        let mesh = Mesh::start(MeshOptions::default()).await;
        let more: Vec<String> = ["--otlp", &collector.address.to_string(), "--trace-sample", share].map(str::to_owned).to_vec();
        let services = vec![format!("shop/orders:80/http={}", backend.address)];
        let orders = mesh.agent("shop/orders", AgentOptions { services, more: more.clone(), ..AgentOptions::default() }).await;
        let web = mesh.agent("shop/web", AgentOptions { more, ..AgentOptions::default() }).await;
        mesh.apply(&allow("reads", "shop/orders", "[shop/web]", "[GET]", "[\"/a\"]"));
        Self { mesh, backend, collector, orders, web }
    }

    async fn call(&self, path: &str, fields: &str) -> std::io::Result<(Answer, String)> {
        let answer = through_proxy(self.web.outbound, "GET", &format!("http://orders.shop{path}"), fields).await?;
        let id = answer.field("x-request-id").expect("a request id").to_owned();
        Ok((answer, id))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_collector_sees_both_sides_of_a_call_in_one_trace_with_the_right_parents() -> Outcome {
    let scene = Scene::set("1").await;
    let (answer, id) = scene.call("/a", &format!("traceparent: {CALLER}\r\ntracestate: vendor=x\r\n")).await?;
    assert_eq!(answer.status, 200);
    let spans = scene.collector.of(&id, 2).await;
    let side = |service: &str| spans.iter().find(|span| span.service == service).expect("a span of each").clone();
    let (web, orders) = (side("shop/web"), side("shop/orders"));
    for span in [&web, &orders] {
        assert_eq!(hex(&span.span.trace_id), CALLER[3..35]);
        assert_eq!(span.attribute("http.response.status_code").as_deref(), Some("200"));
        assert!(span.span.end_time_unix_nano > span.span.start_time_unix_nano);
    }
    assert_eq!(hex(&web.span.parent_span_id), CALLER[36..52]);
    assert_eq!(orders.span.parent_span_id, web.span.span_id);
    assert_eq!((web.span.kind, orders.span.kind), (3, 2), "client and server");
    assert_eq!(orders.attribute("outrider.rule").as_deref(), Some("shop/reads/rule"));
    let seen = scene.backend.seen();
    let program = format!("00-{}-{}-01", &CALLER[3..35], hex(&orders.span.span_id));
    assert_eq!(seen[0].values("traceparent"), [program.as_str()]);
    assert_eq!(seen[0].values("tracestate"), ["vendor=x"]);

    // A parent that is none: a new trace, which begins at the caller's agent.
    let (_, id) = scene.call("/a", &format!("traceparent: {}\r\ntracestate: vendor=x\r\n", CALLER.to_uppercase())).await?;
    let spans = scene.collector.of(&id, 2).await;
    let web = spans.iter().find(|span| span.service == "shop/web").expect("a span").clone();
    assert!(web.span.parent_span_id.is_empty() && hex(&web.span.trace_id) != CALLER[3..35]);
    assert!(spans.iter().all(|span| span.span.trace_id == web.span.trace_id));
    assert!(scene.backend.seen()[1].values("tracestate").is_empty());

    // A refusal is a span too, and says why; the caller learns status and id only.
    let (refused, id) = scene.call("/b", "").await?;
    assert_eq!((refused.status, refused.body_text()), (403, format!("403 Forbidden\nrequest id {id}\n")));
    let spans = scene.collector.of(&id, 2).await;
    let orders = spans.iter().find(|span| span.service == "shop/orders").expect("a span");
    assert_eq!(orders.attribute("outrider.reason").as_deref(), Some("policy_denied"));
    assert_eq!(orders.attribute("outrider.stage").as_deref(), Some("policy"));

    // The exemplars lead to the traces; a scraper that does not ask for them gets the older format.
    let mut stream = TcpStream::connect(scene.orders.health).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\naccept: application/openmetrics-text\r\n\r\n").await?;
    let text = read_answer(&mut stream, &mut Vec::new()).await?.body_text();
    let series = "side=\"inbound\",service=\"shop/orders\",port=\"80\"";
    let exemplar = text.lines().find(|line| line.contains(series) && line.contains(" # {trace_id=\"")).expect("an exemplar");
    assert!(exemplar.starts_with("outrider_agent_request_duration_seconds_bucket{le="), "{exemplar}");
    assert!(text.ends_with("# EOF\n"));
    for metric in
        ["certificate_age_seconds", "connections{side=\"inbound\"}", "policy_revision", "upstream_connections{state=\"idle\"}"]
    {
        assert!(text.contains(&format!("outrider_agent_{metric} ")), "{metric}: {text}");
    }
    let denied = "outrider_agent_requests_total{side=\"inbound\",outcome=\"policy_denied\",status=\"4xx\",stage=\"policy\",decision=\"deny\"";
    assert!(scene.orders.metric(denied).await > 0.5);
    let older = outrider_tests::get(scene.orders.health, "/metrics").await?;
    assert!(
        older.field("content-type").is_some_and(|kind| kind.contains("version=0.0.4")) && !older.body_text().contains(" # {")
    );
    Ok(())
}

#[tokio::test]
async fn a_trace_that_nobody_records_passes_through_unchanged() -> Outcome {
    let scene = Scene::set("0").await;
    let unrecorded = CALLER.replace("-01", "-00");
    scene.call("/a", &format!("traceparent: {unrecorded}\r\n")).await?;
    assert_eq!(scene.backend.seen()[0].values("traceparent"), [unrecorded.as_str()]);
    // Without one, both agents' lines still name one trace.
    let (_, id) = scene.call("/a", "").await?;
    let mut traces = Vec::new();
    for agent in [&scene.web, &scene.orders] {
        let log = agent.access_log().await;
        let line = log.iter().find(|line| line["id"] == id.as_str()).expect("a line").clone();
        traces.push(line["trace"].as_str().expect("a trace").to_owned());
    }
    assert_eq!(traces[0], traces[1]);
    assert_eq!(scene.web.metric("outrider_agent_spans_exported_total").await, 0.0);
    Ok(())
}

#[tokio::test]
async fn one_id_names_a_call_in_both_logs_the_record_and_the_refusal() -> Outcome {
    let scene = Scene::set("0").await;
    // What a program says is taken only if it is a plain word.
    for (fields, taken) in [
        ("", None),
        ("x-request-id: order-4711-0001\r\n", Some("order-4711-0001")),
        ("x-request-id: short\r\n", None),
        ("x-request-id: a\"b{}c<script>\r\n", None),
        ("x-request-id: order-4711-0002\r\nx-request-id: order-4711-0003\r\n", None),
    ] {
        let (refused, id) = scene.call("/b", fields).await?;
        assert_eq!(refused.body_text(), format!("403 Forbidden\nrequest id {id}\n"));
        match taken {
            Some(taken) => assert_eq!(id, taken),
            None => assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}"),
        }
        for agent in [&scene.web, &scene.orders] {
            let log = agent.access_log().await;
            assert_eq!(log.iter().filter(|line| line["id"] == id.as_str()).count(), 1, "{id}: {log:#?}");
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let request = ListDecisionsRequest { limit: 1000, ..ListDecisionsRequest::default() };
            let decisions = scene.mesh.admin().await.list_decisions(request).await?.into_inner().decisions;
            let inbound = i32::from(Side::Inbound);
            if decisions.iter().any(|record| record.request_id == id && record.side == inbound) {
                break;
            }
            assert!(Instant::now() < deadline, "{id} is not recorded");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// Sends these requests over one connection, some at a time, and returns how many were answered.
async fn pipelined(agent: &AgentProcess, count: usize, request: impl Fn(usize) -> String) -> std::io::Result<usize> {
    let mut stream = TcpStream::connect(agent.outbound).await?;
    let (mut answered, mut buf) = (0, Vec::new());
    for begin in (0..count).step_by(20) {
        let some: String = (begin..count.min(begin + 20)).map(&request).collect();
        stream.write_all(some.as_bytes()).await?;
        for _ in begin..count.min(begin + 20) {
            read_answer(&mut stream, &mut buf).await?;
            answered += 1;
        }
    }
    Ok(answered)
}

fn resident(agent: &AgentProcess) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.process.id())).expect("status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[tokio::test]
async fn hosts_paths_and_methods_make_no_series_and_no_memory() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    let request =
        |n: usize| format!("M{n} /p{n}?q={n} HTTP/1.1\r\nhost: h{n}.example.com\r\nx-request-id: request-{n}-{n}\r\n\r\n");
    assert_eq!(pipelined(&web, 5_000, request).await?, 5_000);
    let lines = || async { outrider_tests::get(web.health, "/metrics").await.map(|answer| answer.body_text().lines().count()) };
    let (series, memory) = (lines().await?, resident(&web));
    assert_eq!(pipelined(&web, 15_000, |n| request(n + 5_000)).await?, 15_000);
    assert_eq!(lines().await?, series);
    let grown = resident(&web).saturating_sub(memory);
    // Refusals that wait for the control plane are part of it: they are bounded, and there are about 5 MiB of them.
    assert!(grown < 9 << 10, "{grown} KiB more");
    Ok(())
}

#[tokio::test]
async fn a_log_that_nobody_reads_costs_lines_and_no_request() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let pipe = mesh.dir.path().join("agents/shop-web.access.log");
    std::fs::create_dir_all(mesh.dir.path().join("agents"))?;
    assert!(Command::new("mkfifo").arg(&pipe).status()?.success());
    // Somebody holds it open and reads nothing.
    let mut reader = std::fs::OpenOptions::new().read(true).write(true).custom_flags(0o4000).open(&pipe)?;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    let path = "x".repeat(1000);
    let request = |n: usize| format!("GET /{n}{path} HTTP/1.1\r\nhost: a\"b.example.com\r\n\r\n").replace("a\"b", "ab");
    assert_eq!(pipelined(&web, 6_000, request).await?, 6_000);
    // Workers hand their last lines over every 100 ms.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let dropped = web.metric("outrider_agent_access_log_dropped_lines_total").await;
    assert!(dropped > 100.0, "{dropped} dropped");
    // What was kept is whole lines.
    let (mut text, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(20));
    let whole = |text: &[u8]| text.iter().filter(|byte| **byte == b'\n').count();
    while whole(&text) as f64 + dropped < 6_000.0 {
        let mut piece = [0; 64 << 10];
        match reader.read(&mut piece) {
            Ok(count) => text.extend_from_slice(&piece[..count]),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        assert!(Instant::now() < deadline, "{} lines and {dropped} dropped", whole(&text));
    }
    for line in String::from_utf8(text)?.lines() {
        let line: serde_json::Value = serde_json::from_str(line)?;
        assert_eq!(line["side"], "outbound");
    }
    Ok(())
}
