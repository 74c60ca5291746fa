//! Sending a request along its route: choose an endpoint, get a connection, exchange.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use outrider_policy::Protocol;
use outrider_runtime::Tasks;
use smallvec::SmallVec;
use tokio::{net::TcpStream, time::Instant};

use super::{
    lease::{Lease, StreamLease},
    pool::{Http2Place, Key, Pool},
};
use crate::{
    http::{
        Body, Fields, Limits, Request, RequestHead, Response, SharedIo, Transport,
        h1::{self, Exchange, Framing, H1Client},
        h2::{self, H2Client},
    },
    identity::{Peer, Svids},
    refusal::{Reason, Refusal},
    route::{Endpoint, Kind, Route},
    tls::{MeshConnector, MeshProtocol, Tenure},
};

/// Endpoints tried when connecting fails.
const ATTEMPTS: usize = 3;

/// One worker's way out.
#[derive(Debug)]
pub struct Upstreams {
    /// Opens mesh connections.
    pub connector: MeshConnector,
    /// The own certificate: connections end with it.
    pub svids: Arc<Svids>,
    /// Bounds.
    pub limits: Limits,
    /// Where connection tasks run.
    pub tasks: Tasks,
    /// The worker's connections.
    pub pool: Rc<Pool>,
}

pub(super) struct Connected {
    pub(super) io: SharedIo,
    peer: Option<Rc<Peer>>,
    pub(super) protocol: MeshProtocol,
    pub(super) tenure: Tenure,
}

impl Upstreams {
    /// Sends a request. `added` are fields of our own.
    ///
    /// # Errors
    /// `connect_failed`, `peer_identity`, `upstream_failed`, `upstream_timeout`, `protocol_mismatch`, `no_identity`.
    pub async fn send(&self, route: &Route, request: Request, added: &Fields) -> Result<Response, Refusal> {
        let as_http2 = match route.kind() {
            Kind::Local { protocol, .. } => matches!(protocol, Protocol::Http2 | Protocol::Grpc),
            Kind::Mesh { protocol, .. } if !protocol.is_http() => {
                return Err(Refusal::new(
                    Reason::ProtocolMismatch,
                    "the port carries opaque bytes: use CONNECT or an explicit upstream",
                ));
            }
            Kind::Mesh { .. } => return self.send_mesh(route, request, added).await,
        };
        if as_http2 { self.send_http2(route, request, added).await } else { self.send_http1(route, request, added).await }
    }

    /// Opens an opaque connection along a route: the far end, who it is, and how long it may be used.
    ///
    /// # Errors
    /// `connect_failed`, `peer_identity`, `no_identity`.
    pub async fn tunnel(&self, route: &Route) -> Result<(SharedIo, Option<Rc<Peer>>, Option<Tenure>), Refusal> {
        let (connected, _) = self.connect_any(route, &self.candidates(route), MeshProtocol::Tcp).await?;
        Ok((connected.io, connected.peer, Some(connected.tenure)))
    }

    pub(super) async fn send_http1(&self, route: &Route, request: Request, added: &Fields) -> Result<Response, Refusal> {
        let Request { head, mut body } = request;
        let wire = request_wire(&head, added, &body);
        // A connection that was used before may have been closed at the other end in this very moment. Then the next.
        loop {
            let lease = self.lease(route).await?;
            match h1::exchange(lease, &head, &wire, body, &self.limits).await? {
                Exchange::Answered(response) => return Ok(response),
                Exchange::Stale(unsent) => body = unsent,
            }
        }
    }

    async fn lease(&self, route: &Route) -> Result<Lease, Refusal> {
        let generation = self.svids.generation();
        let candidates = self.candidates(route);
        if let Some(key) = candidates.first().and_then(|first| key(route, *first)) {
            let stream = StreamLease::take(&self.pool.load(&key));
            if let Some(client) = self.pool.take(&key, generation) {
                return Ok(Lease::new(self.pool.clone(), key, client, generation, true, stream));
            }
        }
        let (connected, key) = self.connect_any(route, &candidates, MeshProtocol::Http1).await?;
        let stream = StreamLease::take(&self.pool.load(&key));
        Ok(Lease::new(self.pool.clone(), key, H1Client::new(connected.io, connected.tenure), generation, false, stream))
    }

