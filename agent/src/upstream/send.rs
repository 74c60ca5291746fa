//! Sending a request along its route: choose an endpoint, get a connection, exchange.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use outrider_policy::Protocol;
use outrider_runtime::Tasks;
use smallvec::SmallVec;
use tokio::{net::TcpStream, time::Instant};

use super::{
    behind::Behind,
    breaker::Bounds,
    call::Trail,
    fleet::{Chosen, Fleet, Fleets},
    lease::{Lease, StreamLease},
    outlier::Outcome,
    pool::{Http2Place, Key, Pool, Slot},
    retry::{FIELD, FURTHER_DOWN, Failure, Sending},
    turnstile::Turnstile,
};
use crate::{
    apart::apart,
    http::{
        Body, Fields, Limits, Request, RequestHead, Response, SharedIo, Transport,
        h1::{self, Exchange, Framing, H1Client},
        h2::{self, H2Client},
        put_number,
    },
    identity::{Peer, Svids},
    refusal::{Reason, Refusal},
    route::{AnswerParts, Directory, Endpoint, Kind, Route},
    spare,
    telemetry::UpstreamMetrics,
    tls::{MeshConnector, MeshProtocol, Tenure},
};

/// Tries of a request on connections that turn out to have ended.
const STALE: usize = 3;

/// One worker's way out.
#[derive(Debug)]
pub struct Upstreams {
    /// Opens mesh connections.
    pub connector: MeshConnector,
    /// The own certificate: connections end with it.
    pub svids: Arc<Svids>,
    /// Bounds.
    pub limits: Limits,
    /// Bounds on what is under way.
    pub bounds: Bounds,
    /// Where this agent is; endpoints of the same zone are preferred.
    pub zone: Option<Box<str>>,
    /// Where connection tasks run.
    pub tasks: Tasks,
    /// The worker's connections.
    pub pool: Rc<Pool>,
    /// Services as the control plane describes them.
    pub directory: Arc<Directory>,
    /// Failures of the own program's calls.
    pub behind: Behind,
    /// The endpoints of services that are called.
    pub fleets: Fleets,
    /// Where calls are counted.
    pub metrics: UpstreamMetrics,
}

pub(super) struct Connected {
    pub(super) io: SharedIo,
    peer: Option<Rc<Peer>>,
    pub(super) protocol: MeshProtocol,
    pub(super) tenure: Tenure,
}

impl Upstreams {
    /// Sends a request. `added` are fields of our own; `trail` says how it went; `turnstile` is that of a caller among others.
    ///
    /// # Errors
    /// `connect_failed`, `peer_identity`, `upstream_failed`, `upstream_timeout`, `protocol_mismatch`, `no_identity`,
    /// `no_endpoint`, `overloaded`.
    pub async fn send(
        self: &Rc<Self>,
        route: &Route,
        request: Request,
        added: &Fields,
        trail: &mut Trail,
        turnstile: Option<&Rc<Turnstile>>,
    ) -> Result<Response, Refusal> {
        match route.kind() {
            Kind::Local { program, protocol } => {
                let Request { head, body } = request;
                let slot = self.pool.slot(&Key::Program(*program));
                let stream = StreamLease::take(&slot.load, None).of(turnstile.cloned());
                let outcome = match protocol {
                    Protocol::Http2 | Protocol::Grpc => {
                        Box::pin(self.exchange_http2(&slot, None, &head, added, body, stream)).await
                    }
                    Protocol::Http | Protocol::Tcp => apart(self.exchange_http1(&slot, None, &head, added, body, stream)).await,
                };
                outcome.map_err(|failure| failure.refusal)
            }
            Kind::Mesh { protocol, .. } if !protocol.is_http() => {
                Err(Refusal::new(Reason::ProtocolMismatch, "the port carries opaque bytes: use CONNECT or an explicit upstream"))
            }
            Kind::Mesh { service, port, plan: None, .. } => {
                apart(self.call(service, *port, &Sending::default(), request, added, trail)).await
            }
            Kind::Mesh { service, port, plan: Some(plan), .. } => {
                Box::pin(self.call_by(plan, (service, *port), request, added, trail)).await
            }
            Kind::Answer(answer) => {
                let (status, fields) = AnswerParts::clone(answer);
                Ok(Response { status, fields, body: Body::Empty, tenure: None, switched: None })
            }
        }
    }

    /// Sends a request that came over the mesh to the own program. A failure of calls that the program made for it is marked as
    /// come from further down.
    ///
    /// # Errors
    /// As [`Upstreams::send`].
    pub async fn serve(
        self: &Rc<Self>,
        route: &Route,
        request: Request,
        added: &Fields,
        turnstile: &Rc<Turnstile>,
    ) -> Result<Response, Refusal> {
        let before = self.behind.count();
        let mut response = self.send(route, request, added, &mut Trail::default(), Some(turnstile)).await?;
        response.fields.remove(FIELD);
        if response.status >= 500 && self.behind.count() != before {
            response.fields.push(FIELD.as_bytes(), FURTHER_DOWN);
        }
        Ok(response)
    }

