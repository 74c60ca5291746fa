//! What was acknowledged is there, what was not is absent or whole: also when the process is killed at any moment.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use outrider_proto::v1::{self, admin_client::AdminClient};
use tonic::transport::{Channel, Endpoint};

use crate::{
    harness::{by_token, connect, csr, policy},
    postgres::{Cluster, Disk},
};

/// Kills of one run.
const KILLS: u64 = 12;
/// Policies of one apply: all or none of them must be there.
const TOGETHER: usize = 8;

fn spawn(state: &Path) -> Child {
    spawn_on(state, &[]).0
}

/// Starts it, and says where agents connect.
fn spawn_on(state: &Path, more: &[&str]) -> (Child, std::net::SocketAddr) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_outrider-control-plane"))
        .args(["--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0", "--log-format", "json", "--state-dir"])
        .arg(state)
        .args(more)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    let ready = lines.by_ref().map_while(Result::ok).find_map(|line| {
        said.push(line);
        let line = said.last()?;
        let (_, rest) = line.split_once("\"address\":\"").filter(|_| line.contains("control plane is ready"))?;
        rest.split('"').next()?.parse().ok()
    });
    let address = ready.unwrap_or_else(|| panic!("it did not start: {said:?}"));
    std::thread::spawn(move || lines.count());
    (child, address)
}

async fn admin(state: &Path) -> AdminClient<Channel> {
    let path = state.join("admin.sock");
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    });
    AdminClient::new(Endpoint::from_static("http://admin").connect_with_connector(connect).await.unwrap())
}

