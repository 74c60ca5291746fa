//! The way to the store: encrypted, to the right server, and seen when it is gone.

use std::time::Duration;

use outrider_proto::v1;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};

use crate::{
    harness::{PATIENCE, Plane, get, settings, start},
    postgres::{Cluster, Disk},
    vanishing::Vanishing,
};

/// An authority, as PEM.
fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_reached_over_tls_and_only_at_the_server_that_its_certificate_names() {
    let dir = tempfile::tempdir().unwrap();
    let (root, other) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &root).unwrap();
    let port = free_port();
    let cluster = Cluster::secured(port, &leaf.pem(), &key.serialize_pem());
    cluster.database();
    let file = |name: &str, pem: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let (right, wrong) = (file("root.pem", root.pem()), file("other.pem", other.pem()));
    let url = |host: &str, mode: &str, root: &str| {
        format!("postgres://postgres@{host}:{port}/mesh_0?sslmode={mode}&sslrootcert={root}")
    };
    let refused = async |url: String| {
        let home = tempfile::tempdir().unwrap();
        let mut raw = settings(home.path());
        raw.store = Some(url);
        start(raw).await.expect_err("it started").to_string()
    };
    let text = refused(url("localhost", "verify-full", &wrong)).await;
    assert!(text.contains("certificate"), "another authority: {text}");
    let text = refused(url("127.0.0.1", "verify-full", &right)).await;
    assert!(text.contains("certificate"), "a name that the certificate does not hold: {text}");
    let text = refused(url("localhost", "disable", &right)).await;
    assert!(text.contains("no encryption"), "in the clear: {text}");

    let good = url("localhost", "verify-full", &right);
    let plane = Plane::start_with(move |raw| raw.store = Some(good)).await;
    plane.join("shop/web", &[]).await;
    let counts = "SELECT count(*) FILTER (WHERE ssl), count(*) FILTER (WHERE NOT ssl) FROM pg_stat_ssl
                  JOIN pg_stat_activity USING (pid) WHERE application_name = 'outrider-control-plane'";
    let seen = cluster.sql("mesh_0", counts);
    let (secured, clear) = seen.split_once('|').unwrap();
    assert!(secured.parse::<u32>().unwrap() > 0 && clear == "0", "{seen}");
}

/// Asks until `/readyz` says so.
async fn until_ready_says(plane: &Plane, wanted: &str) {
    let asking = async {
        loop {
            let (status, text) = get(plane.running.health, "/readyz").await;
            assert_eq!(status == 200, text == "ready\n", "{status} {text}");
            if text == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("it never said {wanted:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_whose_store_was_taken_away_is_not_ready_and_says_why() {
    let plane = Plane::start().await;
    until_ready_says(&plane, "ready\n").await;
    let (file, aside) = (plane.state_dir().join("store.db"), plane.state_dir().join("aside"));
    std::fs::rename(&file, &aside).unwrap();
    until_ready_says(&plane, "waiting for store (its file is gone)\n").await;
    std::fs::rename(&aside, &file).unwrap();
    until_ready_says(&plane, "ready\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_whose_database_is_away_is_not_ready_until_it_is_back() {
    let cluster = Cluster::start(Disk::Durable, None);
    let url = cluster.database();
    let plane = Plane::start_with(move |raw| raw.store = Some(url)).await;
    until_ready_says(&plane, "ready\n").await;
    cluster.crash();
    until_ready_says(&plane, "waiting for store (it does not take what is to be stored)\n").await;
    cluster.restart();
    until_ready_says(&plane, "ready\n").await;
    cluster.sql("postgres", "ALTER SYSTEM SET default_transaction_read_only = on");
    cluster.sql("postgres", "SELECT pg_reload_conf()");
    until_ready_says(&plane, "waiting for store (it does not take what is to be stored)\n").await;
    cluster.sql("postgres", "ALTER SYSTEM RESET default_transaction_read_only");
    cluster.sql("postgres", "SELECT pg_reload_conf()");
    until_ready_says(&plane, "ready\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_host_of_the_database_vanishes_calls_fail_in_time_and_no_silent_connection_is_waited_for_when_it_is_back() {
    let port = free_port();
    let cluster = Cluster::start(Disk::Fast, Some(port));
    cluster.database();
    let way = Vanishing::before(([127, 0, 0, 1], port).into()).await;
    let url = format!("postgres://postgres@{}/mesh_0", way.address);
    let plane = Plane::start_with(move |raw| raw.store = Some(url)).await;
    until_ready_says(&plane, "ready\n").await;
    let token = async || {
        let request = v1::CreateTokenRequest { identity: "shop/web".into(), ..Default::default() };
        plane.admin().await.create_token(request).await
    };
    // All connections are in use, so that all of them fall silent.
    assert!(futures_util::future::join_all((0..40).map(|_| token())).await.iter().all(Result::is_ok));
    let listening = || {
        let text = "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE '%listen%' AND pid <> pg_backend_pid()";
        cluster.sql("mesh_0", text).trim().parse::<u32>().unwrap()
    };
    let before = listening();
    way.vanish();
    let calls = tokio::time::timeout(Duration::from_secs(30), futures_util::future::join_all((0..40).map(|_| token())));
    assert!(calls.await.expect("no call hangs").iter().all(Result::is_err));
    way.come_back();
    until_ready_says(&plane, "ready\n").await;
    token().await.unwrap();
    let hears = async {
        while listening() <= before {
            tokio::time::sleep(Duration::from_millis(200)).await
        }
    };
    tokio::time::timeout(PATIENCE, hears).await.expect("hints of other replicas are heard again");
}
