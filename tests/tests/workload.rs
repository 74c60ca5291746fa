//! The SPIFFE Workload API of a real agent, asked by clients that nobody here wrote: the `spiffe` crate and the `spiffe` package of
//! the Python package index.

#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use outrider_proto::workload::{self as api, spiffe_workload_api_client::SpiffeWorkloadApiClient};
use outrider_tests::{AgentOptions, AgentProcess, Mesh, MeshOptions, Outcome, interpreter, program, python, script_path};
use spiffe::WorkloadApiClient;
use tokio_stream::StreamExt as _;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

const WEB: &str = "spiffe://mesh.internal/ns/shop/sa/web";
/// How long an event may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn socket(agent: &AgentProcess) -> PathBuf {
    agent.state_dir.join("workload.sock")
}

fn named(path: &Path) -> String {
    format!("unix://{}", path.display())
}

async fn client(path: PathBuf) -> SpiffeWorkloadApiClient<Channel> {
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
    });
    let channel = Endpoint::from_static("http://workload.invalid").connect_with_connector(connector).await;
    SpiffeWorkloadApiClient::new(channel.expect("the workload socket"))
}

fn marked<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().expect("metadata"));
    request
}

async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, event).await.unwrap_or_else(|_| panic!("never: {what}"))
}

fn lines(output: &Output) -> Vec<serde_json::Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test]
async fn a_program_gets_its_certificate_and_every_new_one_from_the_spiffe_crate() -> Outcome {
    let mesh = Mesh::start(MeshOptions { leaf_ttl: Some("4s") }).await;
    let agent = mesh.agent("shop/web", AgentOptions::default()).await;
    let client = WorkloadApiClient::connect_to(named(&socket(&agent))).await?;
    let mut contexts = client.stream_x509_contexts().await?;
    let mut keys = BTreeSet::new();
    while keys.len() < 3 {
        let context = soon("a rotation", contexts.next()).await.expect("the stream goes on")?;
        let svid = context.default_svid().expect("an SVID");
        assert_eq!(svid.spiffe_id().to_string(), WEB);
        assert_eq!(svid.cert_chain().len(), 2, "leaf and issuing CA");
        keys.insert(svid.private_key().as_bytes().to_vec());
    }
    let bundles = client.fetch_x509_bundles().await?;
    let bundle = bundles.get(&"mesh.internal".try_into()?).expect("our trust domain");
    assert_eq!(bundle.authorities().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_python_program_under_outrider_run_gets_its_certificate_and_every_new_one() -> Outcome {
    let mesh = Mesh::start(MeshOptions { leaf_ttl: Some("4s") }).await;
    let run = |words: &[&str]| {
        let mut command = Command::new(program("outrider"));
        command.args(["run", "--service", "shop/web", "--"]).arg(interpreter()).arg(script_path("workload.py")).args(words);
        command.env("OUTRIDER_ADMIN_SOCKET", mesh.admin_socket()).env("XDG_STATE_HOME", mesh.dir.path());
        command.env_remove("OUTRIDER_CONTROL_PLANE").stdin(std::process::Stdio::null()).output().expect("outrider runs")
    };
    let one = &lines(&run(&["svid"]))[0];
    assert_eq!((one["id"].as_str(), one["fits"].as_bool()), (Some(WEB), Some(true)));
    assert_eq!((one["chain"].as_u64(), one["roots"].as_u64()), (Some(2), Some(1)));
    let many = lines(&run(&["rotations", "3"]));
    let serials: BTreeSet<_> = many.iter().filter_map(|line| line["serial"].as_str()).collect();
    assert_eq!(serials.len(), 3, "{many:?}");
    assert!(many.iter().all(|line| line["fits"] == true && line["id"] == WEB), "{many:?}");
    Ok(())
}

#[tokio::test]
async fn a_call_without_the_security_metadata_is_refused() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let agent = mesh.agent("shop/web", AgentOptions::default()).await;
    let mut client = client(socket(&agent)).await;
    let with = |value: &'static str| {
        let mut request = Request::new(api::X509svidRequest {});
        request.metadata_mut().append("workload.spiffe.io", value.parse().expect("metadata"));
        request
    };
    let mut twice = with("true");
    twice.metadata_mut().append("workload.spiffe.io", "true".parse()?);
    for request in [Request::new(api::X509svidRequest {}), with("True"), with("false"), with(""), twice] {
        let refused = client.fetch_x509svid(request).await.err().map(|status| status.code());
        assert_eq!(refused, Some(Code::InvalidArgument));
    }
    let bare = |status: Option<Status>| assert_eq!(status.map(|status| status.code()), Some(Code::InvalidArgument));
    bare(client.fetch_x509_bundles(api::X509BundlesRequest {}).await.err());
    bare(client.fetch_jwtsvid(api::JwtsvidRequest { audience: vec!["a".to_owned()], ..Default::default() }).await.err());
    bare(client.fetch_jwt_bundles(api::JwtBundlesRequest {}).await.err());
    bare(client.validate_jwtsvid(api::ValidateJwtsvidRequest::default()).await.err());
    assert!(client.fetch_x509svid(with("true")).await.is_ok());
    Ok(())
}

