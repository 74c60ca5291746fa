//! Limits: how much a caller gets, and what everybody else notices of it.

use outrider_tests::{AgentOptions, Backend, Mesh, MeshOptions, Outcome, allow, through_proxy};

const POLICY: &str = "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: { name: limited, namespace: shop }\nspec:\n  \
                      targetRefs: [{ kind: Service, name: orders }]\n  \
                      limits: { requests: 5, unit: Hour, key: Source, ports: [80] }\n  authorization:\n    rules:\n      \
                      - { name: shop, action: Allow, from: [{ namespaces: [shop] }], to: [{ methods: [GET] }] }\n";

#[tokio::test]
async fn over_the_limit_of_a_policy_callers_get_429_and_others_go_on() -> Outcome {
    let backend = Backend::start().await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = [80, 81].map(|port| format!("shop/orders:{port}/http={}", backend.address)).to_vec();
    let orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    let other = mesh.agent("shop/other", AgentOptions::default()).await;
    mesh.apply(POLICY);
    // What is denied is not counted.
    for _ in 0..7 {
        assert_eq!(through_proxy(web.outbound, "PUT", "http://orders.shop/a", "content-length: 0\r\n").await?.status, 403);
    }
    for _ in 0..5 {
        assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop/a", "").await?.status, 200);
    }
    let over = through_proxy(web.outbound, "GET", "http://orders.shop/a", "").await?;
    let seconds: u64 = over.field("retry-after").expect("a time").parse()?;
    assert!(over.status == 429 && (1..=720).contains(&seconds), "{over:?}");
    // A change of something else does not give it back; another port and another caller have their own.
    mesh.apply(&allow("more", "shop/orders", "[shop/web]", "[PUT]", "[\"/b\"]"));
    assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop/a", "").await?.status, 429);
    assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop:81/a", "").await?.status, 200);
    assert_eq!(through_proxy(other.outbound, "GET", "http://orders.shop/a", "").await?.status, 200);
    assert_eq!(backend.seen().len(), 7);
    let log = orders.access_log().await;
    let line = log.iter().find(|line| line["status"] == 429).expect("a line");
    assert_eq!((&line["reason"], &line["stage"], &line["effect"]), (&"rate_limited".into(), &"policy".into(), &"allow".into()));
    assert_eq!(line["rule"], "shop/limited/shop");
    let counted = "outrider_agent_requests_total{side=\"inbound\",outcome=\"rate_limited\",status=\"4xx\"";
    assert!((orders.metric(counted).await - 2.0).abs() < 0.5);
    Ok(())
}

#[tokio::test]
async fn large_heads_over_many_connections_are_refused_before_memory_is_short() -> Outcome {
    let backend = Backend::start().await;
    // Takes connections, and never answers.
    let sink = std::net::TcpListener::bind("127.0.0.1:0")?;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services =
        vec![format!("shop/orders:80/http={}", backend.address), format!("shop/orders:81/http={}", sink.local_addr()?)];
    let _orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
    let more = ["--workers", "1", "--limit", "worker-heads=1MiB"].map(str::to_owned).to_vec();
    let web = mesh.agent("shop/web", AgentOptions { more, ..AgentOptions::default() }).await;
    mesh.apply(&allow("all", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"));
    let large = format!("x: {}\r\n", "y".repeat(30_000));
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..60 {
        let (outbound, large) = (web.outbound, large.clone());
        calls.spawn(async move {
            through_proxy(outbound, "GET", "http://orders.shop:81/x", &large).await.map(|answer| answer.status)
        });
    }
    for _ in 0..60 - (1 << 20) / 30_000 {
        assert_eq!(calls.join_next().await.expect("a call")??, 503);
    }
    let log = web.access_log().await;
    assert!(
        log.iter()
            .any(|line| line["reason"] == "overloaded" && line["detail"].as_str().is_some_and(|text| text.contains("heads")))
    );
    // Whoever says little is served all the while; afterwards everybody.
    assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop/small", "").await?.status, 200);
    calls.shutdown().await;
    let mut served = false;
    for _ in 0..100 {
        served = through_proxy(web.outbound, "GET", "http://orders.shop/large", &large).await?.status == 200;
        if served {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(served, "what is over is not counted any more");
    Ok(())
}

#[tokio::test]
async fn a_second_limit_for_a_port_is_refused_with_its_place() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    mesh.apply(POLICY);
    let file = mesh.dir.path().join("second.yaml");
    std::fs::write(&file, POLICY.replace("name: limited", "name: second"))?;
    let refused = mesh.outrider(&["apply", "-f", &file.display().to_string()]);
    let said = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
    assert!(!refused.status.success() && said.contains("policy `shop/limited` sets `limits` for the same services"), "{said}");
    assert!(said.contains("second.yaml:6:11") || said.contains("6:11"), "{said}");
    Ok(())
}