fn apply(round: u64) -> v1::ApplyRequest {
    let yaml = (0..TOGETHER).map(|index| policy(&format!("shop/r{round}-p{index}"), "orders")).collect::<Vec<_>>().join("---\n");
    v1::ApplyRequest {
        manifests: vec![v1::Manifest { source: "t".into(), yaml }],
        allow_unknown_services: true,
        ..v1::ApplyRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_in_the_middle_of_apply_loses_nothing_acknowledged_and_leaves_nothing_half_done() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let mut round = 0;
    let mut acknowledged = Vec::new();
    for kill in 0..KILLS {
        let mut child = spawn(&state);
        let mut client = admin(&state).await;
        let listed = client.list_policies(v1::ListPoliciesRequest::default()).await.unwrap().into_inner();
        for round in &acknowledged {
            let prefix = format!("shop/r{round}-");
            assert_eq!(
                listed.policies.iter().filter(|one| one.name.starts_with(&prefix)).count(),
                TOGETHER,
                "round {round} was lost"
            );
        }
        assert_eq!(listed.policies.len() % TOGETHER, 0, "an apply is half there");
        let revisions: std::collections::BTreeSet<u64> = listed.policies.iter().map(|one| one.revision).collect();
        assert_eq!(revisions.len(), listed.policies.len() / TOGETHER, "an apply has more than one revision");
        assert!(revisions.last().is_none_or(|newest| *newest <= listed.revision));
        let entries = client.list_audit(v1::ListAuditRequest { limit: 1000, ..Default::default() }).await.unwrap().into_inner();
        let entries = entries.entries.into_iter().filter(|one| one.outcome == "ok").map(|one| one.revision);
        assert_eq!(entries.collect::<std::collections::BTreeSet<u64>>(), revisions, "a change without its entry, or the reverse");
        // The moment of the kill differs from round to round: after 0 to some tens of milliseconds of applying.
        let moment = Duration::from_micros(kill * 7919 % 60_000);
        let killer = async {
            tokio::time::sleep(moment).await;
            child.kill().unwrap();
            child.wait().unwrap();
        };
        let applier = async {
            loop {
                round += 1;
                match client.apply(apply(round)).await {
                    Ok(applied) => {
                        assert_eq!(applied.into_inner().changes.len(), TOGETHER);
                        acknowledged.push(round);
                    }
                    Err(_) => return,
                }
            }
        };
        tokio::join!(killer, applier);
    }
    assert!(!acknowledged.is_empty(), "no apply was acknowledged: the test proves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_process_in_good_order() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let mut child = spawn(&state);
    admin(&state).await.apply(apply(1)).await.unwrap();
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert!(child.wait().unwrap().success());
    assert!(!state.join("admin.sock").exists());
    assert!(
        std::fs::metadata(state.join("store.db-wal")).map_or(0, |wal| wal.len()) == 0,
        "the log was not folded into the store"
    );
}

#[test]
fn mistakes_in_settings_end_the_process_with_all_of_them() {
    let output = Command::new(env!("CARGO_BIN_EXE_outrider-control-plane"))
        .args(["--listen", "nowhere", "--leaf-ttl", "1y", "--trust-domain", "A"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    for flag in ["--listen", "--leaf-ttl", "--trust-domain"] {
        assert!(text.contains(flag), "{flag} is missing in {text}");
    }
}

/// Kills of one run of issuances; OUTRIDER_KILLS changes it.
const KILLS_OF_ISSUANCE: usize = 6;
/// Certificates that are asked for at once.
const ASKED: usize = 12;

/// Joins of one round: `(identity, token)` each, and the serial if a certificate came back.
type Asked = Vec<(String, String, Option<Vec<u8>>)>;

async fn issue(address: std::net::SocketAddr, token: &str) -> Result<v1::IssueResponse, tonic::Status> {
    let unreachable = |_| tonic::Status::unavailable("no connection");
    let channel = connect(address, None).await.map_err(unreachable)?;
    let key = rcgen::KeyPair::generate().unwrap();
    v1::identity_client::IdentityClient::new(channel)
        .issue(by_token(token, csr(&key, |_| {})))
        .await
        .map(tonic::Response::into_inner)
}

/// What was acknowledged is on record; what was not is on record with its token used up, or neither.
async fn audit(client: &mut AdminClient<Channel>, address: std::net::SocketAddr, asked: &Asked) {
    let listed = client.list_certificates(v1::ListCertificatesRequest { all: true }).await.unwrap().into_inner().certificates;
    for (identity, token, answer) in asked {
        let of_identity: Vec<_> = listed.iter().filter(|one| one.identity.ends_with(identity.as_str())).collect();
        if let Some(leaf) = answer {
            let (_, leaf) = x509_parser::parse_x509_certificate(leaf).unwrap();
            let serial: String = leaf.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(of_identity.iter().any(|one| one.serial == serial), "an acknowledged leaf is not on record");
        }
        assert!(of_identity.len() <= 1, "one token made two leaves");
        let again = issue(address, token).await;
        assert_eq!(again.is_err(), of_identity.len() == 1, "a token and its leaf do not go together: {again:?}");
    }
}

async fn kills_during_issuance(state: &Path, more: &[&str]) {
    let kills = std::env::var_os("OUTRIDER_KILLS").and_then(|text| text.to_str()?.parse().ok()).unwrap_or(KILLS_OF_ISSUANCE);
    let mut asked = Asked::new();
    let mut acknowledged = 0;
    for kill in 0..=kills {
        let (mut child, address) = spawn_on(state, more);
        let mut client = admin(state).await;
        audit(&mut client, address, &asked).await;
        asked.clear();
        for number in 0..ASKED {
            let identity = format!("shop/k{kill}-{number}");
            let request = v1::CreateTokenRequest { identity: identity.clone(), ttl_seconds: 0, ..Default::default() };
            let token = client.create_token(request).await.unwrap().into_inner().token;
            asked.push((identity.replace('/', "/sa/"), token, None));
        }
        let issuing = futures_util::future::join_all(asked.iter().map(|(_, token, _)| issue(address, token)));
        // From before the first transaction to after the last: a prime, so that each kill comes at another moment.
        let pause = Duration::from_micros(u64::try_from(kill).unwrap() * 104_729 % 250_000);
        let killing = async {
            tokio::time::sleep(pause).await;
            child.kill().unwrap();
        };
        let (answers, ()) = tokio::join!(issuing, killing);
        child.wait().unwrap();
        for (one, answer) in asked.iter_mut().zip(answers) {
            one.2 = answer.ok().map(|issued| issued.chain[0].clone());
            acknowledged += usize::from(one.2.is_some());
        }
    }
    println!("{kills} kills, {acknowledged} certificates acknowledged before them");
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_during_issuance_on_sqlite_loses_no_leaf_and_halves_none() {
    let dir = tempfile::tempdir().unwrap();
    kills_during_issuance(&dir.path().join("state"), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_during_issuance_on_postgres_loses_no_leaf_and_halves_none() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(Disk::Durable, None);
    kills_during_issuance(&dir.path().join("state"), &["--store", &cluster.database()]).await;
}
