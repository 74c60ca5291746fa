//! The endpoints of one port of a service as this worker knows them: who is there, who is well, what may be tried again.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::{Hash, Hasher},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use outrider_policy::{ServiceName, route::HealthCheck};
use tokio::time::Instant;

use super::{
    Upstreams,
    balance::{Balancer, Nobody, Place},
    breaker::Gauge,
    budget::Budget,
    outlier::Outcome,
    pool::{Key, Pool, Slot},
    probe::Streak,
    turnstile::Places,
};
use crate::{
    refusal::{Reason, Refusal},
    route::{Endpoint, ServiceEntry},
    telemetry::ServiceCounters,
};

/// Interval after which rates of success are compared.
const INTERVAL: Duration = Duration::from_secs(10);
/// A service that nobody called for this long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// An endpoint and what connections to it are kept under.
#[derive(Clone, Debug)]
pub(super) struct Stop {
    pub(super) endpoint: Endpoint,
    pub(super) slot: Rc<Slot>,
    /// Its address, for records.
    pub(super) address: Rc<str>,
}

impl PartialEq for Stop {
    fn eq(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint && self.slot.key == other.slot.key
    }
}

impl Eq for Stop {}

impl Hash for Stop {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.endpoint, &self.slot.key).hash(state);
    }
}

/// A chosen endpoint.
pub(super) type Chosen = Rc<Place<Stop>>;

/// The endpoints of one port of a service.
#[derive(Debug)]
pub(super) struct Fleet {
    entry: RefCell<Arc<ServiceEntry>>,
    port: u16,
    balancer: RefCell<Balancer<Stop>>,
    budget: RefCell<Budget>,
    /// Requests under way.
    pub(super) requests: Gauge,
    counters: ServiceCounters,
    /// What active checks found of each endpoint so far.
    streaks: RefCell<HashMap<Stop, Streak>>,
    /// When the endpoints were asked last.
    asked: Cell<Duration>,
    compared: Cell<Duration>,
    /// When it was last asked for.
    pub(super) used: Cell<Duration>,
}

impl Fleet {
    fn new(now: Duration, service: &Arc<ServiceEntry>, port: u16, counters: ServiceCounters) -> Self {
        Self {
            entry: RefCell::new(service.clone()),
            port,
            balancer: RefCell::default(),
            budget: RefCell::default(),
            requests: Gauge::default(),
            counters,
            streaks: RefCell::default(),
            asked: Cell::new(now),
            compared: Cell::new(now),
            used: Cell::new(now),
        }
    }

    /// Brings it up to what the control plane says now.
    pub(super) fn refresh(&self, now: Duration, service: &Arc<ServiceEntry>, zone: Option<&str>, pool: &Pool) {
        let before = self.entry.replace(service.clone());
        if !Arc::ptr_eq(&before, service) && before.endpoints != service.endpoints {
            self.muster(now, zone, pool);
        }
    }

    /// Whether it is of exactly this description of the service, and this port.
    fn is_of(&self, service: &Arc<ServiceEntry>, port: u16) -> bool {
        self.port == port && Arc::ptr_eq(&self.entry.borrow(), service)
    }

    fn muster(&self, now: Duration, zone: Option<&str>, pool: &Pool) {
        let entry = self.entry.borrow().clone();
        let stops = entry.endpoints.iter().map(|endpoint| {
            let key = Key::Mesh {
                address: endpoint.address.clone(),
                service: entry.name.clone(),
                port: self.port,
                identity: endpoint.identity.clone(),
            };
            let near = zone.is_some() && endpoint.zone.as_deref() == zone;
            (Stop { endpoint: endpoint.clone(), slot: pool.slot(&key), address: endpoint.address.as_str().into() }, near)
        });
        self.balancer.borrow_mut().update(now, stops, |stop| stop.slot.load.clone());
    }

    /// The endpoint for a try, and whether there is another that was not tried.
    pub(super) fn choose(&self, now: Duration, tried: &[Chosen], most: usize) -> Result<Chosen, Refusal> {
        self.balancer.borrow().choose(now, tried, most, |below| fastrand::usize(..below)).map_err(|nobody| match nobody {
            Nobody::NoEndpoint => Refusal::new(Reason::NoEndpoint, "no endpoint"),
            Nobody::Overloaded => Refusal::new(Reason::Overloaded, format!("every endpoint has {most} requests under way")),
        })
    }

    /// Whether an endpoint is left that was not tried.
    pub(super) fn has_another(&self, tried: &[Chosen]) -> bool {
        self.balancer.borrow().places().iter().any(|place| !tried.iter().any(|each| Rc::ptr_eq(each, place)))
    }

    /// Notes what became of a try.
    pub(super) fn note(&self, chosen: &Chosen, outcome: Outcome, now: Duration) {
        self.counters.tried(chosen.near, outcome == Outcome::Served);
        if self.balancer.borrow().note(chosen, outcome, now) {
            self.counters.ejected.inc();
            tracing::warn!(service = %self.entry.borrow().name, endpoint = chosen.what.endpoint.address, "ejected: it failed too often in a row");
        }
    }

    pub(super) fn request(&self, now: Duration) {
        self.used.set(now);
        self.budget.borrow_mut().request(now);
    }

