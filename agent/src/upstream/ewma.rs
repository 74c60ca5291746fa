//! How long an endpoint takes: a moving average that follows peaks at once and forgets them slowly. No clock: time is passed in.

use std::time::Duration;

/// Time in which an old observation loses most of its weight.
const DECAY: f64 = 5.0;

/// Peak-sensitive moving average of latencies. Times are since the worker's start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct PeakEwma {
    /// Seconds.
    value: f64,
    at: Duration,
    known: bool,
}

impl PeakEwma {
    /// An exchange took `latency`, as seen at `now`.
    pub(super) fn observe(&mut self, now: Duration, latency: Duration) {
        let latency = latency.as_secs_f64();
        let weight = self.weight(now);
        self.value = if !self.known || latency > self.value { latency } else { self.value * weight + latency * (1.0 - weight) };
        (self.at, self.known) = (now.max(self.at), true);
    }

    /// Seconds that an exchange is expected to take; `None` before the first. What was slow and is not asked any more becomes
    /// worth another try with time.
    pub(super) fn expected(&self, now: Duration) -> Option<f64> {
        self.known.then(|| self.value * self.weight(now))
    }

    fn weight(&self, now: Duration) -> f64 {
        // The C library's would be the agent's only use of its libm: three hundred KiB of memory.
        libm::exp(-now.saturating_sub(self.at).as_secs_f64() / DECAY)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_peak_counts_at_once_and_fades_with_time() {
        let mut latency = PeakEwma::default();
        assert_eq!(latency.expected(Duration::ZERO), None);
        latency.observe(Duration::ZERO, Duration::from_millis(10));
        latency.observe(Duration::from_millis(1), Duration::from_secs(1));
        assert_eq!(latency.expected(Duration::from_millis(1)), Some(1.0));
        latency.observe(Duration::from_secs(1), Duration::from_millis(10));
        assert!(latency.expected(Duration::from_secs(1)).is_some_and(|expected| expected > 0.7), "one quick answer is no proof");
        assert!(latency.expected(Duration::from_secs(60)).is_some_and(|expected| expected < 0.01));
    }

    proptest! {
        #[test]
        fn the_average_stays_between_nothing_and_the_highest_peak(seen in prop::collection::vec((0u64..5000, 0u64..5000), 1..50)) {
            let (mut latency, mut now) = (PeakEwma::default(), Duration::ZERO);
            let highest = seen.iter().map(|(_, millis)| *millis).max().unwrap_or_default();
            for (pause, millis) in seen {
                now += Duration::from_millis(pause);
                latency.observe(now, Duration::from_millis(millis));
                let expected = latency.expected(now).unwrap();
                prop_assert!(expected >= 0.0 && expected <= Duration::from_millis(highest).as_secs_f64() + 1e-9);
            }
        }
    }
}