    /// Opens an opaque connection along a route: the far end, who it is, and how long it may be used.
    ///
    /// # Errors
    /// `connect_failed`, `peer_identity`, `no_identity`, `no_endpoint`, `overloaded`.
    pub async fn tunnel(
        &self,
        route: &Route,
        turnstile: Option<&Turnstile>,
    ) -> Result<(SharedIo, Option<Rc<Peer>>, Option<Tenure>), Refusal> {
        let connected = match route.kind() {
            Kind::Local { program, .. } => {
                self.connect_among(&Key::Program(*program), None, MeshProtocol::Tcp, turnstile).await?
            }
            Kind::Mesh { service, port, .. } => self.connect_any(&self.fleet(service, *port)).await?,
            Kind::Answer(_) => return Err(Refusal::new(Reason::ProtocolMismatch, "a route answers, and nothing can be opened")),
        };
        Ok((connected.io, connected.peer, Some(connected.tenure)))
    }

    /// An opaque connection to whichever endpoint can be reached.
    async fn connect_any(&self, fleet: &Fleet) -> Result<Connected, Refusal> {
        let mut tried: SmallVec<[Chosen; 4]> = SmallVec::new();
        loop {
            let chosen = fleet.choose(self.now(), &tried, self.bounds.endpoint_requests)?;
            let stop = &chosen.what;
            let refusal = match self.connect(&stop.slot.key, Some(&stop.endpoint), MeshProtocol::Tcp).await {
                Ok(connected) => return Ok(connected),
                Err(refusal) => refusal,
            };
            let endpoints_fault = matches!(refusal.reason(), Reason::ConnectFailed | Reason::PeerIdentity);
            if endpoints_fault {
                fleet.note(&chosen, Outcome::Failed, self.now());
            }
            tried.push(chosen);
            if !endpoints_fault || tried.len() >= STALE || !fleet.has_another(&tried) {
                return Err(refusal);
            }
        }
    }

    /// One exchange over HTTP/1.1 with one endpoint, or with the own program when there is none.
    pub(super) async fn exchange_http1(
        &self,
        slot: &Rc<Slot>,
        endpoint: Option<&Endpoint>,
        head: &Rc<RequestHead>,
        added: &Fields,
        mut body: Body,
        stream: StreamLease,
    ) -> Result<Response, Failure> {
        let wire = request_wire(head, added, &body);
        let generation = self.svids.generation();
        let mut stream = Some(stream);
        // A connection that was used before may have been closed at the other end in this very moment. Then the next.
        loop {
            let held = stream.take().unwrap_or_else(|| StreamLease::take(&slot.load, None));
            let (client, reused) = match slot.take(generation) {
                Some(client) => (client, true),
                None => match Box::pin(self.connect_among(&slot.key, endpoint, MeshProtocol::Http1, held.turnstile().as_deref()))
                    .await
                {
                    Ok(connected) => (H1Client::new(connected.io, connected.tenure), false),
                    Err(refusal) => return Err(Failure::unsent(refusal, body)),
                },
            };
            let lease = Lease::new(slot.clone(), client, generation, reused, held);
            match h1::exchange(lease, head, &wire, body, &self.limits).await.map_err(Failure::sent)? {
                Exchange::Answered(response) => {
                    spare::give(wire);
                    return Ok(response);
                }
                Exchange::Stale(unsent) => body = unsent,
            }
        }
    }

    /// One exchange over HTTP/2 with one endpoint, or with the own program when there is none.
    pub(super) async fn exchange_http2(
        &self,
        slot: &Rc<Slot>,
        endpoint: Option<&Endpoint>,
        head: &Rc<RequestHead>,
        added: &Fields,
        mut body: Body,
        stream: StreamLease,
    ) -> Result<Response, Failure> {
        let (mut stream, mut attempt) = (Some(stream), 0);
        loop {
            attempt += 1;
            let held = stream.take().unwrap_or_else(|| StreamLease::take(&slot.load, None));
            let (client, fresh) = match self.http2(slot, endpoint).await {
                Ok(opened) => opened,
                Err(refusal) => return Err(Failure::unsent(refusal, body)),
            };
            let exchanged = h2::exchange(client, head, added, body, held, &self.limits, &self.tasks).await;
            match exchanged.map_err(Failure::sent)? {
                h2::Exchange::Answered(response) => return Ok(response),
                // Only a connection that was there before may end in this very moment.
                h2::Exchange::Unsent(unsent, refusal) if fresh || attempt == STALE => {
                    return Err(Failure::unsent(refusal, unsent));
                }
                h2::Exchange::Unsent(unsent, _) => body = unsent,
            }
        }
    }

