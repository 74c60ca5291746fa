//! The whole way of a call into the service: accepted, secured, decided, routed, answered.

use std::rc::Rc;

use bytes::BytesMut;

use crate::{
    config::PlaintextPort,
    http::{Reply, Request, Response, Service, h1, h2, normalize::new_request_id, seal},
    identity::Peer,
    listener::Accepted,
    policy::Permit,
    refusal::{Reason, Refusal},
    route::LocalPort,
    tcp::Tunnel,
    telemetry::{Record, Side},
    tls::{self, MeshProtocol, Secured},
    upstream::Turnstile,
    worker::Worker,
};

/// A mesh connection to one port of an own service.
#[derive(Debug)]
struct Inbound {
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    target: usize,
    local: LocalPort,
    /// Who called, in Envoy's format: always ours, never a caller's.
    client_cert: Option<String>,
    turnstile: Rc<Turnstile>,
}

/// Serves one connection to its end: from another agent, or in plaintext to a port.
pub(crate) async fn serve(worker: Rc<Worker>, accepted: Accepted, port: Option<PlaintextPort>) {
    let (stream, address, _held) = accepted.split();
    let secured = match &port {
        None => Box::pin(worker.acceptor.accept(stream, address, worker.limits.handshake)).await, // Accepted → Secured
        Some(port) => Box::pin(tls::plaintext(stream, address, port, worker.limits.head_read)).await,
    };
    let mut proven = None;
    let opened = secured.inspect(|secured| proven = Some(secured.peer.clone())).and_then(|secured| open(&worker, secured));
    let (inbound, secured) = match opened {
        Ok(opened) => opened,
        Err(refusal) => {
            let mut record = Record::new(&worker.observer, Side::Inbound);
            record.address(address);
            proven.iter().for_each(|peer| record.peer(peer));
            return record.refused(&refusal);
        }
    };
    match secured.protocol {
        MeshProtocol::Http1 => Box::pin(h1::serve(secured.io, BytesMut::new(), &inbound, &worker.limits)).await,
        MeshProtocol::Http2 => Box::pin(h2::serve(secured.io, Rc::new(inbound), &worker.limits, &worker.tasks)).await,
        MeshProtocol::Mesh => Box::pin(worker.serve_mesh(secured.io, inbound)).await,
        MeshProtocol::Tcp => Box::pin(inbound.opaque(secured)).await,
    }
}

/// What the caller named in the handshake must be ours, and opaque bytes must not go where HTTP rules apply.
fn open(worker: &Rc<Worker>, secured: Secured) -> Result<(Inbound, Secured), Refusal> {
    let (service, port) =
        secured.destination.as_ref().ok_or_else(|| Refusal::new(Reason::UnknownService, "the handshake names no service"))?;
    let (target, local) = (worker.policies.find(service, *port))
        .and_then(|target| Some((target, worker.local.get(target)?.clone())))
        .ok_or_else(|| Refusal::new(Reason::UnknownService, format!("`{service}` port {port} is not backed by this agent")))?;
    if (secured.protocol == MeshProtocol::Tcp) == local.protocol.is_http() {
        let speaks = local.protocol.as_str();
        return Err(Refusal::new(Reason::ProtocolMismatch, format!("`{service}` port {port} speaks {speaks}")));
    }
    let peer = secured.peer.clone();
    let client_cert = peer.id().map(|id| format!("By={};URI={id}", worker.own_identity()));
    Ok((Inbound { turnstile: Turnstile::of(&peer), worker: worker.clone(), peer, target, local, client_cert }, secured))
}

impl Inbound {
    fn record(&self) -> Box<Record> {
        let mut record = Record::new(&self.worker.observer, Side::Inbound);
        record.peer(&self.peer);
        if let Some(target) = self.worker.policies.targets().get(self.target) {
            record.destination(&target.service, target.port, target.protocol);
        }
        record
    }

    /// A request's way: permit, route, response.
    async fn answer(&self, request: Request, record: &mut Record) -> Result<(Response, Permit), Refusal> {
        record.admit(&self.worker.limits)?;
        let target = self.worker.policies.targets().get(self.target);
        crate::http::meant_for(&request.head, target.map(|target| &target.service))?;
        let mut permit = self
            .worker
            .policies
            .authorize(self.target, &self.peer, Some(&request.head))
            .map_err(|denied| record.denied(denied))?;
        record.verdict(permit.verdict().clone());
        let route = self.local.route(&permit);
        let mut added = record.onward();
        if let Some(client_cert) = &self.client_cert {
            added.append(b"x-forwarded-client-cert", client_cert.as_bytes());
        }
        let response = tokio::select! {
            biased;
            response = self.worker.upstreams.serve(&route, request, &added, &self.turnstile) => response?,
            revoked = permit.revoked() => return Err(revoked),
        };
        Ok((response, permit))
    }

    /// An opaque connection's way: the same decision, without HTTP.
    async fn opaque(self, secured: Secured) {
        let mut record = self.record();
        record.set_id(new_request_id());
        let permit = match self.worker.policies.authorize(self.target, &self.peer, None).map_err(|denied| record.denied(denied)) {
            Ok(permit) => permit,
            Err(refusal) => return record.refused(&refusal),
        };
        record.verdict(permit.verdict().clone());
        let route = self.local.route(&permit);
        match self.worker.upstreams.tunnel(&route, Some(&self.turnstile)).await {
            Ok((io, ..)) => Tunnel::new(io, Some(permit), None).relay(secured.io, BytesMut::new(), record).await,
            Err(refusal) => record.refused(&refusal),
        }
    }
}

impl Service for Inbound {
    async fn call(&self, request: Request) -> Reply {
        let mut record = self.record();
        record.request(&request.head);
        match self.answer(request, &mut record).await {
            Ok((response, permit)) => seal(response, Some(permit), record),
            Err(refusal) => crate::http::refused(&refusal, record),
        }
    }

    fn refuse(&self, refusal: Refusal) -> Reply {
        let mut record = self.record();
        record.set_id(new_request_id());
        crate::http::refused(&refusal, record)
    }

    async fn closing(&self) {
        self.worker.closing(&self.peer).await;
    }

    fn is_closing(&self) -> bool {
        self.worker.is_closing(&self.peer)
    }
}
