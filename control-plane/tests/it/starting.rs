//! What stands in the way of a start, and what it says then.

use std::{
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use outrider_proto::v1;

use crate::harness::{Plane, policy, settings, start};

async fn refusal(raw: outrider_control_plane::Raw) -> String {
    match start(raw).await {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_with_its_flag() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let mut raw = settings(dir.path());
    raw.listen = Some(address.clone());
    let text = refusal(raw).await;
    assert!(text.contains(&address) && text.contains("--listen"), "{text}");
    let mut raw = settings(dir.path());
    raw.health_listen = Some(address.clone());
    let text = refusal(raw).await;
    assert!(text.contains(&address) && text.contains("--health-listen"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    // A file in the way holds for every user, also for root.
    let mut raw = settings(dir.path());
    raw.state_dir = Some(dir.path().join("file/state"));
    let text = refusal(raw).await;
    assert!(text.contains("file/state") && text.contains("--state-dir"), "{text}");
    let mut raw = settings(dir.path());
    raw.state_dir = Some("/proc/outrider-cannot-write-here".into());
    let text = refusal(raw).await;
    assert!(text.contains("/proc/outrider-cannot-write-here"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_control_planes_do_not_share_a_state_directory() {
    let plane = Plane::start().await;
    let mut raw = settings(Path::new("/nowhere"));
    raw.state_dir = Some(plane.state_dir());
    let text = refusal(raw).await;
    assert!(text.contains("another control plane is running"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_path_that_is_too_long_or_taken_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut raw = settings(dir.path());
    raw.admin_socket = Some(dir.path().join("x".repeat(120)));
    assert!(refusal(raw).await.contains("too long"));
    let path = dir.path().join("file");
    std::fs::write(&path, "not a socket").unwrap();
    let mut raw = settings(dir.path());
    raw.admin_socket = Some(path.clone());
    assert!(refusal(raw).await.contains("is not a socket"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "not a socket");
    let live = dir.path().join("live.sock");
    let _listener = tokio::net::UnixListener::bind(&live).unwrap();
    let mut raw = settings(dir.path());
    raw.admin_socket = Some(live);
    assert!(refusal(raw).await.contains("in use"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let plane = Plane::start_with(|raw| raw.admin_socket = Some(path.clone())).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    plane.stop().await;
    assert!(!path.exists(), "the socket is removed at the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_found_again_after_a_restart() {
    let plane = Plane::start().await;
    plane.apply(&policy("shop/orders", "orders")).await;
    let token = plane.token("shop/orders", &[]).await;
    let before = plane.admin().await.status(v1::StatusRequest {}).await.unwrap().into_inner();
    let plane = plane.restart_with(|_| {}).await;
    let after = plane.admin().await.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((before.revision, &before.certificate_authorities), (after.revision, &after.certificate_authorities));
    let key = rcgen::KeyPair::generate().unwrap();
    plane.issue(None, crate::harness::by_token(&token, crate::harness::csr(&key, |_| {}))).await.unwrap();
    let again = plane.apply(&policy("shop/orders", "orders")).await;
    assert_eq!(again.changes[0].change(), v1::resource_change::Change::Unchanged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_another_trust_domain_is_refused() {
    let plane = Plane::start().await;
    let dir = plane.stop().await;
    let mut raw = settings(dir.path());
    raw.trust_domain = Some("other.example".into());
    let text = refusal(raw).await;
    assert!(text.contains("mesh.internal") && text.contains("other.example"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_wrong_or_malformed_key_is_told_apart_and_nothing_is_made_anew() {
    let plane = Plane::start().await;
    let dir = plane.stop().await;
    let key = dir.path().join("state/key");
    let good = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let text = refusal(settings(dir.path())).await;
    assert!(text.contains("missing") && text.contains("--key-file"), "{text}");
    assert!(!key.exists());
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&key).unwrap().write_all(b"AAAA").unwrap();
    assert!(refusal(settings(dir.path())).await.contains("32 bytes"));
    std::fs::write(&key, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    assert!(refusal(settings(dir.path())).await.contains("does not decrypt"));
    std::fs::write(&key, good).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(refusal(settings(dir.path())).await.contains("chmod 600"));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    start(settings(dir.path())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_file_that_is_empty_before_there_is_a_store_is_told_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&key).unwrap();
    let raw = || outrider_control_plane::Raw { key_file: Some(key.clone()), ..settings(dir.path()) };
    let text = refusal(raw()).await;
    assert!(text.contains("no store yet") && text.contains("remove it"), "{text}");
    std::fs::remove_file(&key).unwrap();
    start(raw()).await.unwrap();
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_was_there_and_is_open_to_others_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o755)).unwrap();
    let text = refusal(settings(dir.path())).await;
    assert!(text.contains("chmod 700") && text.contains("--state-dir"), "{text}");
    assert_eq!(std::fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0, "nothing is left behind in it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_does_not_read_stops_the_start_by_name_rather_than_being_left_out() {
    let plane = Plane::start().await;
    plane.apply(&policy("shop/orders", "orders")).await;
    let dir = plane.stop().await;
    let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}", dir.path().join("state/store.db").display())).await.unwrap();
    sqlx::query("UPDATE policies SET json = '{}'").execute(&pool).await.unwrap();
    pool.close().await;
    let text = refusal(settings(dir.path())).await;
    assert!(text.contains("`shop/orders`") && text.contains("policies"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_or_overwritten_store_is_refused_and_left_as_it_is() {
    for damage in ["truncate", "garbage", "text"] {
        let plane = Plane::start().await;
        for name in 0..40 {
            plane.apply(&policy(&format!("shop/p{name}"), "orders")).await;
        }
        let dir = plane.stop().await;
        let path = dir.path().join("state/store.db");
        let mut file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        match damage {
            "truncate" => file.set_len(length / 2).unwrap(),
            "garbage" => {
                file.seek(SeekFrom::Start(4096)).unwrap();
                file.write_all(&vec![0xa5; usize::try_from(length).unwrap() - 4096]).unwrap();
            }
            _ => std::fs::write(&path, "this is no database, but long enough to be taken for one".repeat(100)).unwrap(),
        }
        let before = std::fs::read(&path).unwrap();
        let text = refusal(settings(dir.path())).await;
        assert!(text.contains("damaged") && text.contains("store.db"), "{damage}: {text}");
        assert_eq!(std::fs::read(&path).unwrap(), before, "{damage}: the damaged store was changed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_key_that_was_tampered_with_is_refused() {
    let plane = Plane::start().await;
    let dir = plane.stop().await;
    let path = dir.path().join("state/store.db");
    let url = format!("sqlite://{}", path.display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    // The sealed key of the issuing CA in the row of the root: right key, wrong place.
    let swap = "UPDATE ca_keys SET sealed_key = (SELECT sealed_key FROM ca_keys WHERE role = 'issuing') WHERE role = 'root'";
    sqlx::query(swap).execute(&pool).await.unwrap();
    pool.close().await;
    let text = refusal(settings(dir.path())).await;
    assert!(text.contains("tampered") && text.contains("root"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_certificate_that_was_replaced_is_refused() {
    let plane = Plane::start().await;
    let dir = plane.stop().await;
    let other = Plane::start().await;
    let root = other.join("shop/x", &[]).await.response.bundle.unwrap().roots.remove(0);
    let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}", dir.path().join("state/store.db").display())).await.unwrap();
    sqlx::query("UPDATE ca_keys SET certificate = ? WHERE role = 'root'").bind(root).execute(&pool).await.unwrap();
    pool.close().await;
    let text = refusal(settings(dir.path())).await;
    assert!(text.contains("not of its key"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_programs_database_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::DirBuilder::new().mode(0o700).create(dir.path().join("state")).unwrap();
    let path = dir.path().join("state/store.db");
    std::fs::write(&path, "").unwrap();
    let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    sqlx::query("CREATE TABLE notes (text TEXT)").execute(&pool).await.unwrap();
    pool.close().await;
    let text = refusal(settings(dir.path())).await;
    assert!(text.contains("not a store of a control plane"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_ready_and_metrics_have_their_names() {
    let plane = Plane::start().await;
    plane.join("shop/orders", &[]).await;
    let address = plane.running.health;
    let ask = move |path: &'static str| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let (ready, metrics) = tokio::task::spawn_blocking(move || (ask("/readyz"), ask("/metrics"))).await.unwrap();
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    for line in [
        "outrider_control_plane_certificates_issued_total{evidence=\"join-token\",result=\"issued\"} 1",
        "outrider_control_plane_join_tokens_total{result=\"redeemed\"} 1",
        "outrider_control_plane_agents_connected 0",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
}
