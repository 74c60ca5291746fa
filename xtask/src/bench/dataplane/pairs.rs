//! The contenders, started: whoever is installed. Configurations of others lie in `tests/bench`.

use std::{fs, net::SocketAddr, path::PathBuf, process::Command};

use anyhow::Context as _;

use super::{
    super::{
        Plan,
        ground::{Ground, free_address, status},
        process::Process,
    },
    Backend,
    contender::{Contender, Handshake},
    mesh,
};
use crate::command;

/// Starts every contender that is wanted and installed.
pub(super) fn start(ground: &Ground, backend: &Backend, plan: &Plan) -> anyhow::Result<Vec<Contender>> {
    command::output(ground.binary("outrider-floor").arg("certificates").arg(ground.certificates()))?;
    let direct = Contender { name: "direct", http1: Some(backend.http1), http2: Some(backend.http2), tls: None, pair: None };
    let mut contenders = vec![direct];
    type Start<'a> = Box<dyn Fn() -> anyhow::Result<Option<Contender>> + 'a>;
    let grpc = plan.wants("grpc");
    let all: Vec<(&str, Start<'_>)> = vec![
        ("tunnel", Box::new(|| floor(ground, "tunnel", &["tunnel"], backend.http1, false).map(Some))),
        ("hyper h1", Box::new(|| floor(ground, "hyper h1", &["hyper"], backend.http1, false).map(Some))),
        ("hyper h2", Box::new(|| floor(ground, "hyper h2", &["hyper", "--http2"], backend.http1, false).map(Some))),
        ("outrider", Box::new(|| mesh::start(ground, backend, "", 1).map(Some))),
        (
            "haproxy h1",
            Box::new(|| other(ground, backend, &haproxy("haproxy h1", "http/1.1", "haproxy-client.cfg", "haproxy-server.cfg"))),
        ),
        (
            "haproxy h2",
            Box::new(|| other(ground, backend, &haproxy("haproxy h2", "h2", "haproxy-client.cfg", "haproxy-server.cfg"))),
        ),
        ("nginx", Box::new(|| other(ground, backend, &nginx("nginx", "nginx-client.conf", "nginx-server.conf")))),
        ("envoy", Box::new(|| other(ground, backend, &envoy("envoy", "envoy-server.json")))),
    ];
    // The same over HTTP/2 all the way, where that takes another configuration.
    let http2: Vec<(&str, Start<'_>)> = vec![
        ("tunnel", Box::new(|| floor(ground, "tunnel", &["tunnel"], backend.http2, true).map(Some))),
        ("hyper h2", Box::new(|| floor(ground, "hyper h2", &["hyper", "--http2"], backend.http2, true).map(Some))),
        (
            "haproxy h2",
            Box::new(|| {
                other(ground, backend, &haproxy("haproxy h2", "h2", "haproxy-grpc-client.cfg", "haproxy-grpc-server.cfg"))
            }),
        ),
        ("nginx", Box::new(|| other(ground, backend, &nginx("nginx", "nginx-grpc-client.conf", "nginx-grpc-server.conf")))),
        ("envoy", Box::new(|| other(ground, backend, &envoy("envoy", "envoy-grpc-server.json")))),
    ];
    for (name, start) in all {
        if plan.measures(name) && plan.wants_http1() {
            contenders.extend(start().with_context(|| name.to_owned())?);
        }
    }
    for (name, start) in http2 {
        if plan.measures(name) && grpc {
            let pair = start().with_context(|| format!("{name} over HTTP/2"))?;
            contenders.extend(pair.map(|pair| Contender { http2: pair.http1, http1: None, tls: None, ..pair }));
        }
    }
    if !plan.wants_http1() && plan.measures("outrider") {
        contenders.push(mesh::start(ground, backend, "", 1)?);
    }
    Ok(contenders)
}

