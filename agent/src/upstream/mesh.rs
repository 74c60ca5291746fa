//! Requests over the mesh protocol, and over HTTP as they came where the other agent does not speak it.

use std::{rc::Rc, time::Duration};

use tokio::time::Instant;

use super::{Upstreams, lease::StreamLease, pool::Slot, retry::Failure};
use crate::{
    http::{Body, Fields, RequestHead, Response, Version, h1::H1Client},
    mesh::{self, MeshClient},
    refusal::Refusal,
    route::Endpoint,
    telemetry::Side,
    tls::MeshProtocol,
};

/// How long an agent that does not speak the mesh protocol is not asked again.
const ASKED_AGAIN: Duration = Duration::from_secs(60);
/// Connections tried when one takes no more requests.
const ATTEMPTS: usize = 3;

/// What is in the place.
#[derive(Debug, Default)]
pub(super) enum MeshPlace {
    #[default]
    Empty,
    /// A connection and the generation of our certificate that it was made with.
    Open(MeshClient, u64),
    /// The other agent speaks HTTP only, so far as we know.
    HttpOnly(Instant),
    /// Connecting failed at that time: whoever waited since before that need not try again.
    Failed(Instant, Refusal),
}

impl MeshPlace {
    /// Worth keeping: usable, or known not to be.
    pub(super) fn is_fresh(&self, generation: u64) -> bool {
        match self {
            Self::Open(client, made) => *made == generation && client.is_usable(),
            Self::HttpOnly(since) => since.elapsed() < ASKED_AGAIN,
            Self::Empty | Self::Failed(..) => false,
        }
    }
}

/// A way to an agent.
enum Way {
    /// A connection that speaks the mesh protocol, and whether it was opened just now.
    Mesh(MeshClient, bool),
    /// HTTP.
    Http,
}

impl Upstreams {
    /// One exchange with an endpoint: over the mesh protocol, or over HTTP as the request came where the agent there does not
    /// speak it.
    pub(super) async fn exchange_mesh(
        &self,
        (slot, endpoint): (&Rc<Slot>, &Endpoint),
        head: &Rc<RequestHead>,
        added: &Fields,
        mut body: Body,
        stream: StreamLease,
    ) -> Result<Response, Failure> {
        let (mut stream, mut attempt) = (Some(stream), 0);
        loop {
            attempt += 1;
            let held = stream.take().unwrap_or_else(|| StreamLease::take(&slot.load, None));
            let (client, fresh) = match self.way(slot, endpoint).await {
                Ok(Way::Mesh(client, fresh)) => (client, fresh),
                // Between agents a request keeps the version it came with.
                Ok(Way::Http) if head.version == Version::Http2 => {
                    return Box::pin(self.exchange_http2(slot, Some(endpoint), head, added, body, held)).await;
                }
                Ok(Way::Http) => return Box::pin(self.exchange_http1(slot, Some(endpoint), head, added, body, held)).await,
                Err(refusal) => return Err(Failure::unsent(refusal, body)),
            };
            match mesh::exchange(client, head, added, body, held, &self.limits).await.map_err(Failure::sent)? {
                mesh::Exchange::Answered(response) => return Ok(response),
                // Only a connection that was there before may end in this very moment.
                mesh::Exchange::Unsent(unsent, refusal) if fresh || attempt == ATTEMPTS => {
                    return Err(Failure::unsent(refusal, unsent));
                }
                mesh::Exchange::Unsent(unsent, _) => body = unsent,
            }
        }
    }

    async fn way(&self, slot: &Slot, endpoint: &Endpoint) -> Result<Way, Refusal> {
        // Nearly always somebody has connected before.
        if let Ok(place) = slot.mesh.try_lock()
            && let MeshPlace::Open(client, made) = &*place
            && *made == self.svids.generation()
            && client.is_usable()
        {
            return Ok(Way::Mesh(client.clone(), false));
        }
        Box::pin(self.open_way(slot, endpoint)).await
    }

    async fn open_way(&self, slot: &Slot, endpoint: &Endpoint) -> Result<Way, Refusal> {
        let generation = self.svids.generation();
        let asked = Instant::now();
        let mut place = slot.mesh.lock().await;
        match &*place {
            MeshPlace::Open(client, made) if *made == generation && client.is_usable() => {
                return Ok(Way::Mesh(client.clone(), false));
            }
            MeshPlace::HttpOnly(since) if since.elapsed() < ASKED_AGAIN => return Ok(Way::Http),
            MeshPlace::Failed(at, refusal) if *at >= asked => return Err(refusal.clone()),
            _ => {}
        }
        let connected = match self.connect(&slot.key, Some(endpoint), MeshProtocol::Mesh).await {
            Ok(connected) => connected,
            Err(refusal) => {
                *place = MeshPlace::Failed(Instant::now(), Refusal::clone(&refusal));
                return Err(refusal);
            }
        };
        if connected.protocol == MeshProtocol::Mesh {
            let violations = self.metrics.violations.clone();
            let count = move |violation| violations.count(Side::Outbound, violation);
            let client = MeshClient::open(connected.io, connected.tenure, &self.limits, &self.tasks, count)?;
            *place = MeshPlace::Open(client.clone(), generation);
            return Ok(Way::Mesh(client, true));
        }
        // The handshake was not in vain: the connection speaks HTTP/1.1.
        slot.put(H1Client::new(connected.io, connected.tenure), generation);
        *place = MeshPlace::HttpOnly(Instant::now());
        Ok(Way::Http)
    }
}
