//! Settings: [`Raw`] is what was written in flags and file, [`Config`] what the program needs. Nothing else reads the
//! environment.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use outrider_policy::identity::TrustDomain;
use outrider_runtime::telemetry::Format;
use zeroize::Zeroizing;

use crate::{
    ca::CaFiles,
    store::{Backend, PostgresUrl, is_replica_id},
};

/// Shortest leaf lifetime: shorter ones cannot be renewed in time.
const LEAF_TTL_MIN: Duration = Duration::from_secs(2);
/// Longest leaf lifetime.
const LEAF_TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// Lifetime of an issuing CA.
const ISSUING_TTL: Duration = Duration::from_secs(7 * 86_400);
/// Lifetime of a root.
const ROOT_TTL: Duration = Duration::from_secs(3650 * 86_400);
/// Shortest lifetime of a CA: shorter ones cannot be renewed in time.
const CA_TTL_MIN: Duration = Duration::from_secs(4);
/// Longest lifetime of a CA.
const CA_TTL_MAX: Duration = Duration::from_secs(36_500 * 86_400);
/// Shortest life of a key for tokens: a quarter of it is the life of a token.
const JWT_KEY_LIFE_MIN: Duration = Duration::from_secs(8);
/// Longest life of a key for tokens.
const JWT_KEY_LIFE_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Certificates that are issued in a second at most.
const ISSUANCE_RATE: u32 = 2000;
/// The most that can be set.
const ISSUANCE_RATE_MAX: u32 = 1_000_000;
/// Below this a short outage of the control plane ends the mesh.
const LEAF_TTL_ADVISED: Duration = Duration::from_secs(300);

/// Settings as written. Flags win over the settings file; keys of the file are the names of the flags.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Raw {
    /// Directory for the store, the key and the admin socket [default: $XDG_STATE_HOME/outrider/control-plane]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Address where agents connect [default: 127.0.0.1:15110]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// Address that agents are told to connect to [default: the listen address]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Address of /livez, /readyz and /metrics [default: 127.0.0.1:15114]
    #[arg(long, value_name = "IP:PORT")]
    pub health_listen: Option<String>,
    /// Address where operators on other machines connect, over mutual TLS; 15180 is the usual port [default: off]
    #[arg(long, value_name = "IP:PORT")]
    pub operators: Option<String>,
    /// Unix socket for operators [default: admin.sock in the state directory]
    #[arg(long, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// Name of the trust domain; fixed once the store exists [default: mesh.internal]
    #[arg(long, value_name = "NAME")]
    pub trust_domain: Option<String>,
    /// Lifetime of leaf certificates, 2s to 24h [default: 1h]
    #[arg(long, value_name = "TIME")]
    pub leaf_ttl: Option<String>,
    /// Lifetime of issuing CAs, which renew themselves at half of it; no leaf outlives its issuing CA [default: 7d]
    #[arg(long, value_name = "TIME")]
    pub issuing_ttl: Option<String>,
    /// Lifetime of a root that is made from now on [default: 3650d]
    #[arg(long, value_name = "TIME")]
    pub root_ttl: Option<String>,
    /// PEM file with a CA that somebody else makes, and what it chains to (tls.crt of cert-manager): it signs the leaves. Read
    /// again when it changes; with --ca-key and --ca-bundle
    #[arg(long, value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,
    /// PEM file with its key (tls.key)
    #[arg(long, value_name = "FILE")]
    pub ca_key: Option<PathBuf>,
    /// PEM file with every root that members shall believe (ca.crt)
    #[arg(long, value_name = "FILE")]
    pub ca_bundle: Option<PathBuf>,
    /// How long a key signs tokens (JWT-SVIDs) before the next one does, 8s to 30d [default: 1d]
    #[arg(long, value_name = "TIME")]
    pub jwt_key_life: Option<String>,
    /// Certificates that are issued in a second at most; who comes too many waits for a moment, and is sent elsewhere after
    /// that, 1 to 1000000 [default: 2000]
    #[arg(long, value_name = "NUMBER")]
    pub issuance_rate: Option<u32>,
    /// File with the key that encrypts CA keys, made at the first start; the environment variable OUTRIDER_KEY (32 bytes in
    /// base64) takes its place [default: key in the state directory]
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Where the store is: `sqlite`, a file in the state directory, or `postgres://USER:PASSWORD@HOST/DATABASE`, which several
    /// replicas may share; several hosts with commas between them are tried in turn. Give a URL with a password in the
    /// environment variable OUTRIDER_STORE or in --store-file, where nobody else reads it [default: sqlite]
    #[arg(long, value_name = "WHERE")]
    pub store: Option<String>,
    /// File that holds what --store would say
    #[arg(long, value_name = "FILE")]
    pub store_file: Option<PathBuf>,
    /// Name of this replica among those on one store: letters, digits, `-`, `_` and `.` [default: one that is made at the first
    /// start and kept in the state directory]
    #[arg(long, value_name = "NAME")]
    pub replica: Option<String>,
    /// How long an endpoint outlives a broken stream of its agent [default: 15s]
    #[arg(long, value_name = "TIME")]
    pub endpoint_grace: Option<String>,
    /// What to log, for example `info` or `info,outrider_control_plane=debug` [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Shape of log lines: `text` or `json` [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// What the environment says.