/// A pair of ours that does nothing but what its library does.
fn floor(
    ground: &Ground,
    name: &'static str,
    words: &[&str],
    backend: SocketAddr,
    http2_program: bool,
) -> anyhow::Result<Contender> {
    let (front, between) = (free_address()?, free_address()?);
    let end = |side: &str, listen: SocketAddr, connect: SocketAddr| {
        let mut start = ground.binary("outrider-floor");
        start.args(words.iter().take(1)).args([side, "--listen", &listen.to_string(), "--connect", &connect.to_string()]);
        // Towards the program the callee's end speaks what the program does.
        let http2 = side == "client" || http2_program;
        start.args(words.iter().skip(1).filter(|_| http2)).arg("--certificates").arg(ground.certificates());
        start
    };
    let callee = Process::start(&format!("{name} callee"), &mut end("server", between, backend), ground.directory())?;
    let caller = Process::start(&format!("{name} caller"), &mut end("client", front, between), ground.directory())?;
    // hyper with HTTP/2 between has no HTTP/1.1 at its TLS side's client.
    ready(Contender {
        name,
        http1: Some(front),
        http2: None,
        tls: Some((between, Handshake::Certificates)),
        pair: Some((caller, callee)),
    })
}

/// A pair that somebody else wrote.
struct Other {
    name: &'static str,
    program: PathBuf,
    files: [&'static str; 2],
    alpn: &'static str,
    arguments: fn(&Ground, PathBuf) -> Vec<String>,
}

fn path(file: PathBuf) -> String {
    file.display().to_string()
}

fn haproxy(name: &'static str, alpn: &'static str, client: &'static str, server: &'static str) -> Other {
    let arguments = |_: &Ground, file| vec!["-db".into(), "-q".into(), "-f".into(), path(file)];
    Other { name, program: "haproxy".into(), files: [client, server], alpn, arguments }
}

fn nginx(name: &'static str, client: &'static str, server: &'static str) -> Other {
    let arguments = |ground: &Ground, file| {
        vec!["-p".into(), path(ground.directory().into()), "-e".into(), "stderr".into(), "-c".into(), path(file)]
    };
    Other { name, program: "nginx".into(), files: [client, server], alpn: "", arguments }
}

fn envoy(name: &'static str, server: &'static str) -> Other {
    let arguments = |_: &Ground, file| {
        ["-c", &path(file), "--concurrency", "1", "--disable-hot-restart", "-l", "error"].map(str::to_owned).into()
    };
    Other { name, program: "envoy".into(), files: ["envoy-client.json", server], alpn: "", arguments }
}

/// Starts it, if it is installed.
fn other(ground: &Ground, backend: &Backend, other: &Other) -> anyhow::Result<Option<Contender>> {
    let Other { name, program, files, alpn, arguments } = other;
    if !command::exists(&path(program.clone())) {
        crate::say(&format!("{name} is not installed: left out"));
        return Ok(None);
    }
    let (front, between) = (free_address()?, free_address()?);
    let mut pair = Vec::new();
    for (file, place) in files.iter().zip(["caller", "callee"]) {
        let template = fs::read_to_string(command::root().join("tests/bench").join(file)).with_context(|| (*file).to_owned())?;
        let unique = format!("{}-{}", name.replace(' ', "-"), front.port());
        let text = [
            ("FRONT", front.port().to_string()),
            ("MESH", between.port().to_string()),
            ("BACK2", backend.http2.port().to_string()),
            ("BACK", backend.http1.port().to_string()),
            ("CERTIFICATES", path(ground.certificates())),
            ("DIRECTORY", path(ground.directory().into())),
            ("NAME", unique.clone()),
            ("ALPN", (*alpn).to_owned()),
        ]
        .iter()
        .fold(template, |text, (word, value)| text.replace(&format!("@{word}@"), value));
        let filled = ground.directory().join(format!("{unique}-{file}"));
        fs::write(&filled, text)?;
        let mut start = Command::new(program);
        start.args(arguments(ground, filled));
        pair.push(Process::start(&format!("{unique} {place}"), &mut start, ground.directory())?);
    }
    let pair = Option::zip(Some(pair.remove(0)), pair.pop());
    ready(Contender { name, http1: Some(front), http2: None, tls: Some((between, Handshake::Certificates)), pair }).map(Some)
}

/// Waits until a request passes, over either version.
pub(super) fn ready(mut contender: Contender) -> anyhow::Result<Contender> {
    let Some(address) = contender.http1 else { return Ok(contender) };
    let answers = || {
        let http2 = || {
            command::output(Command::new("curl").args([
                "-s",
                "-f",
                "-m",
                "2",
                "--http2-prior-knowledge",
                &format!("http://{address}/1k"),
            ]))
            .is_ok()
        };
        status(address, "/1k") == Some(200) || http2()
    };
    if let Some((caller, _)) = &mut contender.pair {
        caller.wait_until("serving", answers)?;
    }
    Ok(contender)
}
