//! Idle HTTP/1.1 connections, shared HTTP/2 connections, and how busy endpoints are.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use outrider_policy::{ServiceName, SpiffeId};
use tokio::{sync::Mutex, time::Instant};

use super::mesh::MeshSlot;
use crate::{
    alarm,
    http::{h1::H1Client, h2::H2Client},
    refusal::Refusal,
};

/// Idle connections kept for one destination.
const IDLE_EACH: usize = 256;
/// How long an idle connection is kept: less than servers' usual 60 or 75 s, so that we are the ones who close.
const IDLE_FOR: Duration = Duration::from_secs(30);

/// What a connection leads to. Connections are never shared between services: the handshake named one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The own program.
    Program(SocketAddr),
    /// A port of a service at an agent.
    Mesh {
        /// The agent's mesh listener.
        address: String,
        /// The service.
        service: ServiceName,
        /// Its port.
        port: u16,
        /// Who it proved to be.
        identity: SpiffeId,
    },
}

#[derive(Debug)]
struct Idle {
    client: H1Client,
    since: Instant,
    generation: u64,
}

/// The place of a shared HTTP/2 connection. Locked while somebody connects, so that a burst opens one connection and not
/// one each.
pub(super) type Http2Slot = Rc<Mutex<Http2Place>>;

/// What is in the place.
#[derive(Debug, Default)]
pub(super) enum Http2Place {
    #[default]
    Empty,
    /// A connection and the generation of our certificate that it was made with.
    Open(H2Client, u64),
    /// Connecting failed at that time: whoever waited since before that need not try again.
    Failed(Instant, Refusal),
}

/// One worker's connections.
#[derive(Debug, Default)]
pub struct Pool {
    idle: RefCell<HashMap<Key, Vec<Idle>>>,
    http2: RefCell<HashMap<Key, Http2Slot>>,
    mesh: RefCell<HashMap<Key, MeshSlot>>,
    loads: RefCell<HashMap<Key, Rc<Cell<usize>>>>,
}

impl Pool {
    /// An idle connection made with this generation of our certificate: after a renewal, older ones are closed.
    pub(super) fn take(&self, key: &Key, generation: u64) -> Option<H1Client> {
        let mut idle = self.idle.borrow_mut();
        let clients = idle.get_mut(key)?;
        while let Some(mut candidate) = clients.pop() {
            if candidate.generation == generation && candidate.since + IDLE_FOR > alarm::instant() && candidate.client.is_usable() {
                return Some(candidate.client);
            }
        }
        idle.remove(key);
        None
    }

    pub(super) fn put(&self, key: Key, client: H1Client, generation: u64) {
        if !client.is_over() || client.tenure.is_over() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let clients = idle.entry(key).or_default();
        if clients.len() < IDLE_EACH {
            clients.push(Idle { client, since: alarm::instant(), generation });
        }
    }

    pub(super) fn http2(&self, key: &Key) -> Http2Slot {
        slot(&self.http2, key)
    }

    pub(super) fn mesh(&self, key: &Key) -> MeshSlot {
        slot(&self.mesh, key)
    }

    /// Exchanges under way at a destination.
    pub(super) fn load(&self, key: &Key) -> Rc<Cell<usize>> {
        slot(&self.loads, key)
    }

    /// How many connections are idle, and how many are shared.
    pub fn count(&self) -> (i64, i64) {
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let shared = self.http2.borrow().len() + self.mesh.borrow().len();
        (signed(self.idle.borrow().values().map(Vec::len).sum()), signed(shared))
    }

    /// Closes what has been idle for long, is of an older generation or does not lead anywhere any more, and forgets
    /// destinations that nobody uses.
    pub fn sweep(&self, generation: u64, leads_somewhere: impl Fn(&Key) -> bool) {
        self.idle.borrow_mut().retain(|key, clients| {
            let leads_somewhere = leads_somewhere(key);
            clients.retain(|idle| {
                let fresh = idle.generation == generation && idle.since.elapsed() < IDLE_FOR;
                leads_somewhere && fresh && !idle.client.tenure.is_over()
            });
            !clients.is_empty()
        });
        self.http2.borrow_mut().retain(|key, slot| {
            let busy = self.loads.borrow().get(key).is_some_and(|load| load.get() > 0);
            let fresh = slot.try_lock().map_or(
                true,
                |place| matches!(&*place, Http2Place::Open(client, made) if *made == generation && client.is_usable()),
            );
            busy || (fresh && leads_somewhere(key))
        });
        self.mesh.borrow_mut().retain(|key, slot| {
            let busy = self.loads.borrow().get(key).is_some_and(|load| load.get() > 0);
            busy || (leads_somewhere(key) && slot.try_lock().map_or(true, |place| place.is_fresh(generation)))
        });
        self.loads.borrow_mut().retain(|_, load| load.get() > 0 || Rc::strong_count(load) > 1);
    }
}

/// What is kept under a key; only the first who asks copies the key.
fn slot<T: Clone + Default>(slots: &RefCell<HashMap<Key, T>>, key: &Key) -> T {
    let mut slots = slots.borrow_mut();
    if let Some(slot) = slots.get(key) {
        return slot.clone();
    }
    slots.entry(key.clone()).or_default().clone()
}