#[derive(Clone, Default)]
pub struct Environment {
    /// `OUTRIDER_KEY`.
    pub key: Option<Zeroizing<String>>,
    /// `OUTRIDER_STORE`.
    pub store: Option<Zeroizing<String>>,
    /// `XDG_STATE_HOME`.
    pub xdg_state_home: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
}

impl Environment {
    /// Reads the process's environment.
    #[expect(clippy::disallowed_methods, reason = "the one place where the control plane reads it")]
    pub fn read() -> Self {
        let path = |name: &str| std::env::var(name).ok().filter(|value| value.starts_with('/')).map(PathBuf::from);
        Self {
            key: std::env::var("OUTRIDER_KEY").ok().map(Zeroizing::new),
            store: std::env::var("OUTRIDER_STORE").ok().map(Zeroizing::new),
            xdg_state_home: path("XDG_STATE_HOME"),
            home: path("HOME"),
        }
    }

    fn state_dir(&self) -> Option<PathBuf> {
        let base = self.xdg_state_home.clone().or_else(|| self.home.as_ref().map(|home| home.join(".local/state")));
        base.map(|base| base.join("outrider/control-plane"))
    }
}

/// Where the key that encrypts CA keys comes from.
#[derive(Clone)]
pub enum KeySource {
    /// A file of mode 0600, made at the first start.
    File(PathBuf),
    /// The environment.
    Given(Zeroizing<[u8; 32]>),
}

impl fmt::Debug for KeySource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(out, "File({})", path.display()),
            Self::Given(_) => write!(out, "Given"),
        }
    }
}

/// Settings as the program needs them.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of mode 0700 for the store.
    pub state_dir: PathBuf,
    /// Where agents connect; port 0 takes any free port.
    pub listen: SocketAddr,
    /// `host:port` that agents are told; the bound address when absent.
    pub advertise: Option<String>,
    /// Where health and metrics are served.
    pub health_listen: SocketAddr,
    /// Where operators on other machines connect; nowhere when absent.
    pub operators: Option<SocketAddr>,
    /// The operators' unix socket.
    pub admin_socket: PathBuf,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Lifetime of leaf certificates.
    pub leaf_ttl: Duration,
    /// Lifetime of issuing CAs.
    pub issuing_ttl: Duration,
    /// Lifetime of new roots.
    pub root_ttl: Duration,
    /// A CA that somebody else makes.
    pub ca_files: Option<CaFiles>,
    /// How long a key signs tokens.
    pub jwt_key_life: Duration,
    /// Certificates that are issued in a second at most.
    pub issuance_rate: u32,
    /// The key that encrypts CA keys.
    pub key: KeySource,
    /// Which database the store is in.
    pub store: Backend,
    /// Name of this replica; one that is kept in the state directory when absent.
    pub replica: Option<String>,
    /// How long an endpoint outlives a broken stream.
    pub endpoint_grace: Duration,
    /// Log filter.
    pub log: String,
    /// Shape of log lines.
    pub log_format: Format,
    /// Remarks on settings that are accepted but not advised.
    pub warnings: Vec<String>,
}

