//! Several control planes on one PostgreSQL: to operators and agents they are one.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use outrider_control_plane::{Raw, StartError};
use outrider_proto::v1::{self, subscribe_request::Message};
use prost::Message as _;
use tempfile::TempDir;
use tonic::Code;

use crate::{
    harness::{Agent, Plane, by_renewal, by_token, csr, hello, policy, settings, start},
    postgres::Cluster,
};

const ONE: &str = "00000000-0000-7000-8000-000000000001";
const TWO: &str = "00000000-0000-7000-8000-000000000002";

/// A database and a key that replicas share.
struct Shared {
    url: String,
    key: PathBuf,
    _dir: TempDir,
}

impl Shared {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { url: Cluster::shared().database(), key: dir.path().join("key"), _dir: dir }
    }

    fn tweak(&self) -> impl FnOnce(&mut Raw) + use<> {
        let (url, key) = (self.url.clone(), self.key.clone());
        move |raw| {
            raw.store = Some(url);
            raw.key_file = Some(key);
            raw.endpoint_grace = Some("400ms".into());
        }
    }

    async fn replica(&self) -> Plane {
        Plane::start_with(self.tweak()).await
    }
}

async fn last(mut rollout: tonic::Streaming<v1::RolloutStatus>) -> v1::RolloutStatus {
    loop {
        let status = rollout.message().await.unwrap().expect("a last message");
        if status.done {
            return status;
        }
    }
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        let mut poll = tokio::time::interval(Duration::from_millis(20));
        loop {
            poll.tick().await;
            if let Some(seen) = look().await {
                return seen;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), looking).await.unwrap_or_else(|_| panic!("never: {what}"))
}

async fn agents(plane: &Plane) -> Vec<v1::AgentStatus> {
    plane.admin().await.list_agents(v1::ListAgentsRequest {}).await.unwrap().into_inner().agents
}

async fn services(plane: &Plane) -> BTreeSet<String> {
    let listed = plane.admin().await.list_services(v1::ListServicesRequest::default()).await.unwrap().into_inner();
    listed.services.into_iter().filter_map(|one| one.service).map(|service| service.name).collect()
}

