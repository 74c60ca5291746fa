//! A mesh of real processes: a control plane, and agents that joined it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use outrider_agent::tls::server_name;
use outrider_proto::v1::{CreateTokenRequest, admin_client::AdminClient};
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::{Identity, Image, Process, Space, Tmpfs, careless_client, free_port, program};

/// How a mesh is started.
#[derive(Clone, Debug, Default)]
pub struct MeshOptions {
    /// `--leaf-ttl`; the default when none.
    pub leaf_ttl: Option<&'static str>,
}

/// How an agent is started.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// `--service` flags.
    pub services: Vec<String>,
    /// `--upstream` flags.
    pub upstreams: Vec<String>,
    /// Any others.
    pub more: Vec<String>,
}

/// A control plane and its directory.
#[derive(Debug)]
pub struct Mesh {
    /// Everything the mesh keeps.
    pub dir: TempDir,
    /// The control plane.
    pub control_plane: Process,
    /// Where agents connect.
    pub address: SocketAddr,
    /// Other replicas on the same store, which agents are told of too.
    pub others: Vec<SocketAddr>,
    options: MeshOptions,
    flags: Vec<String>,
    health: u16,
    /// Network namespace the control plane runs in; that of the test when none.
    space: Option<String>,
}

/// An agent.
#[derive(Debug)]
pub struct AgentProcess {
    /// The process.
    pub process: Process,
    /// Proxy for programs.
    pub outbound: SocketAddr,
    /// Mesh listener.
    pub mesh: SocketAddr,
    /// Health and metrics.
    pub health: SocketAddr,
    /// Its private directory.
    pub state_dir: PathBuf,
    arguments: Vec<String>,
}

/// In memory where there is such a place: a disk that is busy with something else would stop the clock of short certificates.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let make = tempfile::Builder::new().prefix("outrider-").tempdir_in(memory);
    make.or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// What makes a program see another time: the wall clock alone, as when it is set wrong.