/// Settings that cannot be used: every mistake, one a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

impl Raw {
    /// Checks everything and fills in the defaults.
    ///
    /// # Errors
    /// With every mistake at once.
    pub fn resolve(self, environment: &Environment) -> Result<Config, ConfigErrors> {
        let mut wrong = Wrong::default();
        let mut warnings = Vec::new();
        let state_dir = self.state_dir.or_else(|| environment.state_dir()).unwrap_or_else(|| {
            wrong.say("no state directory: set `--state-dir`, or HOME".to_owned());
            PathBuf::new()
        });
        let leaf_ttl = wrong.time("leaf-ttl", self.leaf_ttl.as_deref(), Duration::from_secs(3600));
        if !(LEAF_TTL_MIN..=LEAF_TTL_MAX).contains(&leaf_ttl) {
            wrong.say("`--leaf-ttl` must be from 2s to 24h".to_owned());
        } else if leaf_ttl < LEAF_TTL_ADVISED {
            warnings.push(format!(
                "leaf certificates live only {} s: an outage of the control plane longer than half of that stops the mesh",
                leaf_ttl.as_secs()
            ));
        }
        let issuing_ttl = wrong.ttl("issuing-ttl", self.issuing_ttl.as_deref(), ISSUING_TTL);
        let root_ttl = wrong.ttl("root-ttl", self.root_ttl.as_deref(), ROOT_TTL);
        if issuing_ttl < leaf_ttl * 2 {
            let (issuing, leaf) = (issuing_ttl.as_secs(), leaf_ttl.as_secs());
            warnings.push(format!(
                "issuing CAs live {issuing} s and cut short leaf certificates of {leaf} s: no leaf outlives its CA"
            ));
        }
        let ca_files = wrong.ca_files(self.ca_cert, self.ca_key, self.ca_bundle);
        let jwt_key_life = wrong.time("jwt-key-life", self.jwt_key_life.as_deref(), Duration::from_secs(86_400));
        if !(JWT_KEY_LIFE_MIN..=JWT_KEY_LIFE_MAX).contains(&jwt_key_life) {
            wrong.say("`--jwt-key-life` must be from 8s to 30d".to_owned());
        }
        let issuance_rate = self.issuance_rate.unwrap_or(ISSUANCE_RATE);
        if !(1..=ISSUANCE_RATE_MAX).contains(&issuance_rate) {
            wrong.say(format!("`--issuance-rate` must be from 1 to {ISSUANCE_RATE_MAX}"));
        }
        let name = self.trust_domain.as_deref().unwrap_or("mesh.internal");
        let trust_domain = TrustDomain::new(name).map_err(|error| wrong.say(format!("`--trust-domain`: {error}")));
        let log_format = wrong.checked("log-format", self.log_format.as_deref().unwrap_or("text").parse(), Format::Text);
        let listen = wrong.address("listen", self.listen.as_deref(), "127.0.0.1:15110");
        let health_listen = wrong.address("health-listen", self.health_listen.as_deref(), "127.0.0.1:15114");
        let operators = self.operators.map(|text| wrong.address("operators", Some(&text), "127.0.0.1:15180"));
        let advertise = wrong.advertise(self.advertise);
        let endpoint_grace = wrong.time("endpoint-grace", self.endpoint_grace.as_deref(), Duration::from_secs(15));
        let key = wrong.key(environment, self.key_file, &state_dir);
        let store = wrong.store(environment, self.store, self.store_file);
        if self.replica.as_deref().is_some_and(|name| !is_replica_id(name)) {
            wrong.say("`--replica` must be 1 to 63 letters, digits, `-`, `_` and `.`".to_owned());
        }
        let (Ok(trust_domain), true) = (trust_domain, wrong.0.is_empty()) else { return Err(ConfigErrors(wrong.0)) };
        Ok(Config {
            listen,
            health_listen,
            operators,
            advertise,
            admin_socket: self.admin_socket.unwrap_or_else(|| state_dir.join("admin.sock")),
            trust_domain,
            leaf_ttl,
            issuing_ttl,
            root_ttl,
            ca_files,
            jwt_key_life,
            issuance_rate,
            key,
            store,
            replica: self.replica,
            endpoint_grace,
            log: self.log.unwrap_or_else(|| "info".to_owned()),
            log_format,
            state_dir,
            warnings,
        })
    }
}

