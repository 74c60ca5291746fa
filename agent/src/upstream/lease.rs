//! A connection while somebody uses it.

use std::{cell::Cell, rc::Rc};

use super::{breaker::Held, pool::Slot, turnstile::Turnstile};
use crate::{
    http::{HeldHead, h1::H1Client},
    refusal::{Reason, Refusal},
};

/// An HTTP/1.1 connection in use. Dropped, the connection is closed; given back, it may serve again.
#[derive(Debug)]
pub struct Lease {
    slot: Rc<Slot>,
    client: Option<H1Client>,
    generation: u64,
    /// Whether it has served before.
    pub reused: bool,
    _stream: StreamLease,
}

impl Lease {
    pub(super) fn new(slot: Rc<Slot>, client: H1Client, generation: u64, reused: bool, stream: StreamLease) -> Self {
        Self { slot, client: Some(client), generation, reused, _stream: stream }
    }

    /// The connection.
    ///
    /// # Errors
    /// Never while the lease lives.
    pub fn client_mut(&mut self) -> Result<&mut H1Client, Refusal> {
        self.client.as_mut().ok_or_else(|| Refusal::new(Reason::UpstreamFailed, "the connection was given back"))
    }

    /// The exchange is over: the connection may serve again if it can.
    pub fn give_back(mut self) {
        if let Some(client) = self.client.take() {
            self.slot.put(client, self.generation);
        }
    }
}

/// One exchange under way at an endpoint, and at its service.
#[derive(Debug)]
pub struct StreamLease {
    load: Rc<Cell<usize>>,
    _service: Option<Rc<Held>>,
    /// The caller's, where callers share a program.
    turnstile: Option<Rc<Turnstile>>,
    _head: Option<HeldHead>,
}

impl StreamLease {
    pub(super) fn take(load: &Rc<Cell<usize>>, service: Option<Rc<Held>>) -> Self {
        load.set(load.get() + 1);
        Self { load: load.clone(), _service: service, turnstile: None, _head: None }
    }

    /// The same for a request of this caller.
    pub(super) fn of(mut self, turnstile: Option<Rc<Turnstile>>) -> Self {
        self.turnstile = turnstile;
        self
    }

    /// The same with its share of what heads may take at the other agent.
    pub(crate) fn holding(mut self, head: HeldHead) -> Self {
        self._head = Some(head);
        self
    }

    /// Where it waits for its turn to open a connection.
    pub(super) fn turnstile(&self) -> Option<Rc<Turnstile>> {
        self.turnstile.clone()
    }
}

impl Drop for StreamLease {
    fn drop(&mut self) {
        self.load.set(self.load.get().saturating_sub(1));
    }
}
