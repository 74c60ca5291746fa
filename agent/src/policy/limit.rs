//! Limits of requests, in force: GCRA (ITU-T I.371) on one atomic cell, shared by all workers. A call costs one atomic exchange
//! and no memory; callers are counted apart in a table of fixed size, however many there are.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use outrider_policy::{LimitKey, Limits, SpiffeId};
use tokio::time::Instant;

/// Sets of the table of callers, and callers in a set.
const SETS: usize = 1024;
const WAYS: usize = 4;

/// A limit and what has been used of it.
#[derive(Debug)]
pub struct Limiter {
    limits: Limits,
    /// Nanoseconds between two requests at the limit's rate.
    interval: u64,
    /// How far ahead of now the cell may be after a request.
    most: u64,
    epoch: Instant,
    cells: Cells,
}

#[derive(Debug)]
enum Cells {
    One(Cell),
    Sources { seed: RandomState, sets: Box<[[Way; WAYS]]> },
}

/// When the requests so far will have been worth their time, in nanoseconds since the epoch: the theoretical arrival time.
#[derive(Debug, Default)]
struct Cell(AtomicU64);

#[derive(Debug, Default)]
struct Way {
    /// Hash of the caller whose cell this is; 0 for nobody.
    of: AtomicU64,
    cell: Cell,
}

/// Over the limit; the number of seconds after which to come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over(pub u32);

impl Limiter {
    /// A limit of which nothing has been used.
    pub fn new(limits: Limits) -> Self {
        let interval = limits.interval();
        let cells = match limits.key {
            LimitKey::Port => Cells::One(Cell::default()),
            LimitKey::Source => {
                let sets = (0..SETS).map(|_| Default::default()).collect();
                Cells::Sources { seed: RandomState::new(), sets }
            }
        };
        let most = interval.saturating_mul(limits.burst());
        Self { interval, most, epoch: Instant::now(), cells, limits }
    }

    /// What it limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Counts a request of this caller.
    ///
    /// # Errors
    /// When it is over the limit; then it is not counted.
    pub fn take(&self, source: Option<&SpiffeId>) -> Result<(), Over> {
        let now = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let cell = match &self.cells {
            Cells::One(cell) => cell,
            Cells::Sources { seed, sets } => match find(sets, seed.hash_one(source), now) {
                Some(cell) => cell,
                None => return Ok(()),
            },
        };
        cell.take(now, self.interval, self.most)
    }
}

impl Cell {
    fn take(&self, now: u64, interval: u64, most: u64) -> Result<(), Over> {
        let next = |arrival: u64| {
            let next = arrival.max(now).saturating_add(interval);
            (next - now <= most).then_some(next)
        };
        self.0.fetch_update(Relaxed, Relaxed, next).map(drop).map_err(|arrival| {
            let wait = arrival.max(now).saturating_add(interval).saturating_sub(now).saturating_sub(most);
            Over(u32::try_from(wait.div_ceil(1_000_000_000)).unwrap_or(u32::MAX).max(1))
        })
    }
}

/// The cell of a caller: its own, or that of a caller who used nothing lately. If all of its set are in use it shares the one that
/// has used the least: a crowd of callers is limited rather too much than not at all.
fn find(sets: &[[Way; WAYS]], hash: u64, now: u64) -> Option<&Cell> {
    let hash = hash.max(1);
    let set = sets.get(usize::try_from(hash).unwrap_or(usize::MAX) % sets.len().max(1))?;
    if let Some(own) = set.iter().find(|way| way.of.load(Relaxed) == hash) {
        return Some(&own.cell);
    }
    let least = set.iter().min_by_key(|way| way.cell.0.load(Relaxed))?;
    if least.cell.0.load(Relaxed) <= now {
        least.of.store(hash, Relaxed);
    }
    Some(&least.cell)
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, sync::Arc, time::Duration};

    use governor::{Quota, RateLimiter, clock::FakeRelativeClock};

    use super::*;

    fn limiter(text: &str) -> Limiter {
        Limiter::new(serde_json::from_str(text).unwrap())
    }

    fn id(number: usize) -> SpiffeId {
        format!("spiffe://mesh.internal/ns/shop/sa/s{number}").parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn it_lets_through_what_governor_lets_through() {
        fastrand::seed(7);
        for (requests, burst) in [(1, 1), (10, 1), (10, 10), (50, 5), (1000, 200)] {
            let ours = limiter(&format!(r#"{{"requests": {requests}, "unit": "Second", "burst": {burst}}}"#));
            let clock = FakeRelativeClock::default();
            let quota = Quota::with_period(Duration::from_secs(1) / requests).unwrap();
            let quota = quota.allow_burst(NonZeroU32::new(burst).unwrap());
            let theirs = RateLimiter::direct_with_clock(quota, clock.clone());
            let mut through = 0;
            for _ in 0..5_000 {
                // Whole milliseconds: as far as the clock of the runtime goes.
                let pause = Duration::from_millis(fastrand::u64(0..=1500 / u64::from(requests)));
                tokio::time::advance(pause).await;
                clock.advance(pause);
                let ours = ours.take(None).is_ok();
                assert_eq!(ours, theirs.check().is_ok(), "{requests} a second, {burst} at once");
                through += u32::from(ours);
            }
            assert!((1..5_000).contains(&through), "{requests}, {burst}: {through}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_says_when_to_come_again_and_keeps_its_word() {
        let limiter = limiter(r#"{"requests": 2, "unit": "Minute", "burst": 1}"#);
        assert_eq!((limiter.take(None), limiter.take(None)), (Ok(()), Err(Over(30))));
        tokio::time::advance(Duration::from_secs(29)).await;
        assert_eq!(limiter.take(None), Err(Over(1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(limiter.take(None), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn callers_are_counted_apart_and_a_crowd_of_them_takes_no_more_memory() {
        let limiter = limiter(r#"{"requests": 2, "unit": "Hour", "burst": 2, "key": "Source"}"#);
        let (a, b) = (id(0), id(1));
        for caller in [Some(&a), Some(&b), None] {
            assert_eq!([limiter.take(caller), limiter.take(caller)], [Ok(()), Ok(())]);
            assert!(limiter.take(caller).is_err());
        }
        // Far more callers than cells: nobody gets more than the limit, and who was limited stays so.
        let through: usize = (2..100_000).filter(|number| limiter.take(Some(&id(*number))).is_ok()).count();
        assert!(through <= SETS * WAYS * 2, "{through}");
        assert!(limiter.take(Some(&a)).is_err());
        // When their time has passed, the cells are free for others: so few that no nine of them share a set, whatever the seed.
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!((0..100).all(|number| limiter.take(Some(&id(200_000 + number))).is_ok()));
    }

    #[test]
    fn workers_share_it_and_none_gets_more() {
        let limiter = Arc::new(limiter(r#"{"requests": 100, "unit": "Hour", "burst": 1000}"#));
        let through: usize = std::thread::scope(|scope| {
            let counts: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..10_000).filter(|_| limiter.take(None).is_ok()).count())).collect();
            counts.into_iter().map(|count| count.join().unwrap()).sum()
        });
        assert_eq!(through, 1000);
    }
}
