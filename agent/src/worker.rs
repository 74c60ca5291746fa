//! Workers: threads with a runtime of their own, which share what is immutable and own the rest.

use std::{cell::Cell, ops::ControlFlow, rc::Rc, sync::Arc};

use outrider_policy::Target;
use outrider_runtime::{Drain, Tasks};
use tokio::{runtime::LocalOptions, sync::oneshot};

use crate::{
    alarm,
    capture::{self, Captured, Direction},
    config::{BackedPort, Config, ExplicitUpstream, PlaintextPort, Tracing},
    http::{Limits, Service, SharedIo},
    identity::{Peer, Svids},
    inbound,
    listener::{self, Callers, Crowd, Door},
    mesh, outbound,
    policy::PolicyBook,
    refusal::{Reason, Refusal},
    route::{Directory, LocalPort},
    telemetry::{AccessLog, Metrics, Observer, Record, ReportQueue, Side, SpanQueue},
    tls::{MeshAcceptor, MeshConnector, Standing, Trust},
    upstream::{Behind, Bounds, Pool, Upstreams},
};

/// A worker's own sockets.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// The mesh listener.
    pub(crate) mesh: Door,
    /// HTTP proxy for the own program.
    pub(crate) outbound: Door,
    /// Listeners that lead to one service each.
    pub(crate) upstreams: Vec<(ExplicitUpstream, Door)>,
    /// Listeners for callers in plaintext.
    pub(crate) plaintext: Vec<(PlaintextPort, Door)>,
    /// Listeners for captured connections.
    pub(crate) captured: Vec<(Direction, Door)>,
}

/// What every worker shares.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) policies: Arc<PolicyBook>,
    pub(crate) directory: Arc<Directory>,
    /// What captured connections need; none when there are none.
    pub(crate) captured: Option<Arc<Captured>>,
    svids: Arc<Svids>,
    trust: Arc<Trust>,
    local: Arc<Vec<LocalPort>>,
    acceptor: MeshAcceptor,
    connector: MeshConnector,
    metrics: Metrics,
    reports: ReportQueue,
    spans: SpanQueue,
    tracing: Tracing,
    limits: Limits,
    crowd: Arc<Crowd>,
    drain: Drain,
    tasks: Tasks,
    zone: Option<Box<str>>,
    bounds: Bounds,
    behind: Behind,
}

impl Shared {
    /// Puts together what every worker shares.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub(crate) fn new(
        config: &Config,
        svids: &Arc<Svids>,
        trust: &Arc<Trust>,
        metrics: &Metrics,
        (reports, spans): (ReportQueue, SpanQueue),
        drain: &Drain,
        tasks: &Tasks,
    ) -> Result<Self, rustls::Error> {
        let local = config.backed.iter().map(|port| LocalPort { program: port.program, protocol: port.protocol }).collect();
        Ok(Self {
            policies: Arc::new(PolicyBook::new(config.backed.iter().map(|port| target(config, port)).collect(), trust.clone())),
            directory: Arc::default(),
            captured: None,
            svids: svids.clone(),
            trust: trust.clone(),
            local: Arc::new(local),
            acceptor: MeshAcceptor::new(svids.clone(), trust.clone())?,
            connector: MeshConnector::new(svids.clone(), trust.clone())?,
            metrics: metrics.clone(),
            reports,
            spans,
            tracing: config.tracing.clone(),
            limits: config.limits.clone(),
            crowd: Crowd::new(config.limits.connections, config.limits.connections_of_address),
            drain: drain.clone(),
            tasks: tasks.clone(),
            zone: config.zone.clone(),
            bounds: config.bounds,
            behind: Behind::default(),
        })
    }
}

/// What one worker thread has.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) policies: Arc<PolicyBook>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) local: Arc<Vec<LocalPort>>,
    pub(crate) acceptor: MeshAcceptor,
    pub(crate) upstreams: Rc<Upstreams>,
    pub(crate) observer: Rc<Observer>,
    pub(crate) limits: Limits,
    pub(crate) drain: Drain,
    pub(crate) tasks: Tasks,
    pub(crate) trust: Arc<Trust>,
    svids: Arc<Svids>,
    /// The own certificate has ended, as of the last tick.
    own_ended: Cell<bool>,
}

impl Worker {
    /// This agent's identity; empty before it has one.
    pub(crate) fn own_identity(&self) -> String {
        self.svids.latest().map(|svid| svid.leaf.id.to_string()).unwrap_or_default()
    }

    /// Whether [`Worker::closing`] has ended.
    pub(crate) fn is_closing(&self, peer: &Peer) -> bool {
        let ended = alarm::instant() >= peer.deadline() || self.trust.standing(peer) != Standing::Good;
        self.drain.is_stopping() || ended || self.own_ended.get()
    }

    /// Serves a connection of the mesh protocol to its end.
    pub(crate) async fn serve_mesh(&self, io: SharedIo, service: impl Service + 'static) {
        let count = |violation| self.observer.metrics.mesh_violations.count(Side::Inbound, violation);
        mesh::serve(io, Rc::new(service), &self.limits, count).await;
    }

    /// Ends when a connection of this peer should take no more requests.
    pub(crate) async fn closing(&self, peer: &Peer) {
        alarm::until(|| if self.is_closing(peer) { ControlFlow::Break(()) } else { ControlFlow::Continue(peer.deadline()) })
            .await;
    }
}

fn target(config: &Config, port: &BackedPort) -> Target {
    Target { service: port.service.clone(), labels: config.labels.clone(), port: port.port, protocol: port.protocol }
}

