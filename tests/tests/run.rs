//! `outrider run`: a program with an agent beside it, and what happens to it when either goes.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use outrider_tests::{Mesh, MeshOptions, Outcome, Process, program};

/// `outrider run --service shop/web` of a shell script on this mesh.
fn run(mesh: &Mesh, script: &str) -> Command {
    let mut command = Command::new(program("outrider"));
    command
        .args(["run", "--service", "shop/web", "--", "sh", "-c", script])
        .env("OUTRIDER_ADMIN_SOCKET", mesh.admin_socket())
        .env("XDG_STATE_HOME", mesh.dir.path())
        .env_remove("OUTRIDER_CONTROL_PLANE")
        .stdin(std::process::Stdio::null());
    command
}

fn output(command: &mut Command) -> Output {
    command.output().expect("outrider runs")
}

/// What a script wrote into a file, once it holds `text`.
async fn written(path: &Path, text: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = fs::read_to_string(path).unwrap_or_default();
        if found.contains(text) {
            return found;
        }
        assert!(Instant::now() < deadline, "`{text}` is not in `{found}`");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a process of this id lives.
fn lives(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // The state stands after the name in parentheses.
    status.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[tokio::test]
async fn a_program_that_was_in_the_mesh_starts_without_the_control_plane() -> Outcome {
    let mut mesh = Mesh::start(MeshOptions::default()).await;
    let first = output(&mut run(&mesh, "echo $OUTRIDER_IDENTITY"));
    assert_eq!(String::from_utf8_lossy(&first.stdout).trim(), "spiffe://mesh.internal/ns/shop/sa/web", "{first:?}");
    mesh.control_plane.kill();
    let alone = output(&mut run(&mesh, "echo $OUTRIDER_IDENTITY; exit 3"));
    assert_eq!(alone.status.code(), Some(3), "{alone:?}");
    assert_eq!(alone.stdout, first.stdout);
    let named = mesh.address.to_string();
    let named = output(run(&mesh, "exit 4").env("OUTRIDER_CONTROL_PLANE", named));
    assert_eq!(named.status.code(), Some(4), "{named:?}");
    let stranger = output(run(&mesh, "exit 5").env("XDG_STATE_HOME", mesh.dir.path().join("empty")));
    let text = String::from_utf8_lossy(&stranger.stderr).into_owned();
    assert!(stranger.status.code() == Some(1) && text.contains("admin.sock"), "who never joined needs it: {text}");
    Ok(())
}

#[tokio::test]
async fn a_control_plane_that_was_made_anew_is_joined_again() -> Outcome {
    let mut mesh = Mesh::start(MeshOptions::default()).await;
    assert!(output(&mut run(&mesh, "exit 0")).status.success());
    mesh.control_plane.kill();
    fs::remove_dir_all(mesh.dir.path().join("control-plane"))?;
    mesh.restart_control_plane().await;
    let again = output(&mut run(&mesh, "exit 0"));
    assert!(again.status.success(), "{again:?}");
    let listed = mesh.admin().await.list_certificates(outrider_proto::v1::ListCertificatesRequest::default()).await?;
    let web = "spiffe://mesh.internal/ns/shop/sa/web";
    assert!(listed.into_inner().certificates.iter().any(|one| one.identity == web), "it has a certificate of the new root");
    Ok(())
}

#[tokio::test]
async fn signals_reach_the_program_as_they_are() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let heard = mesh.dir.path().join("heard");
    let file = heard.display();
    let script = format!(
        "for s in HUP USR1 USR2 QUIT; do trap \"echo $s >> {file}\" $s; done; trap 'exit 7' TERM; echo up >> {file}; \
         while :; do sleep 0.02; done"
    );
    let mut running = Process::start("outrider run", &mut run(&mesh, &script));
    written(&heard, "up").await;
    for signal in ["HUP", "USR1", "USR2", "QUIT"] {
        running.signal(signal);
        written(&heard, signal).await;
    }
    running.signal("TERM");
    assert_eq!(running.wait(Duration::from_secs(15)).code(), Some(7));
    Ok(())
}

#[tokio::test]
async fn a_program_that_does_not_end_is_killed_at_the_second_term() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let heard = mesh.dir.path().join("heard");
    let file = heard.display();
    let script = format!("trap 'echo term >> {file}' TERM; echo $$ > {file}; while :; do sleep 0.02; done");
    let mut running = Process::start("outrider run", &mut run(&mesh, &script));
    let pid = written(&heard, "\n").await;
    running.signal("TERM");
    written(&heard, "term").await;
    assert!(running.is_running());
    running.signal("TERM");
    assert_eq!(running.wait(Duration::from_secs(15)).code(), Some(137));
    assert!(!lives(&pid));
    Ok(())
}

#[tokio::test]
async fn a_program_never_outlives_its_agent() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let heard = mesh.dir.path().join("heard");
    let script = format!("trap '' TERM HUP; echo $$ > {}; while :; do sleep 0.02; done", heard.display());
    let mut running = Process::start("outrider run", &mut run(&mesh, &script));
    let pid = written(&heard, "\n").await;
    assert!(lives(&pid));
    running.kill();
    let deadline = Instant::now() + Duration::from_secs(10);
    while lives(&pid) {
        assert!(Instant::now() < deadline, "the program runs on without protection");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let mut command = Command::new(program("outrider"));
    command.args(["run", "--service", "shop/web", "--", "no-such-program"]).env("OUTRIDER_ADMIN_SOCKET", mesh.admin_socket());
    let missing = output(command.env("XDG_STATE_HOME", mesh.dir.path()));
    let text = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(missing.status.code() == Some(2) && text.contains("cannot start `no-such-program`"), "{text}");
    Ok(())
}
