//! Sending a request along its route: choose an endpoint, get a connection, exchange.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use outrider_policy::{Protocol, ServiceName};
use outrider_runtime::Tasks;
use tokio::{net::TcpStream, time::Instant};

use super::{
    lease::{Lease, StreamLease},
    pool::{Key, Pool},
};
use crate::{
    http::{
        Body, Fields, Limits, Request, RequestHead, Response, SharedIo, Transport, Version,
        h1::{self, Exchange, Framing, H1Client},
        h2::{self, H2Client},
    },
    identity::{Peer, Svids},
    refusal::{Reason, Refusal},
    route::{Endpoint, Kind, Route, ServiceEntry},
    tls::{MeshConnector, MeshProtocol},
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

struct Connected {
    io: SharedIo,
    peer: Option<Rc<Peer>>,
    usable_until: Instant,
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
            // Between agents a request keeps the version it came with.
            Kind::Mesh { .. } => request.head.version == Version::Http2,
        };
        if as_http2 { self.send_http2(route, request, added).await } else { self.send_http1(route, request, added).await }
    }

    /// Opens an opaque connection along a route.
    ///
    /// # Errors
    /// `connect_failed`, `peer_identity`, `no_identity`.
    pub async fn tunnel(&self, route: &Route) -> Result<(SharedIo, Option<Rc<Peer>>), Refusal> {
        let (connected, _) = self.connect_any(route, MeshProtocol::Tcp).await?;
        Ok((connected.io, connected.peer))
    }

    async fn send_http1(&self, route: &Route, request: Request, added: &Fields) -> Result<Response, Refusal> {
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
        for (key, _) in self.candidates(route).iter().take(1) {
            let stream = StreamLease::take(&self.pool.load(key));
            if let Some(client) = self.pool.take(key, generation) {
                return Ok(Lease::new(self.pool.clone(), key.clone(), client, generation, true, stream));
            }
        }
        let (connected, key) = self.connect_any(route, MeshProtocol::Http1).await?;
        let stream = StreamLease::take(&self.pool.load(&key));
        Ok(Lease::new(self.pool.clone(), key, H1Client::new(connected.io, connected.usable_until), generation, false, stream))
    }

    async fn send_http2(&self, route: &Route, request: Request, added: &Fields) -> Result<Response, Refusal> {
        let mut fields = request.head.fields.clone();
        for (name, value) in added.iter() {
            fields.push(name, value);
        }
        let (client, key) = self.http2(route).await?;
        let stream = StreamLease::take(&self.pool.load(&key));
        h2::exchange(client, &request.head, &fields, request.body, stream, &self.limits, &self.tasks).await
    }

    async fn http2(&self, route: &Route) -> Result<(H2Client, Key), Refusal> {
        let generation = self.svids.generation();
        let Some((key, _)) = self.candidates(route).into_iter().next() else {
            return Err(Refusal::new(Reason::NoEndpoint, "no endpoint"));
        };
        let slot = self.pool.http2(&key);
        // Held while connecting, so that a burst opens one connection and not one each.
        let mut slot = slot.lock().await;
        if let Some((client, made)) = slot.as_ref()
            && *made == generation
            && client.is_usable()
        {
            return Ok((client.clone(), key));
        }
        let (connected, connected_to) = self.connect_any(route, MeshProtocol::Http2).await?;
        let client = H2Client::open(connected.io, connected.usable_until, &self.limits, &self.tasks).await?;
        if connected_to == key {
            *slot = Some((client.clone(), generation));
        }
        Ok((client, connected_to))
    }

    /// Destinations in the order to try: the less busy of two random ones first.
    fn candidates<'a>(&self, route: &'a Route) -> Vec<(Key, Option<&'a Endpoint>)> {
        match route.kind() {
            Kind::Local { program, .. } => vec![(Key::Program(*program), None)],
            Kind::Mesh { service, port, .. } => {
                let mut keys: Vec<_> =
                    service.endpoints.iter().map(|endpoint| (mesh_key(service, *port, endpoint), Some(endpoint))).collect();
                if keys.len() > 1 {
                    fastrand::shuffle(&mut keys);
                    let load = |at: usize| keys.get(at).map_or(usize::MAX, |(key, _)| self.pool.load(key).get());
                    if load(1) < load(0) {
                        keys.swap(0, 1);
                    }
                }
                keys
            }
        }
    }

    async fn connect_any(&self, route: &Route, protocol: MeshProtocol) -> Result<(Connected, Key), Refusal> {
        let mut last = Refusal::new(Reason::NoEndpoint, "no endpoint");
        for (key, endpoint) in self.candidates(route).into_iter().take(ATTEMPTS) {
            let connecting = self.connect(route, endpoint, protocol);
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
                let usable_until = Instant::now() + std::time::Duration::from_secs(24 * 3600);
                return Ok(Connected { io: SharedIo::new(Transport::Plain(stream)), peer: None, usable_until });
            }
            (Kind::Mesh { service, port, .. }, Some(endpoint)) => (service, *port, endpoint),
            (Kind::Mesh { .. }, None) => return Err(Refusal::new(Reason::NoEndpoint, "no endpoint")),
        };
        let own = self.svids.valid().ok_or_else(|| Refusal::new(Reason::NoIdentity, "this agent holds no valid certificate"))?;
        let address = resolve(&endpoint.address).await?;
        let stream = dial(address).await?;
        let secured = self.connector.connect(stream, address, &service.name, port, protocol, &endpoint.identity).await?;
        let usable_until = secured.peer.deadline().min(own.deadline());
        Ok(Connected { io: secured.io, usable_until, peer: Some(Rc::new(secured.peer)) })
    }
}

fn mesh_key(service: &ServiceEntry, port: u16, endpoint: &Endpoint) -> Key {
    let service: &ServiceName = &service.name;
    Key::Mesh { address: endpoint.address.clone(), service: service.clone(), port, identity: endpoint.identity.clone() }
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
    match h1::request_framing(body) {
        Framing::Length(0) if !matches!(head.method, http::Method::POST | http::Method::PUT | http::Method::PATCH) => {}
        Framing::Length(length) => wire.extend_from_slice(format!("content-length: {length}\r\n").as_bytes()),
        Framing::Chunked | Framing::UntilClose => wire.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    wire.extend_from_slice(b"\r\n");
    wire
}
