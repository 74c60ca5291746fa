//! Changing policies without fear: replay, the gate, canaries that are taken back by themselves, and going back.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use outrider_tests::{AgentOptions, AgentProcess, Backend, Mesh, MeshOptions, Outcome, allow, program, through_proxy};

/// A mesh whose `shop/orders` is backed by two agents, and a caller.
struct Scene {
    mesh: Mesh,
    _orders: Vec<AgentProcess>,
    web: AgentProcess,
    _backend: Backend,
}

const ALL: &str = "[\"/{rest=**}\"]";

fn reads(paths: &str) -> String {
    allow("orders", "shop/orders", "[shop/web]", "[GET]", paths)
}

impl Scene {
    async fn set(replicas: usize) -> Self {
        let backend = Backend::start().await;
        let mesh = Mesh::start(MeshOptions::default()).await;
        let mut orders = Vec::new();
        for replica in 0..replicas {
            let options =
                AgentOptions { services: vec![format!("shop/orders:80/http={}", backend.address)], ..AgentOptions::default() };
            orders.push(mesh.agent_of("shop/orders", &format!("orders-{replica}"), options).await);
        }
        let web = mesh.agent("shop/web", AgentOptions::default()).await;
        Self { mesh, _orders: orders, web, _backend: backend }
    }

    async fn get(&self, path: &str) -> u16 {
        through_proxy(self.web.outbound, "GET", &format!("http://orders.shop{path}"), "").await.map_or(0, |answer| answer.status)
    }

    fn file(&self, name: &str, yaml: &str) -> String {
        let path = self.mesh.dir.path().join(name);
        std::fs::write(&path, yaml).expect("a file");
        path.display().to_string()
    }

    fn outrider(&self, words: &[&str]) -> (Option<i32>, String) {
        said(&self.mesh.outrider(words))
    }

