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

use crate::harness::policy;

/// Kills of one run.
const KILLS: u64 = 12;
/// Policies of one apply: all or none of them must be there.
const TOGETHER: usize = 8;

fn spawn(state: &Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_outrider-control-plane"))
        .args(["--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0", "--log-format", "json", "--state-dir"])
        .arg(state)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let ready = lines.by_ref().map_while(Result::ok).any(|line| line.contains("control plane is ready"));
    assert!(ready, "it did not start");
    std::thread::spawn(move || lines.count());
    child
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