///
/// # Panics
/// When libfaketime is not installed.
fn wrong_clock(offset: &str) -> [(&'static str, String); 3] {
    let libraries = std::fs::read_dir("/usr/lib").expect("/usr/lib").flatten();
    let places = libraries.map(|place| place.path().join("faketime/libfaketimeMT.so.1"));
    let library = places.into_iter().find(|place| place.exists()).expect("libfaketime: `cargo xtask test` installs it");
    [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME", offset.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A policy with one rule that lets `from` call `methods` on `paths` of `service`, all as YAML flow lists.
pub fn allow(name: &str, service: &str, from: &str, methods: &str, paths: &str) -> String {
    let (namespace, short) = service.split_once('/').expect("namespace/name");
    format!(
        "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: {{ name: {name}, namespace: {namespace} }}\nspec:\n  \
         targetRefs: [{{ kind: Service, name: {short} }}]\n  authorization:\n    rules:\n      - name: rule\n        action: Allow\n        \
         from: [{{ serviceAccounts: {from} }}]\n        to: [{{ methods: {methods}, paths: {paths} }}]\n"
    )
}

impl Mesh {
    /// Starts a control plane and waits until it answers.
    pub async fn start(options: MeshOptions) -> Self {
        Self::start_with(options, &[]).await
    }

    /// Starts a control plane with more flags and waits until it answers.
    pub async fn start_with(options: MeshOptions, flags: &[&str]) -> Self {
        let flags = flags.iter().map(ToString::to_string).collect();
        Self::begin(options, flags, loopback(free_port()), None).await
    }

    /// Starts a control plane inside a network namespace.
    pub async fn start_in(space: &Space) -> Self {
        let address = SocketAddr::new(space.v4.parse().expect("an address"), 15110);
        Self::begin(MeshOptions::default(), Vec::new(), address, Some(space.name.clone())).await
    }

    /// Starts a control plane whose state directory is on a file system of its own, of this size.
    pub async fn start_on_disk_of(size: &str) -> (Self, Tmpfs) {
        let dir = directory();
        let disk = Tmpfs::mount(&dir.path().join("control-plane"), size);
        (Self::begin_in(dir, MeshOptions::default(), Vec::new(), loopback(free_port()), None).await, disk)
    }

    /// Starts a control plane whose state directory is on a disk of its own, which can fail; `None` where that cannot be had.
    pub async fn start_on_failing_disk() -> Option<(Self, Image)> {
        let dir = directory();
        let disk = Image::mount(&dir.path().join("control-plane"))?;
        Some((Self::begin_in(dir, MeshOptions::default(), Vec::new(), loopback(free_port()), None).await, disk))
    }

    async fn begin(options: MeshOptions, flags: Vec<String>, address: SocketAddr, space: Option<String>) -> Self {
        Self::begin_in(directory(), options, flags, address, space).await
    }

    async fn begin_in(
        dir: TempDir,
        options: MeshOptions,
        flags: Vec<String>,
        address: SocketAddr,
        space: Option<String>,
    ) -> Self {
        let health = free_port();
        let control_plane = Self::spawn(dir.path(), address, health, (&options, &flags), space.as_deref());
        let mesh = Self { dir, control_plane, address, others: Vec::new(), options, flags, health, space };
        mesh.ready().await;
        mesh
    }

    fn spawn(
        dir: &Path,
        address: SocketAddr,
        health: u16,
        (options, flags): (&MeshOptions, &[String]),
        space: Option<&str>,
    ) -> Process {
        Process::start("outrider-control-plane", &mut Self::command(dir, address, health, (options, flags), space))
    }

    fn command(
        dir: &Path,
        address: SocketAddr,
        health: u16,
        (options, flags): (&MeshOptions, &[String]),
        space: Option<&str>,
    ) -> Command {
        let program = program("outrider-control-plane");
        let mut command = match space {
            None => Command::new(program),
            Some(space) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", space]).arg(program);
                command
            }
        };
        command
            .args(["--state-dir", &dir.join("control-plane").display().to_string()])
            .args(["--listen", &address.to_string(), "--health-listen", &loopback(health).to_string()])
            .args(flags)
            .env_remove("OUTRIDER_ADMIN_SOCKET");
        if let Some(ttl) = options.leaf_ttl {
            command.args(["--leaf-ttl", ttl]);
        }
        command
    }

    /// As [`Mesh::restart_control_plane`], under a clock that is off by this much: `+1d`, `-1d`.
    pub async fn restart_control_plane_at(&mut self, clock: &str) {
        let space = self.space.as_deref();
        let mut command = Self::command(self.dir.path(), self.address, self.health, (&self.options, &self.flags), space);
        self.control_plane = Process::start("outrider-control-plane", command.envs(wrong_clock(clock)));
        self.ready().await;
    }

    /// Starts the control plane again, on the same address and directory.
    pub async fn restart_control_plane(&mut self) {
        self.start_control_plane();
        self.ready().await;
    }

    /// As [`Mesh::restart_control_plane`], without waiting.
    pub fn start_control_plane(&mut self) {
        let settings = (&self.options, self.flags.as_slice());
        self.control_plane = Self::spawn(self.dir.path(), self.address, self.health, settings, self.space.as_deref());
    }

    async fn ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Ok(mut admin) = self.try_admin().await
                && admin.status(outrider_proto::v1::StatusRequest {}).await.is_ok()
            {
                return;
            }
            assert!(Instant::now() < deadline, "no control plane:\n{}", self.control_plane.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The operators' socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.dir.path().join("control-plane/admin.sock")
    }

    async fn try_admin(&self) -> Result<AdminClient<Channel>, tonic::transport::Error> {
        let socket = self.admin_socket();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
        });
        Ok(AdminClient::new(Endpoint::from_static("http://admin.invalid").connect_with_connector(connector).await?))
    }

    /// A client of the operators' socket.
    ///
    /// # Panics
    /// When there is none.
    pub async fn admin(&self) -> AdminClient<Channel> {
        self.try_admin().await.expect("the admin socket")
    }

    /// A join token.
    ///
    /// # Panics
    /// When none is made.
    pub async fn token(&self, identity: &str, services: &[&str]) -> String {
        let services = services.iter().map(ToString::to_string).collect();
        let request = CreateTokenRequest { identity: identity.to_owned(), services, ttl_seconds: 600, caller_only: false };
        self.admin().await.create_token(request).await.expect("a token").into_inner().token
    }

    /// Starts an agent with this identity and waits until it is ready.
    pub async fn agent(&self, identity: &str, options: AgentOptions) -> AgentProcess {
        let agent = self.agent_not_ready(identity, options).await;
        agent.ready().await;
        agent
    }

    /// Starts one of several agents with the same identity; `name` is its own.
    pub async fn agent_of(&self, identity: &str, name: &str, options: AgentOptions) -> AgentProcess {
        let agent = self.agent_named(identity, name, options).await;
        agent.ready().await;
        agent
    }

    /// Starts an agent that tells this socket, as systemd's, when it is ready; waits until it is.
    pub async fn agent_told(&self, identity: &str, options: AgentOptions, socket: &Path) -> AgentProcess {
        let mut agent = self.agent(identity, options).await;
        agent.process.kill();
        let mut command = Command::new(program("outrider-agent"));
        agent.process = Process::start(identity, command.args(&agent.arguments).env("NOTIFY_SOCKET", socket));
        agent.ready().await;
        agent
    }

    /// Starts an agent without waiting.
    pub async fn agent_not_ready(&self, identity: &str, options: AgentOptions) -> AgentProcess {
        self.agent_named(identity, &identity.replace('/', "-"), options).await
    }

    fn addresses(&self) -> String {
        let all: Vec<String> = std::iter::once(&self.address).chain(&self.others).map(ToString::to_string).collect();
        all.join(",")
    }

    /// Where health and metrics of the control plane are served.
    pub fn health(&self) -> SocketAddr {
        loopback(self.health)
    }

    async fn agent_named(&self, identity: &str, name: &str, options: AgentOptions) -> AgentProcess {
        let backed: Vec<&str> =
            options.services.iter().filter_map(|service| service.split_once(':')).map(|(name, _)| name).collect();
        let token = self.token(identity, &backed).await;
        let state_dir = self.dir.path().join("agents").join(name);
        let (outbound, mesh, health) = (loopback(free_port()), loopback(free_port()), loopback(free_port()));
        let mut arguments: Vec<String> = [
            ("--control-plane", self.addresses()),
            ("--token", token),
            ("--identity", identity.to_owned()),
            ("--state-dir", state_dir.display().to_string()),
            ("--outbound", outbound.to_string()),
            ("--mesh", mesh.to_string()),
            ("--health", health.to_string()),
            ("--workers", "1".to_owned()),
            ("--access-log", state_dir.with_extension("access.log").display().to_string()),
            ("--report-allows", "1".to_owned()),
        ]
        .into_iter()
        .filter(|(flag, _)| !options.more.iter().any(|word| word == flag))
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        arguments.extend(options.services.iter().flat_map(|service| ["--service".to_owned(), service.clone()]));
        arguments.extend(options.upstreams.iter().flat_map(|upstream| ["--upstream".to_owned(), upstream.clone()]));
        arguments.extend(options.more);
        let process = AgentProcess::spawn(identity, &arguments);
        AgentProcess { process, outbound, mesh, health, state_dir, arguments }
    }

    /// Runs `outrider` with these arguments against this mesh.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn outrider(&self, arguments: &[&str]) -> Output {
        Command::new(program("outrider"))
            .args(arguments)
            .env("OUTRIDER_ADMIN_SOCKET", self.admin_socket())
            .env("XDG_STATE_HOME", self.dir.path())
            .env("NO_COLOR", "1")
            .output()
            .expect("outrider runs")
    }

    /// `outrider apply --wait` of this YAML, also for services that are to come; it must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub fn apply(&self, yaml: &str) {
        let file = self.dir.path().join("policy.yaml");
        std::fs::write(&file, yaml).expect("a file");
        let output = self.outrider(&["apply", "-f", &file.display().to_string(), "--wait", "--allow-unknown-services"]);
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

