//! The ground benches stand on: binaries of one profile, a directory of their own, free ports, and a backend.

use std::{
    cell::RefCell,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Plan, dataplane::Backend, process::Process};
use crate::command;

/// A directory below the build output, removed when dropped unless something failed in it.
#[derive(Debug)]
pub(super) struct Ground {
    binaries: PathBuf,
    /// Another agent than the one among them.
    agent: Option<PathBuf>,
    directory: PathBuf,
    kept: RefCell<Vec<Process>>,
}

impl Ground {
    /// Builds all binaries and makes an empty directory.
    pub(super) fn prepare(name: &str, plan: &Plan) -> anyhow::Result<Self> {
        Self::with(name, plan, &["--bins"])
    }

    /// The same with only what these words choose.
    pub(super) fn with(name: &str, plan: &Plan, binaries: &[&str]) -> anyhow::Result<Self> {
        let packages = ["outrider", "outrider-agent", "outrider-control-plane", "outrider-tests"];
        let mut build = command::cargo();
        build.args(["build", "--profile", &plan.profile]).args(binaries);
        command::run(build.args(packages.iter().flat_map(|package| ["-p", *package])))?;
        let target = target_directory()?;
        let directory = target.join("bench").join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let output = if plan.profile == "dev" { "debug" } else { plan.profile.as_str() };
        Ok(Self { binaries: target.join(output), agent: None, directory, kept: RefCell::default() })
    }

    /// The same with another agent.
    pub(super) fn with_agent(mut self, agent: &Path) -> Self {
        self.agent = Some(agent.to_owned());
        self
    }

    /// A command for one of the built binaries.
    pub(super) fn binary(&self, name: &str) -> Command {
        match &self.agent {
            Some(agent) if name == "outrider-agent" => Command::new(agent),
            _ => Command::new(self.binaries.join(name)),
        }
    }

    /// The directory for state and logs.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the certificates of the contenders are.
    pub(super) fn certificates(&self) -> PathBuf {
        self.directory.join("certificates")
    }

    /// Keeps a process for as long as the ground.
    pub(super) fn keep(&self, process: Process) {
        self.kept.borrow_mut().push(process);
    }

    /// The program behind all proxies: nginx with one worker, no access log, 1 KiB and 10 MiB, over HTTP/1.1 and HTTP/2.
    pub(super) fn nginx(&self) -> anyhow::Result<Backend> {
        let prefix = self.directory.join("nginx");
        fs::create_dir_all(prefix.join("html"))?;
        fs::write(prefix.join("html/10m"), "x".repeat(10 << 20))?;
        let (http1, http2) = (free_address()?, free_address()?);
        let body = "x".repeat(1024);
        // The backend should cost little, and always the same.
        let settings = format!(
            "daemon off; master_process off; pid nginx.pid; error_log stderr warn; worker_rlimit_nofile 65536;\n\
             events {{ worker_connections 30000; }}\n\
             http {{\n  access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 3600s;\n\
             {temporary}  default_type application/octet-stream; open_file_cache max=16; http2_max_requests 1000000000;\n\
             server {{ listen {http1} backlog=4096; root html; location /10m {{}} location / {{ return 200 \"{body}\"; }} }}\n\
             server {{ listen {http2} http2 backlog=4096; location / {{ return 200 \"{body}\"; }} }}\n}}\n",
            temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|kind| format!("  {kind}_temp_path temp-{kind};\n"))
                .concat(),
        );
        let file = prefix.join("nginx.conf");
        fs::write(&file, settings)?;
        let mut start = Command::new("nginx");
        start.arg("-p").arg(&prefix).arg("-c").arg(&file).args(["-e", "stderr"]);
        let mut nginx = Process::start("nginx", &mut start, &self.directory)?;
        nginx.wait_until("serving", || status(http1, "/1k") == Some(200))?;
        Ok(Backend { http1, http2, _process: nginx })
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.kept.borrow_mut().clear();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// An address of this machine that is free now.
pub(super) fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("there is no free port")?;
    Ok(listener.local_addr()?)
}

/// Status of one plain GET; `None` when nobody answers.
pub(super) fn status(address: SocketAddr, path: &str) -> Option<u16> {
    let wait = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, wait).ok()?;
    stream.set_read_timeout(Some(wait)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    // What came before an error is enough: the status stands first.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
}

/// A bar on standard error for something of known length.
pub(super) fn progress(steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} [{bar:30}] {pos}/{len}  {elapsed} left {eta}");
    let bar = ProgressBar::new(steps).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Where cargo builds.
pub(crate) fn target_directory() -> anyhow::Result<PathBuf> {
    let json = command::output(command::cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&json)?;
    let path = metadata.get("target_directory").and_then(|path| path.as_str());
    Ok(PathBuf::from(path.context("cargo metadata does not say where it builds")?))
}