    pub(super) fn may_retry(&self, now: Duration) -> bool {
        let may = self.budget.borrow_mut().take(now);
        if may {
            self.counters.retried.inc()
        } else {
            self.counters.over_budget.inc()
        };
        may
    }

    /// What is due now and then.
    pub(super) fn tend(&self, now: Duration) {
        if now.saturating_sub(self.compared.get()) >= INTERVAL {
            self.compared.set(now);
            let ejected = self.balancer.borrow().compare(now);
            if ejected > 0 {
                self.counters.ejected.inc_by(ejected as u64);
                tracing::warn!(service = %self.entry.borrow().name, ejected, "ejected: less successful than the others");
            }
        }
    }

    /// Its endpoints.
    pub(super) fn all(&self) -> Vec<Chosen> {
        self.balancer.borrow().places().to_vec()
    }

    /// Whether the endpoints should be asked now how they are.
    fn is_due(&self, now: Duration, check: Option<&HealthCheck>) -> bool {
        let Some(check) = check else {
            // Nobody asks any more: what was found counts no longer.
            if !self.streaks.borrow().is_empty() {
                self.streaks.borrow_mut().clear();
                self.all().iter().for_each(|place| self.balancer.borrow().set_sick(place, false));
            }
            return false;
        };
        let due = now.saturating_sub(self.asked.get()) >= check.interval;
        if due {
            self.asked.set(now);
        }
        due
    }

    /// Notes what an active check found.
    pub(super) fn probed(&self, place: &Chosen, good: bool, check: &HealthCheck) {
        let mut streaks = self.streaks.borrow_mut();
        streaks.retain(|stop, _| self.leads_to(&stop.slot.key));
        let found = streaks.entry(place.what.clone()).or_default().note(good, check);
        if let Some(sick) = found {
            self.balancer.borrow().set_sick(place, sick);
        }
    }

    /// Whether connections of this key still lead to one of its endpoints.
    pub(super) fn leads_to(&self, key: &Key) -> bool {
        self.balancer.borrow().places().iter().any(|place| place.what.slot.key == *key)
    }
}

/// The services that one worker calls.
#[derive(Debug)]
pub struct Fleets {
    known: RefCell<HashMap<(ServiceName, u16), Rc<Fleet>>>,
    /// The one of the call before: most programs call one service many times in a row.
    last: RefCell<Option<Rc<Fleet>>>,
    /// Where requests wait for a connection.
    pub(super) connecting: Places,
    /// Connections that were made or tried.
    pub(super) connects: Cell<u64>,
    /// Copies of requests under way.
    pub(super) copies: Gauge,
    began: Instant,
}

impl Default for Fleets {
    fn default() -> Self {
        Self {
            known: RefCell::default(),
            last: RefCell::default(),
            connecting: Places::default(),
            connects: Cell::new(0),
            copies: Gauge::default(),
            began: Instant::now(),
        }
    }
}

impl Upstreams {
    /// Time since the worker's start.
    pub(super) fn now(&self) -> Duration {
        self.fleets.began.elapsed()
    }

    /// The endpoints of a port of a service.
    pub(super) fn fleet(&self, service: &Arc<ServiceEntry>, port: u16) -> Rc<Fleet> {
        if let Some(last) = self.fleets.last.borrow().as_ref().filter(|last| last.is_of(service, port)) {
            return last.clone();
        }
        let fleet = self.find_fleet(service, port);
        *self.fleets.last.borrow_mut() = Some(fleet.clone());
        fleet
    }

    fn find_fleet(&self, service: &Arc<ServiceEntry>, port: u16) -> Rc<Fleet> {
        let (now, zone) = (self.now(), self.zone.as_deref());
        let mut known = self.fleets.known.borrow_mut();
        if let Some(fleet) = known.get(&(service.name.clone(), port)) {
            fleet.refresh(now, service, zone, &self.pool);
            return fleet.clone();
        }
        let fleet = Rc::new(Fleet::new(now, service, port, self.metrics.service(service.name.as_str())));
        fleet.muster(now, zone, &self.pool);
        known.insert((service.name.clone(), port), fleet.clone());
        fleet
    }

    /// What is due now and then: endpoints that left are let go, and their idle connections closed; records are compared.
    pub fn tend(self: &Rc<Self>) {
        let (now, zone) = (self.now(), self.zone.as_deref());
        *self.fleets.last.borrow_mut() = None;
        self.fleets.known.borrow_mut().retain(|(name, port), fleet| {
            let Some(entry) = self.directory.current(name) else { return false };
            fleet.refresh(now, &entry.serving(*port), zone, &self.pool);
            fleet.tend(now);
            now.saturating_sub(fleet.used.get()) < FORGOTTEN
        });
        let known = self.fleets.known.borrow();
        for ((name, _), fleet) in &*known {
            let check = self.directory.check(name);
            if fleet.is_due(now, check.as_ref()) {
                check.iter().for_each(|check| self.probe(fleet, check));
            }
        }
        self.pool.sweep(self.svids.generation(), |key| match key {
            Key::Program(_) => true,
            Key::Mesh { service, port, .. } => known.get(&(service.clone(), *port)).is_none_or(|fleet| fleet.leads_to(key)),
        });
    }
}