impl AgentProcess {
    fn spawn(name: &str, arguments: &[String]) -> Process {
        Process::start(&format!("agent of {name}"), Command::new(program("outrider-agent")).args(arguments))
    }

    /// Starts a successor that takes over while this one runs, and returns this one, which will end by itself.
    pub fn replace(&mut self) -> Process {
        let successor = self.start_successor();
        std::mem::replace(&mut self.process, successor)
    }

    /// Starts a successor beside it.
    pub fn start_successor(&self) -> Process {
        let mut arguments = self.arguments.clone();
        arguments.push("--take-over".to_owned());
        Self::spawn("successor", &arguments)
    }

    /// What it was started with.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Starts the same once more beside it.
    pub fn start_again(&self) -> Process {
        Self::spawn("second", &self.arguments)
    }

    /// Starts it again after it has ended, on the same addresses and directory.
    pub fn restart(&mut self) {
        self.process = Self::spawn("restarted", &self.arguments);
    }

    /// Starts it again under a clock that is off by this much: `+1d`, `-1d`.
    pub fn restart_at(&mut self, clock: &str) {
        let mut command = Command::new(program("outrider-agent"));
        self.process = Process::start("agent of another time", command.args(&self.arguments).envs(wrong_clock(clock)));
    }

    /// As [`AgentProcess::restart`], from now on with this join token or none.
    pub fn restart_with_token(&mut self, token: Option<String>) {
        if let Some(at) = self.arguments.iter().position(|argument| argument == "--token") {
            self.arguments.drain(at..at + 2);
        }
        self.arguments.extend(token.into_iter().flat_map(|token| ["--token".to_owned(), token]));
        self.restart();
    }