    fn json(&self, words: &[&str]) -> serde_json::Value {
        let output = self.mesh.outrider(&[words, &["-o", "json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {:?}", said(&output)))
    }

    fn start(&self, words: &[&str]) -> Child {
        let mut command = Command::new(program("outrider"));
        command.args(words).env("OUTRIDER_ADMIN_SOCKET", self.mesh.admin_socket()).env("NO_COLOR", "1");
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("outrider runs")
    }

    /// Waits until the control plane has so many recorded decisions.
    async fn recorded(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let known = self.json(&["get", "decisions", "--to", "shop/orders", "--limit", "1000"]);
            let inbound = known.as_array().map_or(0, |all| all.iter().filter(|one| one["side"] == "inbound").count());
            if inbound >= count {
                return;
            }
            assert!(Instant::now() < deadline, "{inbound} of {count} are recorded");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn said(output: &Output) -> (Option<i32>, String) {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn a_replay_finds_exactly_the_requests_that_would_flip_and_the_gate_refuses() -> Outcome {
    let scene = Scene::set(1).await;
    // Denied by nothing but the lack of a policy.
    assert_eq!(scene.get("/early").await, 403);
    scene.mesh.apply(&reads(ALL));
    for path in ["/a/1", "/a/2", "/a/2", "/b"] {
        assert_eq!(scene.get(path).await, 200);
    }
    assert_eq!(through_proxy(scene.web.outbound, "POST", "http://orders.shop/a/1", "content-length: 0\r\n").await?.status, 403);
    scene.recorded(6).await;

    let narrower = scene.file("narrower.yaml", &reads("[\"/b\"]"));
    let flips = scene.json(&["replay", "-f", &narrower]);
    assert_eq!((&flips["replayed"], &flips["newlyDenied"], &flips["newlyAllowed"]), (&6.into(), &4.into(), &0.into()), "{flips}");
    let group = &flips["flips"][0];
    assert_eq!(
        (&group["before"], &group["after"], &group["ruleBefore"]),
        (&"allow".into(), &"deny".into(), &"shop/orders/rule".into())
    );
    let mut paths: Vec<_> =
        group["requests"].as_array().expect("requests").iter().filter_map(|one| one["path"].as_str()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/a/1", "/a/2", "/a/2", "/early"]);
    let same = scene.file("same.yaml", &reads(ALL));
    assert_eq!(scene.json(&["replay", "-f", &same])["flips"], serde_json::json!([]));
    let wider = scene.file("wider.yaml", &allow("orders", "shop/orders", "[shop/web]", "[GET, POST]", ALL));
    assert_eq!(scene.json(&["replay", "-f", &wider])["newlyAllowed"], 1);

    let (code, text) = scene.outrider(&["apply", "-f", &narrower, "--gate-on-replay", "--wait"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("nothing was stored") && text.contains("/a/2"), "{text}");
    assert_eq!(scene.get("/a/1").await, 200, "what was in force still is");
    let (code, text) = scene.outrider(&["apply", "-f", &wider, "--gate-on-replay", "--wait"]);
    assert_eq!(code, Some(0), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_rollback_brings_back_what_was_and_a_second_one_undoes_it() -> Outcome {
    let scene = Scene::set(1).await;
    scene.mesh.apply(&reads(ALL));
    let narrower = format!("{}---\n{}", reads("[\"/b\"]"), allow("more", "shop/orders", "[shop/web]", "[GET]", "[\"/c\"]"));
    scene.mesh.apply(&narrower);
    assert_eq!((scene.get("/a").await, scene.get("/b").await, scene.get("/c").await), (403, 200, 200));

    let (code, text) = scene.outrider(&["rollback", "--dry-run"]);
    assert!(code == Some(0) && text.contains("would be updated") && text.contains("would be deleted"), "{text}");
    assert_eq!(scene.get("/a").await, 403, "a dry run changes nothing");
    let (code, text) = scene.outrider(&["rollback", "--wait"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("shop/orders updated") && text.contains("shop/more deleted") && text.contains("in force"), "{text}");
    assert_eq!((scene.get("/a").await, scene.get("/c").await), (200, 200));
    let (code, _) = scene.outrider(&["rollback", "--wait"]);
    assert_eq!(code, Some(0));
    assert_eq!((scene.get("/a").await, scene.get("/c").await), (403, 200), "undone");

    let revisions = scene.json(&["get", "revisions"]);
    let calls: Vec<_> = revisions.as_array().expect("a list").iter().filter_map(|one| one["call"].as_str()).collect();
    assert_eq!(calls, ["Rollback", "Rollback", "Apply", "Apply"]);
    let first = revisions[3]["revision"].to_string();
    assert_eq!(scene.outrider(&["rollback", "--to", &first, "--wait"]).0, Some(0));
    assert_eq!(scene.get("/a").await, 200, "any revision can be had back");
    let (code, text) = scene.outrider(&["rollback", "--to", "99999"]);
    assert!(code == Some(1) && text.contains("does not exist yet"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_canary_that_denies_what_was_allowed_is_taken_back_by_itself() -> Outcome {
    let scene = Scene::set(2).await;
    scene.mesh.apply(&reads(ALL));
    let narrower = scene.file("narrower.yaml", &reads("[\"/b\"]"));
    let mut canary = scene.start(&["apply", "-f", &narrower, "--canary", "50%", "--for", "60s"]);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut denied = 0;
    // Calls go to both agents; only the chosen one denies.
    let output = loop {
        denied += u32::from(scene.get("/a").await == 403);
        if canary.try_wait()?.is_some() {
            break canary.wait_with_output()?;
        }
        assert!(Instant::now() < deadline, "the canary goes on after {denied} denials");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let (code, text) = said(&output);
    assert_eq!(code, Some(1), "{text}");
    assert!(denied > 0 && text.contains("newly denied: orders.shop /a") && text.contains("1 of 2 agents"), "{denied}: {text}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..20 {
        assert_eq!(scene.get("/a").await, 200, "both agents have what is stored");
    }
    let stored = scene.json(&["get", "policies", "shop/orders"]);
    assert_eq!(stored[0]["resource"]["spec"]["authorization"]["rules"][0]["to"][0]["paths"][0], "/{rest=**}");
    Ok(())
}

#[tokio::test]
async fn a_canary_that_goes_well_is_stored_for_all_and_nothing_changes_under_its_feet() -> Outcome {
    let scene = Scene::set(2).await;
    scene.mesh.apply(&reads("[\"/a\"]"));
    let wider = scene.file("wider.yaml", &reads("[\"/a\", \"/b\"]"));
    let canary = scene.start(&["apply", "-f", &wider, "--canary", "1%", "--for", "3s"]);
    let started = Instant::now();
    let mut seen = std::collections::BTreeSet::new();
    while started.elapsed() < Duration::from_millis(1500) {
        seen.insert(scene.get("/b").await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [200, 403], "one agent has it, the other does not");
    let (_, text) = scene.outrider(&["check"]);
    assert!(text.contains("a canary") && text.contains("at one agent"), "{text}");
    let stored = scene.json(&["get", "policies", "shop/orders"]);
    assert_eq!((&stored[0]["agents"], &stored[0]["inForce"]), (&2.into(), &1.into()), "one tries something else: {stored}");
    let (code, text) = scene.outrider(&["apply", "-f", &wider]);
    assert!(code == Some(1) && text.contains("canary") && text.contains("outrider rollback"), "{text}");
    let (code, text) = said(&canary.wait_with_output()?);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("shop/orders updated") && text.contains("stored for all"), "{text}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..20 {
        assert_eq!(scene.get("/b").await, 200);
    }
    assert_eq!(scene.json(&["get", "revisions"])[0]["call"], "Canary");
    Ok(())
}

#[tokio::test]
async fn a_canary_ends_with_an_operators_word_and_with_the_control_plane() -> Outcome {
    let mut scene = Scene::set(1).await;
    scene.mesh.apply(&reads(ALL));
    let narrower = scene.file("narrower.yaml", &reads("[\"/b\"]"));
    for ending in ["rollback", "kill"] {
        let canary = scene.start(&["apply", "-f", &narrower, "--canary", "100", "--for", "1h", "--tolerate", "1000000"]);
        let deadline = Instant::now() + Duration::from_secs(10);
        while scene.get("/a").await != 403 {
            assert!(Instant::now() < deadline, "the canary is not in force");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let expected = if ending == "rollback" {
            let (code, text) = scene.outrider(&["rollback"]);
            assert!(code == Some(0) && text.contains("taken back"), "{text}");
            1
        } else {
            scene.mesh.control_plane.kill();
            scene.mesh.restart_control_plane().await;
            4
        };
        assert_eq!(said(&canary.wait_with_output()?).0, Some(expected), "{ending}");
        let deadline = Instant::now() + Duration::from_secs(15);
        while scene.get("/a").await != 200 {
            assert!(Instant::now() < deadline, "the canary is still in force after {ending}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}
