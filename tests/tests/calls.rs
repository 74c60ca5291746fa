//! Calls through the real binaries: what is allowed passes, the rest is refused, and nobody outside learns why.

use outrider_tests::{AgentOptions, Backend, Mesh, MeshOptions, Outcome, allow, through_proxy};

async fn shop(backend: &Backend) -> (Mesh, outrider_tests::AgentProcess, outrider_tests::AgentProcess) {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let options = AgentOptions { services: vec![format!("shop/orders:80/http={}", backend.address)], ..AgentOptions::default() };
    let orders = mesh.agent("shop/orders", options).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    (mesh, orders, web)
}

#[tokio::test]
async fn what_a_rule_allows_passes_and_the_rest_is_refused_without_a_reason() -> Outcome {
    let backend = Backend::start().await;
    let (mesh, orders, web) = shop(&backend).await;

    let before = through_proxy(web.outbound, "GET", "http://orders.shop/v1/orders/7", "").await?;
    assert_eq!(before.status, 403, "without any policy everything is denied");

    mesh.apply(&allow("reads", "shop/orders", "[shop/web]", "[GET]", "[\"/v1/orders/{id}\"]"));
    let named = through_proxy(web.outbound, "GET", "http://orders.shop.mesh.internal/v1/orders/7", "").await?;
    assert_eq!(named.status, 200, "by the name that captured programs may use too");
    backend.forget();
    let allowed = through_proxy(web.outbound, "GET", "http://orders.shop/v1/orders/7?x=1", "").await?;
    assert_eq!((allowed.status, allowed.body_text().as_str()), (200, "ok\n"));

    let denied = through_proxy(web.outbound, "DELETE", "http://orders.shop/v1/orders/7", "").await?;
    assert_eq!(denied.status, 403);
    let id = denied.field("x-request-id").expect("a request id").to_owned();
    assert_eq!(denied.body_text(), format!("403 Forbidden\nrequest id {id}\n"), "the caller learns status and id only");

    let seen = backend.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!((seen[0].method.as_str(), seen[0].target.as_str()), ("GET", "/v1/orders/7?x=1"));
    assert_eq!(
        seen[0].values("x-forwarded-client-cert"),
        ["By=spiffe://mesh.internal/ns/shop/sa/orders;URI=spiffe://mesh.internal/ns/shop/sa/web"]
    );

    let log = orders.access_log().await;
    let line = log.iter().find(|line| line["id"] == id.as_str()).expect("a line for the refused request");
    assert_eq!((line["status"].as_u64(), line["reason"].as_str()), (Some(403), Some("policy_denied")));
    let line = log.iter().find(|line| line["status"] == 200).expect("a line for the allowed request");
    assert_eq!(line["rule"], "shop/reads/rule");
    assert_eq!(line["source"], "spiffe://mesh.internal/ns/shop/sa/web");
    assert!(line["revision"].as_u64() > Some(0));
    assert!(web.access_log().await.iter().any(|line| line["id"] == id.as_str()), "the same id at the caller's agent");

    let explained = mesh.outrider(&["explain", &id]);
    let text = String::from_utf8_lossy(&explained.stdout);
    assert!(explained.status.success() && text.contains("shop/reads/rule") && text.contains("DELETE"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_policy_is_in_force_when_apply_wait_returns() -> Outcome {
    let backend = Backend::start().await;
    let (mesh, _orders, web) = shop(&backend).await;
    for round in 0..10 {
        mesh.apply(&allow("flip", "shop/orders", "[shop/web]", "[GET]", "[\"/a\"]"));
        let (a, b) = (
            through_proxy(web.outbound, "GET", "http://orders.shop/a", ""),
            through_proxy(web.outbound, "GET", "http://orders.shop/b", ""),
        );
        assert_eq!((a.await?.status, b.await?.status), (200, 403), "round {round}");
        mesh.apply(&allow("flip", "shop/orders", "[shop/web]", "[GET]", "[\"/b\"]"));
        let (a, b) = (
            through_proxy(web.outbound, "GET", "http://orders.shop/a", ""),
            through_proxy(web.outbound, "GET", "http://orders.shop/b", ""),
        );
        assert_eq!((a.await?.status, b.await?.status), (403, 200), "round {round}");
    }
    let output = mesh.outrider(&["delete", "servicepolicy", "shop/flip", "--wait"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop/b", "").await?.status, 403);
    Ok(())
}

#[tokio::test]
async fn what_is_not_in_the_mesh_is_not_reachable_through_it() -> Outcome {
    let backend = Backend::start().await;
    let (_mesh, _orders, web) = shop(&backend).await;
    for (url, status) in [
        ("http://example.com/", 404),
        ("http://one.two.three.example/", 403),
        ("http://127.0.0.1:1/", 403),
        ("http://nobody.shop/", 404),
        ("http://orders.shop:81/", 404),
    ] {
        assert_eq!(through_proxy(web.outbound, "GET", url, "").await?.status, status, "{url}");
    }
    Ok(())
}

#[tokio::test]
async fn a_service_that_does_not_exist_is_refused_at_once_and_found_as_soon_as_it_comes() -> Outcome {
    let backend = Backend::start().await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    let began = std::time::Instant::now();
    for number in 0..5 {
        let url = format!("http://nobody-{number}.shop/");
        assert_eq!(through_proxy(web.outbound, "GET", &url, "").await?.status, 404);
    }
    assert_eq!(through_proxy(web.outbound, "GET", "http://orders.shop/a", "").await?.status, 404);
    assert!(began.elapsed() < std::time::Duration::from_secs(2), "{:?}", began.elapsed());

    let services = vec![format!("shop/orders:80/http={}", backend.address)];
    let mut orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
    mesh.apply(&allow("reads", "shop/orders", "[shop/web]", "[GET]", "[\"/a\"]"));
    let status = async |wanted: u16| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let answer = through_proxy(web.outbound, "GET", "http://orders.shop/a", "").await?;
            if answer.status == wanted || std::time::Instant::now() > deadline {
                return Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer.status);
            }
        }
    };
    assert_eq!(status(200).await?, 200, "it came, and is heard of");
    orders.process.signal("TERM");
    orders.process.wait(std::time::Duration::from_secs(10));
    assert_eq!(status(503).await?, 503, "it is known, and nobody backs it now");
    Ok(())
}

#[tokio::test]
async fn of_mistaken_files_nothing_is_applied_and_each_mistake_has_its_place() -> Outcome {
    let backend = Backend::start().await;
    let (mesh, _orders, web) = shop(&backend).await;
    let good = allow("reads", "shop/orders", "[shop/web]", "[GET]", "[\"/a\"]");
    mesh.apply(&good);
    let table = [
        ("an unknown field", good.replace("action: Allow", "acton: Allow"), "acton", 9),
        ("an unknown service", good.replace("name: orders }", "name: ordres }"), "did you mean `orders`?", 5),
        ("a wrong kind", good.replace("kind: ServicePolicy", "kind: ServicePolice"), "ServicePolice", 2),
        (
            "one of two",
            format!(
                "{}---\n{}",
                good.replace("name: reads", "name: more"),
                good.replace("name: reads", "name: bad").replace("[GET]", "[]")
            ),
            "empty list",
            23,
        ),
    ];
    for (what, yaml, named, line) in table {
        let file = mesh.dir.path().join("mistaken.yaml");
        std::fs::write(&file, yaml.replace("[\"/a\"]", "[\"/b\"]"))?;
        let output = mesh.outrider(&["apply", "-f", &file.display().to_string(), "--wait"]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{what}: {output:?}");
        let place = format!("mistaken.yaml:{line}:");
        assert!(
            text.contains(&place) && text.contains(named) && text.contains("nothing was stored"),
            "{what}: {place} in {text}"
        );
        let listed = mesh.outrider(&["get", "policies", "-o", "json"]);
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout)?;
        let names: Vec<_> = listed.as_array().into_iter().flatten().map(|policy| policy["name"].as_str()).collect();
        assert_eq!(names, [Some("shop/reads")], "{what}");
    }
    let (a, b) = (
        through_proxy(web.outbound, "GET", "http://orders.shop/a", ""),
        through_proxy(web.outbound, "GET", "http://orders.shop/b", ""),
    );
    assert_eq!((a.await?.status, b.await?.status), (200, 403), "the earlier policy still decides");
    Ok(())
}

#[tokio::test]
async fn a_policy_is_in_force_when_apply_wait_returns_also_right_after_the_control_plane_was_killed() -> Outcome {
    let backend = Backend::start().await;
    let (mut mesh, _orders, web) = shop(&backend).await;
    for round in 0..3 {
        let path = format!("/{round}");
        mesh.control_plane.kill();
        mesh.restart_control_plane().await;
        mesh.apply(&allow("flip", "shop/orders", "[shop/web]", "[GET]", &format!("[\"{path}\"]")));
        let answer = through_proxy(web.outbound, "GET", &format!("http://orders.shop{path}"), "").await?;
        assert_eq!(answer.status, 200, "round {round}: the agent still has the old policy");
    }
    Ok(())
}

#[tokio::test]
async fn requests_with_large_heads_wait_for_room_at_the_other_agent_and_none_is_refused() -> Outcome {
    let backend = Backend::start().await;
    let (mesh, _orders, web) = shop(&backend).await;
    mesh.apply(&allow("reads", "shop/orders", "[shop/web]", "[GET]", "[\"/slow\"]"));
    // 7 MB of heads, each under way for half a second: more than twice what a connection holds of them.
    let fields = format!("x-a: {}\r\n", "v".repeat(24 << 10));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let (outbound, fields) = (web.outbound, fields.clone());
        asking.spawn(async move { through_proxy(outbound, "GET", "http://orders.shop/slow", &fields).await });
    }
    for answer in asking.join_all().await {
        assert_eq!(answer?.status, 200);
    }
    Ok(())
}
