//! The wiring: what is shared, the workers, and the tasks that keep identity and view current.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use outrider_proto::v1::{ServiceBacking, ServicePort};
use outrider_runtime::{Drain, Drained, Readiness, Tasks, health, unix_socket::SocketError};
use prometheus_client::registry::Registry;
use tokio::sync::Notify;

use crate::{
    capture::{self, Captured, Direction},
    config::{Config, ControlPlane, ExplicitUpstream, PlaintextPort, StateDir, StateDirError, Subscription, View, send_reports},
    dns::{self, Addresses, Resolver},
    handover::{self, Offer, Succeeded, TakeOver, TakeOverError},
    identity::{IdentityError, Renewal, Svids},
    listener::{Bound, ListenError},
    telemetry::{AccessLog, Exporter, Metrics, OtlpError, Scrape, SpanQueue, report_queue, wire_protocol},
    tls::Trust,
    worker::{self, Shared, Sockets},
    workload::{self, Identities, JwtKeys, Tokens, WorkloadApi},
};

/// How long a connection may wait for a next request, whose answer tells it to go, once a successor serves.
const GRACE: Duration = Duration::from_secs(5);

/// The agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its private directory.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Its certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The agent before it.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    /// The socket of the Workload API.
    #[error(transparent)]
    WorkloadSocket(#[from] SocketError),
    /// TLS.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The access log's file.
    #[error("access log `{target}`: {reason}: choose another file with `--access-log`")]
    AccessLog {
        /// The file.
        target: String,
        /// What the system said.
        reason: std::io::Error,
    },
    /// The collector of spans.
    #[error(transparent)]
    Otlp(#[from] OtlpError),
    /// Threads or sockets of the system.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    /// HTTP proxy for the own program.
    pub outbound: SocketAddr,
    /// Where other agents connect.
    pub mesh: SocketAddr,
    /// Health and metrics.
    pub health: SocketAddr,
    /// What it still waits for.
    pub readiness: Readiness,
    /// Its certificate.
    pub svids: Arc<Svids>,
    /// Where the own program finds the SPIFFE Workload API; none when it is off or cannot be served.
    pub workload_socket: Option<PathBuf>,
    drain: Drain,
    tasks: Tasks,
    deadline: Duration,
    succeeded: Succeeded,
}

struct Listeners {
    mesh: Bound,
    outbound: Bound,
    upstreams: Vec<(ExplicitUpstream, Bound)>,
    plaintext: Vec<(PlaintextPort, Bound)>,
    captured: Vec<(Direction, Bound)>,
}

impl Listeners {
    fn bind(config: &Config, sockets: &mut handover::Sockets) -> Result<Self, ListenError> {
        let mut bind = |address, flag| sockets.bind(address, config.workers, flag);
        let upstreams = config.upstreams.iter().map(|upstream| Ok((upstream.clone(), bind(upstream.listen, "--upstream")?)));
        let upstreams = upstreams.collect::<Result<_, ListenError>>()?;
        let plaintext = config.plaintext.iter().map(|port| Ok((port.clone(), bind(port.listen, "--plaintext")?)));
        let plaintext = plaintext.collect::<Result<_, ListenError>>()?;
        Ok(Self {
            mesh: bind(config.mesh, "--mesh")?,
            outbound: bind(config.outbound, "--outbound")?,
            upstreams,
            plaintext,
            captured: match &config.capture {
                Some(capture) => capture::listeners(capture, bind)?,
                None => Vec::new(),
            },
        })
    }

    /// One worker's sockets.
    fn take(&mut self) -> std::io::Result<Sockets> {
        let gone = || std::io::Error::other("a worker's socket is gone");
        let upstreams = self.upstreams.iter_mut().map(|(upstream, bound)| Ok((upstream.clone(), bound.take().ok_or_else(gone)?)));
        let plaintext = self.plaintext.iter_mut().map(|(port, bound)| Ok((port.clone(), bound.take().ok_or_else(gone)?)));
        let captured = self.captured.iter_mut().map(|(direction, bound)| Ok((*direction, bound.take().ok_or_else(gone)?)));
        Ok(Sockets {
            captured: captured.collect::<std::io::Result<_>>()?,
            upstreams: upstreams.collect::<std::io::Result<_>>()?,
            plaintext: plaintext.collect::<std::io::Result<_>>()?,
            mesh: self.mesh.take().ok_or_else(gone)?,
            outbound: self.outbound.take().ok_or_else(gone)?,
        })
    }
}

impl Agent {
    /// Starts an agent: it has an identity when this returns, and is ready when [`Agent::readiness`] says so.
    ///
    /// # Errors
    /// When the state directory, a listener, or the first certificate cannot be had.
    pub async fn start(config: Config, tasks: &Tasks, drain: &Drain) -> Result<Self, StartError> {
        let mut before = if config.take_over { TakeOver::ask(&config.state_dir)? } else { None };
        let state = StateDir::open_as(&config.state_dir, before.as_mut().and_then(TakeOver::lock))?;
        let mut sockets = before.as_mut().map(TakeOver::sockets).unwrap_or_default();
        let mut listeners = Listeners::bind(&config, &mut sockets)?;
        let mut registry = Registry::with_prefix("outrider_agent");
        let metrics = Metrics::new(&mut registry);
        let readiness = Readiness::new();
        let (identity_gate, policy_gate) = (readiness.gate("identity"), readiness.gate("policy"));
        let scrape = Scrape { registry, metrics: metrics.clone() };
        let health = Health::bind(&config, &mut sockets, scrape)?;
        let health_address = health.address;
        // As long as the agent before serves, it answers for the two.
        let later = if before.is_some() { Some(health) } else { health.serve(&readiness, drain, tasks).map(|()| None)? };

        let (svids, trust): (Arc<Svids>, Arc<Trust>) = Default::default();
        let control_plane = ControlPlane::new(config.control_plane.clone(), trust.clone(), svids.clone());
        let jwt_keys = Arc::new(JwtKeys::default());
        let renew = Arc::new(Notify::new());
        let renewal = Renewal {
            control_plane: control_plane.clone(),
            svids: svids.clone(),
            trust: trust.clone(),
            file: state.sealed("identity"),
            expected: config.identity.clone(),
            gate: identity_gate,
            now: renew.clone(),
            metrics: metrics.clone(),
            drain: drain.clone(),
        };
        renewal.start(config.token.as_ref()).await?;
        let identities = Identities {
            svids: svids.clone(),
            trust: trust.clone(),
            jwt_keys: jwt_keys.clone(),
            tokens: Arc::new(Tokens::new(control_plane.clone())),
        };
        let workload_socket = serve_workload(&config, &mut sockets, identities, tasks, drain).await?;

        let (reports, records) = report_queue(config.report_allows, metrics.reports_dropped.clone());
        let spans = export_spans(&config, &svids, state.agent_id(), &metrics, drain, tasks)?;
        let mut shared = Shared::new(&config, &svids, &trust, &metrics, (reports, spans), drain, tasks)?;
        start_capture(&config, &state, &mut shared, &mut sockets, tasks, drain)?;
        let subscription = Subscription {
            control_plane: control_plane.clone(),
            agent_id: state.agent_id().to_owned(),
            services: backings(&config, listeners.mesh.address),
            view: View::default(),
            snapshot: state.sealed("snapshot"),
            trust,
            policies: shared.policies.clone(),
            directory: shared.directory.clone(),
            jwt_keys,
            svids: svids.clone(),
            renew,
            ready: policy_gate,
            metrics: metrics.clone(),
            drain: drain.clone(),
        };
        let subscription = restore(subscription);
        let log = AccessLog::start(&config.access_log, config.workers, metrics.log_dropped.clone(), tasks)
            .map_err(|reason| StartError::AccessLog { target: config.access_log.to_string(), reason })?;
        let (mesh, outbound) = (listeners.mesh.address, listeners.outbound.address);
        if before.is_some() && !readiness.is_ready() {
            return Err(TakeOverError::NotReady(readiness.missing().join(", ")).into());
        }
        for number in 0..config.workers {
            worker::start(number, &shared, log.another(), listeners.take()?)?;
        }
        if let Some(before) = before {
            before.serve().await?;
        }
        if let Some(health) = later {
            health.serve(&readiness, drain, tasks)?;
        }
        let succeeded = offer(&config, &state, sockets, tasks, drain);
        tasks.spawn("identity", renewal.run());
        tasks.spawn("subscription", async move {
            let _state = state; // the directory stays ours as long as the view is kept there
            subscription.run().await
        });
        tasks.spawn("reports", send_reports(control_plane, records, metrics.reports_dropped, drain.clone()));
        Ok(Self {
            outbound,
            mesh,
            health: health_address,
            readiness,
            svids,
            workload_socket,
            drain: drain.clone(),
            tasks: tasks.clone(),
            deadline: config.drain,
            succeeded,
        })
    }

    /// Runs until `stop` ends, a task fails, or a successor has taken over; then drains.
    ///
    /// # Errors
    /// When a task failed.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<Drained, outrider_runtime::TaskFailed> {
        let failure = tokio::select! {
            () = stop => None,
            () = self.succeeded.wait() => return Ok(self.give_way().await),
            failure = self.tasks.failure() => Some(failure),
        };
        let drained = self.stop().await;
        failure.map_or(Ok(drained), Err)
    }

    /// Leaves everything new to the successor.
    async fn give_way(self) -> Drained {
        let drained = self.drain.succeed(GRACE, self.deadline).await;
        self.tasks.finish(Duration::from_secs(2)).await;
        drained
    }

    /// Stops accepting, lets work under way end, and after the deadline ends it.
    pub async fn stop(self) -> Drained {
        let drained = self.drain.drain(self.deadline).await;
        self.tasks.finish(Duration::from_secs(2)).await;
        drained
    }
}