#[tokio::test]
async fn an_expired_identity_is_handed_to_nobody() -> Outcome {
    let mut mesh = Mesh::start(MeshOptions { leaf_ttl: Some("3s") }).await;
    let agent = mesh.agent("shop/web", AgentOptions::default()).await;
    let mut client = client(socket(&agent)).await;
    let mut stream = client.fetch_x509svid(marked(api::X509svidRequest {})).await?.into_inner();
    assert_eq!(soon("the first", stream.message()).await?.expect("a message").svids.len(), 1);
    mesh.control_plane.kill();
    let end = loop {
        if let Err(status) = soon("the end of the identity", stream.message()).await {
            break status;
        }
    };
    assert_eq!(end.code(), Code::PermissionDenied);
    let late = client.fetch_x509svid(marked(api::X509svidRequest {})).await.err().map(|status| status.code());
    assert_eq!(late, Some(Code::PermissionDenied));
    let late = client.fetch_x509_bundles(marked(api::X509BundlesRequest {})).await.err().map(|status| status.code());
    assert_eq!(late, Some(Code::PermissionDenied));
    Ok(())
}

/// What a user of this id hears on a socket.
fn heard_as(uid: u32, socket: &Path) -> u64 {
    let script = python("workload.py", &["bytes", &socket.display().to_string()]);
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={uid}"), "--clear-groups", "--regid=65534", "--"]);
    // The packages are root's; what this needs is in the standard library.
    let output = command.arg(script.get_program()).args(script.get_args()).output().expect("setpriv");
    lines(&output)[0]["heard"].as_u64().expect("a number")
}

#[tokio::test]
async fn only_the_own_user_root_and_named_users_are_served() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let agent = mesh.agent("shop/web", AgentOptions::default()).await;
    let private = std::fs::metadata(socket(&agent))?;
    assert_eq!(private.permissions().mode() & 0o777, 0o600);
    let open = tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir_in("/tmp")?;
    let path = open.path().join("workload.sock");
    let more = ["--workload-socket", &path.display().to_string(), "--workload-user", "4242"].map(str::to_owned);
    let agent = mesh.agent("shop/orders", AgentOptions { more: more.into(), ..AgentOptions::default() }).await;
    if private.uid() != 0 {
        eprintln!("NOT CHECKED: whom the socket serves among other users, since only root can become them");
        return Ok(());
    }
    for (uid, is_served) in [(0, true), (4242, true), (4243, false), (65_534, false)] {
        assert_eq!(heard_as(uid, &path) > 0, is_served, "uid {uid}\n{}", agent.process.log());
    }
    Ok(())
}

#[tokio::test]
async fn a_socket_that_was_asked_for_and_cannot_be_served_stops_the_start_and_off_is_off() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let with =
        |path: &str| AgentOptions { more: vec!["--workload-socket".to_owned(), path.to_owned()], ..AgentOptions::default() };
    let mut agent = mesh.agent_not_ready("shop/web", with(&format!("/tmp/{}", "x".repeat(120)))).await;
    assert!(!agent.process.wait(PATIENCE).success());
    assert!(agent.process.log().contains("--workload-socket"), "{}", agent.process.log());
    let agent = mesh.agent("shop/orders", with("off")).await;
    assert!(!socket(&agent).exists());
    Ok(())
}

/// The key that a token names.
fn kid(token: &str) -> String {
    let head = token.split('.').next().expect("a header");
    let head = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, head).expect("base64url");
    serde_json::from_slice::<serde_json::Value>(&head).expect("JSON")["kid"].as_str().expect("a kid").to_owned()
}

