//! Copies of requests to services that a route mirrors to. Nobody waits for their answers, and what becomes of them changes
//! nothing for the caller.

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{Trail, Upstreams, retry::Sending};
use crate::{
    http::{Body, Fields, Request, RequestHead},
    route::ServiceEntry,
};

/// Copies under way at a time, for each worker; more are left out.
const MOST: usize = 64;
/// How long a copy may take, its answer read to the end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Frames of an answer that are read so that its connection can be used again.
const READ: usize = 64;

impl Upstreams {
    /// Sends copies of a request whose body is here as a whole.
    pub(super) fn mirror(self: &Rc<Self>, copies: &[(Arc<ServiceEntry>, u16, Rc<RequestHead>)], body: &Bytes, added: &Fields) {
        for (service, port, head) in copies {
            let Ok(held) = self.fleets.copies.begin(MOST, "copies are under way") else { continue };
            let (own, service, port) = (self.clone(), service.clone(), *port);
            let body = if body.is_empty() { Body::Empty } else { Body::Full(body.clone()) };
            let (request, added) = (Request { head: head.clone(), body }, added.clone());
            self.tasks.spawn_scoped_local(async move {
                let once = Sending { tries: 1, ..Sending::default() };
                let copy = async {
                    let mut trail = Trail::default();
                    let mut response = own.call(&service, port, &once, request, &added, &mut trail).await.ok()?;
                    for _ in 0..READ {
                        response.body.frame().await.ok()??;
                    }
                    Some(())
                };
                let _ = tokio::time::timeout(PATIENCE, copy).await;
                drop(held);
            });
        }
    }
}
