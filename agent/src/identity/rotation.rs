//! When to renew: pure functions of the clock and the certificate.

use std::time::{Duration, SystemTime};

/// However short a life is, renewing more often than this helps nobody: also the bound when a clock is far off.
const SHORTEST: Duration = Duration::from_millis(500);
/// Shortest wait after a failed renewal.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Longest wait after a failed renewal.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// When a certificate is due for renewal: at half of the life it had when it was `obtained`, up to a tenth of that earlier
/// by `jitter` in 0..=1, so that a fleet that started together does not renew together. The start of validity does not
/// count: it is dated back to bear with clocks that are late.
pub fn renew_at(obtained: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let life = not_after.duration_since(obtained).unwrap_or(Duration::ZERO);
    obtained + life.mul_f64(0.5 - 0.1 * jitter.clamp(0.0, 1.0)).max(SHORTEST)
}

/// How long to wait after the `failures`-th failure in a row (from 1), scattered by `jitter` in 0..=1.
pub fn retry_after(failures: u32, jitter: f64) -> Duration {
    let ceiling = FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LAST_RETRY);
    ceiling.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_around_half_of_the_life() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let end = start + Duration::from_secs(3600);
        assert_eq!(renew_at(start, end, 0.0), start + Duration::from_secs(1800));
        assert_eq!(renew_at(start, end, 1.0), start + Duration::from_secs(1440));
        assert_eq!(renew_at(end, start, 0.5), end + SHORTEST, "a certificate that has ended is no reason to spin");
    }

    #[test]
    fn retries_back_off_to_a_bound() {
        assert!(retry_after(1, 0.0) >= Duration::from_millis(250));
        assert!(retry_after(5, 1.0) > retry_after(2, 1.0));
        assert_eq!(retry_after(u32::MAX, 1.0), LAST_RETRY);
    }
}
