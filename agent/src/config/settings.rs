//! Settings: what the user wrote becomes what the program needs, or a list of everything that is wrong with it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use outrider_policy::{Protocol, ServiceAccount, ServiceName, SpiffeId, names};
use outrider_runtime::telemetry::Format;
use serde::{Deserialize, Serialize};

use super::{Addresses, tracing};
use crate::{
    capture::{Capture, CaptureSettings},
    http::Limits,
    identity::JoinToken,
    telemetry::AccessLogTarget,
    upstream::Bounds,
    workload::WorkloadSocket,
};

/// Settings as flags, environment or a YAML file give them.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Settings {
    /// Control plane to join, HOST:PORT; of several replicas all, with commas between them
    #[arg(long, env = "OUTRIDER_CONTROL_PLANE", value_name = "HOST:PORT[,…]")]
    pub control_plane: Option<String>,
    /// One-time join token from `outrider token create`; needed for the first start only
    #[arg(long, env = "OUTRIDER_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// File that holds the join token
    #[arg(long, env = "OUTRIDER_TOKEN_FILE", value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// Identity to expect: a SPIFFE ID or NAMESPACE/SERVICE-ACCOUNT; anything else is an error
    #[arg(long, env = "OUTRIDER_IDENTITY", value_name = "IDENTITY")]
    pub identity: Option<String>,
    /// Port of a service that the program beside this agent backs, NAMESPACE/NAME:PORT[/tcp|http|http2|grpc][=HOST:PORT]; may be repeated
    #[arg(long, value_name = "SERVICE:PORT/PROTOCOL=ADDRESS")]
    pub service: Vec<String>,
    /// Label of the program beside this agent, KEY=VALUE, for the `selector` of policies; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Local listener that leads to one port of a service, [HOST:]PORT=NAMESPACE/NAME[:PORT]; may be repeated
    #[arg(long, value_name = "LISTEN=SERVICE:PORT")]
    pub upstream: Vec<String>,
    /// Listener that takes callers in plaintext to a port of an own service whose policy is Permissive, [HOST:]PORT=NAMESPACE/NAME:PORT; may be repeated
    #[arg(long, value_name = "LISTEN=SERVICE:PORT")]
    pub plaintext: Vec<String>,
    /// Transparent capture
    #[command(flatten)]
    pub capture: CaptureSettings,
    /// Where the program beside this agent finds the mesh as an HTTP proxy [default: 127.0.0.1:15101]
    #[arg(long, env = "OUTRIDER_OUTBOUND", value_name = "ADDRESS")]
    pub outbound: Option<SocketAddr>,
    /// Where other agents connect [default: 0.0.0.0:15108]
    #[arg(long, env = "OUTRIDER_MESH", value_name = "ADDRESS")]
    pub mesh: Option<SocketAddr>,
    /// How other agents reach the mesh listener, HOST:PORT [default: its address]
    #[arg(long, env = "OUTRIDER_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Health and metrics [default: 127.0.0.1:15120]
    #[arg(long, env = "OUTRIDER_HEALTH", value_name = "ADDRESS")]
    pub health: Option<SocketAddr>,
    /// Where this agent is, for example `eu-1a`: endpoints of the same zone are preferred
    #[arg(long, env = "OUTRIDER_ZONE", value_name = "ZONE")]
    pub zone: Option<String>,
    /// Most requests of the own program under way at one service, for each worker; more are refused with 503 [default: 4096]
    #[arg(long, env = "OUTRIDER_MAX_SERVICE_REQUESTS", value_name = "N")]
    pub max_service_requests: Option<usize>,
    /// Most of them under way at one endpoint, for each worker [default: 1024]
    #[arg(long, env = "OUTRIDER_MAX_ENDPOINT_REQUESTS", value_name = "N")]
    pub max_endpoint_requests: Option<usize>,
    /// Private directory for key, certificate and the last good configuration
    #[arg(long, env = "OUTRIDER_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Take over from the agent that uses this state directory, if any: it hands its sockets over, and leaves once this one serves
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub take_over: Option<bool>,
    /// Unix socket of the SPIFFE Workload API for the program beside this agent, or `off` [default: workload.sock in the state directory]
    #[arg(long, env = "OUTRIDER_WORKLOAD_SOCKET", value_name = "PATH")]
    pub workload_socket: Option<PathBuf>,
    /// User id that may ask on that socket beside the agent's own and root; may be repeated
    #[arg(long, value_name = "UID")]
    pub workload_user: Vec<u32>,
    /// Worker threads [default: processors, at most 2]
    #[arg(long, env = "OUTRIDER_WORKERS", value_name = "N")]
    pub workers: Option<usize>,
    /// Access log: `stdout`, `off`, or a file [default: stdout]
    #[arg(long, env = "OUTRIDER_ACCESS_LOG", value_name = "TARGET")]
    pub access_log: Option<String>,
    /// Share of allowed requests that are reported to the control plane, 0 to 1; refusals and failures always are [default: 0.01]
    #[arg(long, env = "OUTRIDER_REPORT_ALLOWS", value_name = "SHARE")]
    pub report_allows: Option<f64>,
    /// OpenTelemetry collector that gets spans by OTLP over gRPC, HOST:PORT: on loopback in plaintext, elsewhere with `--otlp-ca`
    #[arg(long, env = "OUTRIDER_OTLP", value_name = "HOST:PORT")]
    pub otlp: Option<String>,
    /// Root certificates (PEM) that the collector's certificate chains to
    #[arg(long, env = "OUTRIDER_OTLP_CA", value_name = "FILE", requires = "otlp")]
    pub otlp_ca: Option<PathBuf>,
    /// Share of requests that begin a trace here and are recorded as spans, 0 to 1 [default: 0.01]
    #[arg(long, env = "OUTRIDER_TRACE_SAMPLE", value_name = "SHARE")]
    pub trace_sample: Option<f64>,
    /// Spans a second and worker that are recorded because a caller's trace asks for it [default: 100]
    #[arg(long, env = "OUTRIDER_TRACE_ASKED", value_name = "N")]
    pub trace_asked: Option<u32>,
    /// A limit to change, NAME=VALUE, as docs/limits.md lists them; may be repeated
    #[arg(long, env = "OUTRIDER_LIMIT", value_name = "NAME=VALUE", value_delimiter = ',')]
    pub limit: Vec<String>,
    /// Seconds that work under way may take after SIGTERM [default: 30]
    #[arg(long, env = "OUTRIDER_DRAIN_SECONDS", value_name = "SECONDS")]
    pub drain_seconds: Option<u64>,
    /// Log filter [default: info]
    #[arg(long, env = "OUTRIDER_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// Log format: `text` or `json` [default: text]
    #[arg(long, env = "OUTRIDER_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<Format>,
}

