//! When an endpoint is left alone for a while because it fails where others do not. No clock: time is passed in.

use std::time::Duration;

/// Failures in a row after which an endpoint is ejected.
const CONSECUTIVE: u32 = 5;
/// Time of the first ejection; each further one doubles it.
const FIRST: Duration = Duration::from_secs(10);
/// Longest ejection.
const LONGEST: Duration = Duration::from_secs(300);
/// Exchanges in an interval before an endpoint's rate of success says anything.
const ENOUGH: u32 = 20;
/// Endpoints with enough exchanges before rates are compared.
const COMPARABLE: usize = 3;
/// Deviations below the mean rate of success at which an endpoint is ejected.
const DEVIATIONS: f64 = 1.9;
/// An endpoint this good is never ejected by comparison.
const GOOD: f64 = 0.9;

/// What became of an exchange, for the health of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It answered, and not with a fault of its own.
    Served,
    /// No connection, no answer, or a 5xx.
    Failed,
}

/// The record of one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Suspicion {
    in_a_row: u32,
    served: u32,
    failed: u32,
    ejections: u32,
    until: Option<Duration>,
}

impl Suspicion {
    /// Notes an outcome. Returns whether the endpoint has failed too often in a row.
    pub(super) fn note(&mut self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Served => (self.in_a_row, self.served) = (0, self.served.saturating_add(1)),
            Outcome::Failed => (self.in_a_row, self.failed) = (self.in_a_row.saturating_add(1), self.failed.saturating_add(1)),
        }
        self.in_a_row >= CONSECUTIVE
    }

    /// Leaves the endpoint alone for a while: longer each time.
    pub(super) fn eject(&mut self, now: Duration) {
        let doubled = FIRST.saturating_mul(1 << self.ejections.min(5));
        *self = Self { ejections: self.ejections.saturating_add(1), until: Some(now + doubled.min(LONGEST)), ..Self::default() };
    }

    /// Whether it is left alone at `now`.
    pub(super) fn is_ejected(&self, now: Duration) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// When its last ejection ended, or will.
    pub(super) fn until(&self) -> Option<Duration> {
        self.until
    }

    /// Share of exchanges that went well in this interval, if there were enough of them.
    fn rate(&self) -> Option<f64> {
        let all = self.served.saturating_add(self.failed);
        (all >= ENOUGH).then(|| f64::from(self.served) / f64::from(all))
    }

    /// Ends the interval. An endpoint that behaved through one is trusted more again.
    fn next_interval(&mut self, now: Duration) {
        if self.failed == 0 && self.served > 0 && !self.is_ejected(now) {
            self.ejections = self.ejections.saturating_sub(1);
        }
        (self.served, self.failed) = (0, 0);
    }
}

/// Which endpoints succeed much less often than the others did in this interval, worst first. Begins the next interval.
pub(super) fn compare(endpoints: &mut [Suspicion], now: Duration) -> Vec<usize> {
    let rates: Vec<(usize, f64)> =
        endpoints.iter().enumerate().filter_map(|(at, endpoint)| Some((at, endpoint.rate()?))).collect();
    endpoints.iter_mut().for_each(|endpoint| endpoint.next_interval(now));
    if rates.len() < COMPARABLE {
        return Vec::new();
    }
    let count = rates.len() as f64;
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
    // Of few endpoints one alone cannot be many deviations away: of three, at most 1.42.
    let reach = DEVIATIONS.min((count - 1.0).sqrt() * 0.9);
    let least = mean - reach * variance.sqrt();
    let mut outliers: Vec<(usize, f64)> = rates.into_iter().filter(|(_, rate)| *rate < least.min(GOOD)).collect();
    outliers.sort_by(|(_, one), (_, other)| one.total_cmp(other));
    outliers.into_iter().map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn failures_in_a_row_count_and_a_success_forgives_them() {
        let mut suspicion = Suspicion::default();
        for _ in 0..CONSECUTIVE - 1 {
            assert!(!suspicion.note(Outcome::Failed));
        }
        assert!(!suspicion.note(Outcome::Served));
        for _ in 0..CONSECUTIVE - 1 {
            assert!(!suspicion.note(Outcome::Failed));
        }
        assert!(suspicion.note(Outcome::Failed));
    }

    #[test]
    fn every_ejection_is_longer_than_the_one_before_up_to_a_bound() {
        let (mut suspicion, mut now, mut before) = (Suspicion::default(), Duration::ZERO, Duration::ZERO);
        for _ in 0..10 {
            suspicion.eject(now);
            let length = suspicion.until().unwrap() - now;
            assert!(length >= before && length <= LONGEST && suspicion.is_ejected(now));
            (before, now) = (length, suspicion.until().unwrap());
            assert!(!suspicion.is_ejected(now));
        }
        assert_eq!(before, LONGEST);
    }

    #[test]
    fn good_conduct_shortens_the_next_ejection() {
        let mut suspicion = Suspicion::default();
        suspicion.eject(Duration::ZERO);
        let now = FIRST + SECOND;
        suspicion.note(Outcome::Served);
        compare(std::slice::from_mut(&mut suspicion), now);
        suspicion.eject(now);
        assert_eq!(suspicion.until(), Some(now + FIRST));
    }

    #[test]
    fn the_one_that_fails_more_often_than_the_others_is_found() {
        let with = |served: u32, failed: u32| Suspicion { served, failed, ..Suspicion::default() };
        let found = |mut endpoints: Vec<Suspicion>| compare(&mut endpoints, SECOND);
        assert_eq!(found(vec![with(100, 0), with(50, 50), with(100, 1)]), [1]);
        assert_eq!(found(vec![with(100, 0), with(99, 1), with(100, 0)]), [0; 0], "one failure is no outlier");
        assert_eq!(found(vec![with(50, 50), with(50, 50), with(50, 50)]), [0; 0], "all fail alike: nobody stands out");
        assert_eq!(found(vec![with(100, 0), with(0, 10), with(100, 0)]), [0; 0], "too few to tell");
        assert_eq!(found(vec![with(100, 0), with(0, 100)]), [0; 0], "too few to compare");
    }
}
