//! The whole way of a call from the own program: read, routed to a service of the mesh, sent as who we are, answered.

use std::{net::SocketAddr, rc::Rc};

use bytes::BytesMut;

use crate::{
    config::ExplicitUpstream,
    http::{Fields, Reply, Request, Response, Service, SharedIo, Transport, h1, h2, normalize::new_request_id, preface, seal},
    listener::Accepted,
    refusal::{Reason, Refusal},
    route::{self, Kind, Recent, Route},
    tcp::Tunnel,
    telemetry::{Record, Side},
    worker::Worker,
};

/// A connection from the own program.
#[derive(Debug)]
struct Outbound {
    worker: Rc<Worker>,
    address: SocketAddr,
    /// Where everything on it goes; none when each request says it.
    fixed: Option<ExplicitUpstream>,
    recent: Recent,
}

/// Serves one connection from the own program to its end.
pub(crate) async fn serve(worker: Rc<Worker>, accepted: Accepted, fixed: Option<ExplicitUpstream>) {
    let (stream, address, _held) = accepted.split();
    let mut io = SharedIo::new(Transport::Plain(stream));
    let outbound = Outbound { worker: worker.clone(), address, fixed, recent: Recent::default() };
    if let Some(upstream) = &outbound.fixed {
        match Box::pin(route::to_service(&worker.directory, &upstream.service, upstream.port, None)).await {
            Ok(route) if is_opaque(&route) => return Box::pin(outbound.opaque(io, &route)).await,
            Ok(_) => {}
            // For a program that waits for the other side to speak, closing is the only answer.
            Err(refusal) => return outbound.record().refused(&refusal),
        }
    }
    // Boxed: what comes afterwards lives longer, and need not hold its room.
    let http2 = Box::pin(tokio::time::timeout(worker.limits.idle, preface::is_http2(&mut io))).await;
    match http2 {
        Ok(Ok(true)) => Box::pin(h2::serve(io, Rc::new(outbound), &worker.limits, &worker.tasks)).await,
        Ok(Ok(false)) => Box::pin(h1::serve(io, BytesMut::new(), &outbound, &worker.limits)).await,
        Ok(Err(_)) | Err(_) => {}
    }
}

fn is_opaque(route: &Route) -> bool {
    matches!(route.kind(), Kind::Mesh { protocol, .. } if !protocol.is_http())
}

impl Outbound {
    fn record(&self) -> Box<Record> {
        let mut record = Record::new(&self.worker.observer, Side::Outbound);
        record.address(self.address);
        record
    }

    /// Where a request goes: the host says it, or the listener.
    async fn route(&self, request: &Request, record: &mut Record) -> Result<Route, Refusal> {
        let fixed = self.fixed.as_ref().map(|upstream| (&upstream.service, upstream.port));
        let route = self.recent.route(&self.worker.directory, fixed, &request.head).await?;
        if let Kind::Mesh { service, port, protocol, .. } = route.kind() {
            record.destination(&service.name, *port, *protocol);
        }
        Ok(route)
    }

    async fn answer(&self, request: Request, record: &mut Record) -> Result<Response, Refusal> {
        record.admit(&self.worker.limits)?;
        let route = self.route(&request, record).await?;
        self.worker.upstreams.send(&route, request, &record.onward(), record.trail(), None).await
    }

    /// CONNECT to a port that carries opaque bytes.
    async fn connect(&self, request: Request, mut record: Box<Record>) -> Reply {
        let opened = async {
            let route = self.route(&request, &mut record).await?;
            if !is_opaque(&route) {
                return Err(Refusal::new(
                    Reason::ProtocolMismatch,
                    "CONNECT leads to opaque ports only: send HTTP requests in the clear, the mesh encrypts them",
                ));
            }
            self.worker.upstreams.tunnel(&route, None).await
        };
        match opened.await {
            Ok((io, peer, tenure)) => {
                if let Some(peer) = &peer {
                    record.peer(peer);
                }
                record.status(200);
                let (fields, body) = (Fields::default(), crate::http::Body::Empty);
                let response = Response { status: 200, fields, body, tenure: None, switched: None };
                Reply { response, permit: None, record, tunnel: Some(Box::new(Tunnel::new(io, None, tenure))) }
            }
            Err(refusal) => crate::http::refused(&refusal, record),
        }
    }

    /// A listener that leads to an opaque port.
    async fn opaque(&self, io: SharedIo, route: &Route) {
        let mut record = self.record();
        record.set_id(new_request_id());
        if let Kind::Mesh { service, port, protocol, .. } = route.kind() {
            record.destination(&service.name, *port, *protocol);
        }
        match self.worker.upstreams.tunnel(route, None).await {
            Ok((far, peer, tenure)) => {
                if let Some(peer) = &peer {
                    record.peer(peer);
                }
                Tunnel::new(far, None, tenure).relay(io, BytesMut::new(), record).await;
            }
            Err(refusal) => record.refused(&refusal),
        }
    }
}

impl Service for Outbound {
    async fn call(&self, request: Request) -> Reply {
        let mut record = self.record();
        record.request(&request.head);
        if request.head.method == http::Method::CONNECT {
            return self.connect(request, record).await;
        }
        match self.answer(request, &mut record).await {
            Ok(response) => seal(response, None, record),
            Err(refusal) => crate::http::refused(&refusal, record),
        }
    }

    fn refuse(&self, refusal: Refusal) -> Reply {
        let mut record = self.record();
        record.set_id(new_request_id());
        crate::http::refused(&refusal, record)
    }

    async fn closing(&self) {
        self.worker.drain.idle().await;
    }

    fn is_closing(&self) -> bool {
        self.worker.drain.is_stopping()
    }
}
