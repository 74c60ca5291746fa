//! Operators on other machines: login, roles, removal, and the log of what they do.

use std::{sync::Arc, time::Duration};

use outrider_proto::v1::{self, admin_client::AdminClient, operator_client::OperatorClient};
use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{Code, Status, transport::Channel};

use crate::harness::{PATIENCE, Plane, Svid, connect, csr, policy};

async fn plane() -> Plane {
    Plane::start_with(|raw| raw.operators = Some("127.0.0.1:0".into())).await
}

struct Ann {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    answer: v1::LoginResponse,
}

impl Ann {
    fn new(key: &KeyPair, answer: v1::LoginResponse) -> Self {
        let chain = answer.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        Self { chain, key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())), answer }
    }

    async fn channel(&self, plane: &Plane) -> Channel {
        connect(plane.running.operators.unwrap(), Some((self.chain.clone(), self.key.clone_key()))).await.unwrap()
    }

    async fn admin(&self, plane: &Plane) -> AdminClient<Channel> {
        AdminClient::new(self.channel(plane).await)
    }
}

async fn invite(plane: &Plane, name: &str, role: &str) -> Result<v1::CreateOperatorResponse, Status> {
    let request = v1::CreateOperatorRequest { name: name.into(), role: role.into(), ttl_seconds: 0 };
    plane.admin().await.create_operator(request).await.map(tonic::Response::into_inner)
}

async fn login(plane: &Plane, token: &str, csr: Vec<u8>) -> Result<v1::LoginResponse, Status> {
    let channel = connect(plane.running.operators.unwrap(), None).await.unwrap();
    OperatorClient::new(channel).login(v1::LoginRequest { token: token.into(), csr }).await.map(tonic::Response::into_inner)
}

/// Invited and logged in.
async fn operator(plane: &Plane, name: &str, role: &str) -> Ann {
    let token = invite(plane, name, role).await.unwrap().token;
    let key = KeyPair::generate().unwrap();
    Ann::new(&key, login(plane, &token, csr(&key, |_| {})).await.unwrap())
}

async fn apply(mut admin: AdminClient<Channel>) -> Result<u64, Code> {
    let manifests = vec![v1::Manifest { source: "t.yaml".into(), yaml: policy("shop/orders", "orders") }];
    let answer = admin.apply(v1::ApplyRequest { manifests, dry_run: false, allow_unknown_services: true }).await;
    answer.map(|answer| answer.into_inner().revision).map_err(|status| status.code())
}

