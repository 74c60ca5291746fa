//! Endpoints, retries and bounds of calls between real agents.

use outrider_tests::{AgentOptions, AgentProcess, Backend, Mesh, MeshOptions, Outcome, Relay, allow, through_proxy, until};

fn backing(service: &str, address: std::net::SocketAddr) -> AgentOptions {
    AgentOptions { services: vec![format!("{service}:80/http={address}")], ..AgentOptions::default() }
}

fn with(mut options: AgentOptions, more: &[&str]) -> AgentOptions {
    options.more.extend(more.iter().map(ToString::to_string));
    options
}

fn open(service: &str) -> String {
    allow(&service.replace('/', "-"), service, "[\"shop/*\", \"lab/*\"]", "[GET, POST]", "[\"/{rest=**}\"]")
}

async fn two_of(mesh: &Mesh, more: [&[&str]; 2]) -> ((AgentProcess, Backend), (AgentProcess, Backend)) {
    let (one, two) = (Backend::start().await, Backend::start().await);
    let first = mesh.agent_of("shop/orders", "orders-1", with(backing("shop/orders", one.address), more[0])).await;
    let second = mesh.agent_of("shop/orders", "orders-2", with(backing("shop/orders", two.address), more[1])).await;
    ((first, one), (second, two))
}

/// A route to `service` that has 503 tried again.
fn retried(service: &str) -> String {
    let (namespace, name) = service.split_once('/').unwrap_or_default();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: {name}, namespace: {namespace} }}\nspec:\n  \
         parentRefs: [{{ kind: Service, name: {name} }}]\n  rules:\n  - backendRefs: [{{ name: {name}, port: 80 }}]\n    \
         retry: {{ codes: [502, 503, 504], attempts: 3, backoff: 1ms }}\n"
    )
}

#[tokio::test]
async fn three_hops_with_retries_make_at_most_a_fifth_more_calls_of_a_service_that_fails() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let (orders, stock, last) = (Relay::start().await, Relay::start().await, Relay::start().await);
    let orders_agent = mesh.agent("shop/orders", backing("shop/orders", orders.address)).await;
    let stock_agent = mesh.agent("shop/stock", backing("shop/stock", stock.address)).await;
    let _last_agent = mesh.agent("shop/last", backing("shop/last", last.address)).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    orders.goes_on_to(orders_agent.outbound, "http://stock.shop/");
    stock.goes_on_to(stock_agent.outbound, "http://last.shop/");
    let documents =
        ["shop/orders", "shop/stock", "shop/last"].map(|service| format!("{}---\n{}", open(service), retried(service)));
    mesh.apply(&documents.join("---\n"));
    let requests = 200;
    for _ in 0..requests {
        let answer = through_proxy(web.outbound, "GET", "http://orders.shop/", "").await?;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.field("x-outrider-retry"), None, "agents keep what they tell each other");
    }
    assert_eq!((orders.asked(), stock.asked()), (requests, requests), "failures from further down are not tried again");
    assert!(last.asked() > requests, "the hop next to the failure tries again");
    assert!(last.asked() * 10 <= requests * 12, "{} calls of {requests}", last.asked());
    let log = stock_agent.access_log().await;
    let most = log.iter().filter_map(|line| line["attempts"].as_u64()).max();
    assert!(most > Some(1), "attempts stand in the access log");
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_vanishes_costs_no_request_and_gets_no_more() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let ((mut first, one), (_second, two)) = two_of(&mesh, [&[], &[]]).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    mesh.apply(&open("shop/orders"));
    let call = || through_proxy(web.outbound, "GET", "http://orders.shop/", "");
    let mut calls = 0;
    while one.seen().len() < 5 || two.seen().len() < 5 {
        assert_eq!(call().await?.status, 200);
        calls += 1;
        assert!(calls < 1000, "both serve: {} and {}", one.seen().len(), two.seen().len());
    }
    first.process.kill();
    for at in 0..40 {
        assert_eq!(call().await?.status, 200, "call {at} after the kill");
    }
    Ok(())
}

