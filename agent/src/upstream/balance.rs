//! Which endpoint gets the next request: the better of two random ones, by expected latency and what is under way there.
//! No clock, no randomness of its own, no sockets.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::Hash,
    rc::Rc,
    time::Duration,
};

use super::{
    ewma::PeakEwma,
    outlier::{self, Outcome, Suspicion},
};

/// Time in which an endpoint that comes to others that are there already gets its full share.
const SLOW_START: Duration = Duration::from_secs(10);
/// Latencies up to this, in seconds, count alike: below it chance decides who is quicker, not the endpoint.
const QUICK: f64 = 0.01;
/// Of so many requests one goes to a random endpoint, so that what is known of a slow one stays fresh.
const EXPLORED: usize = 16;
/// Share that it gets at the beginning.
const FIRST_SHARE: f64 = 0.1;
/// Of a hundred endpoints, so many at most are ejected.
const MOST_EJECTED: usize = 50;
/// Of a hundred endpoints, with fewer healthy ones than this all are used: rather some failures than one endpoint that falls
/// over under the load of all.
const PANIC: usize = 50;
/// Of a hundred endpoints of the own zone, with fewer healthy ones than this other zones are used too.
const ZONE_ENOUGH: usize = 70;

/// An endpoint as one worker knows it.
#[derive(Debug)]
pub(super) struct Place<T> {
    /// What it is.
    pub(super) what: T,
    /// Exchanges under way there.
    pub(super) load: Rc<Cell<usize>>,
    /// Whether it is in the own zone.
    pub(super) near: bool,
    latency: Cell<PeakEwma>,
    suspicion: Cell<Suspicion>,
    /// When it came to others; none for those that were there first.
    joined: Option<Duration>,
    /// Active checks fail.
    sick: Cell<bool>,
}

impl<T> Place<T> {
    fn is_healthy(&self, now: Duration) -> bool {
        !self.sick.get() && !self.suspicion.get().is_ejected(now)
    }

    /// Whether it is left alone at `now` for its failures.
    pub(super) fn is_ejected(&self, now: Duration) -> bool {
        self.suspicion.get().is_ejected(now)
    }

    /// An exchange's response began after `latency`.
    pub(super) fn answered(&self, now: Duration, latency: Duration) {
        let mut ewma = self.latency.get();
        ewma.observe(now, latency);
        self.latency.set(ewma);
    }

    /// What one more request would cost there. `usual` stands in for a latency that is not known.
    fn cost(&self, now: Duration, usual: f64) -> f64 {
        // In powers of two: what is nearly as quick is as good.
        let latency = self.latency.get().expected(now).unwrap_or(usual).max(QUICK);
        let latency = nearest_power_of_two(latency / QUICK);
        let since = self.joined.max(self.suspicion.get().until());
        let age = since.map_or(1.0, |since| now.saturating_sub(since).as_secs_f64() / SLOW_START.as_secs_f64());
        latency * (self.load.get() as f64 + 1.0) / age.clamp(FIRST_SHARE, 1.0)
    }
}

/// The power of two that is nearest by factor to a number of at least one.
fn nearest_power_of_two(number: f64) -> f64 {
    /// The bits of a number that are its exponent (IEEE 754 binary64).
    const EXPONENT: u64 = 0x7ff << 52;
    let below = f64::from_bits(number.to_bits() & EXPONENT);
    if number / below < std::f64::consts::SQRT_2 { below } else { below * 2.0 }
}

/// The endpoints of one port of a service.
#[derive(Debug)]
pub(super) struct Balancer<T> {
    places: Vec<Rc<Place<T>>>,
    /// Any endpoint that is sick or was ejected: only then is health looked at one by one.
    troubled: Cell<bool>,
    scratch: RefCell<Vec<usize>>,
}

impl<T> Default for Balancer<T> {
    fn default() -> Self {
        Self { places: Vec::new(), troubled: Cell::new(false), scratch: RefCell::default() }
    }
}

impl<T: Clone + Eq + Hash> Balancer<T> {
    /// These are the endpoints now, and whether each is in the own zone. Those that stay keep what is known of them; `load`
    /// gives the count of what is under way at a new one.
    pub(super) fn update(
        &mut self,
        now: Duration,
        endpoints: impl IntoIterator<Item = (T, bool)>,
        load: impl Fn(&T) -> Rc<Cell<usize>>,
    ) {
        let first = self.places.is_empty();
        let mut known: HashMap<T, Rc<Place<T>>> = self.places.drain(..).map(|place| (place.what.clone(), place)).collect();
        for (what, near) in endpoints {
            let stays = known.remove(&what).filter(|place| place.near == near);
            let place = stays.unwrap_or_else(|| {
                let (latency, suspicion, sick) = Default::default();
                Rc::new(Place { load: load(&what), what, near, latency, suspicion, joined: (!first).then_some(now), sick })
            });
            self.places.push(place);
        }
    }
}

impl<T> Balancer<T> {
    /// The endpoints.
    pub(super) fn places(&self) -> &[Rc<Place<T>>] {
        &self.places
    }