#[tokio::test]
async fn a_token_is_fetched_and_checked_by_the_spiffe_crate_and_by_another_agent_and_a_changed_one_is_refused() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let (web, orders) =
        (mesh.agent("shop/web", AgentOptions::default()).await, mesh.agent("shop/orders", AgentOptions::default()).await);
    let mine = WorkloadApiClient::connect_to(named(&socket(&web))).await?;
    let theirs = WorkloadApiClient::connect_to(named(&socket(&orders))).await?;
    let token = mine.fetch_jwt_svid(["orders", "files"], None).await?;
    assert_eq!((token.spiffe_id().to_string(), token.audience().len()), (WEB.to_owned(), 2));
    let bundles = theirs.fetch_jwt_bundles().await?;
    let checked = spiffe::JwtSvid::parse_and_validate(token.token(), &bundles, &["orders"])?;
    assert_eq!(checked.spiffe_id().to_string(), WEB);
    let checked = theirs.validate_jwt_token("files", token.token()).await?;
    assert_eq!(checked.spiffe_id().to_string(), WEB);
    assert!(theirs.validate_jwt_token("other", token.token()).await.is_err(), "another audience");
    let (signed, signature) = token.token().rsplit_once('.').expect("a signature");
    let flipped = format!("{signed}.{}{}", if signature.starts_with('A') { "B" } else { "A" }, &signature[1..]);
    assert!(theirs.validate_jwt_token("orders", &flipped).await.is_err(), "another signature");
    assert!(mine.fetch_jwt_svid(["orders"], Some(&"spiffe://mesh.internal/ns/shop/sa/orders".try_into()?)).await.is_err());
    assert!(mine.fetch_jwt_svid(Vec::<String>::new(), None).await.is_err(), "no audience");
    let again = mine.fetch_jwt_svid(["files", "orders"], None).await?;
    assert_eq!(again.token(), token.token(), "kept while it is fresh");
    let mut web = client(socket(&web)).await;
    let request = api::ValidateJwtsvidRequest { audience: "orders".to_owned(), svid: token.token().to_owned() };
    let claims = web.validate_jwtsvid(marked(request)).await?.into_inner().claims.expect("claims");
    assert!(["sub", "aud", "exp", "iat"].iter().all(|claim| claims.fields.contains_key(*claim)));
    Ok(())
}

#[tokio::test]
async fn a_python_program_fetches_and_checks_tokens_and_changed_ones_are_refused() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let agent = mesh.agent("shop/web", AgentOptions::default()).await;
    let mut script = python("workload.py", &["jwt", "orders"]);
    let seen = &lines(&script.env("SPIFFE_ENDPOINT_SOCKET", named(&socket(&agent))).output()?)[0];
    assert_eq!((seen["id"].as_str(), seen["same"].as_bool()), (Some(WEB), Some(true)), "{seen}");
    assert_eq!(seen["refused"], serde_json::json!([true, true, true]), "{seen}");
    Ok(())
}

#[tokio::test]
async fn keys_of_tokens_rotate_and_no_token_is_refused_while_it_lasts() -> Outcome {
    let mesh = Mesh::start_with(MeshOptions::default(), &["--jwt-key-life", "8s"]).await;
    let (web, orders) =
        (mesh.agent("shop/web", AgentOptions::default()).await, mesh.agent("shop/orders", AgentOptions::default()).await);
    let mut mine = client(socket(&web)).await;
    let mut theirs = client(socket(&orders)).await;
    let mut seen = BTreeSet::new();
    let (mut checks, begun) = (0, std::time::Instant::now());
    while seen.len() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(60), "the keys do not rotate: {seen:?}");
        // A new audience each time: a new token each time.
        let audience = format!("orders-{checks}");
        let request = api::JwtsvidRequest { audience: vec![audience.clone()], spiffe_id: String::new() };
        let token = mine.fetch_jwtsvid(marked(request)).await?.into_inner().svids.remove(0).svid;
        seen.insert(kid(&token));
        let request = api::ValidateJwtsvidRequest { audience, svid: token };
        let checked = theirs.validate_jwtsvid(marked(request)).await?.into_inner();
        assert_eq!(checked.spiffe_id, WEB);
        checks += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let bundles = theirs.fetch_jwt_bundles(marked(api::JwtBundlesRequest {})).await?.into_inner().message().await?;
    let bundle = String::from_utf8(bundles.expect("bundles").bundles.remove("spiffe://mesh.internal").expect("ours"))?;
    let first = seen.iter().filter(|kid| bundle.contains(kid.as_str())).count();
    assert!(first <= 2, "old keys go: {bundle}");
    Ok(())
}