/// Collects mistakes; each check gives a stand-in so that the next one can go on.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    fn say(&mut self, mistake: String) {
        self.0.push(mistake);
    }

    fn checked<T>(&mut self, flag: &str, value: Result<T, impl fmt::Display>, stand_in: T) -> T {
        value.unwrap_or_else(|error| {
            self.say(format!("`--{flag}`: {error}"));
            stand_in
        })
    }

    fn address(&mut self, flag: &str, value: Option<&str>, default: &str) -> SocketAddr {
        let text = value.unwrap_or(default);
        let parsed = text.parse().map_err(|_| format!("`{text}` is not IP:PORT, for example `{default}`"));
        self.checked(flag, parsed, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    fn time(&mut self, flag: &str, value: Option<&str>, default: Duration) -> Duration {
        value.map_or(default, |text| self.checked(flag, parse_time(text), default))
    }

    /// All three files, or none.
    fn ca_files(&mut self, certificate: Option<PathBuf>, key: Option<PathBuf>, bundle: Option<PathBuf>) -> Option<CaFiles> {
        match (certificate, key, bundle) {
            (Some(certificate), Some(key), Some(bundle)) => Some(CaFiles { certificate, key, bundle }),
            (None, None, None) => None,
            _ => {
                self.say("`--ca-cert`, `--ca-key` and `--ca-bundle` belong together: set all three, or none".to_owned());
                None
            }
        }
    }

    /// The lifetime of a CA.
    fn ttl(&mut self, flag: &str, value: Option<&str>, default: Duration) -> Duration {
        let ttl = self.time(flag, value, default);
        if !(CA_TTL_MIN..=CA_TTL_MAX).contains(&ttl) {
            self.say(format!("`--{flag}` must be from 4s to 36500d"));
        }
        ttl
    }

    fn advertise(&mut self, value: Option<String>) -> Option<String> {
        let value = value?;
        let port = value.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) {
            self.say(format!("`--advertise`: `{value}` is not HOST:PORT"));
        }
        Some(value)
    }

    /// Nothing of a URL is repeated: it holds a password.
    fn store(&mut self, environment: &Environment, flag: Option<String>, file: Option<PathBuf>) -> Backend {
        let text = match (flag, file, &environment.store) {
            (None, None, None) => return Backend::Sqlite,
            (Some(text), None, None) => Zeroizing::new(text),
            (None, None, Some(text)) => text.clone(),
            (None, Some(path), None) => match std::fs::read_to_string(&path) {
                Ok(text) => Zeroizing::new(text),
                Err(error) => {
                    self.say(format!("`--store-file`: `{}`: {error}", path.display()));
                    return Backend::Sqlite;
                }
            },
            _ => {
                self.say("more than one of `--store`, `--store-file` and OUTRIDER_STORE is set: use one".to_owned());
                return Backend::Sqlite;
            }
        };
        if text.trim() == "sqlite" {
            return Backend::Sqlite;
        }
        let url = PostgresUrl::parse(&text).map(Backend::Postgres);
        self.checked(
            "store",
            url.map_err(|error| format!("is neither `sqlite` nor an address of PostgreSQL: it {error}")),
            Backend::Sqlite,
        )
    }

    fn key(&mut self, environment: &Environment, file: Option<PathBuf>, state_dir: &Path) -> KeySource {
        match (&environment.key, file) {
            (Some(_), Some(_)) => self.say("both `--key-file` and OUTRIDER_KEY are set: use one".to_owned()),
            (Some(text), None) => match parse_key(text) {
                Some(key) => return KeySource::Given(key),
                None => self.say("OUTRIDER_KEY must be 32 bytes in base64, as from `head -c32 /dev/urandom | base64`".to_owned()),
            },
            (None, Some(path)) => return KeySource::File(path),
            (None, None) => {}
        }
        KeySource::File(state_dir.join("key"))
    }
}

