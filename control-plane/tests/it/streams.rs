//! Streams of agents: what each sees, what it answers, and what is known of it.

use outrider_proto::v1::{self, subscribe_request::Message};
use prost::Message as _;
use tonic::Code;

use crate::harness::{Plane, hello, policy};

const WEB: &str = "00000000-0000-7000-8000-000000000001";
const ORDERS: &str = "00000000-0000-7000-8000-000000000002";
const MORE: &str = "00000000-0000-7000-8000-000000000003";

fn names(update: &v1::Update) -> Vec<String> {
    update.upserts.iter().map(|resource| resource.name.clone()).collect()
}

fn service(update: &v1::Update, name: &str) -> v1::Service {
    let kind = i32::from(v1::ResourceKind::Service);
    let found = update.upserts.iter().find(|resource| (resource.kind, resource.name.as_str()) == (kind, name));
    v1::Service::decode(found.unwrap().body.as_slice()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_needs_a_certificate_and_grants_for_every_service() {
    let plane = Plane::start().await;
    let channel = plane.connect(None).await.unwrap();
    let status = v1::config_client::ConfigClient::new(channel).subscribe(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let svid = plane.join("shop/web", &["shop/web"]).await;
    for (services, code) in [
        (vec!["shop/web", "shop/orders"], Code::PermissionDenied),
        (vec!["shop/web", "shop/web"], Code::InvalidArgument),
        (vec!["../web"], Code::InvalidArgument),
    ] {
        let agent = plane.subscribe(&svid).await;
        agent.say(hello(WEB, &services, &[])).await;
        assert_eq!(agent.end().await.code(), code, "{services:?}");
    }
    let agent = plane.subscribe(&svid).await;
    agent.say(Message::Goodbye(v1::Goodbye {})).await;
    assert_eq!(agent.end().await.code(), Code::InvalidArgument, "the first message must be a hello");
    let mut listed = plane.admin().await;
    assert!(listed.list_services(v1::ListServicesRequest::default()).await.unwrap().into_inner().services.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_sees_the_bundle_its_own_policies_and_the_services_it_wants_and_nothing_else() {
    let plane = Plane::start().await;
    plane.apply(&format!("{}---\n{}", policy("shop/orders", "orders"), policy("shop/web", "web"))).await;
    let (web, orders) = (plane.join("shop/web", &[]).await, plane.join("shop/orders", &[]).await);
    let mut agent = plane.subscribe(&orders).await;
    agent.say(hello(ORDERS, &["shop/orders"], &[])).await;
    let first = agent.update().await;
    assert_eq!(names(&first), ["mesh.internal", "shop/orders"]);
    assert!(first.complete);
    let bundle = v1::TrustBundle::decode(first.upserts[0].body.as_slice()).unwrap();
    assert_eq!(bundle, orders.response.bundle.clone().unwrap());
    agent.ack(&first).await;
    let mut caller = plane.subscribe(&web).await;
    caller.say(hello(WEB, &["shop/web"], &["shop/orders", "shop/nobody"])).await;
    let view = caller.update().await;
    assert_eq!(names(&view), ["mesh.internal", "shop/web", "shop/nobody", "shop/orders"]);
    let nobody = service(&view, "shop/nobody");
    assert!(nobody.ports.is_empty() && nobody.endpoints.is_empty(), "a name that nobody knows is answered too: {nobody:?}");
    let service = service(&view, "shop/orders");
    assert_eq!(service.identities, ["spiffe://mesh.internal/ns/shop/sa/orders"]);
    assert_eq!((service.endpoints.len(), service.endpoints[0].agent_id.as_str()), (1, ORDERS));
    caller.ack(&view).await;
    caller.say(Message::Want(v1::WantServices::default())).await;
    let less = caller.update().await;
    let gone: Vec<&str> = less.removals.iter().map(|gone| gone.name.as_str()).collect();
    assert_eq!((less.upserts.len(), gone), (0, vec!["shop/nobody", "shop/orders"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_endpoint_says_which_ports_of_the_service_it_serves() {
    let plane = Plane::start().await;
    let (web, orders) = (plane.join("shop/web", &[]).await, plane.join("shop/orders", &[]).await);
    let mut agents = Vec::new();
    for (id, more) in [(ORDERS, None), (MORE, Some(8080))] {
        let Message::Hello(mut hello) = hello(id, &["shop/orders"], &[]) else { panic!() };
        let ports = more.map(|port| v1::ServicePort { port, protocol: v1::Protocol::Http.into() });
        hello.services[0].ports.extend(ports);
        let mut agent = plane.subscribe(&orders).await;
        agent.say(Message::Hello(hello)).await;
        agent.update().await;
        agents.push(agent);
    }
    let mut caller = plane.subscribe(&web).await;
    caller.say(hello(WEB, &["shop/web"], &["shop/orders"])).await;
    let service = service(&caller.update().await, "shop/orders");
    let ports: Vec<&[u32]> = service.endpoints.iter().map(|endpoint| endpoint.ports.as_slice()).collect();
    assert_eq!((service.ports.len(), ports), (2, vec![[80].as_slice(), [80, 8080].as_slice()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_in_force_when_the_agent_says_so_and_not_before() {
    let plane = Plane::start().await;
    let svid = plane.join("shop/orders", &[]).await;
    let mut agent = plane.subscribe(&svid).await;
    agent.say(hello(ORDERS, &["shop/orders"], &[])).await;
    let first = agent.update().await;
    agent.ack(&first).await;
    let applied = plane.apply(&policy("shop/orders", "orders")).await;
    let mut rollout =
        plane.admin().await.watch_rollout(v1::WatchRolloutRequest { revision: applied.revision }).await.unwrap().into_inner();
    let status = rollout.message().await.unwrap().unwrap();
    assert_eq!((status.agents, status.in_force, status.done), (1, 0, false));
    let update = agent.update().await;
    assert_eq!(names(&update), ["shop/orders"]);
    agent.ack(&update).await;
    let last = loop {
        let status = rollout.message().await.unwrap().unwrap();
        if status.done {
            break status;
        }
    };
    assert_eq!((last.agents, last.in_force), (1, 1));
    assert!(rollout.message().await.unwrap().is_none());
    let listed = plane.admin().await.list_policies(v1::ListPoliciesRequest::default()).await.unwrap().into_inner().policies;
    assert_eq!(
        (listed[0].agents, listed[0].in_force, listed[0].targets.as_slice()),
        (1, 1, ["shop/orders".to_owned()].as_slice())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_update_is_recorded_with_its_reason_and_the_last_good_one_stays() {
    let plane = Plane::start().await;
    let svid = plane.join("shop/orders", &[]).await;
    let mut agent = plane.subscribe(&svid).await;
    agent.say(hello(ORDERS, &["shop/orders"], &[])).await;
    let first = agent.update().await;
    agent.ack(&first).await;
    let applied = plane.apply(&policy("shop/orders", "orders")).await;
    let update = agent.update().await;
    agent.nack(&update, "field `x` is not known").await;
    let mut admin = plane.admin().await;
    let mut rollout = admin.watch_rollout(v1::WatchRolloutRequest { revision: applied.revision }).await.unwrap().into_inner();
    let last = loop {
        let status = rollout.message().await.unwrap().unwrap();
        if status.done {
            break status;
        }
    };
    assert_eq!((last.in_force, last.laggards[0].reason.as_str()), (0, "field `x` is not known"));
    let status = admin.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert!(status.warnings.iter().any(|warning| warning.contains("field `x` is not known")), "{:?}", status.warnings);
    let next = plane.apply(&policy("shop/second", "orders")).await;
    let update = agent.update().await;
    assert_eq!((names(&update), update.revision), (vec!["shop/orders".to_owned(), "shop/second".to_owned()], next.revision));
    agent.ack(&update).await;
}

async fn rollout(plane: &Plane, revision: u64) -> tonic::Streaming<v1::RolloutStatus> {
    plane.admin().await.watch_rollout(v1::WatchRolloutRequest { revision }).await.unwrap().into_inner()
}

async fn last(rollout: &mut tonic::Streaming<v1::RolloutStatus>) -> v1::RolloutStatus {
    loop {
        let status = rollout.message().await.unwrap().expect("a last message");
        if status.done {
            return status;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_waits_for_agents_that_have_not_come_back_after_a_restart() {
    let plane = Plane::start().await;
    let svid = plane.join("shop/orders", &[]).await;
    let mut agent = plane.subscribe(&svid).await;
    agent.say(hello(ORDERS, &["shop/orders"], &[])).await;
    let first = agent.update().await;
    agent.ack(&first).await;
    let plane = plane.restart_with(|_| {}).await;
    let applied = plane.apply(&policy("shop/orders", "orders")).await;
    let mut rollout = rollout(&plane, applied.revision).await;
    let status = rollout.message().await.unwrap().unwrap();
    assert_eq!((status.agents, status.in_force, status.done), (1, 0, false));
    assert_eq!((status.laggards[0].agent_id.as_str(), status.laggards[0].reason.as_str()), (ORDERS, "not connected"));
    let mut agent = plane.subscribe(&svid).await;
    agent.say(hello(ORDERS, &["shop/orders"], &[])).await;
    let update = agent.update().await;
    agent.ack(&update).await;
    let status = last(&mut rollout).await;
    assert_eq!((status.agents, status.in_force, status.laggards.len()), (1, 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_lost_before_it_answered_is_named_when_its_grace_has_ended() {
    let plane = Plane::start_with(|raw| raw.endpoint_grace = Some("700ms".into())).await;
    let svid = plane.join("shop/orders", &[]).await;
    for goodbye in [false, true] {
        let mut agent = plane.subscribe(&svid).await;
        agent.say(hello(ORDERS, &["shop/orders"], &[])).await;
        let first = agent.update().await;
        agent.ack(&first).await;
        let applied = plane.apply(&policy(&format!("shop/orders-{goodbye}"), "orders")).await;
        agent.update().await;
        if goodbye {
            agent.say(Message::Goodbye(v1::Goodbye {})).await;
        } else {
            drop(agent);
        }
        let status = last(&mut rollout(&plane, applied.revision).await).await;
        let laggards: Vec<_> =
            status.laggards.iter().map(|laggard| (laggard.agent_id.as_str(), laggard.reason.as_str())).collect();
        let expected = if goodbye { vec![] } else { vec![(ORDERS, "not connected")] };
        assert_eq!(laggards, expected, "one that says goodbye has left the mesh in good order");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_stands_whatever_else_the_agent_refused_since() {
    let plane = Plane::start().await;
    let (web, orders) = (plane.join("shop/web", &[]).await, plane.join("shop/orders", &[]).await);
    let mut agent = plane.subscribe(&orders).await;
    agent.say(hello(ORDERS, &["shop/orders"], &["shop/web"])).await;
    let first = agent.update().await;
    agent.ack(&first).await;
    let applied = plane.apply(&policy("shop/orders", "orders")).await;
    let update = agent.update().await;
    agent.nack(&update, "not understood").await;
    let caller = plane.subscribe(&web).await;
    caller.say(hello(WEB, &["shop/web"], &[])).await;
    let endpoints = agent.update().await;
    assert!(endpoints.revision < applied.revision, "the refused policy is held back");
    agent.nack(&endpoints, "nor this").await;
    let status = last(&mut rollout(&plane, applied.revision).await).await;
    assert_eq!((status.in_force, status.laggards[0].reason.as_str()), (0, "nor this"));
    let fixed = plane.apply(&policy("shop/orders", "orders").replace("GET", "PUT")).await;
    let mut rollout = rollout(&plane, fixed.revision).await;
    let update = agent.update().await;
    agent.ack(&update).await;
    let status = last(&mut rollout).await;
    assert_eq!((status.in_force, status.laggards.len()), (1, 0), "an old refusal is no answer to the mended policy");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_applied_again_unchanged_is_followed_at_its_own_revision() {
    let plane = Plane::start().await;
    let (web, orders) = (plane.join("shop/web", &[]).await, plane.join("shop/orders", &[]).await);
    let mut agent = plane.subscribe(&orders).await;
    agent.say(hello(ORDERS, &["shop/orders"], &[])).await;
    let first = agent.update().await;
    agent.ack(&first).await;
    let applied = plane.apply(&policy("shop/orders", "orders")).await;
    let update = agent.update().await;
    agent.ack(&update).await;
    last(&mut rollout(&plane, applied.revision).await).await;
    // Something else goes on, and one agent that the policy does not concern has not answered yet.
    let mut other = plane.subscribe(&web).await;
    other.say(hello(WEB, &["shop/web"], &[])).await;
    other.update().await;
    let again = plane.apply(&policy("shop/orders", "orders")).await;
    assert_eq!((again.changes[0].change(), again.revision), (v1::resource_change::Change::Unchanged, applied.revision));
    let status = last(&mut rollout(&plane, again.revision).await).await;
    assert_eq!((status.agents, status.in_force), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_while_an_agent_is_busy_reach_it_as_one_update() {
    let plane = Plane::start().await;
    let svid = plane.join("shop/orders", &[]).await;
    let mut agent = plane.subscribe(&svid).await;
    agent.say(hello(ORDERS, &["shop/orders"], &[])).await;
    let first = agent.update().await;
    let mut last = 0;
    for name in ["a", "b", "c", "d"] {
        last = plane.apply(&policy(&format!("shop/{name}"), "orders")).await.revision;
    }
    agent.ack(&first).await;
    let update = agent.update().await;
    assert_eq!((names(&update).len(), update.revision), (4, last));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_does_not_concern_an_agent_is_in_force_there_without_a_push() {
    let plane = Plane::start().await;
    let svid = plane.join("shop/orders", &[]).await;
    let mut agent = plane.subscribe(&svid).await;
    agent.say(hello(ORDERS, &["shop/orders"], &[])).await;
    let first = agent.update().await;
    agent.ack(&first).await;
    let applied = plane.apply(&policy("bank/vault", "vault")).await;
    let mut admin = plane.admin().await;
    let mut rollout = admin.watch_rollout(v1::WatchRolloutRequest { revision: applied.revision }).await.unwrap().into_inner();
    let status = rollout.message().await.unwrap().unwrap();
    assert_eq!((status.agents, status.done), (0, true));
    let mut poll = tokio::time::interval(std::time::Duration::from_millis(10));
    loop {
        poll.tick().await;
        let agents = admin.list_agents(v1::ListAgentsRequest {}).await.unwrap().into_inner().agents;
        if agents[0].revision == applied.revision {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_comes_back_is_sent_only_what_differs() {
    let plane = Plane::start().await;
    plane.apply(&policy("shop/orders", "orders")).await;
    let svid = plane.join("shop/orders", &[]).await;
    let mut agent = plane.subscribe(&svid).await;
    agent.say(hello(ORDERS, &["shop/orders"], &[])).await;
    let first = agent.update().await;
    agent.ack(&first).await;
    let known: Vec<v1::KnownResource> = first
        .upserts
        .iter()
        .map(|resource| v1::KnownResource {
            kind: resource.kind,
            name: resource.name.clone(),
            hash: aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &resource.body).as_ref().to_vec(),
        })
        .collect();
    drop(agent);
    plane.apply(&policy("shop/second", "orders")).await;
    let mut agent = plane.subscribe(&svid).await;
    let Message::Hello(again) = hello(ORDERS, &["shop/orders"], &[]) else { panic!() };
    agent.say(Message::Hello(v1::Hello { known, ..again })).await;
    let update = agent.update().await;
    assert_eq!((names(&update), update.complete), (vec!["shop/second".to_owned()], true));
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_outlive_a_broken_stream_for_the_grace_and_go_at_once_with_a_goodbye() {
    let plane = Plane::start_with(|raw| raw.endpoint_grace = Some("700ms".into())).await;
    let (web, orders) = (plane.join("shop/web", &[]).await, plane.join("shop/orders", &[]).await);
    let mut caller = plane.subscribe(&web).await;
    caller.say(hello(WEB, &["shop/web"], &["shop/orders"])).await;
    let view = caller.update().await;
    caller.ack(&view).await;
    for goodbye in [false, true] {
        let mut agent = plane.subscribe(&orders).await;
        agent.say(hello(ORDERS, &["shop/orders"], &[])).await;
        let first = agent.update().await;
        agent.ack(&first).await;
        let update = caller.update().await;
        assert_eq!(names(&update), ["shop/orders"]);
        caller.ack(&update).await;
        let began = std::time::Instant::now();
        if goodbye {
            agent.say(Message::Goodbye(v1::Goodbye {})).await;
        } else {
            drop(agent);
        }
        let update = caller.update().await;
        let away = service(&update, "shop/orders");
        assert_eq!((away.ports.len(), away.endpoints.len()), (1, 0), "callers hear that nobody is there now");
        assert_eq!(began.elapsed().as_millis() < 700, goodbye, "goodbye: {goodbye}, {:?}", began.elapsed());
        caller.ack(&update).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_of_an_agent_that_says_goodbye_ends_when_its_endpoints_are_out() {
    let plane = Plane::start().await;
    let svid = plane.join("shop/orders", &[]).await;
    let mut admin = plane.admin().await;
    for _ in 0..20 {
        let mut agent = plane.subscribe(&svid).await;
        agent.say(hello(ORDERS, &["shop/orders"], &[])).await;
        agent.update().await;
        agent.say(Message::Goodbye(v1::Goodbye {})).await;
        while agent.next().await.unwrap().is_some() {}
        let services = admin.list_services(v1::ListServicesRequest::default()).await.unwrap().into_inner().services;
        assert!(services.is_empty(), "{services:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_control_plane_knows_the_endpoints_of_agents_that_have_not_come_back_yet() {
    let plane = Plane::start().await;
    let (web, orders) = (plane.join("shop/web", &[]).await, plane.join("shop/orders", &[]).await);
    let mut agent = plane.subscribe(&orders).await;
    agent.say(hello(ORDERS, &["shop/orders"], &[])).await;
    let first = agent.update().await;
    agent.ack(&first).await;
    let plane = plane.restart_with(|_| {}).await;
    assert_eq!(agent.end().await.code(), Code::Unavailable);
    let mut caller = plane.subscribe(&web).await;
    caller.say(hello(WEB, &["shop/web"], &["shop/orders"])).await;
    assert_eq!(names(&caller.update().await), ["mesh.internal", "shop/orders"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_has_one_stream_and_its_id_cannot_be_taken_by_another_identity() {
    let plane = Plane::start().await;
    let (web, orders) = (plane.join("shop/web", &[]).await, plane.join("shop/orders", &[]).await);
    let mut first = plane.subscribe(&orders).await;
    first.say(hello(ORDERS, &["shop/orders"], &[])).await;
    first.update().await;
    let thief = plane.subscribe(&web).await;
    thief.say(hello(ORDERS, &["shop/web"], &[])).await;
    assert_eq!(thief.end().await.code(), Code::PermissionDenied);
    let mut second = plane.subscribe(&orders).await;
    second.say(hello(ORDERS, &["shop/orders"], &[])).await;
    second.update().await;
    assert_eq!(first.end().await.code(), Code::Aborted);
    let agents = plane.admin().await.list_agents(v1::ListAgentsRequest {}).await.unwrap().into_inner().agents;
    assert!(agents[0].connected, "the end of the old stream is not the end of the agent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_the_certificate_of_its_connection() {
    let plane = Plane::start_with(|raw| raw.leaf_ttl = Some("2s".into())).await;
    let svid = plane.join("shop/orders", &[]).await;
    let mut agent = plane.subscribe(&svid).await;
    agent.say(hello(ORDERS, &["shop/orders"], &[])).await;
    let first = agent.update().await;
    agent.ack(&first).await;
    assert_eq!(agent.end().await.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_nothing_and_second_hellos_end_the_stream() {
    let plane = Plane::start().await;
    let svid = plane.join("shop/orders", &[]).await;
    for message in [
        Message::Ack(v1::Ack { nonce: 99, revision: 1 }),
        Message::Nack(v1::Nack { nonce: 99, revision: 1, reason: String::new() }),
        hello(ORDERS, &[], &[]),
    ] {
        let mut agent = plane.subscribe(&svid).await;
        agent.say(hello(ORDERS, &["shop/orders"], &[])).await;
        agent.update().await;
        agent.say(message).await;
        assert_eq!(agent.end().await.code(), Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotating_asks_the_agents_and_ends_when_each_holds_a_new_certificate() {
    let plane = Plane::start().await;
    let svid = plane.join("shop/orders", &[]).await;
    let mut agent = plane.subscribe(&svid).await;
    agent.say(hello(MORE, &["shop/orders"], &[])).await;
    let first = agent.update().await;
    agent.ack(&first).await;
    let mut admin = plane.admin().await;
    let wrong = v1::RotateCertificatesRequest { identity: "shop/order".into() };
    let status = admin.rotate_certificates(wrong).await.unwrap_err();
    assert!(status.code() == Code::NotFound && status.message().contains("shop/sa/orders"), "{status:?}");
    let request = v1::RotateCertificatesRequest { identity: "shop/orders".into() };
    let mut rotation = admin.rotate_certificates(request).await.unwrap().into_inner();
    let status = rotation.message().await.unwrap().unwrap();
    assert_eq!((status.agents, status.renewed, status.done), (1, 0, false));
    assert!(matches!(agent.next().await.unwrap(), Some(v1::subscribe_response::Message::RenewIdentity(_))));
    let key = rcgen::KeyPair::generate().unwrap();
    let renewed = plane.issue(Some(&svid), crate::harness::by_renewal(crate::harness::csr(&key, |_| {}))).await.unwrap();
    let status = v1::IdentityStatus {
        identity: renewed.identity.clone(),
        serial: renewed.serial.clone(),
        not_before: renewed.not_before,
        not_after: renewed.not_after,
    };
    agent.say(Message::Identity(status)).await;
    let status = rotation.message().await.unwrap().unwrap();
    assert_eq!((status.renewed, status.done), (1, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_report_only_their_own_calls_and_operators_find_them() {
    let plane = Plane::start().await;
    plane.apply(&policy("shop/orders", "orders")).await;
    let svid = plane.join("shop/orders", &[]).await;
    let record = |effect: &str, destination: &str| v1::DecisionRecord {
        request_id: format!("request-{effect}"),
        side: v1::Side::Inbound.into(),
        source: "spiffe://mesh.internal/ns/shop/sa/web".into(),
        destination: destination.into(),
        port: 80,
        protocol: v1::Protocol::Http.into(),
        method: "POST".into(),
        host: "orders.shop".into(),
        path: "/x".into(),
        effect: effect.into(),
        ..v1::DecisionRecord::default()
    };
    let batch = |decisions| tokio_stream::iter([v1::ReportRequest { decisions, dropped: 0 }]);
    let mut client = plane.telemetry(&svid).await;
    let mut report = async |decisions| client.report(batch(decisions)).await?.into_inner().message().await;
    let taken = |stored, refused| Some(v1::ReportResponse { stored, refused });
    let own = vec![record("allow", "shop/orders"), record("deny", "shop/orders")];
    assert_eq!(report(own).await.unwrap(), taken(2, 0));
    let stranger = v1::DecisionRecord { request_id: "stranger".into(), source: String::new(), ..record("deny", "") };
    let long = v1::DecisionRecord { path: "x".repeat(1025), ..record("allow", "shop/orders") };
    let mixed = vec![record("allow", "shop/web"), stranger, long, record("perhaps", "shop/orders")];
    assert_eq!(report(mixed).await.unwrap(), taken(2, 2), "what is wrong costs only itself");
    let many = vec![record("allow", "shop/orders"); 1001];
    assert_eq!(report(many).await.unwrap_err().code(), Code::ResourceExhausted);
    let mut admin = plane.admin().await;
    let request = v1::ListDecisionsRequest { denied_only: true, destination: "shop/orders".into(), limit: 0 };
    let denied = admin.list_decisions(request).await.unwrap().into_inner().decisions;
    assert_eq!(denied.iter().map(|record| record.request_id.as_str()).collect::<Vec<_>>(), ["request-deny"]);
    let subject = v1::explain_request::Subject::RequestId("request-deny".into());
    let why = admin.explain(v1::ExplainRequest { subject: Some(subject) }).await.unwrap().into_inner();
    assert_eq!((why.effect.as_str(), why.records.len(), why.near_misses[0].rule.as_str()), ("deny", 1, "shop/orders/reads"));
    let subject = v1::explain_request::Subject::RequestId("nobody".into());
    assert_eq!(admin.explain(v1::ExplainRequest { subject: Some(subject) }).await.unwrap_err().code(), Code::NotFound);
}