/// A port of an own service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackedPort {
    /// The service.
    pub service: ServiceName,
    /// The port callers name.
    pub port: u16,
    /// What it speaks.
    pub protocol: Protocol,
    /// Where the program listens.
    pub program: SocketAddr,
}

/// A local listener for one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplicitUpstream {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The service it leads to.
    pub service: ServiceName,
    /// Its port; none for the default.
    pub port: Option<u16>,
}

/// A listener for callers in plaintext to one port of an own service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaintextPort {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The own service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
    /// Whether that port speaks HTTP.
    pub is_http: bool,
}

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Control plane: its replicas.
    pub control_plane: Arc<Addresses>,
    /// Join token for the first start.
    pub token: Option<JoinToken>,
    /// Identity that must come out, as the user wrote it.
    pub identity: Option<String>,
    /// Ports of own services.
    pub backed: Vec<BackedPort>,
    /// Labels of the workload.
    pub labels: BTreeMap<String, String>,
    /// Local listeners for services.
    pub upstreams: Vec<ExplicitUpstream>,
    /// Listeners for callers in plaintext.
    pub plaintext: Vec<PlaintextPort>,
    /// Transparent capture, if any.
    pub capture: Option<Capture>,
    /// HTTP proxy for the own program.
    pub outbound: SocketAddr,
    /// Mesh listener.
    pub mesh: SocketAddr,
    /// How others reach it; none for its address.
    pub advertise: Option<String>,
    /// Health and metrics.
    pub health: SocketAddr,
    /// Where this agent is.
    pub zone: Option<Box<str>>,
    /// Bounds on requests under way.
    pub bounds: Bounds,
    /// Private directory.
    pub state_dir: PathBuf,
    /// Whether to take over from a running agent.
    pub take_over: bool,
    /// Where programs ask for identities; none when that is off.
    pub workload: Option<WorkloadSocket>,
    /// Worker threads.
    pub workers: usize,
    /// Access log.
    pub access_log: AccessLogTarget,
    /// Share of allowed requests to report.
    pub report_allows: f64,
    /// Which requests are recorded as spans, and where those go.
    pub tracing: tracing::Tracing,
    /// Bounds on what a peer can make the agent hold or wait for.
    pub limits: Limits,
    /// Time for work under way after SIGTERM.
    pub drain: Duration,
}