#[tokio::test]
async fn without_a_control_plane_kept_tokens_are_served_and_checked_also_after_a_restart_of_the_agent() -> Outcome {
    let mut mesh = Mesh::start(MeshOptions::default()).await;
    let mut agent = mesh.agent("shop/web", AgentOptions::default()).await;
    let request = || marked(api::JwtsvidRequest { audience: vec!["orders".to_owned()], spiffe_id: String::new() });
    let token = client(socket(&agent)).await.fetch_jwtsvid(request()).await?.into_inner().svids.remove(0).svid;
    mesh.control_plane.kill();
    let kept = client(socket(&agent)).await.fetch_jwtsvid(request()).await?.into_inner().svids.remove(0).svid;
    assert_eq!(kept, token);
    agent.process.kill();
    agent.restart_with_token(None);
    agent.ready().await;
    let check = api::ValidateJwtsvidRequest { audience: "orders".to_owned(), svid: token };
    let checked = client(socket(&agent)).await.validate_jwtsvid(marked(check)).await?.into_inner();
    assert_eq!(checked.spiffe_id, WEB, "the keys are part of the kept view");
    let none = client(socket(&agent)).await.fetch_jwtsvid(request()).await.err().map(|status| status.code());
    assert_eq!(none, Some(Code::Unavailable), "tokens are not kept on disk");
    Ok(())
}

#[tokio::test]
async fn a_revoked_agent_hands_its_identity_to_no_program_until_that_is_undone() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let agent = mesh.agent("shop/web", AgentOptions::default()).await;
    let mut client = client(socket(&agent)).await;
    let mut stream = client.fetch_x509svid(marked(api::X509svidRequest {})).await?.into_inner();
    assert_eq!(soon("the first", stream.message()).await?.expect("a message").svids.len(), 1);
    assert!(mesh.outrider(&["certs", "revoke", "shop/web", "--reason", "stolen"]).status.success());
    let end = soon("the end of the identity", stream.message()).await.err().map(|status| status.code());
    assert_eq!(end, Some(Code::PermissionDenied));
    let late = client.fetch_x509svid(marked(api::X509svidRequest {})).await.err().map(|status| status.code());
    assert_eq!(late, Some(Code::PermissionDenied));
    let token = api::JwtsvidRequest { audience: vec!["a".to_owned()], ..Default::default() };
    assert_eq!(client.fetch_jwtsvid(marked(token)).await.err().map(|status| status.code()), Some(Code::PermissionDenied));
    assert!(mesh.outrider(&["certs", "unrevoke", "shop/web"]).status.success());
    soon("its identity again", async { while client.fetch_x509svid(marked(api::X509svidRequest {})).await.is_err() {} }).await;
    Ok(())
}

#[tokio::test]
async fn programs_get_both_roots_while_the_trust_anchor_changes_and_the_new_one_alone_afterwards() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let agent = mesh.agent("shop/web", AgentOptions::default()).await;
    let client = WorkloadApiClient::connect_to(named(&socket(&agent))).await?;
    let mut contexts = client.stream_x509_contexts().await?;
    let rotate = |words: &[&str]| {
        let output = mesh.outrider(&[&["ca", "rotate", "--skip-away", "--timeout", "60s"], words].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let mut next = async || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
        let context = soon("another context", contexts.next()).await.expect("the stream goes on")?;
        let bundle = context.bundle_set().get(&"mesh.internal".try_into()?).expect("our trust domain");
        let roots: BTreeSet<Vec<u8>> = bundle.authorities().iter().map(|root| root.as_bytes().to_vec()).collect();
        Ok((roots, context.default_svid().expect("an SVID").leaf().as_bytes().to_vec()))
    };
    let (before, first) = next().await?;
    rotate(&["--step"]);
    rotate(&["--step"]);
    let (both, same) = next().await?;
    assert!(both.len() == 2 && before.is_subset(&both) && same == first, "the bundle comes before any certificate of it");
    rotate(&[]);
    let (mut after, mut leaf) = next().await?;
    while after.len() > 1 {
        assert_eq!(after, both);
        (after, leaf) = next().await?;
    }
    assert!(after.is_disjoint(&before) && after.is_subset(&both) && leaf != first);
    Ok(())
}