    /// Waits until its stream from the control plane is up.
    ///
    /// # Panics
    /// When it is not within 20 s.
    pub async fn connected(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.metric("outrider_agent_control_plane_connected").await != 1.0 {
            assert!(Instant::now() < deadline, "the agent has no control plane:\n{}", self.process.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until it is ready.
    ///
    /// # Panics
    /// When it is not within 20 s.
    pub async fn ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.readiness().await.0 != 200 {
            assert!(Instant::now() < deadline, "the agent is not ready:\n{}", self.process.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether its mesh port serves somebody with this certificate, at a port of a service.
    ///
    /// # Panics
    /// When nothing listens there.
    pub async fn lets_in(&self, service: &str, port: u16, identity: Identity) -> bool {
        let name = server_name(&service.parse().expect("a name"), port);
        let name = ServerName::try_from(name).expect("a name");
        let stream = TcpStream::connect(self.mesh).await.expect("the mesh port");
        let Ok(mut stream) = TlsConnector::from(Arc::new(careless_client(Some(identity)))).connect(name, stream).await else {
            return false;
        };
        // In TLS 1.3 a client learns only afterwards that it was refused.
        let sent = stream.write_all(b"GET /x HTTP/1.1\r\nhost: anything\r\n\r\n").await;
        let mut answer = [0; 12];
        sent.is_ok() && stream.read_exact(&mut answer).await.is_ok() && answer.starts_with(b"HTTP/1.1 ")
    }

    /// What `/readyz` says; status 0 when nobody answers.
    pub async fn readiness(&self) -> (u16, String) {
        match crate::get(self.health, "/readyz").await {
            Ok(answer) => (answer.status, answer.body_text()),
            Err(_) => (0, String::new()),
        }
    }

    /// A sample of `/metrics`, the sum over all series whose line starts with `prefix`.
    ///
    /// # Panics
    /// When metrics are not served.
    pub async fn metric(&self, prefix: &str) -> f64 {
        let text = crate::get(self.health, "/metrics").await.expect("metrics").body_text();
        text.lines().filter(|line| line.starts_with(prefix)).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// The access log so far, one JSON value a line, after everything that happened until now has been written.
    ///
    /// # Panics
    /// When a line is not JSON.
    pub async fn access_log(&self) -> Vec<serde_json::Value> {
        // Workers hand lines over every 100 ms.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let text = std::fs::read_to_string(self.state_dir.with_extension("access.log")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }
}