async fn member(plane: &Plane, id: &str, service: &str) -> Agent {
    let svid = plane.join(service, &[]).await;
    let mut agent = plane.subscribe(&svid).await;
    agent.say(hello(id, &[service], &[])).await;
    let first = agent.update().await;
    agent.ack(&first).await;
    agent
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_applied_at_one_replica_is_in_force_at_the_agents_of_all_before_the_wait_for_it_ends() {
    let shared = Shared::new();
    let (here, there) = (shared.replica().await, shared.replica().await);
    let mut near = member(&here, ONE, "shop/orders").await;
    let mut far = member(&there, TWO, "shop/orders").await;
    let applied = here.apply(&policy("shop/orders", "orders")).await;
    let rollout = here.admin().await.watch_rollout(v1::WatchRolloutRequest { revision: applied.revision }).await.unwrap();
    let mut rollout = rollout.into_inner();
    let first = rollout.message().await.unwrap().unwrap();
    assert_eq!((first.agents, first.done), (2, false), "{first:?}");
    for agent in [&mut near, &mut far] {
        let update = agent.update().await;
        assert_eq!(update.upserts.iter().map(|resource| resource.name.as_str()).collect::<Vec<_>>(), ["shop/orders"]);
        agent.ack(&update).await;
    }
    let done = last(rollout).await;
    assert_eq!((done.agents, done.in_force), (2, 2));
    for plane in [&here, &there] {
        until("both see both", async || {
            let agents = agents(plane).await;
            let known = agents.iter().filter(|agent| agent.connected && agent.revision >= applied.revision);
            (known.count() == 2).then_some(())
        })
        .await;
        let listed = plane.admin().await.list_policies(v1::ListPoliciesRequest::default()).await.unwrap().into_inner();
        assert_eq!(listed.policies.len(), 1);
    }
    // A refusal travels the same way.
    let bad = there.apply(&policy("shop/bad", "orders")).await;
    let update = near.update().await;
    near.nack(&update, "no").await;
    let update = far.update().await;
    far.ack(&update).await;
    let rollout = there.admin().await.watch_rollout(v1::WatchRolloutRequest { revision: bad.revision }).await.unwrap();
    let done = last(rollout.into_inner()).await;
    assert_eq!((done.agents, done.in_force, done.laggards[0].reason.as_str()), (2, 1, "no"));
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_that_are_applied_at_two_replicas_at_once_are_all_stored_each_at_a_revision_of_its_own() {
    let shared = Shared::new();
    let (here, there) = (shared.replica().await, shared.replica().await);
    let apply = async |plane: &Plane, side: &str| {
        let mut revisions = Vec::new();
        for number in 0..12 {
            revisions.push(plane.apply(&policy(&format!("shop/{side}{number}"), "orders")).await.revision);
        }
        revisions
    };
    let (left, right) = tokio::join!(apply(&here, "left"), apply(&there, "right"));
    assert_eq!(left.iter().chain(&right).collect::<BTreeSet<_>>().len(), 24);
    for plane in [&here, &there] {
        until("both know all", async || {
            let listed = plane.admin().await.list_policies(v1::ListPoliciesRequest::default()).await.unwrap().into_inner();
            (listed.policies.len() == 24).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_works_once_at_any_replica_and_a_renewal_at_any_other() {
    let shared = Shared::new();
    let (here, there) = (shared.replica().await, shared.replica().await);
    let token = here.token("shop/web", &["shop/web"]).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let issued = there.issue(None, by_token(&token, csr(&key, |_| {}))).await.unwrap();
    let again = here.issue(None, by_token(&token, csr(&key, |_| {}))).await.unwrap_err();
    assert_eq!(again.code(), Code::Unauthenticated, "{again:?}");
    let svid = crate::harness::Svid::new(&key, issued);
    let renewed = here.issue(Some(&svid), by_renewal(csr(&key, |_| {}))).await.unwrap();
    // Each signs with an issuing CA of its own, under one root.
    assert_ne!(svid.chain[1].as_ref(), renewed.chain[1].as_slice());
    assert_eq!(svid.response.bundle, renewed.bundle);
    let request = v1::ListCertificatesRequest { all: true };
    let listed = there.admin().await.list_certificates(request).await.unwrap().into_inner().certificates;
    assert_eq!(listed.iter().filter(|one| one.identity.ends_with("/web")).count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_moves_to_another_replica_stays_in_the_mesh_and_one_that_does_not_goes() {
    let shared = Shared::new();
    let (here, there) = (shared.replica().await, shared.replica().await);
    let moves = here.join("shop/orders", &[]).await;
    let mut first = here.subscribe(&moves).await;
    first.say(hello(ONE, &["shop/orders"], &[])).await;
    first.update().await;
    let stays = member(&here, TWO, "shop/vault").await;
    until("both know both", async || (services(&there).await.len() == 2).then_some(())).await;
    // Both lose their streams; one comes back elsewhere.
    drop((first, stays));
    let mut second = there.subscribe(&moves).await;
    second.say(hello(ONE, &["shop/orders"], &[])).await;
    second.update().await;
    for plane in [&here, &there] {
        until("the other one is gone", async || (!services(plane).await.contains("shop/vault")).then_some(())).await;
        assert!(services(plane).await.contains("shop/orders"), "the one that moved was taken out");
    }
    // Where its stream goes is told a moment after it is part of the mesh.
    until("the one that moved is known to be connected", async || {
        agents(&here).await.iter().any(|agent| agent.agent_id == ONE && agent.connected).then_some(())
    })
    .await;
    // A goodbye is known to all.
    second.say(Message::Goodbye(v1::Goodbye {})).await;
    until("it is gone", async || services(&here).await.is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_id_belongs_to_its_identity_at_every_replica() {
    let shared = Shared::new();
    let (here, there) = (shared.replica().await, shared.replica().await);
    let _owner = member(&here, ONE, "shop/orders").await;
    let thief = there.join("shop/thief", &[]).await;
    let agent = there.subscribe(&thief).await;
    agent.say(hello(ONE, &["shop/thief"], &[])).await;
    assert_eq!(agent.end().await.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_rotated_at_the_agents_of_all_replicas() {
    let shared = Shared::new();
    let (here, there) = (shared.replica().await, shared.replica().await);
    let mut far = member(&there, TWO, "shop/orders").await;
    until("it is known here", async || agents(&here).await.iter().any(|agent| agent.connected).then_some(())).await;
    let request = v1::RotateCertificatesRequest { identity: "shop/orders".into() };
    let mut rotation = here.admin().await.rotate_certificates(request).await.unwrap().into_inner();
    assert_eq!(rotation.message().await.unwrap().unwrap().agents, 1);
    assert!(matches!(far.next().await.unwrap(), Some(v1::subscribe_response::Message::RenewIdentity(_))));
    let identity = "spiffe://mesh.internal/ns/shop/sa/orders".to_owned();
    let status = v1::IdentityStatus { identity, serial: "abcd".into(), not_after: i64::MAX, ..Default::default() };
    far.say(Message::Identity(status)).await;
    let done = async {
        while let Some(status) = rotation.message().await.unwrap() {
            if status.done {
                return status.renewed;
            }
        }
        0
    };
    assert_eq!(done.await, 1);
}

/// Roots that a replica believes.
async fn believed(plane: &Plane) -> Vec<String> {
    let status = plane.admin().await.status(v1::StatusRequest {}).await.unwrap().into_inner();
    status.certificate_authorities.into_iter().filter(|one| one.role == "root").map(|one| one.serial).collect()
}

/// Roots that the agent of a stream was told of, once it is told of so many.
async fn told_of(agent: &mut Agent, roots: usize) {
    loop {
        let update = agent.update().await;
        agent.ack(&update).await;
        let bundle = update.upserts.iter().find(|one| one.kind() == v1::ResourceKind::TrustBundle);
        if bundle.is_some_and(|one| v1::TrustBundle::decode(one.body.as_slice()).unwrap().roots.len() == roots) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_one_replica_began_is_taken_back_at_another_for_the_agents_of_all() {
    let shared = Shared::new();
    let (one, two) = (shared.replica().await, shared.replica().await);
    let before = believed(&one).await;
    let (mut here, mut there) = (member(&one, ONE, "shop/orders").await, member(&two, TWO, "shop/files").await);
    let ask = async |plane: &Plane, step: bool, abort: bool| {
        let mut asked = plane.admin().await.rotate_ca(v1::RotateCaRequest { step, abort, skip_away: true }).await?.into_inner();
        while asked.message().await?.is_some_and(|rotation| !rotation.reached) {}
        Ok::<_, tonic::Status>(())
    };
    ask(&one, true, false).await.unwrap();
    ask(&two, true, false).await.unwrap();
    told_of(&mut here, 2).await;
    told_of(&mut there, 2).await;
    for plane in [&one, &two] {
        until("both roots are believed", async || (believed(plane).await.len() == 2).then_some(())).await;
    }
    ask(&two, false, true).await.unwrap();
    told_of(&mut here, 1).await;
    told_of(&mut there, 1).await;
    for plane in [&one, &two] {
        until("the old root alone is believed", async || (believed(plane).await == before).then_some(())).await;
        assert_eq!(ask(plane, false, true).await.unwrap_err().code(), Code::FailedPrecondition, "there is nothing left to abort");
        plane.join("shop/web", &[]).await;
    }
    // Whichever of them begins the next one.
    ask(&one, true, false).await.unwrap();
    let rotation = two.admin().await.get_ca_rotation(v1::GetCaRotationRequest {}).await.unwrap().into_inner();
    assert_eq!(rotation.phase(), v1::ca_rotation::Phase::Prepared);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_is_refused_while_another_replica_lives_and_can_be_had_when_it_has_left() {
    let shared = Shared::new();
    let (here, there) = (shared.replica().await, shared.replica().await);
    let request = |yaml: String| v1::CanaryRequest {
        manifests: vec![v1::Manifest { source: "t".into(), yaml }],
        percent: 50,
        watch_seconds: 1,
        ..Default::default()
    };
    let ask = async |yaml: String| here.admin().await.canary(request(yaml)).await;
    // A replica counts by its signs of life, which a busy machine holds up: asked with what could not begin anyway.
    let refused = until("it is refused", async || ask("kind: [".into()).await.err()).await;
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("2 run on this store"), "{refused:?}");
    there.stop().await;
    until("it can be had", async || match ask(policy("shop/orders", "orders")).await {
        Ok(_) => Some(()),
        Err(status) => {
            // One whose farewell was lost counts for some seconds more.
            assert!(status.message().contains("2 run on this store"), "{status:?}");
            None
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_under_one_replica_name_are_not_let_in() {
    let shared = Shared::new();
    let _first = Plane::start_with(|raw| {
        shared.tweak()(raw);
        raw.replica = Some("a".into());
    })
    .await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let mut raw = settings(dir.path());
    shared.tweak()(&mut raw);
    raw.replica = Some("a".into());
    assert!(matches!(start(raw).await, Err(StartError::Twin(name)) if name == "a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_another_key_is_not_let_in() {
    let shared = Shared::new();
    let _first = shared.replica().await;
    let dir = tempfile::tempdir().unwrap();
    let mut raw = settings(dir.path());
    shared.tweak()(&mut raw);
    raw.key_file = Some(dir.path().join("another"));
    std::fs::write(dir.path().join("another"), "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    std::fs::set_permissions(dir.path().join("another"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let error = start(raw).await.err().unwrap().to_string();
    assert!(error.contains("all replicas on one store use the same key"), "{error}");
}
