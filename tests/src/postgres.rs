//! A PostgreSQL of the tests' own: in a temporary directory, on a unix socket, gone with the process that started it.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

/// Starts the server, says so, and ends it when whoever started this is gone, however it went.
const KEEPER: &str = r#"
"$0/pg_ctl" -D "$1/data" -s -w -l "$1/log" start >/dev/null 2>&1 || { cat "$1/log" >&2; exit 1; }
echo started
cat >/dev/null
"$0/pg_ctl" -D "$1/data" -s -m immediate stop >/dev/null 2>&1
rm -rf "$1"
"#;

/// A cluster.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    port: u16,
    keeper: Option<Child>,
    databases: AtomicU32,
}

/// Whether commits reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// They do: for tests of durability.
    Durable,
    /// They do not: for tests of anything else.
    Fast,
}

impl Cluster {
    /// The one of this process, fast and forgetful.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(Disk::Fast, None))
    }

    /// A new one. With a port it listens on loopback as well.
    ///
    /// # Panics
    /// When PostgreSQL is not installed or does not start.
    pub fn start(disk: Disk, port: Option<u16>) -> Self {
        let cluster = Self::empty(port);
        let data = cluster.dir.join("data");
        cluster.init(&data);
        cluster.configure(disk);
        cluster.kept()
    }

    /// A new one that shows this certificate (both PEM), and takes nothing over TCP but TLS.
    ///
    /// # Panics
    /// When PostgreSQL is not installed or does not start.
    pub fn secured(port: u16, certificate: &str, key: &str) -> Self {
        let cluster = Self::empty(Some(port));
        let data = cluster.dir.join("data");
        cluster.init(&data);
        cluster.configure(Disk::Fast);
        cluster.write("server.crt", certificate);
        cluster.write("server.key", key);
        cluster.write("pg_hba.conf", "local all all trust\nhostssl all all 127.0.0.1/32 trust\n");
        let settings = std::fs::read_to_string(data.join("postgresql.conf")).expect("postgresql.conf");
        cluster.write("postgresql.conf", &format!("{settings}ssl = on\n"));
        cluster.kept()
    }

    /// Writes a file of the server.
    fn write(&self, name: &str, text: &str) {
        let file = self.dir.join("data").join(name);
        std::fs::write(&file, text).expect("a file of PostgreSQL");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("mode");
        if let Some((uid, gid)) = servant() {
            chown(&file, Some(uid), Some(gid)).expect("chown");
        }
    }

    fn init(&self, data: &Path) {
        let mut made = self.command("initdb");
        made.arg("-D").arg(data).args(["-U", "postgres", "-A", "trust", "-E", "UTF8"]);
        succeed(made.args(["--locale=C", "--no-sync", "--no-instructions"]));
    }

    /// A standby that follows another cluster.
    ///
    /// # Panics
    /// When the other one is not to be copied.
    pub fn standby_of(primary: &Self, port: u16) -> Self {
        let cluster = Self::empty(Some(port));
        let data = cluster.dir.join("data");
        let mut copy = cluster.command("pg_basebackup");
        copy.arg("-h").arg(&primary.dir).args(["-p", &primary.port.to_string()]);
        succeed(copy.args(["-U", "postgres", "-R", "-X", "stream", "-c", "fast", "--no-sync", "-D"]).arg(&data));
        cluster.configure(Disk::Durable);
        cluster.kept()
    }

    fn empty(port: Option<u16>) -> Self {
        let dir = std::env::temp_dir().join(format!("outrider-pg-{}-{}", std::process::id(), unique()));
        std::fs::create_dir(&dir).expect("a directory for PostgreSQL");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).expect("mode");
        if let Some((uid, gid)) = servant() {
            chown(&dir, Some(uid), Some(gid)).expect("chown");
        }
        Self { dir, port: port.unwrap_or(5432), keeper: None, databases: AtomicU32::new(0) }
    }

    fn configure(&self, disk: Disk) {
        let addresses = if self.port == 5432 { "" } else { "127.0.0.1" };
        let durable = if disk == Disk::Durable { "on" } else { "off" };
        let text = format!(
            "listen_addresses = '{addresses}'\nport = {}\nunix_socket_directories = '{}'\nmax_connections = 200\n\
             fsync = {durable}\nsynchronous_commit = {durable}\nfull_page_writes = {durable}\nwal_level = replica\n\
             shared_buffers = 32MB\nlogging_collector = off\nautovacuum = off\n",
            self.port,
            self.dir.display()
        );
        std::fs::write(self.dir.join("data/postgresql.conf"), text).expect("postgresql.conf");
    }

    fn kept(mut self) -> Self {
        let mut keeper = unprivileged(Command::new("sh").arg("-c").arg(KEEPER).arg(bin()).arg(&self.dir))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        let mut said = String::new();
        BufReader::new(keeper.stdout.take().expect("piped")).read_line(&mut said).expect("the keeper's word");
        assert_eq!(said.trim(), "started", "PostgreSQL did not start");
        self.keeper = Some(keeper);
        self
    }

    /// A new, empty database: its URL.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn database(&self) -> String {
        let name = format!("mesh_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// How to reach a database of that name.
    pub fn url(&self, database: &str) -> String {
        if self.port == 5432 {
            let host = self.dir.display().to_string().replace('/', "%2F");
            format!("postgres://postgres@{host}/{database}")
        } else {
            format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
        }
    }

    /// Runs SQL and returns what it says, without decoration.
    ///
    /// # Panics
    /// When it fails.
    pub fn sql(&self, database: &str, text: &str) -> String {
        let mut psql = self.command("psql");
        psql.arg("-h").arg(&self.dir).args(["-p", &self.port.to_string(), "-U", "postgres", "-d", database, "-XAtqc", text]);
        succeed(&mut psql)
    }

    /// Kills the server at once, as a crash does.
    ///
    /// # Panics
    /// When it does not end.
    pub fn crash(&self) {
        succeed(self.control().args(["-m", "immediate", "-w", "stop"]));
    }

    /// Starts the server after a crash.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&self) {
        let log = self.dir.join("log");
        succeed(self.control().arg("-l").arg(log).args(["-w", "start"]).stdout(Stdio::null()).stderr(Stdio::null()));
    }

    /// Makes a standby the one that takes writes.
    ///
    /// # Panics
    /// When it cannot be promoted.
    pub fn promote(&self) {
        succeed(self.control().args(["-w", "promote"]));
    }

    fn control(&self) -> Command {
        let mut control = self.command("pg_ctl");
        control.arg("-s").arg("-D").arg(self.dir.join("data"));
        control
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(bin().join(program));
        command.current_dir(&self.dir).env("LC_ALL", "C");
        unprivileged(&mut command);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            let _ = keeper.wait();
        }
    }
}

