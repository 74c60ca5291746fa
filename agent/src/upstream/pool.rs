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

use super::mesh::MeshPlace;
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

/// One destination: its connections, and what is under way there. Whoever sends there often holds it, and looks nothing up.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) key: Key,
    idle: RefCell<Vec<Idle>>,
    /// Locked while somebody connects, so that a burst opens one connection and not one each.
    pub(super) http2: Mutex<Http2Place>,
    /// The same, of the mesh protocol.
    pub(super) mesh: Mutex<MeshPlace>,
    /// Exchanges under way.
    pub(super) load: Rc<Cell<usize>>,
}

impl Slot {
    fn new(key: Key) -> Self {
        Self { key, idle: RefCell::default(), http2: Mutex::default(), mesh: Mutex::default(), load: Rc::default() }
    }

    /// An idle connection made with this generation of our certificate: after a renewal, older ones are closed.
    pub(super) fn take(&self, generation: u64) -> Option<H1Client> {
        let mut idle = self.idle.borrow_mut();
        while let Some(mut candidate) = idle.pop() {
            let fresh = candidate.generation == generation && candidate.since + IDLE_FOR > alarm::instant();
            if fresh && candidate.client.is_usable() {
                return Some(candidate.client);
            }
        }
        None
    }

    pub(super) fn put(&self, client: H1Client, generation: u64) {
        if !client.is_over() || client.tenure.is_over() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_EACH {
            idle.push(Idle { client, since: alarm::instant(), generation });
        }
    }

    /// Closes what has been idle for long, is of an older generation, or leads nowhere any more.
    fn sweep(&self, generation: u64, leads_somewhere: bool) {
        self.idle.borrow_mut().retain(|idle| {
            let fresh = idle.generation == generation && idle.since + IDLE_FOR > alarm::instant();
            leads_somewhere && fresh && !idle.client.tenure.is_over()
        });
        if self.load.get() > 0 {
            return;
        }
        if let Ok(mut place) = self.http2.try_lock() {
            let fresh = matches!(&*place, Http2Place::Open(client, made) if *made == generation && client.is_usable());
            if !(leads_somewhere && fresh) {
                *place = Http2Place::Empty;
            }
        }
        if let Ok(mut place) = self.mesh.try_lock()
            && !(leads_somewhere && place.is_fresh(generation))
        {
            *place = MeshPlace::Empty;
        }
    }

    /// How many connections are idle, and how many are shared.
    fn count(&self) -> (usize, usize) {
        let http2 = self.http2.try_lock().is_ok_and(|place| matches!(*place, Http2Place::Open(..)));
        let mesh = self.mesh.try_lock().is_ok_and(|place| matches!(*place, MeshPlace::Open(..)));
        (self.idle.borrow().len(), usize::from(http2) + usize::from(mesh))
    }
}

/// One worker's connections.
#[derive(Debug, Default)]
pub struct Pool {
    slots: RefCell<HashMap<Key, Rc<Slot>>>,
    /// The one that was asked for last: mostly it is the one that is asked for next.
    last: RefCell<Option<Rc<Slot>>>,
}

impl Pool {
    /// The slot of a destination. Only the first who asks copies the key.
    pub(super) fn slot(&self, key: &Key) -> Rc<Slot> {
        let mut last = self.last.borrow_mut();
        if let Some(slot) = &*last
            && slot.key == *key
        {
            return slot.clone();
        }
        let mut slots = self.slots.borrow_mut();
        let known = slots.get(key).cloned();
        let slot = known.unwrap_or_else(|| slots.entry(key.clone()).insert_entry(Rc::new(Slot::new(key.clone()))).get().clone());
        *last = Some(slot.clone());
        slot
    }

    /// How many connections are idle, and how many are shared.
    pub fn count(&self) -> (i64, i64) {
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let counts =
            self.slots.borrow().values().map(|slot| slot.count()).fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
        (signed(counts.0), signed(counts.1))
    }

    /// Closes what has been idle for long, is of an older generation or does not lead anywhere any more, and forgets
    /// destinations that nobody uses.
    pub fn sweep(&self, generation: u64, leads_somewhere: impl Fn(&Key) -> bool) {
        self.last.take();
        self.slots.borrow_mut().retain(|key, slot| {
            slot.sweep(generation, leads_somewhere(key));
            Rc::strong_count(slot) > 1 || slot.load.get() > 0 || slot.count() != (0, 0)
        });
    }
}
