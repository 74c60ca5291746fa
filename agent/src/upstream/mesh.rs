//! Requests over the mesh protocol, and over HTTP as they came where the other agent does not speak it.

use std::{rc::Rc, time::Duration};

use tokio::{sync::Mutex, time::Instant};

use super::{Upstreams, lease::StreamLease, pool::Key};
use crate::{
    http::{Fields, Request, Response, Version, h1::H1Client},
    mesh::{self, MeshClient},
    refusal::{Reason, Refusal},
    route::Route,
    tls::MeshProtocol,
};

/// How long an agent that does not speak the mesh protocol is not asked again.
const ASKED_AGAIN: Duration = Duration::from_secs(60);
/// Connections tried when one takes no more requests.
const ATTEMPTS: usize = 3;

/// The place of a shared connection. Locked while somebody connects, so that a burst opens one connection and not one each.
pub(super) type MeshSlot = Rc<Mutex<MeshPlace>>;

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
    Mesh(MeshClient, Key, bool),
    /// HTTP.
    Http,
}

impl Upstreams {
    /// Sends a request to another agent.
    pub(super) async fn send_mesh(&self, route: &Route, request: Request, added: &Fields) -> Result<Response, Refusal> {
        let Request { head, mut body } = request;
        for attempt in 1.. {
            let (client, key, fresh) = match self.way(route).await? {
                Way::Mesh(client, key, fresh) => (client, key, fresh),
                // Between agents a request keeps the version it came with.
                Way::Http if head.version == Version::Http2 => {
                    return self.send_http2(route, Request { head, body }, added).await;
                }
                Way::Http => return self.send_http1(route, Request { head, body }, added).await,
            };
            let stream = StreamLease::take(&self.pool.load(&key));
            match mesh::exchange(client, &head, added, body, stream, &self.limits).await? {
                mesh::Exchange::Answered(response) => return Ok(response),
                // Only a connection that was there before may end in this very moment.
                mesh::Exchange::Unsent(_, refusal) if fresh || attempt == ATTEMPTS => return Err(refusal),
                mesh::Exchange::Unsent(unsent, _) => body = unsent,
            }
        }
        Err(Refusal::new(Reason::UpstreamFailed, "no connection takes the request"))
    }

    async fn way(&self, route: &Route) -> Result<Way, Refusal> {
        let generation = self.svids.generation();
        let asked = Instant::now();
        let candidates = self.candidates(route);
        let no_endpoint = || Refusal::new(Reason::NoEndpoint, "no endpoint");
        let wanted = candidates.first().and_then(|first| super::send::key(route, *first)).ok_or_else(no_endpoint)?;
        let slot = self.pool.mesh(&wanted);
        let mut place = slot.lock().await;
        match &*place {
            MeshPlace::Open(client, made) if *made == generation && client.is_usable() => {
                return Ok(Way::Mesh(client.clone(), wanted, false));
            }
            MeshPlace::HttpOnly(since) if since.elapsed() < ASKED_AGAIN => return Ok(Way::Http),
            MeshPlace::Failed(at, refusal) if *at >= asked => return Err(refusal.clone()),
            _ => {}
        }
        let (connected, reached) = match self.connect_any(route, &candidates, MeshProtocol::Mesh).await {
            Ok(connected) => connected,
            Err(refusal) => {
                *place = MeshPlace::Failed(Instant::now(), Refusal::clone(&refusal));
                return Err(refusal);
            }
        };
        let (filled, way) = if connected.protocol == MeshProtocol::Mesh {
            let client = MeshClient::open(connected.io, connected.tenure, &self.limits, &self.tasks)?;
            (MeshPlace::Open(client.clone(), generation), Way::Mesh(client, reached.clone(), true))
        } else {
            // The handshake was not in vain: the connection speaks HTTP/1.1.
            self.pool.put(reached.clone(), H1Client::new(connected.io, connected.tenure), generation);
            (MeshPlace::HttpOnly(Instant::now()), Way::Http)
        };
        if reached == wanted {
            *place = filled;
        } else if let Ok(mut other) = self.pool.mesh(&reached).try_lock() {
            *other = filled;
        }
        Ok(way)
    }
}
