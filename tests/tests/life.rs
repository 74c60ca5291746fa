//! Starting, stopping and bad settings: clear errors, nothing lost.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    process::{Command, Output},
    time::Duration,
};

use outrider_tests::{AgentOptions, Backend, Mesh, MeshOptions, Outcome, allow, program, through_proxy};

fn agent(arguments: &[&str]) -> Output {
    Command::new(program("outrider-agent")).args(arguments).output().expect("the agent runs")
}

fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_request_under_way_is_finished_before_the_agent_ends() -> Outcome {
    let backend = Backend::start().await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/orders:80/http={}", backend.address)];
    let mut orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
    let mut web = mesh.agent("shop/web", AgentOptions::default()).await;
    mesh.apply(&allow("all", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"));
    let call = through_proxy(web.outbound, "GET", "http://orders.shop/slow", "");
    let stop = async {
        while backend.seen().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        orders.process.signal("TERM");
        web.process.signal("TERM");
    };
    let (answer, ()) = tokio::join!(call, stop);
    assert_eq!(answer?.status, 200);
    assert!(orders.process.wait(Duration::from_secs(10)).success());
    assert!(web.process.wait(Duration::from_secs(10)).success());
    assert!(web.access_log().await.iter().any(|line| line["status"] == 200), "the last lines of the log are written");
    Ok(())
}

#[tokio::test]
async fn every_mistake_in_the_settings_is_named_at_once() -> Outcome {
    let text = complaint(&agent(&["--service", "shop/orders", "--workers", "0"]));
    for flag in ["--control-plane", "--state-dir", "--service", "--workers"] {
        assert!(text.contains(flag), "{flag}: {text}");
    }
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("agent.yaml");
    std::fs::write(&file, "control-plane: 127.0.0.1:1\nstate-dri: /x\n")?;
    let text = complaint(&agent(&["--config", &file.display().to_string()]));
    assert!(text.contains("agent.yaml") && text.contains("state-dri") && text.contains("line 2"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_port_in_use_and_an_unwritable_directory_are_named_with_the_way_out() -> Outcome {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state").display().to_string();
    let text = complaint(&agent(&["--control-plane", "127.0.0.1:1", "--state-dir", &state, "--mesh", &address]));
    assert!(text.contains(&address) && text.contains("in use") && text.contains("--mesh"), "{text}");

    let file = tempfile::NamedTempFile::new()?;
    let text =
        complaint(&agent(&["--control-plane", "127.0.0.1:1", "--state-dir", &file.path().join("x").display().to_string()]));
    assert!(text.contains("--state-dir"), "{text}");
    Ok(())
}

#[tokio::test]
async fn without_certificate_and_token_the_way_to_one_is_told() -> Outcome {
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state").display().to_string();
    let free = ["--mesh", "127.0.0.1:0", "--outbound", "127.0.0.1:0", "--health", "127.0.0.1:0"];
    let text = complaint(&agent(&[&["--control-plane", "127.0.0.1:1", "--state-dir", &state], free.as_slice()].concat()));
    assert!(text.contains("outrider token create"), "{text}");
    Ok(())
}

#[tokio::test]
async fn tokens_work_once_for_one_identity_and_never_for_a_stranger_control_plane() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let other = Mesh::start(MeshOptions::default()).await;
    let token = mesh.token("shop/web", &[]).await;
    let address = mesh.address.to_string();
    let start = |name: &str, more: &[&str]| {
        let state = mesh.dir.path().join(name).display().to_string();
        let free = ["--mesh", "127.0.0.1:0", "--outbound", "127.0.0.1:0", "--health", "127.0.0.1:0", "--access-log", "off"];
        agent(&[&["--state-dir", &state], free.as_slice(), more].concat())
    };
    let text = complaint(&start("a", &["--control-plane", &address, "--token", &token, "--identity", "shop/boss"]));
    assert!(text.contains("shop/sa/web"), "for another identity: {text}");
    let text = complaint(&start("b", &["--control-plane", &other.address.to_string(), "--token", &token]));
    assert!(text.contains("UnknownIssuer") || text.contains("certificate"), "a control plane without the pinned root: {text}");

    // Neither used it up.
    let agent = mesh.agent("shop/other", AgentOptions::default()).await;
    drop(agent);
    let state = mesh.dir.path().join("c").display().to_string();
    let arguments = ["--state-dir", &state, "--control-plane", &address, "--token", &token, "--access-log", "off"];
    let free = ["--mesh", "127.0.0.1:0", "--outbound", "127.0.0.1:0", "--health", "127.0.0.1:0"];
    let mut joined = outrider_tests::Process::start("joined", Command::new(program("outrider-agent")).args(arguments).args(free));
    joined.wait_for("view in force");

    let text = complaint(&start("d", &["--control-plane", &address, "--token", &token]));
    assert!(text.contains("used"), "a second time: {text}");
    Ok(())
}

#[tokio::test]
async fn the_control_plane_killed_while_policies_are_applied_keeps_what_it_acknowledged() -> Outcome {
    let mut mesh = Mesh::start(MeshOptions::default()).await;
    let mut acknowledged = Vec::new();
    for round in 0..5 {
        let mut admin = mesh.admin().await;
        let killer = async {
            tokio::time::sleep(Duration::from_millis(30 + 37 * round)).await;
        };
        let apply = async {
            for number in 0.. {
                let name = format!("p{round}-{number}");
                let yaml = format!(
                    "{}---\n{}",
                    allow(&format!("{name}-a"), "shop/orders", "[shop/web]", "[GET]", "[\"/a\"]"),
                    allow(&format!("{name}-b"), "shop/orders", "[shop/web]", "[GET]", "[\"/b\"]")
                );
                let manifests = vec![outrider_proto::v1::Manifest { source: "x".into(), yaml }];
                match admin
                    .apply(outrider_proto::v1::ApplyRequest { manifests, allow_unknown_services: true, ..Default::default() })
                    .await
                {
                    Ok(_) => acknowledged.push(name),
                    Err(_) => return,
                }
            }
        };
        tokio::select! {
            () = killer => {}
            () = apply => {}
        }
        mesh.control_plane.kill();
        mesh.restart_control_plane().await;
        let listed =
            mesh.admin().await.list_policies(outrider_proto::v1::ListPoliciesRequest::default()).await?.into_inner().policies;
        let names: Vec<_> = listed.iter().map(|policy| policy.name.clone()).collect();
        for name in &acknowledged {
            for half in ["a", "b"] {
                assert!(names.contains(&format!("shop/{name}-{half}")), "{name}-{half} was acknowledged and is gone");
            }
        }
        let pairs: Vec<_> = names.iter().filter_map(|name| name.strip_suffix("-a")).collect();
        assert_eq!(pairs.len() * 2, names.len(), "halves: {names:?}");
    }
    assert!(acknowledged.len() > 5, "{acknowledged:?}");
    Ok(())
}
