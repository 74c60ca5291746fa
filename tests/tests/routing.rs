//! Routes of the Gateway API, put in force by the real binaries.

use outrider_tests::{AgentOptions, AgentProcess, Backend, Mesh, MeshOptions, Outcome, allow, through_proxy, until};

struct Shop {
    mesh: Mesh,
    web: AgentProcess,
    orders: Backend,
    next: Backend,
    _agents: [AgentProcess; 2],
}

fn backing(service: &str, backend: &Backend) -> AgentOptions {
    AgentOptions { services: vec![format!("{service}:80/http={}", backend.address)], ..AgentOptions::default() }
}

fn open(service: &str) -> String {
    allow(&service.replace('/', "-"), service, "[\"shop/*\", \"lab/*\"]", "[GET, POST]", "[\"/{rest=**}\"]")
}

fn route(name: &str, namespace: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: {name}, namespace: {namespace} }}\nspec:\n  \
         parentRefs: [{{ kind: Service, name: orders, namespace: shop }}]\n  rules: {rules}\n"
    )
}

async fn shop() -> Shop {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let (orders, next) = (Backend::start().await, Backend::start().await);
    let agents = [
        mesh.agent("shop/orders", backing("shop/orders", &orders)).await,
        mesh.agent("shop/next", backing("shop/next", &next)).await,
    ];
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    mesh.apply(&format!("{}---\n{}", open("shop/orders"), open("shop/next")));
    Shop { mesh, web, orders, next, _agents: agents }
}

impl Shop {
    async fn get(&self, target: &str, fields: &str) -> Result<outrider_tests::Answer, std::io::Error> {
        through_proxy(self.web.outbound, "GET", &format!("http://orders.shop{target}"), fields).await
    }

    /// `outrider apply -f` of this YAML with these arguments: whether it succeeded, and what it said.
    fn apply(&self, yaml: &str, arguments: &[&str]) -> (bool, String) {
        let file = self.mesh.dir.path().join("route.yaml");
        if let Err(error) = std::fs::write(&file, yaml) {
            return (false, error.to_string());
        }
        let file = file.display().to_string();
        let ran = self.mesh.outrider(&[&["apply", "-f", &file], arguments].concat());
        (ran.status.success(), format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr)))
    }
}

#[tokio::test]
async fn weights_split_requests_within_statistical_bounds() -> Outcome {
    let shop = shop().await;
    assert_eq!(shop.get("/", "").await?.status, 200, "the service is called before there is a route");
    let refs = "{ name: orders, port: 80, weight: 80 }, { name: next, port: 80, weight: 20 }";
    shop.mesh.apply(&route("split", "shop", &format!("[{{ backendRefs: [{refs}] }}]")));
    shop.orders.forget();
    let requests = 500;
    for _ in 0..requests {
        assert_eq!(shop.get("/", "").await?.status, 200);
    }
    let (orders, next) = (shop.orders.seen().len(), shop.next.seen().len());
    assert_eq!(orders + next, requests);
    // 100 expected, with a deviation of 9: five of them are one case in three million.
    assert!((55..=145).contains(&next), "{next} of {requests}");
    assert_eq!(shop.next.seen()[0].values("host"), ["next.shop"], "a backend is called by its own name");
    Ok(())
}

#[tokio::test]
async fn a_route_never_opens_what_the_policy_of_its_backend_denies() -> Outcome {
    let shop = shop().await;
    shop.mesh.apply(&allow("shop-next", "shop/next", "[shop/nobody]", "[GET]", "[\"/{rest=**}\"]"));
    shop.mesh.apply(&route("all", "shop", "[{ backendRefs: [{ name: next, port: 80 }] }]"));
    assert_eq!(shop.get("/", "").await?.status, 403);
    assert!(shop.next.seen().is_empty() && shop.orders.seen().is_empty());
    Ok(())
}