/// Starts the exporter of spans, where there is a collector.
fn export_spans(
    config: &Config,
    svids: &Svids,
    agent_id: &str,
    metrics: &Metrics,
    drain: &Drain,
    tasks: &Tasks,
) -> Result<SpanQueue, OtlpError> {
    let Some(target) = &config.tracing.target else { return Ok(SpanQueue::off()) };
    let service = svids.latest().map(|svid| svid.leaf.id.clone());
    let service = service.as_ref().and_then(|id| Some(format!("{}/{}", id.namespace()?, id.service_account()?)));
    let (dropped, exported) = (metrics.spans_dropped.clone(), metrics.spans_exported.clone());
    let exporter = Exporter::new(target, &service.unwrap_or_default(), agent_id, exported, dropped.clone())?;
    let (queue, spans) = SpanQueue::new(dropped);
    tasks.spawn("spans", exporter.run(spans, drain.clone()));
    Ok(queue)
}

fn backings(config: &Config, mesh: SocketAddr) -> Vec<ServiceBacking> {
    let mesh_address = config.advertise.clone().unwrap_or_else(|| mesh.to_string());
    let mut services: Vec<ServiceBacking> = Vec::new();
    for backed in &config.backed {
        let port = ServicePort { port: backed.port.into(), protocol: wire_protocol(backed.protocol).into() };
        match services.iter_mut().find(|service| service.service == backed.service.as_str()) {
            Some(service) => service.ports.push(port),
            None => services.push(ServiceBacking {
                service: backed.service.to_string(),
                mesh_address: mesh_address.clone(),
                ports: vec![port],
                zone: config.zone.as_deref().unwrap_or_default().to_owned(),
                labels: config.labels.clone().into_iter().collect(),
            }),
        }
    }
    services
}

