//! The wiring: what depends on what, and in which order it starts and ends.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use outrider_policy::{SpiffeId, names::NameProblem};
use outrider_runtime::{Drain, Gate, Readiness, Tasks, health, unix_socket::SocketError};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    api::{self, Entrance, Identities, Operators, Reports, Subscriptions},
    attest::{Attested, Attestors, Connections, JoinTokens},
    ca::{Authority, Lifetimes, ServerLeaf},
    clock,
    config::Config,
    issue::Issuance,
    jwt::{JwtKeys, JwtTimes},
    limit::Limit,
    metrics::Metrics,
    operators::{GateLayer, Logins, Roster},
    peer::Peer,
    publish::{Mesh, Publisher},
    push::Publication,
    registry::{Revocations, Revoked, World, bundle, learn, tell},
    rotate::Keeper,
    store::{Claim, DirError, OpenError, Redeem, Store, StoreError},
    turns::Turns,
    upkeep,
};

/// Connections that are told to end get this long before the store is closed under them.
const CLOSE: Duration = Duration::from_secs(5);

/// Certificates that one identity may ask for at once: all replicas of a service renew under one identity.
const RENEWALS_AT_ONCE: u32 = 200;
/// Certificates that one identity may ask for in a second after that.
const RENEWALS_A_SECOND: u32 = 50;

/// Why the control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// The store.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// Another process is this replica.
    #[error("another control plane runs as replica `{0}` on this store: choose another name with `--replica`")]
    Twin(String),
    /// The CA.
    #[error("{0}")]
    Ca(String),
    /// A TCP address.
    #[error("cannot listen on `{address}`: {reason} (choose another with `--{flag}`)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The setting that names it.
        flag: &'static str,
        /// What the system said.
        reason: io::Error,
    },
    /// The operators' socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// The control plane.
#[derive(Debug)]
pub struct ControlPlane;

/// A control plane that runs, with the addresses as they were bound.
#[derive(Debug)]
pub struct Running {
    /// Where agents connect.
    pub address: SocketAddr,
    /// `host:port` that agents are told.
    pub advertise: String,
    /// Health and metrics.
    pub health: SocketAddr,
    /// The operators' port, when it is on.
    pub operators: Option<SocketAddr>,
    /// The operators' socket.
    pub admin_socket: PathBuf,
    /// Gates `store`, `ca` and `listener`.
    pub readiness: Readiness,
}

impl ControlPlane {
    /// Starts everything as tasks and returns when it is ready. It ends at drain.
    ///
    /// # Errors
    /// With the first thing that stands in the way, and the way out.
    pub async fn start(config: Config, tasks: &Tasks, drain: &Drain) -> Result<Running, StartError> {
        outrider_runtime::descriptors::raise_limit();
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let readiness = Readiness::new();
        let gates = Gates { store: readiness.gate("store"), ca: readiness.gate("ca"), listener: readiness.gate("listener") };
        let claim = Claim::new(&config.state_dir)?;
        let doors = Doors::open(&config).await?;
        let replica = claim.replica(config.replica.as_deref())?;
        let (store, kek) = Store::open_as(&claim, &config.store, replica, &config.trust_domain, &config.key).await?;
        gates.store.open();
        let (metrics, mut registry) = Metrics::new();
        store.register(&mut registry);
        enter(&store, &config, &doors).await?;
        let now = clock::now();
        let times = JwtTimes::new(i64::try_from(config.jwt_key_life.as_secs()).unwrap_or(i64::MAX));
        let jwt_keys = JwtKeys::open(store.clone(), kek.clone(), config.trust_domain.clone(), times, now).await;
        let jwt_keys = Arc::new(jwt_keys.map_err(ca_failed)?);
        let lifetimes = Lifetimes::new(config.leaf_ttl, config.issuing_ttl, config.root_ttl);
        let authority = Authority::open(store.clone(), kek, config.trust_domain.clone(), lifetimes, config.ca_files.clone(), now);
        let authority = authority.await;
        let authority = Arc::new(authority.map_err(ca_failed)?);
        let tokens = JoinTokens::new(store.clone());
        let revocations = revocations(&store, &config).await.map_err(OpenError::from)?;
        let (revoking, revoked) = watch::channel(Arc::new(revocations));
        let revoked = Revoked::new(revoked);
        let limit = Arc::new(Limit::new(RENEWALS_AT_ONCE, RENEWALS_A_SECOND));
        let connections = Connections { store: store.clone(), revoked: revoked.clone(), limit };
        let attestors = Attestors::new(vec![Box::new(tokens.clone()), Box::new(connections.clone())]);
        let turns = Turns::new(config.issuance_rate);
        let issuance = Issuance { authority, attestors, connections, revoked, turns, store: store.clone(), metrics };
        let leaf = own_leaf(&issuance, now).await?;
        gates.ca.open();
        let (publisher, mesh) = publisher(&issuance, revoking, config.endpoint_grace).await?;
        let running = doors.addresses(&config, readiness);
        let plane = Plane { issuance, tokens, jwt_keys, mesh, leaf, tasks: tasks.clone(), drain: drain.clone() };
        tasks.spawn("publish", publisher.run(drain.clone()));
        plane.serve(doors, &running, config.warnings, registry, gates.store)?;
        gates.listener.open();
        plane.close_at_end(store, claim, (gates.ca, gates.listener));
        Ok(running)
    }
}