/// Everything that is wrong with the settings.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigProblems(pub Vec<String>);

struct Problems(Vec<String>);

impl Problems {
    fn take<T>(&mut self, result: Result<T, String>) -> Option<T> {
        result.map_err(|problem| self.0.push(problem)).ok()
    }
}

impl TryFrom<Settings> for Config {
    type Error = ConfigProblems;

    fn try_from(settings: Settings) -> Result<Self, ConfigProblems> {
        let mut problems = Problems(Vec::new());
        let control_plane = problems.take(addresses(settings.control_plane)).map(Arc::new);
        let state_dir = problems.take(
            settings
                .state_dir
                .ok_or_else(|| "`--state-dir` is missing: name a private directory that outlives a restart".to_owned()),
        );
        let token = problems.take(token(settings.token, settings.token_file.as_deref())).flatten();
        let identity = settings.identity.and_then(|text| problems.take(identity(text)));
        let backed = settings.service.iter().filter_map(|text| problems.take(backed_port(text))).collect::<Vec<_>>();
        for (at, one) in backed.iter().enumerate() {
            if backed.iter().skip(at + 1).any(|other| (&other.service, other.port) == (&one.service, one.port)) {
                problems.0.push(format!("`--service`: port {} of `{}` is there twice", one.port, one.service));
            }
        }
        let labels = problems.take(labels(&settings.label)).unwrap_or_default();
        let upstreams = settings.upstream.iter().filter_map(|text| problems.take(explicit_upstream(text))).collect();
        let read = |text: &String| plaintext_port(text, &backed);
        let plaintext = settings.plaintext.iter().filter_map(|text| problems.take(read(text))).collect();
        let capture = settings.capture.check().unwrap_or_else(|wrong| {
            problems.0.extend(wrong);
            None
        });
        let advertise = settings.advertise.and_then(|text| problems.take(host_port("--advertise", text)));
        let report_allows = settings.report_allows.unwrap_or(0.01);
        if !(0.0..=1.0).contains(&report_allows) {
            problems.0.push(format!("`--report-allows` is `{report_allows}`: use a share between 0 and 1"));
        }
        let tracing = tracing::Tracing::read(
            settings.otlp.as_deref(),
            settings.otlp_ca,
            settings.trace_sample.unwrap_or(tracing::SHARE),
            settings.trace_asked.unwrap_or(tracing::ASKED),
        );
        let tracing = problems.take(tracing);
        let limits = Limits::changed(&settings.limit).unwrap_or_else(|wrong| {
            problems.0.extend(wrong.iter().map(|problem| format!("`--limit`: {problem}")));
            Limits::default()
        });
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = settings.workers.unwrap_or_else(|| processors.min(2));
        if !(1..=256).contains(&workers) {
            problems.0.push(format!("`--workers` is `{workers}`: use 1 to 256"));
        }
        let access_log = settings.access_log.unwrap_or_default();
        let access_log = if access_log.is_empty() { AccessLogTarget::Stdout } else { access_log.parse().unwrap_or_default() };
        let zone = settings.zone.and_then(|text| problems.take(zone(text)));
        let bounds = problems.take(bounds(settings.max_service_requests, settings.max_endpoint_requests)).unwrap_or_default();
        let (Some(control_plane), Some(state_dir), Some(tracing), true) =
            (control_plane, state_dir, tracing, problems.0.is_empty())
        else {
            return Err(ConfigProblems(problems.0));
        };
        Ok(Self {
            control_plane,
            token,
            identity,
            backed,
            labels,
            upstreams,
            plaintext,
            capture,
            outbound: settings.outbound.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 15101))),
            mesh: settings.mesh.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 15108))),
            advertise,
            zone,
            bounds,
            health: settings.health.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 15120))),
            workload: workload(settings.workload_socket, settings.workload_user, &state_dir),
            state_dir,
            take_over: settings.take_over.unwrap_or(false),
            workers,
            access_log,
            report_allows,
            tracing,
            limits,
            drain: Duration::from_secs(settings.drain_seconds.unwrap_or(30)),
        })
    }
}