    /// A shared HTTP/2 connection, and whether it was opened just now.
    async fn http2(&self, slot: &Slot, endpoint: Option<&Endpoint>) -> Result<(H2Client, bool), Refusal> {
        let generation = self.svids.generation();
        let asked = Instant::now();
        let mut place = slot.http2.lock().await;
        match &*place {
            Http2Place::Open(client, made) if *made == generation && client.is_usable() => return Ok((client.clone(), false)),
            Http2Place::Failed(at, refusal) if *at >= asked => return Err(refusal.clone()),
            _ => {}
        }
        let opened = async {
            let connected = self.connect(&slot.key, endpoint, MeshProtocol::Http2).await?;
            H2Client::open(connected.io, connected.tenure, &self.limits, &self.tasks).await
        };
        match opened.await {
            Ok(client) => {
                *place = Http2Place::Open(client.clone(), generation);
                Ok((client, true))
            }
            Err(refusal) => {
                *place = Http2Place::Failed(Instant::now(), Refusal::clone(&refusal));
                Err(refusal)
            }
        }
    }

    /// A new connection to an endpoint, or to the own program when there is none.
    pub(super) async fn connect(
        &self,
        key: &Key,
        endpoint: Option<&Endpoint>,
        protocol: MeshProtocol,
    ) -> Result<Connected, Refusal> {
        self.connect_among(key, endpoint, protocol, None).await
    }

    /// The same for a caller among others, when it is its turn.
    async fn connect_among(
        &self,
        key: &Key,
        endpoint: Option<&Endpoint>,
        protocol: MeshProtocol,
        turnstile: Option<&Turnstile>,
    ) -> Result<Connected, Refusal> {
        let _turn = self.fleets.connecting.turn(turnstile, self.bounds.connecting, self.limits.connect).await?;
        self.fleets.connects.set(self.fleets.connects.get() + 1);
        let connected = tokio::time::timeout(self.limits.connect, self.open(key, endpoint, protocol)).await;
        connected.unwrap_or_else(|_| Err(Refusal::new(Reason::ConnectFailed, "connecting timed out")))
    }

    async fn open(&self, key: &Key, endpoint: Option<&Endpoint>, protocol: MeshProtocol) -> Result<Connected, Refusal> {
        let (service, port, endpoint) = match (key, endpoint) {
            (Key::Program(program), _) => {
                let stream = dial(*program).await?;
                let tenure = Tenure::until(Instant::now() + std::time::Duration::from_secs(24 * 3600));
                return Ok(Connected { io: SharedIo::new(Transport::Plain(stream)), peer: None, protocol, tenure });
            }
            (Key::Mesh { service, port, .. }, Some(endpoint)) => (service, *port, endpoint),
            (Key::Mesh { .. }, None) => return Err(Refusal::new(Reason::NoEndpoint, "no endpoint")),
        };
        let own = self.svids.valid().ok_or_else(|| Refusal::new(Reason::NoIdentity, "this agent holds no valid certificate"))?;
        let address = resolve(&endpoint.address).await?;
        let stream = dial(address).await?;
        let secured = self.connector.connect(stream, address, service, port, protocol, &endpoint.identity).await?;
        let peer = secured.peer;
        let until = peer.deadline().min(own.deadline());
        let tenure = Tenure::of(peer.clone(), self.connector.trust().clone(), until);
        Ok(Connected { io: secured.io, tenure, protocol: secured.protocol, peer: Some(peer) })
    }
}

async fn resolve(address: &str) -> Result<SocketAddr, Refusal> {
    if let Ok(address) = address.parse() {
        return Ok(address);
    }
    let mut found = tokio::net::lookup_host(address)
        .await
        .map_err(|error| Refusal::new(Reason::ConnectFailed, format!("{address}: {error}")))?;
    found.next().ok_or_else(|| Refusal::new(Reason::ConnectFailed, format!("{address} has no address")))
}

async fn dial(address: SocketAddr) -> Result<TcpStream, Refusal> {
    let stream =
        TcpStream::connect(address).await.map_err(|error| Refusal::new(Reason::ConnectFailed, format!("{address}: {error}")))?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// A request's head as HTTP/1.1 writes it.
fn request_wire(head: &RequestHead, added: &Fields, body: &Body) -> Vec<u8> {
    let mut wire = spare::take();
    wire.reserve(160 + head.target.len() + head.fields.as_wire().len() + added.as_wire().len());
    head.put_start(&mut wire);
    wire.extend_from_slice(head.fields.as_wire());
    wire.extend_from_slice(added.as_wire());
    if let Some(protocol) = &head.upgrade {
        wire.extend_from_slice(format!("connection: upgrade\r\nupgrade: {protocol}\r\n").as_bytes());
    }
    match h1::request_framing(body) {
        Framing::Length(0) if !matches!(head.method, http::Method::POST | http::Method::PUT | http::Method::PATCH) => {}
        Framing::Length(length) => {
            wire.extend_from_slice(b"content-length: ");
            put_number(&mut wire, length);
            wire.extend_from_slice(b"\r\n");
        }
        Framing::Chunked | Framing::UntilClose => wire.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    wire.extend_from_slice(b"\r\n");
    wire
}