/// Takes its place among the replicas on the store.
async fn enter(store: &Store, config: &Config, doors: &Doors) -> Result<(), StartError> {
    let entered = store.heartbeat(&doors.advertised(config)).await.map_err(OpenError::from)?;
    if !entered {
        return Err(StartError::Twin(store.replica().to_owned()));
    }
    store.forget_sessions().await.map_err(OpenError::from)?;
    Ok(())
}

/// Open gates, held until the end.
struct Gates {
    store: Gate,
    ca: Gate,
    listener: Gate,
}

/// The three doors, bound before anything is made: a port in use must not leave a half-made state behind.
struct Doors {
    agents: TcpListener,
    health: TcpListener,
    operators: tokio::net::UnixListener,
    /// The operators' port and its address, when it is on.
    remote: Option<(TcpListener, SocketAddr)>,
    addresses: (SocketAddr, SocketAddr),
}

impl Doors {
    async fn open(config: &Config) -> Result<Self, StartError> {
        let (agents, address) = listen(config.listen, "listen").await?;
        let (health, health_address) = listen(config.health_listen, "health-listen").await?;
        let operators = api::bind(&config.admin_socket).await?;
        let remote = match config.operators {
            Some(address) => Some(listen(address, "operators").await?),
            None => None,
        };
        Ok(Self { agents, health, operators, remote, addresses: (address, health_address) })
    }

    fn advertised(&self, config: &Config) -> String {
        config.advertise.clone().unwrap_or_else(|| self.addresses.0.to_string())
    }

    fn addresses(&self, config: &Config, readiness: Readiness) -> Running {
        let (address, health) = self.addresses;
        let advertise = self.advertised(config);
        let operators = self.remote.as_ref().map(|(_, address)| *address);
        Running { address, advertise, health, operators, admin_socket: config.admin_socket.clone(), readiness }
    }
}

