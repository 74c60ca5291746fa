//! Lists, as people and as programs see them.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::fake::{Answers, Plane, golden};
use outrider_proto::v1::*;

const WEB: &str = "spiffe://mesh.internal/ns/shop/sa/web";
const ORDERS: &str = "spiffe://mesh.internal/ns/shop/sa/orders";

/// Tables tell ages: half a minute of slack keeps them stable while the test runs.
fn from_now(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    i64::try_from(now).unwrap() + seconds + if seconds > 0 { 30 } else { -30 }
}

fn mesh(time: impl Fn(i64) -> i64) -> Answers {
    let laggard = |reason: &str| Laggard { agent_id: "agent-2".into(), identity: ORDERS.into(), reason: reason.into() };
    let policy = PolicyStatus {
        name: "shop/orders".into(),
        revision: 12,
        json: r#"{"kind":"ServicePolicy","metadata":{"name":"orders","namespace":"shop"},"spec":{"authorization":{"rules":[{},{}]}}}"#.into(),
        targets: vec!["shop/orders".into()],
        agents: 3,
        in_force: 2,
        laggards: vec![laggard("unknown field `limits`")],
    };
    let unused = PolicyStatus { name: "bank/ledger".into(), revision: 3, json: "{}".into(), ..PolicyStatus::default() };
    let route = RouteStatus {
        kind: "HTTPRoute".into(),
        name: "shop/orders".into(),
        revision: 13,
        json: r#"{"kind":"HTTPRoute"}"#.into(),
        parents: vec!["shop/orders".into()],
        backends: vec!["shop/orders".into(), "shop/orders-next".into()],
        agents: 2,
        in_force: 1,
        laggards: vec![laggard("unknown field `wait`")],
    };
    let endpoint = Endpoint {
        agent_id: "agent-2".into(),
        mesh_address: "10.0.0.2:15108".into(),
        identity: ORDERS.into(),
        ports: vec![80],
        zone: "eu-1a".into(),
    };
    let ports = [(80, Protocol::Http), (5432, Protocol::Unspecified)]
        .map(|(port, protocol)| ServicePort { port, protocol: protocol.into() });
    let service =
        Service { name: "shop/orders".into(), ports: ports.to_vec(), identities: vec![ORDERS.into()], endpoints: vec![endpoint] };
    let agent = |id: &str, identity: &str, connected, nack: &str| AgentStatus {
        agent_id: id.into(),
        identity: identity.into(),
        version: "0.1.0".into(),
        services: vec!["shop/orders".into()],
        connected,
        last_seen: time(-300),
        revision: 11,
        nack: nack.into(),
        certificate_serial: "0a".into(),
        certificate_not_after: time(3000),
        labels: [("app".to_owned(), "orders".to_owned())].into(),
    };
    let certificate = CertificateStatus {
        serial: "0a1b".into(),
        identity: WEB.into(),
        not_before: time(-600),
        not_after: time(3000),
        evidence: "join-token".into(),
        agent_id: "agent-1".into(),
        issuer: "Outrider issuing CA 1".into(),
        replica: "one".into(),
        root: "00".into(),
    };
    let denied = DecisionRecord {
        request_id: "01932f6e-3b5c".into(),
        time: time(-240) * 1_000_000_000,
        side: Side::Inbound.into(),
        destination: "shop/orders".into(),
        port: 80,
        protocol: Protocol::Http.into(),
        method: "POST".into(),
        host: "orders.shop".into(),
        path: "/v1/\u{1b}[2Jorders".into(),
        effect: "deny".into(),
        revision: 12,
        status: 403,
        headers: vec![HeaderValue { name: "x-tenant".into(), value: b"a\xffb".to_vec() }],
        ..DecisionRecord::default()
    };
    let allowed = DecisionRecord {
        source: WEB.into(),
        method: "GET".into(),
        path: "/v1/orders/7".into(),
        effect: "allow".into(),
        rule: "shop/orders/web-reads".into(),
        status: 200,
        tls: "TLS13_AES_256_GCM_SHA384".into(),
        peer_address: "10.0.0.1:40000".into(),
        duration_micros: 812,
        ..denied.clone()
    };
    Answers {
        policies: Some(ListPoliciesResponse { policies: vec![policy, unused], revision: 12 }),
        routes: Some(ListRoutesResponse { routes: vec![route], revision: 13 }),
        services: Some(ListServicesResponse { services: vec![ServiceStatus { service: Some(service), connected: 1 }] }),
        agents: Some(ListAgentsResponse {
            agents: vec![
                agent("agent-1", WEB, true, ""),
                agent("agent-2", ORDERS, true, "unknown field `limits`"),
                agent("agent-3", ORDERS, false, ""),
            ],
        }),
        decisions: Some(ListDecisionsResponse { decisions: vec![denied, allowed] }),
        certificates: Some(ListCertificatesResponse { certificates: vec![certificate] }),
        status: Some(StatusResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            trust_domain: "mesh.internal".into(),
            revision: 12,
            address: "127.0.0.1:15110".into(),
            agents_connected: 2,
            certificate_authorities: vec![CaStatus {
                role: "root".into(),
                common_name: "Outrider root".into(),
                serial: "01".into(),
                not_before: time(-86_400 * 30),
                not_after: time(86_400 * 3_620),
                spki_sha256: "00".into(),
                signs: true,
            }],
            warnings: vec![],
            leaf_ttl_seconds: 3_600,
            root_history: vec!["00".into()],
        }),
        ..Answers::default()
    }
}