#[tokio::test]
async fn a_program_that_is_down_is_passed_over_even_for_posts() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let ((_first, one), (_second, two)) = two_of(&mesh, [&[], &[]]).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    mesh.apply(&open("shop/orders"));
    drop(one);
    for at in 0..40 {
        // The agent beside the program that is down says that nobody has seen the request.
        let answer = through_proxy(web.outbound, "POST", "http://orders.shop/", "content-length: 0\r\n").await?;
        assert!(answer.status == 200 || at < 30, "call {at}: {}", answer.status);
    }
    let served = two.seen().len();
    assert!(served >= 30, "{served}");
    Ok(())
}

#[tokio::test]
async fn callers_prefer_endpoints_of_their_own_zone() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let ((mut first, one), (_second, two)) = two_of(&mesh, [&["--zone", "a"], &["--zone", "b"]]).await;
    let web = mesh.agent("shop/web", with(AgentOptions::default(), &["--zone", "a"])).await;
    mesh.apply(&open("shop/orders"));
    for _ in 0..20 {
        assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop/", "").await?.status, 200);
    }
    assert_eq!((one.seen().len(), two.seen().len()), (20, 0));
    first.process.kill();
    assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop/", "").await?.status, 200);
    assert_eq!(two.seen().len(), 1, "the other zone serves when the own one cannot");
    Ok(())
}

#[tokio::test]
async fn more_requests_than_the_bound_are_refused_at_once_and_others_pass() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let backend = Backend::start().await;
    let _orders = mesh.agent("shop/orders", backing("shop/orders", backend.address)).await;
    let web = mesh.agent("shop/web", with(AgentOptions::default(), &["--max-service-requests", "2"])).await;
    mesh.apply(&open("shop/orders"));
    let call = |path: &'static str| through_proxy(web.outbound, "GET", path, "");
    assert_eq!(call("http://orders.shop/").await?.status, 200);
    let slow = || through_proxy(web.outbound, "GET", "http://orders.shop/slow", "");
    let third = async {
        until("both are at the program", || backend.seen().len() == 3).await;
        call("http://orders.shop/").await
    };
    let (one, two, third) = tokio::join!(slow(), slow(), third);
    assert_eq!((one?.status, two?.status, third?.status), (200, 200, 503));
    assert_eq!(call("http://orders.shop/").await?.status, 200, "there is room again");
    let log = web.access_log().await;
    assert_eq!(log.iter().filter(|line| line["reason"] == "overloaded").count(), 1, "{log:?}");
    Ok(())
}

#[tokio::test]
async fn an_endpoint_whose_health_check_fails_gets_no_requests() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let ((_first, one), (_second, two)) = two_of(&mesh, [&[], &[]]).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    one.fail_on("/healthz");
    let checked = retried("shop/orders").replace(
        "namespace: shop }\nspec",
        "namespace: shop, annotations: { outrider.dev/health-check: path=/healthz interval=100ms unhealthy=2 healthy=1 } }\nspec",
    );
    assert!(checked.contains("health-check"));
    let call = || through_proxy(web.outbound, "GET", "http://orders.shop/call", "");
    assert_eq!(call().await?.status, 403, "the service is known from here on");
    mesh.apply(&format!("{}---\n{checked}", open("shop/orders")));
    assert_eq!(call().await?.status, 200);
    let checks = |backend: &Backend| backend.seen().iter().filter(|seen| seen.target == "/healthz").count();
    until("the endpoint has failed its checks", || checks(&one) >= 4 && checks(&two) >= 4).await;
    one.forget();
    for _ in 0..30 {
        assert_eq!(call().await?.status, 200);
    }
    assert!(one.seen().iter().all(|seen| seen.target == "/healthz"), "{:?}", one.seen());
    Ok(())
}