async fn listen(address: SocketAddr, flag: &'static str) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |reason: io::Error| StartError::Listen { address, flag, reason };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

fn ca_failed(error: impl std::error::Error + 'static) -> StartError {
    StartError::Ca(outrider_runtime::tasks::chain(&error))
}

/// Our own leaf: who serves the agents' door.
async fn own_leaf(issuance: &Issuance, now: i64) -> Result<Arc<ServerLeaf>, StartError> {
    let identity = SpiffeId::workload(issuance.authority.trust_domain(), outrider_policy::ROOT_NAMESPACE, "control-plane");
    let identity = identity.map_err(|error: NameProblem| ca_failed(error))?;
    let (leaf, issued) = ServerLeaf::make(&issuance.authority, identity.clone(), now).map_err(ca_failed)?;
    let own = Attested { identity, evidence: "self", redeem: Redeem::Nothing };
    for one in issued {
        issuance.record(&one, &own, now).await.map_err(ca_failed)?;
    }
    issuance.metrics.leaf_ends.set(leaf.not_after());
    Ok(Arc::new(leaf))
}

async fn revocations(store: &Store, config: &Config) -> Result<Revocations, StoreError> {
    Ok(Revocations::new(store.revocations().await?, config.trust_domain.as_str(), 0))
}

async fn publisher(
    issuance: &Issuance,
    revoking: watch::Sender<Arc<Revocations>>,
    grace: Duration,
) -> Result<(Publisher, Mesh), OpenError> {
    let (store, authority) = (&issuance.store, &issuance.authority);
    let (revision, policies, agents) = store.mesh().await?;
    // Read once more, after the revision: what is shown with it is at least as new.
    let rows = store.revocations().await?;
    let revocations = Arc::new(Revocations::new(rows, authority.trust_domain().as_str(), revision));
    revoking.send_replace(Arc::clone(&revocations));
    if let Err(error) = authority.refresh(clock::now()).await {
        return Err(OpenError::from(StoreError::Corrupt { table: "ca_keys", reason: outrider_runtime::tasks::chain(&error) }));
    }
    let ages = store.policy_ages().await?;
    let world = World::load(revision, bundle(authority), revocations, policies, &ages, agents)?;
    issuance.metrics.revision.set(i64::try_from(world.revision).unwrap_or(i64::MAX));
    Ok(Publisher::new(store.clone(), issuance.metrics.clone(), (world, revoking, Arc::clone(authority)), grace))
}

/// What runs.
struct Plane {
    issuance: Issuance,
    tokens: JoinTokens,
    jwt_keys: Arc<JwtKeys>,
    mesh: Mesh,
    leaf: Arc<ServerLeaf>,
    tasks: Tasks,
    drain: Drain,
}

impl Plane {
    fn serve(
        &self,
        doors: Doors,
        running: &Running,
        warnings: Vec<String>,
        registry: Registry,
        ready: Gate,
    ) -> Result<(), StartError> {
        let Self { issuance, mesh, tasks, drain, .. } = self;
        let (store, metrics) = (&issuance.store, &issuance.metrics);
        let authority = &issuance.authority;
        let tls = |names: api::Names| {
            let config = api::server_config(Arc::clone(&self.leaf), authority, names, issuance.revoked.clone());
            config.map(|config| TlsAcceptor::from(Arc::new(config))).map_err(ca_failed)
        };
        let whom = (Entrance::Agents, Arc::clone(authority));
        let secured = api::accept(doors.agents, tls(Peer::read)?, whom, metrics.clone(), tasks, drain.clone());
        let publication = Publication {
            mesh: mesh.clone(),
            store: store.clone(),
            metrics: metrics.clone(),
            drain: drain.clone(),
            revoked: issuance.revoked.clone(),
            jwt_bundle: self.jwt_keys.bundle(),
        };
        let agents = api::agents_router(
            Identities::new(issuance.clone(), Arc::clone(&self.jwt_keys)),
            Subscriptions { publication, tasks: tasks.clone() },
            Reports::new(issuance.clone(), mesh.world.clone(), tasks.clone(), drain.clone()),
        );
        let stop = drain.clone();
        tasks.spawn("serve agents", async move {
            agents.serve_with_incoming_shutdown(ReceiverStream::new(secured), async move { stop.stopping().await }).await
        });
        let (keeper, rotation) = Keeper::new(issuance.clone(), mesh.clone());
        tasks.spawn("rotation", keeper.run(drain.clone()));
        let roster = Roster::new(store.clone());
        tasks.spawn("operators", upkeep::look_at_operators(roster.clone(), drain.clone()));
        let gate = GateLayer::new(roster.clone(), issuance.revoked.clone(), store.clone());
        let operators = Operators {
            rotation,
            mesh: mesh.clone(),
            store: store.clone(),
            tokens: self.tokens.clone(),
            logins: Logins::new(issuance.clone(), roster.clone()),
            door: running.operators.map(|address| address.to_string()).unwrap_or_default(),
            authority: Arc::clone(authority),
            own: Arc::new(self.leaf.identity().clone()),
            advertise: running.advertise.clone(),
            warnings: warnings.into(),
            tasks: tasks.clone(),
            drain: drain.clone(),
        };
        if let Some((listener, _)) = doors.remote {
            let whom = (Entrance::Operators(roster, issuance.revoked.clone()), Arc::clone(authority));
            let secured = api::accept(listener, tls(Peer::read_operator)?, whom, metrics.clone(), tasks, drain.clone());
            let (router, stop) = (api::operators_router(operators.clone(), gate.clone()), drain.clone());
            tasks.spawn("serve remote operators", async move {
                router.serve_with_incoming_shutdown(ReceiverStream::new(secured), async move { stop.stopping().await }).await
            });
        }
        let operators = api::operators_router(operators, gate);
        let callers = api::operators(doors.operators, running.admin_socket.clone(), tasks, drain.clone());
        let stop = drain.clone();
        tasks.spawn("serve operators", async move {
            operators.serve_with_incoming_shutdown(ReceiverStream::new(callers), async move { stop.stopping().await }).await
        });
        tasks.spawn("health", health::serve(doors.health, running.readiness.clone(), Arc::new(registry), drain.clone()));
        tasks.spawn("renew", upkeep::renew(issuance.clone(), Arc::clone(&self.leaf), drain.clone()));
        tasks.spawn("renew keys for tokens", upkeep::renew_jwt_keys(Arc::clone(&self.jwt_keys), drain.clone()));
        if store.is_shared() {
            tasks.spawn("listen", store.clone().listen(drain.clone()));
            tasks.spawn("tell", tell(store.clone(), mesh.sessions.clone(), drain.clone()));
            tasks.spawn("learn", learn(store.clone(), mesh.clone(), drain.clone()));
        }
        let live = upkeep::live(store.clone(), metrics.clone(), running.advertise.clone(), ready, drain.clone());
        tasks.spawn("live", live);
        tasks.spawn("prune", upkeep::prune(issuance.clone(), drain.clone()));
        Ok(())
    }

    /// Closes the store when drain has let everybody finish, and only then gives the state directory back.
    fn close_at_end(self, store: Store, claim: Claim, gates: (Gate, Gate)) {
        let drain = self.drain.clone();
        // Taken now: a drain that begins later waits for the end of this.
        let hold = drain.hold();
        self.tasks.spawn("close", async move {
            drain.stopping().await;
            // Streams end by themselves; calls under way get their time.
            let _ = tokio::time::timeout(CLOSE, self.mesh.closed()).await;
            leave(&store).await;
            let closed = store.close().await;
            drop((gates, claim, hold));
            closed
        });
    }
}

/// Leaves the replicas on the store: nobody waits for one that went in good order.
async fn leave(store: &Store) {
    if let Err(error) = store.farewell().await {
        tracing::warn!(error = outrider_runtime::tasks::chain(&error), "left without a farewell");
    }
}
