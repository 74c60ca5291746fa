//! `outrider login` and what follows, with the real command line.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use outrider_tests::{Mesh, MeshOptions, Outcome, allow, free_port, program};

/// `outrider` of a user with this home, who has no socket.
fn outrider(home: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(program("outrider"));
    command.args(words).env("XDG_CONFIG_HOME", home.join("config")).env("XDG_STATE_HOME", home.join("state"));
    command.env_remove("OUTRIDER_ADMIN_SOCKET").env_remove("OUTRIDER_CONTEXT").env("NO_COLOR", "1");
    command.output().expect("outrider runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn an_operator_logs_in_works_with_the_role_and_is_out_when_removed() -> Outcome {
    let door = format!("127.0.0.1:{}", free_port());
    let mesh = Mesh::start_with(MeshOptions::default(), &["--operators", &door]).await;
    let home = tempfile::tempdir()?;
    let made = mesh.outrider(&["operator", "create", "ann", "--role", "editor"]);
    assert!(made.status.success(), "{}", text(&made));
    let token = String::from_utf8(made.stdout)?.trim().to_owned();
    assert!(outrider(home.path(), &["get", "policies"]).status.code() == Some(1), "no socket and no context");
    let login = outrider(home.path(), &["login", "--control-plane", &door, "--token", &token]);
    assert!(login.status.success(), "{}", text(&login));
    let file = home.path().join("config/outrider/contexts.yaml");
    assert_eq!(std::fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);

    let yaml = home.path().join("policy.yaml");
    std::fs::write(&yaml, allow("all", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"))?;
    let applied = outrider(home.path(), &["apply", "-f", &yaml.display().to_string(), "--allow-unknown-services"]);
    assert!(applied.status.success(), "{}", text(&applied));
    let refused = outrider(home.path(), &["token", "create", "--identity", "shop/web"]);
    assert!(refused.status.code() == Some(1) && text(&refused).contains("admin"), "{}", text(&refused));
    let audit = outrider(home.path(), &["get", "audit", "--since", "1h", "-o", "json"]);
    let audit: serde_json::Value = serde_json::from_slice(&audit.stdout)?;
    let entry = |at: usize, field: &str| audit[at][field].as_str().unwrap_or_default().to_owned();
    assert_eq!((entry(0, "call"), entry(0, "outcome")), ("CreateToken".into(), "permission_denied".into()), "{audit:#}");
    assert_eq!((entry(1, "call"), entry(1, "subject")), ("Apply".into(), "shop/all".into()), "{audit:#}");
    assert_eq!((entry(1, "who"), entry(1, "role")), ("spiffe://mesh.internal/operator/ann".into(), "editor".into()));

    let list = outrider(home.path(), &["context", "list", "-o", "json"]);
    let list: serde_json::Value = serde_json::from_slice(&list.stdout)?;
    let shown = (list[0]["name"].as_str(), list[0]["current"].as_bool(), list[0].get("key").is_none());
    assert_eq!(shown, (Some("ann@127.0.0.1"), Some(true), true), "{list}");
    let unknown = outrider(home.path(), &["--context", "ann@127.0.0.2", "get", "policies"]);
    assert!(unknown.status.code() == Some(1) && text(&unknown).contains("did you mean"), "{}", text(&unknown));

    assert!(mesh.outrider(&["operator", "remove", "ann"]).status.success());
    let late = outrider(home.path(), &["get", "policies"]);
    assert!(late.status.code() == Some(1) && text(&late).contains("removed"), "{}", text(&late));
    assert!(outrider(home.path(), &["context", "remove", "ann@127.0.0.1"]).status.success());
    assert!(!std::fs::read_to_string(&file)?.contains("ann@"));
    Ok(())
}

#[tokio::test]
async fn a_certificate_past_half_of_its_life_is_renewed_when_it_is_used() -> Outcome {
    let door = format!("127.0.0.1:{}", free_port());
    let mesh = Mesh::start_with(MeshOptions::default(), &["--operators", &door]).await;
    let home = tempfile::tempdir()?;
    let made = mesh.outrider(&["operator", "create", "ann", "--role", "viewer"]);
    let token = String::from_utf8(made.stdout)?.trim().to_owned();
    assert!(outrider(home.path(), &["login", "--control-plane", &door, "--token", &token]).status.success());
    let file = home.path().join("config/outrider/contexts.yaml");
    let before = std::fs::read_to_string(&file)?;
    assert!(outrider(home.path(), &["get", "policies"]).status.success());
    assert_eq!(std::fs::read_to_string(&file)?, before, "fresh");
    // As if it had been got two days ago.
    let line = before.lines().find(|line| line.trim_start().starts_with("obtained:")).expect("a time");
    std::fs::write(&file, before.replace(line, "    obtained: 1"))?;
    assert!(outrider(home.path(), &["get", "policies"]).status.success());
    let after = std::fs::read_to_string(&file)?;
    // A long text may go over several lines.
    let key = |text: &str| text.split_once("key:").and_then(|(_, rest)| Some(rest.split_once("obtained:")?.0.to_owned()));
    assert!(key(&after).is_some() && key(&after) != key(&before), "a new key");
    assert!(outrider(home.path(), &["get", "policies"]).status.success());
    Ok(())
}