fn succeed(command: &mut Command) -> String {
    let name = command.get_program().to_string_lossy().into_owned();
    // The server inherits the streams of `pg_ctl start`: whoever reads them to their end waits for its end.
    let output = if command.get_args().any(|word| word == "start") {
        let status = command.status().unwrap_or_else(|error| panic!("{name}: {error}"));
        std::process::Output { status, stdout: Vec::new(), stderr: Vec::new() }
    } else {
        command.output().unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    assert!(output.status.success(), "{name} failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Where the server's programs are: Debian keeps them beside the path, by version.
fn bin() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = versions.map(|entry| entry.path().join("bin")).collect();
        found.sort();
        found.reverse();
        found.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let whole = |dir: &&PathBuf| ["initdb", "pg_ctl", "psql"].iter().all(|program| dir.join(program).is_file());
        found.iter().find(whole).expect("PostgreSQL is not installed: Debian package `postgresql`").clone()
    })
}

/// PostgreSQL refuses to run as root: whom to run it as instead.
fn servant() -> Option<(u32, u32)> {
    let own = std::fs::read_to_string("/proc/self/status").expect("proc");
    let uid = own.lines().find_map(|line| line.strip_prefix("Uid:")).and_then(|ids| ids.split_whitespace().nth(1));
    if uid != Some("0") {
        return None;
    }
    let accounts = std::fs::read_to_string("/etc/passwd").expect("passwd");
    let ids = accounts.lines().find_map(|line| {
        let mut words = line.strip_prefix("postgres:")?.split(':').skip(1);
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    });
    Some(ids.unwrap_or((65534, 65534)))
}

fn unprivileged(command: &mut Command) -> &mut Command {
    match servant() {
        Some((uid, gid)) => command.uid(uid).gid(gid),
        None => command,
    }
}

fn unique() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}