/// What captured connections need, and the resolver for the programs that make them.
fn start_capture(
    config: &Config,
    state: &StateDir,
    shared: &mut Shared,
    sockets: &mut handover::Sockets,
    tasks: &Tasks,
    drain: &Drain,
) -> Result<(), StartError> {
    let Some(capture) = &config.capture else { return Ok(()) };
    let addresses = Arc::new(Addresses::open(capture.virtual_v4, capture.virtual_v6, state.sealed("addresses")));
    shared.captured = Some(Arc::new(Captured::new(addresses.clone(), capture.egress.clone(), config.backed.clone())));
    let resolver = Arc::new(Resolver { directory: shared.directory.clone(), addresses, forward: capture.forward.clone() });
    for listener in capture.dns.map(|port| dns::listen(port, sockets)).transpose()?.unwrap_or_default() {
        listener.start(&resolver, tasks, drain);
    }
    Ok(())
}

/// Puts the last good view in force, so that a restart without control plane serves.
fn restore(mut subscription: Subscription) -> Subscription {
    let view = match subscription.snapshot.read() {
        Ok(None) => return subscription,
        Ok(Some(bytes)) => View::decode(&bytes).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let restored = view.and_then(|view| {
        let put = view.put_in_force(&subscription.trust, &subscription.policies, &subscription.directory, &subscription.jwt_keys);
        put.map(|()| view).map_err(|error| error.to_string())
    });
    match restored {
        Ok(view) => {
            tracing::info!(revision = view.revision(), "last good view in force");
            subscription.metrics.revision.set(i64::try_from(view.revision()).unwrap_or(i64::MAX));
            subscription.view = view;
            subscription.ready.open();
        }
        Err(error) => tracing::error!(error, "the kept view is not used: everything is denied until the control plane sends one"),
    }
    subscription
}

/// Offers this agent's sockets to a successor.
fn offer(config: &Config, state: &StateDir, sockets: handover::Sockets, tasks: &Tasks, drain: &Drain) -> Succeeded {
    let succeeded = Succeeded::default();
    let offer = |lock| Offer::open(&config.state_dir, lock, sockets, succeeded.clone(), drain.clone());
    match state.lock().and_then(offer) {
        Ok(offer) => tasks.spawn("handover", offer.run()),
        Err(error) => tracing::warn!(%error, "no successor will be able to take over"),
    }
    succeeded
}

/// The health port before it serves.
struct Health {
    bound: Bound,
    address: SocketAddr,
    scrape: Scrape,
}

impl Health {
    fn bind(config: &Config, sockets: &mut handover::Sockets, scrape: Scrape) -> Result<Self, ListenError> {
        let bound = sockets.bind(config.health, 1, "--health")?;
        Ok(Self { address: bound.address, bound, scrape })
    }

    fn serve(mut self, readiness: &Readiness, drain: &Drain, tasks: &Tasks) -> Result<(), StartError> {
        let socket = self.bound.take().ok_or_else(|| std::io::Error::other("no health socket"))?.into_socket();
        let listener = tokio::net::TcpListener::from_std(socket)?;
        tasks.spawn("health", health::serve(listener, readiness.clone(), Arc::new(self.scrape), drain.clone()));
        Ok(())
    }
}

/// Serves the Workload API to the own program.
async fn serve_workload(
    config: &Config,
    sockets: &mut handover::Sockets,
    identities: Identities,
    tasks: &Tasks,
    drain: &Drain,
) -> Result<Option<PathBuf>, StartError> {
    let Some(socket) = &config.workload else { return Ok(None) };
    let is_served =
        workload::serve(socket, sockets, WorkloadApi::new(identities, tasks.clone(), drain.clone()), tasks, drain).await?;
    Ok(is_served.then(|| socket.path.clone()))
}