fn workload(path: Option<PathBuf>, users: Vec<u32>, state_dir: &Path) -> Option<WorkloadSocket> {
    match path {
        Some(off) if off.as_os_str() == "off" => None,
        Some(path) => Some(WorkloadSocket { path, users, is_required: true }),
        // A place of its own choice that others could reach would surprise; the state directory is private, its path may be too long.
        None => Some(WorkloadSocket { path: state_dir.join("workload.sock"), is_required: !users.is_empty(), users }),
    }
}

fn addresses(text: Option<String>) -> Result<Addresses, String> {
    let text = text.ok_or("`--control-plane` is missing: HOST:PORT of the control plane, 15110 by default")?;
    text.parse().map_err(|error| format!("`--control-plane`: {error}"))
}

fn host_port(flag: &str, text: String) -> Result<String, String> {
    let plain = text.strip_prefix("https://").unwrap_or(&text).to_owned();
    let well_formed = plain.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if well_formed { Ok(plain) } else { Err(format!("`{flag}` is `{text}`: use HOST:PORT")) }
}

fn token(text: Option<String>, file: Option<&Path>) -> Result<Option<JoinToken>, String> {
    let text = match (text, file) {
        (Some(text), _) => text,
        (None, Some(file)) => {
            std::fs::read_to_string(file).map_err(|error| format!("`--token-file` `{}`: {error}", file.display()))?
        }
        (None, None) => return Ok(None),
    };
    text.parse().map(Some).map_err(|error: &str| format!("`--token`: {error}"))
}

fn identity(text: String) -> Result<String, String> {
    let known = text.parse::<SpiffeId>().is_ok() || text.parse::<ServiceAccount>().is_ok();
    if known { Ok(text) } else { Err(format!("`--identity` is `{text}`: use a SPIFFE ID or NAMESPACE/SERVICE-ACCOUNT")) }
}

fn zone(text: String) -> Result<Box<str>, String> {
    let plain = (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if plain { Ok(text.into()) } else { Err(format!("`--zone` is `{text}`: use 1 to 63 letters, digits, `-`, `.` and `_`")) }
}

fn bounds(requests: Option<usize>, endpoint_requests: Option<usize>) -> Result<Bounds, String> {
    let usual = Bounds::default();
    let (requests, endpoint_requests) =
        (requests.unwrap_or(usual.requests), endpoint_requests.unwrap_or(usual.endpoint_requests));
    for (flag, most) in [("--max-service-requests", requests), ("--max-endpoint-requests", endpoint_requests)] {
        if most == 0 {
            return Err(format!("`{flag}` is 0: nothing could be called; use 1 or more"));
        }
    }
    Ok(Bounds { requests, endpoint_requests, ..usual })
}

fn backed_port(text: &str) -> Result<BackedPort, String> {
    let wrong = |why: &str| format!("`--service` is `{text}`: {why}; use NAMESPACE/NAME:PORT[/tcp|http|http2|grpc][=HOST:PORT]");
    let (declared, program) = text.split_once('=').map_or((text, None), |(declared, program)| (declared, Some(program)));
    let (service, rest) = declared.split_once(':').ok_or_else(|| wrong("no port"))?;
    let (port, protocol) = rest.split_once('/').map_or((rest, None), |(port, protocol)| (port, Some(protocol)));
    let port: u16 =
        port.parse().ok().filter(|port| *port > 0).ok_or_else(|| wrong("the port is not a number from 1 to 65535"))?;
    let protocol = protocol.map_or(Ok(Protocol::Tcp), |name| name.parse().map_err(|_| wrong("unknown protocol")))?;
    let program = match program {
        Some(address) => address.parse().map_err(|_| wrong("the program's address is not IP:PORT"))?,
        None => SocketAddr::from(([127, 0, 0, 1], port)),
    };
    Ok(BackedPort { service: service.parse().map_err(|error| wrong(&format!("{error}")))?, port, protocol, program })
}

fn labels(texts: &[String]) -> Result<BTreeMap<String, String>, String> {
    if texts.len() > names::MAX_LABELS {
        return Err(format!("`--label`: a program has at most {} labels", names::MAX_LABELS));
    }
    let mut labels = BTreeMap::new();
    for text in texts {
        let pair = text.split_once('=').filter(|(key, value)| names::is_label_pair(key, value));
        let (key, value) = pair.ok_or_else(|| format!("`--label` is `{text}`: use KEY=VALUE, for example `app=orders`"))?;
        if labels.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("`--label`: `{key}` is there twice"));
        }
    }
    Ok(labels)
}