/// Starts a thread with a runtime of its own. It ends with drain; an error or a panic in it fails the agent.
///
/// # Errors
/// When the system has no thread for it.
pub(crate) fn start(number: usize, shared: &Shared, log: AccessLog, sockets: Sockets) -> std::io::Result<()> {
    let (done, ended) = oneshot::channel();
    let for_worker = shared.clone();
    std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        let outcome = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .and_then(|runtime| runtime.block_on(work(for_worker, log, sockets)));
        let _ = done.send(outcome);
    })?;
    shared.tasks.spawn("worker", async move { ended.await.unwrap_or_else(|_| Err(std::io::Error::other("a worker panicked"))) });
    Ok(())
}

async fn work(shared: Shared, log: AccessLog, sockets: Sockets) -> std::io::Result<()> {
    let Sockets { mesh, outbound, upstreams, plaintext, captured } = sockets;
    let capture = shared.captured;
    let (limits, pool, tasks) = (shared.limits.clone(), Rc::new(Pool::default()), Tasks::new());
    let (metrics, sampler) = (shared.metrics.clone(), shared.tracing.sampler());
    let observer =
        Observer::new(log, metrics.clone(), shared.reports, shared.spans, sampler, shared.svids.clone(), shared.drain.clone());
    let observer = Rc::new(observer);
    let worker = Rc::new(Worker {
        policies: shared.policies,
        directory: shared.directory.clone(),
        local: shared.local,
        acceptor: shared.acceptor,
        upstreams: Rc::new(Upstreams {
            connector: shared.connector,
            svids: shared.svids.clone(),
            limits: limits.clone(),
            bounds: shared.bounds,
            zone: shared.zone,
            tasks: tasks.clone(),
            pool: pool.clone(),
            directory: shared.directory,
            behind: shared.behind,
            fleets: Default::default(),
            metrics: metrics.upstream.clone(),
        }),
        observer: observer.clone(),
        limits: limits.clone(),
        drain: shared.drain.clone(),
        tasks: tasks.clone(),
        trust: shared.trust,
        svids: shared.svids.clone(),
        own_ended: Cell::new(false),
    });
    let (mut drains, mut policies) = (false, worker.policies.changes());
    let inbounds = plaintext.into_iter().map(|(port, socket)| (Some(port), socket)).chain([(None, mesh)]);
    for (port, socket) in inbounds {
        let (worker, away) = (worker.clone(), worker.clone());
        let crowd = (shared.crowd.clone(), Callers::Anybody);
        let serve = move |accepted| {
            worker.spawn(Side::Inbound, inbound::serve(worker.clone(), accepted, port.clone()));
        };
        let away = move |address| away.turned_away(Side::Inbound, address);
        let inbound = listener::accept(socket, crowd, shared.drain.clone(), serve, away);
        tasks.spawn_local("inbound listener", inbound);
    }
    let outbounds = upstreams.into_iter().map(|(upstream, socket)| (Some(upstream), socket)).chain([(None, outbound)]);
    for (fixed, socket) in outbounds {
        let (worker, away) = (worker.clone(), worker.clone());
        let crowd = (shared.crowd.clone(), Callers::Program);
        let serve = move |accepted| {
            worker.spawn(Side::Outbound, outbound::serve(worker.clone(), accepted, fixed.clone()));
        };
        let away = move |address| away.turned_away(Side::Outbound, address);
        let outbound = listener::accept(socket, crowd, shared.drain.clone(), serve, away);
        tasks.spawn_local("outbound listener", outbound);
    }
    for (direction, socket) in captured {
        let (worker, away, Some(capture)) = (worker.clone(), worker.clone(), capture.clone()) else { continue };
        let callers = if direction.side() == Side::Inbound { Callers::Anybody } else { Callers::Program };
        let serve = move |accepted| {
            worker.spawn(direction.side(), capture::serve(worker.clone(), capture.clone(), direction, accepted));
        };
        let away = move |address| away.turned_away(direction.side(), address);
        let captured = listener::accept(socket, (shared.crowd.clone(), callers), shared.drain.clone(), serve, away);
        tasks.spawn_local("capture listener", captured);
    }
    let mut tick = tokio::time::interval(alarm::TICK);
    let mut pooled = (0, 0);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                alarm::tick();
                if worker.own_ended.replace(shared.svids.valid().is_none()) != worker.own_ended.get() {
                    alarm::ring();
                }
                observer.log.flush();
                worker.upstreams.tend();
                let now = pool.count();
                metrics.pooled.inc_by(now.0 - pooled.0);
                metrics.shared.inc_by(now.1 - pooled.1);
                pooled = now;
            }
            Ok(()) = policies.changed() => alarm::ring(),
            () = shared.drain.stopping(), if !drains => {
                drains = true;
                alarm::ring();
            }
            failure = tasks.failure() => return Err(std::io::Error::other(failure)),
            () = shared.drain.forced() => break,
        }
    }
    observer.log.flush();
    Ok(())
}

impl Worker {
    /// Records a connection for which there was no place.
    fn turned_away(&self, side: Side, address: std::net::SocketAddr) {
        let mut record = Record::new(&self.observer, side);
        record.address(address);
        record.refused(&Refusal::new(Reason::Overloaded, "too many connections"));
    }

    /// Runs a connection on this worker. It ends by force with the worker: at drain's deadline.
    fn spawn(self: &Rc<Self>, side: Side, connection: impl Future<Output = ()> + 'static) {
        let open = self.observer.metrics.connections(side).clone();
        // In a box: a future that is moved into another takes its room twice.
        let connection = Box::pin(connection);
        self.tasks.spawn_scoped_local(async move {
            open.inc();
            connection.await;
            open.dec();
        });
    }
}