/// Reads 32 bytes in base64, as in the key file and in `OUTRIDER_KEY`.
pub(crate) fn parse_key(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let bytes = Zeroizing::new(STANDARD.decode(text.trim()).ok()?);
    Some(Zeroizing::new(<[u8; 32]>::try_from(bytes.as_slice()).ok()?))
}

/// Reads `90s`, `15m`, `1h30m`, `500ms`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time: write for example `90s`, `15m` or `1h`");
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let millis = match unit {
            "ms" => Some(1),
            "s" => Some(1000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            "d" => Some(86_400_000),
            _ => None,
        };
        let millis = millis.and_then(|unit: u64| number.checked_mul(unit)).ok_or_else(wrong)?;
        total = total.checked_add(Duration::from_millis(millis)).ok_or_else(wrong)?;
        rest = tail;
    }
    if text.trim().is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Environment { home: Some("/home/op".into()), ..Environment::default() }
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let config = Raw::default().resolve(&environment()).unwrap();
        assert_eq!(config.state_dir, Path::new("/home/op/.local/state/outrider/control-plane"));
        assert_eq!(config.admin_socket, config.state_dir.join("admin.sock"));
        assert_eq!((config.listen.port(), config.health_listen.port()), (15110, 15114));
        assert_eq!((config.leaf_ttl.as_secs(), config.endpoint_grace.as_secs()), (3600, 15));
        assert_eq!(config.trust_domain.as_str(), "mesh.internal");
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let raw = Raw {
            listen: Some("nowhere".into()),
            leaf_ttl: Some("1s".into()),
            endpoint_grace: Some("soon".into()),
            trust_domain: Some("Mesh".into()),
            advertise: Some("host".into()),
            log_format: Some("xml".into()),
            ..Raw::default()
        };
        let text = raw.resolve(&environment()).unwrap_err().to_string();
        for part in ["--listen", "--leaf-ttl", "--endpoint-grace", "--trust-domain", "--advertise", "--log-format"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn times_are_read_with_their_units() {
        for (text, millis) in [("90s", 90_000), ("15m", 900_000), ("1h", 3_600_000), ("1h30m", 5_400_000), ("500ms", 500)] {
            assert_eq!(parse_time(text).unwrap().as_millis(), millis, "{text}");
        }
        for text in ["", "5", "s", "1y", "-1s", "1.5h", "99999999999999999999s", "18446744073709551615d"] {
            assert!(parse_time(text).is_err(), "{text} was read");
        }
    }

    #[test]
    fn short_lifetimes_are_accepted_with_a_warning() {
        let raw = Raw { leaf_ttl: Some("10s".into()), ..Raw::default() };
        assert_eq!(raw.resolve(&environment()).unwrap().warnings.len(), 1);
    }

    #[test]
    fn the_key_of_the_environment_must_be_whole_and_alone() {
        let good = Environment { key: Some(Zeroizing::new(STANDARD.encode([7; 32]))), ..environment() };
        assert!(matches!(Raw::default().resolve(&good).unwrap().key, KeySource::Given(key) if *key == [7; 32]));
        let short = Environment { key: Some(Zeroizing::new("AAAA".into())), ..environment() };
        assert!(Raw::default().resolve(&short).unwrap_err().to_string().contains("OUTRIDER_KEY"));
        let both = Raw { key_file: Some("/k".into()), ..Raw::default() };
        assert!(both.resolve(&good).unwrap_err().to_string().contains("use one"));
    }
}