async fn audit(plane: &Plane) -> Vec<v1::AuditEntry> {
    plane.admin().await.list_audit(v1::ListAuditRequest::default()).await.unwrap().into_inner().entries
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_token_works_once_and_gives_a_certificate_that_names_the_operator_alone() {
    let plane = plane().await;
    let invited = invite(&plane, "ann", "editor").await.unwrap();
    assert_eq!(invited.control_plane, plane.running.operators.unwrap().to_string());
    let key = KeyPair::generate().unwrap();
    let foreign = csr(&key, |params| params.subject_alt_names = vec![crate::harness::uri("spiffe://mesh.internal/operator/bob")]);
    assert_eq!(login(&plane, &invited.token, b"x".to_vec()).await.unwrap_err().code(), Code::InvalidArgument, "and not used up");
    let ann = Ann::new(&key, login(&plane, &invited.token, csr(&key, |_| {})).await.unwrap());
    assert_eq!((ann.answer.identity.as_str(), ann.answer.role.as_str()), ("spiffe://mesh.internal/operator/ann", "editor"));
    let again = login(&plane, &invited.token, csr(&key, |_| {})).await.unwrap_err();
    let unknown = login(&plane, &invited.token.replace("orl1.", "orl1.A"), csr(&key, |_| {})).await.unwrap_err();
    assert_eq!(
        (again.code(), again.message()),
        (Code::Unauthenticated, unknown.message()),
        "who holds no right secret learns nothing"
    );
    let token = invite(&plane, "carl", "viewer").await.unwrap().token;
    assert_eq!(login(&plane, &token, foreign).await.unwrap_err().code(), Code::InvalidArgument, "another operator's name");
    for (name, role) in [("Ann", "viewer"), ("a/b", "viewer"), ("", "viewer"), ("ann", "root"), ("ann", "")] {
        assert_eq!(invite(&plane, name, role).await.unwrap_err().code(), Code::InvalidArgument, "{name} {role}");
    }
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_what_it_may_and_no_more_and_every_change_or_try_is_on_record() {
    let plane = plane().await;
    let (viewer, editor, admin) = (
        operator(&plane, "vera", "viewer").await,
        operator(&plane, "ed", "editor").await,
        operator(&plane, "ada", "admin").await,
    );
    assert_eq!(apply(viewer.admin(&plane).await).await, Err(Code::PermissionDenied));
    let revision = apply(editor.admin(&plane).await).await.unwrap();
    assert!(viewer.admin(&plane).await.list_policies(v1::ListPoliciesRequest::default()).await.is_ok());
    let token = || v1::CreateTokenRequest { identity: "shop/web".into(), ..Default::default() };
    let refused = editor.admin(&plane).await.create_token(token()).await.unwrap_err();
    assert!(refused.code() == Code::PermissionDenied && refused.message().contains("admin"), "{refused}");
    assert!(admin.admin(&plane).await.create_token(token()).await.is_ok());
    let entries = audit(&plane).await;
    let short: Vec<_> =
        entries.iter().map(|one| (one.who.rsplit('/').next().unwrap(), one.call.as_str(), one.outcome.as_str())).collect();
    assert_eq!(
        &short[..4],
        [
            ("ada", "CreateToken", "ok"),
            ("ed", "CreateToken", "permission_denied"),
            ("ed", "Apply", "ok"),
            ("vera", "Apply", "permission_denied"),
        ]
    );
    let applied = &entries[2];
    assert_eq!((applied.role.as_str(), applied.subject.as_str(), applied.revision), ("editor", "shop/orders", revision));
    let revisions = plane.admin().await.list_revisions(v1::ListRevisionsRequest::default()).await.unwrap().into_inner().revisions;
    assert_eq!(revisions.iter().map(|one| one.who.as_str()).collect::<Vec<_>>(), ["spiffe://mesh.internal/operator/ed"]);
    assert!(applied.from.starts_with("127.0.0.1:") && entries.last().unwrap().from == "unix socket", "{entries:?}");
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_operator_is_refused_at_once_and_open_streams_end() {
    let plane = plane().await;
    let ann = operator(&plane, "ann", "admin").await;
    let web = plane.join("shop/orders", &["shop/orders"]).await;
    // An agent that never answers: a rollout to follow for ever.
    let mut agent = plane.subscribe(&web).await;
    agent.say(crate::harness::hello("00000000-0000-0000-0000-000000000001", &["shop/orders"], &[])).await;
    agent.update().await;
    let revision = apply(ann.admin(&plane).await).await.unwrap();
    let mut admin = ann.admin(&plane).await;
    let mut rollout = admin.watch_rollout(v1::WatchRolloutRequest { revision }).await.unwrap().into_inner();
    assert!(!rollout.message().await.unwrap().unwrap().done);
    plane.admin().await.remove_operator(v1::RemoveOperatorRequest { name: "ann".into() }).await.unwrap();
    let end = timeout(PATIENCE, async {
        loop {
            match rollout.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status.code()),
            }
        }
    });
    assert!(end.await.expect("the stream ends").is_some(), "not in good order");
    let late = ann.admin(&plane).await.status(v1::StatusRequest {}).await.unwrap_err();
    assert_eq!(late.code(), Code::PermissionDenied);
    let renewal = v1::RenewLoginRequest { csr: csr(&KeyPair::generate().unwrap(), |_| {}) };
    let renewal = OperatorClient::new(ann.channel(&plane).await).renew_login(renewal).await.unwrap_err();
    assert_eq!(renewal.code(), Code::PermissionDenied);
    let gone = plane.admin().await.remove_operator(v1::RemoveOperatorRequest { name: "ann".into() }).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_whose_certificate_is_revoked_loses_open_streams_and_every_call_until_another_login() {
    let plane = plane().await;
    let ann = operator(&plane, "ann", "admin").await;
    let web = plane.join("shop/orders", &["shop/orders"]).await;
    let mut agent = plane.subscribe(&web).await;
    agent.say(crate::harness::hello("00000000-0000-0000-0000-000000000001", &["shop/orders"], &[])).await;
    agent.update().await;
    let mut admin = ann.admin(&plane).await;
    let revision = apply(admin.clone()).await.unwrap();
    let mut rollout = admin.watch_rollout(v1::WatchRolloutRequest { revision }).await.unwrap().into_inner();
    assert!(!rollout.message().await.unwrap().unwrap().done);
    let (_, leaf) = x509_parser::parse_x509_certificate(&ann.chain[0]).unwrap();
    let subject = leaf.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
    plane.admin().await.revoke(v1::RevokeRequest { subject, reason: "laptop stolen".into() }).await.unwrap();
    let end = timeout(PATIENCE, async { while let Ok(Some(_)) = rollout.message().await {} });
    end.await.expect("the stream ends");
    assert!(admin.status(v1::StatusRequest {}).await.is_err(), "on the same connection");
    let renewal = v1::RenewLoginRequest { csr: csr(&KeyPair::generate().unwrap(), |_| {}) };
    let again = connect(plane.running.operators.unwrap(), Some((ann.chain.clone(), ann.key.clone_key()))).await;
    let refused = match again {
        Ok(channel) => OperatorClient::new(channel).renew_login(renewal).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "nor a new certificate");
    assert!(operator(&plane, "ann", "admin").await.admin(&plane).await.status(v1::StatusRequest {}).await.is_ok());
    plane.stop().await;
}

/// Asks for steps of a change of the trust anchor, and waits until they are made.
async fn rotate(plane: &Plane, step: bool) {
    let request = v1::RotateCaRequest { step, skip_away: true, ..Default::default() };
    let mut told = plane.admin().await.rotate_ca(request).await.unwrap().into_inner();
    while told.message().await.unwrap().is_some_and(|rotation| !rotation.reached) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_connection_ends_when_the_root_of_its_certificate_is_retired_and_none_is_made_with_it() {
    let plane = plane().await;
    let ann = operator(&plane, "ann", "admin").await;
    let door = plane.running.operators.unwrap();
    let open = async || {
        let config = crate::harness::client_config(Some((ann.chain.clone(), ann.key.clone_key())));
        let name = ServerName::try_from("control-plane.invalid").unwrap();
        let stream = TcpStream::connect(door).await.unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
        // The settings of the server: it has let us in.
        stream.read_exact(&mut [0; 9]).await?;
        Ok::<_, std::io::Error>(stream)
    };
    let ended = async |mut stream: TlsStream<TcpStream>| while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {};
    let (first, mut second) = (open().await.unwrap(), open().await.unwrap());
    // Prepared, distributing, issuing, proving.
    for _ in 0..4 {
        rotate(&plane, true).await;
    }
    second.write_all(b"\0\0\x08\x06\0\0\0\0\0pingping").await.unwrap();
    second.read_exact(&mut [0; 1]).await.expect("as long as the root is believed");
    rotate(&plane, false).await;
    // Earlier than the control plane would miss an answer to its pings.
    let both = async { tokio::join!(ended(first), ended(second)) };
    timeout(Duration::from_secs(15), both).await.expect("both end");
    assert!(open().await.is_err(), "nor is one made");
    let again = operator(&plane, "ann", "admin").await;
    assert!(again.admin(&plane).await.status(v1::StatusRequest {}).await.is_ok(), "a new login is of the new root");
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_certificate_is_renewed_over_itself_with_a_new_key() {
    let plane = plane().await;
    let ann = operator(&plane, "ann", "viewer").await;
    let key = KeyPair::generate().unwrap();
    let request = v1::RenewLoginRequest { csr: csr(&key, |_| {}) };
    let answer = OperatorClient::new(ann.channel(&plane).await).renew_login(request).await.unwrap().into_inner();
    let renewed = Ann::new(&key, answer);
    assert!(renewed.chain[0] != ann.chain[0] && renewed.answer.identity == ann.answer.identity);
    assert!(renewed.admin(&plane).await.status(v1::StatusRequest {}).await.is_ok());
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workloads_are_no_operators_operators_are_no_workloads_and_nobody_is_neither() {
    let plane = plane().await;
    let ann = operator(&plane, "ann", "admin").await;
    let web: Svid = plane.join("shop/web", &[]).await;
    let door = plane.running.operators.unwrap();
    let as_web = connect(door, Some((web.chain.clone(), web.key.clone_key()))).await;
    let refused = match as_web {
        Ok(channel) => AdminClient::new(channel).status(v1::StatusRequest {}).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "a workload is no operator");
    let as_agent = connect(plane.running.address, Some((ann.chain.clone(), ann.key.clone_key()))).await;
    let refused = match as_agent {
        Ok(channel) => {
            let request = v1::IssueJwtRequest { audience: vec!["orders".into()] };
            v1::identity_client::IdentityClient::new(channel).issue_jwt(request).await.is_err()
        }
        Err(_) => true,
    };
    assert!(refused, "an operator is no workload");
    let nobody = AdminClient::new(connect(door, None).await.unwrap()).status(v1::StatusRequest {}).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);
    let token = v1::CreateTokenRequest { identity: "spiffe://mesh.internal/operator/ann".into(), ..Default::default() };
    assert!(plane.admin().await.create_token(token).await.is_err(), "no join token makes an operator");
    plane.stop().await;
}