    /// The endpoint for the next request: none that was `tried`, unless all were, and none with `most` under way. `random(n)`
    /// is below `n`.
    ///
    /// # Errors
    /// Whether there are endpoints at all.
    pub(super) fn choose(
        &self,
        now: Duration,
        tried: &[Rc<Place<T>>],
        most: usize,
        mut random: impl FnMut(usize) -> usize,
    ) -> Result<Rc<Place<T>>, Nobody> {
        let mut pool = self.scratch.borrow_mut();
        self.fill(&mut pool, now, tried);
        if pool.is_empty() {
            return Err(Nobody::NoEndpoint);
        }
        let at = |index: usize| pool.get(index).and_then(|at| self.places.get(*at));
        let first = random(pool.len());
        let second = if pool.len() > 1 { (first + 1 + random(pool.len() - 1)) % pool.len() } else { first };
        let (Some(one), Some(other)) = (at(first), at(second)) else { return Err(Nobody::NoEndpoint) };
        let usual = one.latency.get().expected(now).or_else(|| other.latency.get().expected(now)).unwrap_or(0.001);
        let explores = random(EXPLORED) == 0;
        let better = if !explores && other.cost(now, usual) < one.cost(now, usual) { other } else { one };
        if better.load.get() < most {
            return Ok(better.clone());
        }
        let least = self.places.iter().filter(|place| place.is_healthy(now)).min_by_key(|place| place.load.get());
        least.filter(|place| place.load.get() < most).cloned().ok_or(Nobody::Overloaded)
    }

    /// Positions of those to choose from.
    fn fill(&self, pool: &mut Vec<usize>, now: Duration, tried: &[Rc<Place<T>>]) {
        let count = self.places.len();
        let healthy = |place: &Place<T>| !self.troubled.get() || place.is_healthy(now);
        let of = |pool: &mut Vec<usize>, keep: &dyn Fn(&Rc<Place<T>>) -> bool| {
            pool.clear();
            pool.extend(self.places.iter().enumerate().filter(|(_, place)| keep(place)).map(|(at, _)| at));
        };
        of(pool, &|place| healthy(place));
        if pool.len() * 100 < count * PANIC {
            of(pool, &|_| true);
        } else {
            let near = self.places.iter().filter(|place| place.near).count();
            let well = self.places.iter().filter(|place| place.near && healthy(place)).count();
            if well > 0 && well * 100 >= near * ZONE_ENOUGH {
                of(pool, &|place| place.near && healthy(place));
            }
        }
        if tried.is_empty() {
            return;
        }
        let is_tried = |at: &usize| self.places.get(*at).is_some_and(|place| tried.iter().any(|each| Rc::ptr_eq(each, place)));
        if pool.iter().all(is_tried) {
            // Any other will do, healthy ones first, before one is asked twice.
            of(pool, &|place| healthy(place) && !tried.iter().any(|each| Rc::ptr_eq(each, place)));
            if pool.is_empty() {
                of(pool, &|place| !tried.iter().any(|each| Rc::ptr_eq(each, place)));
            }
            if pool.is_empty() {
                of(pool, &|_| true);
            }
        } else {
            pool.retain(|at| !is_tried(at));
        }
    }

    /// Notes what became of an exchange at an endpoint. Returns whether that got the endpoint ejected.
    pub(super) fn note(&self, place: &Place<T>, outcome: Outcome, now: Duration) -> bool {
        let mut suspicion = place.suspicion.get();
        let too_many = suspicion.note(outcome);
        place.suspicion.set(suspicion);
        too_many && !suspicion.is_ejected(now) && self.eject(place, now)
    }

    /// Ends an interval: ejects endpoints that succeed much less often than the others. Returns how many.
    pub(super) fn compare(&self, now: Duration) -> usize {
        let mut all: Vec<Suspicion> = self.places.iter().map(|place| place.suspicion.get()).collect();
        let outliers = outlier::compare(&mut all, now);
        for (place, suspicion) in self.places.iter().zip(all) {
            place.suspicion.set(suspicion);
        }
        self.troubled.set(self.places.iter().any(|place| !place.is_healthy(now)));
        outliers.into_iter().filter_map(|at| self.places.get(at)).filter(|place| self.eject(place, now)).count()
    }

    /// Says what active checks found of an endpoint.
    pub(super) fn set_sick(&self, place: &Place<T>, sick: bool) {
        place.sick.set(sick);
        self.troubled.set(self.troubled.get() || sick);
    }

    /// Endpoints that are ejected now.
    pub(super) fn ejected(&self, now: Duration) -> usize {
        self.places.iter().filter(|place| place.is_ejected(now)).count()
    }

    fn eject(&self, place: &Place<T>, now: Duration) -> bool {
        if (self.ejected(now) + 1) * 100 > self.places.len() * MOST_EJECTED {
            return false;
        }
        let mut suspicion = place.suspicion.get();
        suspicion.eject(now);
        place.suspicion.set(suspicion);
        self.troubled.set(true);
        true
    }
}

/// Why there is no endpoint for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nobody {
    /// There is none.
    NoEndpoint,
    /// All have as much to do as they may.
    Overloaded,
}

#[cfg(test)]
mod tests;
