//! `outrider up`: the whole mesh in one command, and what it says when it cannot start.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use outrider_tests::{Outcome, Process, program};

fn up(state_dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(program("outrider"));
    command.args(["up", "--state-dir"]).arg(state_dir).args(more).env_remove("OUTRIDER_ADMIN_SOCKET").env("NO_COLOR", "1");
    command
}

fn check(state_dir: &Path) -> Output {
    up(state_dir, &["--check"]).output().expect("outrider runs")
}

fn complaint(state_dir: &Path) -> String {
    let output = check(state_dir);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn the_tour_passes_again_and_also_when_the_control_plane_was_made_anew() -> Outcome {
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state");
    for round in ["at first", "again", "with a new control plane"] {
        let toured = check(&state);
        assert!(toured.status.success(), "{round}: {toured:?}");
        let text = String::from_utf8_lossy(&toured.stdout).into_owned();
        for part in ["200 OK", "403 Forbidden", "201 Created", "0 lost", "All of it was as it should be."] {
            assert!(text.contains(part), "{round}: no `{part}` in {text}");
        }
        // What an earlier tour allowed is out of force before the first call.
        let decided = |what: &str| text.split_once(what).and_then(|(_, rest)| rest.split(['(', ')']).nth(1)).map(str::to_owned);
        let (passed, refused) = (decided("by    rule"), decided("policy_denied: no rule allows it"));
        assert!(passed.is_some() && passed == refused, "{round}: {passed:?}, then {refused:?} in {text}");
        if round == "again" {
            fs::remove_dir_all(state.join("control-plane"))?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_directory_that_is_in_use_or_cannot_be_used_is_named_with_the_way_out() -> Outcome {
    let file = tempfile::NamedTempFile::new()?;
    let text = complaint(&file.path().join("state"));
    assert!(text.contains(&file.path().display().to_string()) && text.contains("--state-dir"), "{text}");

    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state");
    let mut running = Process::start("outrider up", up(&state, &["--log", "info"]).env("OUTRIDER_LOG", "info"));
    running.wait_for("view in force");
    let text = complaint(&state);
    assert!(text.contains("another control plane is running") && text.contains("control-plane"), "{text}");
    running.signal("TERM");
    running.wait(std::time::Duration::from_secs(20));
    assert!(check(&state).status.success(), "it can be used when the first is gone");
    Ok(())
}