    pub(super) async fn send_http2(&self, route: &Route, request: Request, added: &Fields) -> Result<Response, Refusal> {
        let mut fields = request.head.fields.clone();
        for (name, value) in added.iter() {
            fields.push(name, value);
        }
        let Request { head, mut body } = request;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (client, key, fresh) = self.http2(route).await?;
            let stream = StreamLease::take(&self.pool.load(&key));
            match h2::exchange(client, &head, &fields, body, stream, &self.limits, &self.tasks).await? {
                h2::Exchange::Answered(response) => return Ok(response),
                // Only a connection that was there before may end in this very moment.
                h2::Exchange::Unsent(_, refusal) if fresh || attempt == ATTEMPTS => return Err(refusal),
                h2::Exchange::Unsent(unsent, _) => body = unsent,
            }
        }
    }

    /// A shared HTTP/2 connection, and whether it was opened just now.
    async fn http2(&self, route: &Route) -> Result<(H2Client, Key, bool), Refusal> {
        let generation = self.svids.generation();
        let asked = Instant::now();
        let candidates = self.candidates(route);
        let no_endpoint = || Refusal::new(Reason::NoEndpoint, "no endpoint");
        let wanted = candidates.first().and_then(|first| key(route, *first)).ok_or_else(no_endpoint)?;
        let slot = self.pool.http2(&wanted);
        let mut place = slot.lock().await;
        match &*place {
            Http2Place::Open(client, made) if *made == generation && client.is_usable() => {
                return Ok((client.clone(), wanted, false));
            }
            Http2Place::Failed(at, refusal) if *at >= asked => return Err(refusal.clone()),
            _ => {}
        }
        let opened = async {
            let (connected, reached) = self.connect_any(route, &candidates, MeshProtocol::Http2).await?;
            let client = H2Client::open(connected.io, connected.tenure, &self.limits, &self.tasks).await?;
            Ok((client, reached))
        };
        match opened.await {
            Ok((client, reached)) => {
                let filled = Http2Place::Open(client.clone(), generation);
                if reached == wanted {
                    *place = filled;
                } else if let Ok(mut other) = self.pool.http2(&reached).try_lock() {
                    *other = filled;
                }
                Ok((client, reached, true))
            }
            Err(refusal) => {
                *place = Http2Place::Failed(Instant::now(), Refusal::clone(&refusal));
                Err(refusal)
            }
        }
    }

    /// Positions of endpoints in the order to try: the less busy of two random ones first. The own program is at 0.
    pub(super) fn candidates(&self, route: &Route) -> SmallVec<[usize; ATTEMPTS]> {
        let count = match route.kind() {
            Kind::Local { .. } => 1,
            Kind::Mesh { service, .. } => service.endpoints.len(),
        };
        let mut chosen = SmallVec::new();
        while chosen.len() < count.min(ATTEMPTS) {
            // A random one of those that are left.
            let mut position = fastrand::usize(..count - chosen.len());
            let mut before = chosen.clone();
            before.sort_unstable();
            for taken in before {
                position += usize::from(position >= taken);
            }
            chosen.push(position);
        }
        if let (Some(first), Some(second)) = (chosen.first(), chosen.get(1)) {
            let load = |at: usize| key(route, at).map_or(usize::MAX, |key| self.pool.load(&key).get());
            if load(*second) < load(*first) {
                chosen.swap(0, 1);
            }
        }
        chosen
    }

    pub(super) async fn connect_any(
        &self,
        route: &Route,
        order: &[usize],
        protocol: MeshProtocol,
    ) -> Result<(Connected, Key), Refusal> {
        let mut last = Refusal::new(Reason::NoEndpoint, "no endpoint");
        for at in order {
            let Some(key) = key(route, *at) else { continue };
            let connecting = self.connect(route, endpoint(route, *at), protocol);
            match tokio::time::timeout(self.limits.connect, connecting).await {
                Ok(Ok(connected)) => return Ok((connected, key)),
                Ok(Err(refusal)) => last = refusal,
                Err(_) => last = Refusal::new(Reason::ConnectFailed, "connecting timed out"),
            }
        }
        Err(last)
    }

    async fn connect(&self, route: &Route, endpoint: Option<&Endpoint>, protocol: MeshProtocol) -> Result<Connected, Refusal> {
        let (service, port, endpoint) = match (route.kind(), endpoint) {
            (Kind::Local { program, .. }, _) => {
                let stream = dial(*program).await?;
                let tenure = Tenure::until(Instant::now() + std::time::Duration::from_secs(24 * 3600));
                return Ok(Connected { io: SharedIo::new(Transport::Plain(stream)), peer: None, protocol, tenure });
            }
            (Kind::Mesh { service, port, .. }, Some(endpoint)) => (service, *port, endpoint),
            (Kind::Mesh { .. }, None) => return Err(Refusal::new(Reason::NoEndpoint, "no endpoint")),
        };
        let own = self.svids.valid().ok_or_else(|| Refusal::new(Reason::NoIdentity, "this agent holds no valid certificate"))?;
        let address = resolve(&endpoint.address).await?;
        let stream = dial(address).await?;
        let secured = self.connector.connect(stream, address, &service.name, port, protocol, &endpoint.identity).await?;
        let peer = Rc::new(secured.peer);
        let until = peer.deadline().min(own.deadline());
        let tenure = Tenure::of(peer.clone(), self.connector.trust().clone(), until);
        Ok(Connected { io: secured.io, tenure, protocol: secured.protocol, peer: Some(peer) })
    }
}

fn endpoint(route: &Route, at: usize) -> Option<&Endpoint> {
    match route.kind() {
        Kind::Local { .. } => None,
        Kind::Mesh { service, .. } => service.endpoints.get(at),
    }
}

/// What a connection to the candidate at this position leads to.
pub(super) fn key(route: &Route, at: usize) -> Option<Key> {
    match route.kind() {
        Kind::Local { program, .. } => Some(Key::Program(*program)),
        Kind::Mesh { service, port, .. } => {
            let endpoint = service.endpoints.get(at)?;
            let (address, identity) = (endpoint.address.clone(), endpoint.identity.clone());
            Some(Key::Mesh { address, service: service.name.clone(), port: *port, identity })
        }
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
    let mut wire = Vec::with_capacity(160 + head.target.len() + head.fields.as_wire().len() + added.as_wire().len());
    for part in [head.method.as_str(), " ", &head.target, " HTTP/1.1\r\nhost: ", &head.authority(), "\r\n"] {
        wire.extend_from_slice(part.as_bytes());
    }
    wire.extend_from_slice(head.fields.as_wire());
    wire.extend_from_slice(added.as_wire());
    if let Some(protocol) = &head.upgrade {
        wire.extend_from_slice(format!("connection: upgrade\r\nupgrade: {protocol}\r\n").as_bytes());
    }
    match h1::request_framing(body) {
        Framing::Length(0) if !matches!(head.method, http::Method::POST | http::Method::PUT | http::Method::PATCH) => {}
        Framing::Length(length) => wire.extend_from_slice(format!("content-length: {length}\r\n").as_bytes()),
        Framing::Chunked | Framing::UntilClose => wire.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    wire.extend_from_slice(b"\r\n");
    wire
}