#[tokio::test]
async fn tables_are_as_people_know_them() {
    let plane = Plane::start(mesh(from_now));
    for what in ["policies", "routes", "services", "agents", "decisions", "certificates"] {
        let ran = plane.outrider(&["get", what]).await;
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
        golden(&format!("get-{what}.txt"), &ran.out);
    }
    let ran = plane.outrider(&["check"]).await;
    assert_eq!(ran.code, 1, "an agent refused a policy");
    golden("check.txt", &ran.out);
}

#[tokio::test]
async fn fields_are_as_programs_know_them() {
    let plane = Plane::start(mesh(|seconds| 1_800_000_000 + seconds));
    for what in ["policies", "routes", "services", "agents", "decisions", "certificates"] {
        let ran = plane.outrider(&["get", what, "-o", "json"]).await;
        golden(&format!("get-{what}.json"), &ran.out);
        let yaml = plane.outrider(&["get", what, "-o", "yaml"]).await.out;
        let from_yaml: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(from_yaml, serde_json::from_str::<serde_json::Value>(&ran.out).unwrap(), "{yaml}");
    }
}

#[tokio::test]
async fn every_field_that_programs_read_is_documented() {
    let documented = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/OUTPUT.md")).unwrap();
    let mut lacking = Vec::new();
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/golden")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "json") {
            let value: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            fields(&value, &mut |field| {
                if !documented.contains(&format!("`{field}`")) {
                    lacking.push(format!("{field} of {}", path.display()));
                }
            });
        }
    }
    assert!(lacking.is_empty(), "OUTPUT.md does not know {lacking:?}");
}

/// All names of fields, without looking into policies: those are documented by their language.
fn fields(value: &serde_json::Value, each: &mut impl FnMut(&str)) {
    match value {
        serde_json::Value::Array(list) => list.iter().for_each(|one| fields(one, each)),
        serde_json::Value::Object(object) => {
            for (name, value) in object {
                each(name);
                if name != "resource" {
                    fields(value, each);
                }
            }
        }
        _ => {}
    }
}

#[tokio::test]
async fn names_and_flags_choose_what_is_listed() {
    let plane = Plane::start(mesh(from_now));
    let ran = plane.outrider(&["get", "policies", "shop/orders", "-o", "json"]).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&ran.out).unwrap().as_array().unwrap().len(), 1);
    let ran = plane.outrider(&["get", "policy", "shop/order"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: no policy `shop/order`\n help: did you mean `shop/orders`?\n"));
    let ran = plane.outrider(&["get", "agents", "-n", "bank"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, ""));
    assert!(ran.err.contains("no agents"), "{ran:?}");
    assert_eq!(plane.outrider(&["get", "agents", "-n", "bank", "-o", "json"]).await.out, "[]\n");
    plane.outrider(&["get", "decisions", "--denied", "--to", "shop/orders", "--limit", "5"]).await;
    assert!(plane.asked().iter().any(|asked| asked.contains("limit: 5, denied_only: true, destination: \"shop/orders\"")));
}