fn plaintext_port(text: &str, backed: &[BackedPort]) -> Result<PlaintextPort, String> {
    let wrong = |why: String| format!("`--plaintext` is `{text}`: {why}; use [HOST:]PORT=NAMESPACE/NAME:PORT");
    let (listen, target) = text.split_once('=').ok_or_else(|| wrong("no `=`".to_owned()))?;
    let listen = match listen.parse::<u16>() {
        Ok(port) => SocketAddr::from(([0, 0, 0, 0], port)),
        Err(_) => listen.parse().map_err(|_| wrong("the listener is not [HOST:]PORT".to_owned()))?,
    };
    let (service, port) = target.split_once(':').ok_or_else(|| wrong("no port".to_owned()))?;
    let own = backed.iter().find(|one| one.service.as_str() == service && one.port.to_string() == port);
    let own = own.ok_or_else(|| wrong(format!("no `--service` is port {port} of `{service}`")))?;
    Ok(PlaintextPort { listen, service: own.service.clone(), port: own.port, is_http: own.protocol.is_http() })
}

fn explicit_upstream(text: &str) -> Result<ExplicitUpstream, String> {
    let wrong = |why: &str| format!("`--upstream` is `{text}`: {why}; use [HOST:]PORT=NAMESPACE/NAME[:PORT]");
    let (listen, target) = text.split_once('=').ok_or_else(|| wrong("no `=`"))?;
    let listen = match listen.parse::<u16>() {
        Ok(port) => SocketAddr::from(([127, 0, 0, 1], port)),
        Err(_) => listen.parse().map_err(|_| wrong("the listener is not [HOST:]PORT"))?,
    };
    let (service, port) = target.split_once(':').map_or((target, None), |(service, port)| (service, Some(port)));
    let port = port
        .map(|port| port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| wrong("the port is not a number")))
        .transpose()?;
    Ok(ExplicitUpstream { listen, service: service.parse().map_err(|error| wrong(&format!("{error}")))?, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_pairs_and_each_is_given_once() {
        let read = |texts: &[&str]| labels(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(read(&["app=orders", "tier="]).unwrap().len(), 2);
        for texts in [&["app"][..], &["=a"], &["a=b c"], &["a=1", "a=2"]] {
            assert!(read(texts).unwrap_err().contains("--label"), "{texts:?}");
        }
    }

    #[test]
    fn services_are_read_in_all_their_forms() {
        let port = backed_port("shop/files:80/http=127.0.0.1:8080").unwrap();
        assert_eq!((port.port, port.protocol, port.program.port()), (80, Protocol::Http, 8080));
        let port = backed_port("shop/db:5432").unwrap();
        assert_eq!((port.protocol, port.program), (Protocol::Tcp, "127.0.0.1:5432".parse().unwrap()));
        let own = [port];
        let plain = plaintext_port("127.0.0.1:8000=shop/db:5432", &own).unwrap();
        assert_eq!((plain.listen.port(), plain.port, plain.is_http), (8000, 5432, false));
        for text in ["8000", "8000=shop/db", "8000=shop/db:1", "8000=shop/other:5432", "x=shop/db:5432"] {
            assert!(plaintext_port(text, &own).unwrap_err().contains(text), "{text}");
        }
        for text in ["shop/files", "shop/files:0", "shop/files:80/htp", "files:80", "shop/files:80=localhost:1", "Shop/files:80"]
        {
            assert!(backed_port(text).unwrap_err().contains(text), "{text}");
        }
    }

    #[test]
    fn all_mistakes_are_named_at_once() {
        let settings =
            Settings { service: vec!["x".into()], token: Some("orj1".into()), report_allows: Some(7.0), ..Settings::default() };
        let ConfigProblems(problems) = Config::try_from(settings).unwrap_err();
        for flag in ["--control-plane", "--state-dir", "--service", "--token", "--report-allows"] {
            assert!(problems.iter().any(|problem| problem.contains(flag)), "{flag}: {problems:?}");
        }
    }
}