#[tokio::test]
async fn matches_filters_rewrites_and_redirects_do_what_they_say() -> Outcome {
    let shop = shop().await;
    let rules = "
  - matches: [{ path: { type: PathPrefix, value: /old } }]
    filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /new } } }]
    backendRefs: [{ name: next, port: 80 }]
  - matches: [{ headers: [{ name: x-beta, value: \"yes\" }] }]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: { set: [{ name: X-Team, value: beta }], remove: [x-gone] }
    - type: ResponseHeaderModifier
      responseHeaderModifier: { add: [{ name: x-route, value: beta }] }
    backendRefs: [{ name: next, port: 80 }]
  - matches: [{ path: { type: Exact, value: /moved } }]
    filters: [{ type: RequestRedirect, requestRedirect: { hostname: shop.example, scheme: https, statusCode: 301 } }]
  - matches: [{ path: { value: /v1 } }]
    backendRefs: [{ name: orders, port: 80 }]";
    shop.mesh.apply(&route("rules", "shop", rules));
    assert_eq!(shop.get("/old/a?x=1", "").await?.status, 200);
    assert_eq!(shop.next.seen()[0].target, "/new/a?x=1");
    let beta = shop.get("/x", "x-beta: yes\r\nx-team: alpha\r\nx-gone: 1\r\n").await?;
    assert_eq!((beta.status, beta.field("x-route")), (200, Some("beta")));
    let seen = &shop.next.seen()[1];
    assert_eq!((seen.values("x-team"), seen.values("x-gone")), (vec!["beta"], vec![]));
    let moved = shop.get("/moved?q=1", "").await?;
    assert_eq!((moved.status, moved.field("location")), (301, Some("https://shop.example/moved?q=1")));
    assert_eq!(shop.get("/v1/orders", "").await?.status, 200);
    assert_eq!(shop.orders.seen().len(), 1);
    assert_eq!(shop.get("/else", "").await?.status, 404, "no rule is for it");
    let log = shop.web.access_log().await;
    assert!(log.iter().any(|line| line["reason"] == "no_route"), "{log:?}");
    Ok(())
}

#[tokio::test]
async fn a_mirror_gets_copies_and_its_failure_is_nobodys_business() -> Outcome {
    let shop = shop().await;
    let mirrored = |backend: &str| {
        format!(
            "[{{ filters: [{{ type: RequestMirror, requestMirror: {{ backendRef: {{ name: {backend}, port: 80 }} }} }}], \
             backendRefs: [{{ name: orders, port: 80 }}] }}]"
        )
    };
    shop.mesh.apply(&route("mirror", "shop", &mirrored("next")));
    let body = "content-length: 5\r\n\r\nhello";
    let post = |fields: String| async move { through_proxy(shop.web.outbound, "POST", "http://orders.shop/a", &fields).await };
    // The helper ends the head: what comes after it here is the body.
    let mut copied = false;
    for _ in 0..20 {
        let answer = post(body.trim_end_matches("\r\n").to_owned()).await?;
        assert_eq!(answer.status, 200);
        if !shop.next.seen().is_empty() {
            copied = true;
            break;
        }
    }
    assert!(copied, "the mirror is known after a moment");
    until("the copy is whole", || shop.next.seen()[0].body == b"hello").await;
    assert_eq!(shop.orders.seen()[0].body, b"hello");
    assert_eq!(shop.next.seen()[0].values("host"), ["next.shop"]);
    shop.mesh.apply(&route("mirror", "shop", &mirrored("missing")));
    assert_eq!(shop.get("/b", "").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_time_out_of_a_route_is_504_and_says_so_in_the_log() -> Outcome {
    let shop = shop().await;
    shop.mesh.apply(&route("quick", "shop", "[{ timeouts: { request: 100ms }, backendRefs: [{ name: orders, port: 80 }] }]"));
    assert_eq!(shop.get("/slow", "").await?.status, 504);
    assert_eq!(shop.get("/", "").await?.status, 200);
    let log = shop.web.access_log().await;
    let line = log.iter().find(|line| line["status"] == 504).expect("a line");
    assert_eq!(line["reason"], "upstream_timeout");
    assert!(line["detail"].as_str().is_some_and(|detail| detail.contains("of the route")), "{line}");
    Ok(())
}

#[tokio::test]
async fn a_deadline_of_grpc_is_honoured_capped_and_passed_on() -> Outcome {
    let shop = shop().await;
    let with = |timeout: &str| format!("content-type: application/grpc\r\ngrpc-timeout: {timeout}\r\n");
    assert_eq!(shop.get("/slow", &with("100m")).await?.status, 504);
    assert_eq!(shop.get("/far", &with("99999999H")).await?.status, 200);
    let seen = shop.orders.seen();
    let far = seen.iter().find(|seen| seen.target == "/far").ok_or("no request")?;
    assert_eq!(far.values("grpc-timeout"), ["86400000m"]);
    shop.mesh.apply(&route("quick", "shop", "[{ timeouts: { request: 2s }, backendRefs: [{ name: orders, port: 80 }] }]"));
    assert_eq!(shop.get("/near", &with("1H")).await?.status, 200);
    let seen = shop.orders.seen();
    let near = seen.iter().find(|seen| seen.target == "/near").ok_or("no request")?;
    assert_eq!(near.values("grpc-timeout"), ["2000m"], "the route's bound is the nearer one");
    Ok(())
}

#[tokio::test]
async fn a_tenant_cannot_route_the_callers_of_others_nor_lead_to_their_services() -> Outcome {
    let shop = shop().await;
    let lab_backend = Backend::start().await;
    let _lab = shop.mesh.agent("lab/sink", backing("lab/sink", &lab_backend)).await;
    let caller = shop.mesh.agent("lab/caller", AgentOptions::default()).await;
    shop.mesh.apply(&open("lab/sink"));
    // A route of the tenant for the service of another namespace: its own callers follow it, nobody else does.
    shop.mesh.apply(&route("catch", "lab", "[{ backendRefs: [{ name: sink, port: 80 }] }]"));
    assert_eq!(shop.get("/", "").await?.status, 200);
    assert_eq!((shop.orders.seen().len(), lab_backend.seen().len()), (1, 0));
    let own = through_proxy(caller.outbound, "GET", "http://orders.shop/", "").await?;
    assert_eq!((own.status, shop.orders.seen().len(), lab_backend.seen().len()), (200, 1, 1));
    let foreign = "[{ backendRefs: [{ name: sink, namespace: lab, port: 80 }] }]";
    let (applied, said) = shop.apply(&route("leak", "shop", foreign), &[]);
    assert!(!applied && said.contains("may not lead to `lab/sink`"), "{said}");
    Ok(())
}

#[tokio::test]
async fn routes_are_applied_listed_rolled_back_and_deleted_like_policies() -> Outcome {
    let shop = shop().await;
    let to = |backend: &str| route("all", "shop", &format!("[{{ backendRefs: [{{ name: {backend}, port: 80 }}] }}]"));
    assert_eq!(shop.get("/", "").await?.status, 200);
    let (done, said) = shop.apply(&to("next"), &["--dry-run"]);
    assert!(done && said.contains("httproute shop/all would be created"), "{said}");
    let broken = format!("{}---\n{}", to("next"), route("bad", "shop", "[{ backendRefs: [{ name: next, port: 81 }] }]"));
    let (done, said) = shop.apply(&broken, &[]);
    assert!(!done && said.contains("no port 81") && said.contains("nothing was stored"), "{said}");
    let (done, said) = shop.apply(&to("next"), &["--wait"]);
    assert!(done && said.contains("in force at"), "{said}");
    assert_eq!((shop.get("/", "").await?.status, shop.next.seen().len()), (200, 1), "in force when apply returns");
    let listed = shop.mesh.outrider(&["get", "routes", "-o", "json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout)?;
    assert_eq!((listed[0]["name"].as_str(), listed[0]["inForce"].as_u64()), (Some("shop/all"), Some(1)), "{listed}");
    let (done, said) = shop.apply(&to("orders"), &["--wait"]);
    assert!(done, "{said}");
    assert_eq!((shop.get("/", "").await?.status, shop.next.seen().len()), (200, 1));
    let back = shop.mesh.outrider(&["rollback", "--wait"]);
    assert!(back.status.success(), "{back:?}");
    assert_eq!((shop.get("/", "").await?.status, shop.next.seen().len()), (200, 2), "a rollback brings routes back too");
    let gone = shop.mesh.outrider(&["delete", "httproute", "shop/all", "--wait"]);
    assert!(gone.status.success(), "{gone:?}");
    assert_eq!((shop.get("/", "").await?.status, shop.next.seen().len()), (200, 2));
    Ok(())
}
