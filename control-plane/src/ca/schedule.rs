//! Lifetimes and renewal points as pure functions of the clock. All times are Unix seconds.

use std::time::Duration;

/// How long each kind of certificate lives, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetimes {
    pub(crate) leaf: i64,
    pub(crate) issuing: i64,
    pub(crate) root: i64,
}

impl Lifetimes {
    pub(crate) fn new(leaf: Duration, issuing: Duration, root: Duration) -> Self {
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX / 4);
        Self { leaf: seconds(leaf), issuing: seconds(issuing), root: seconds(root) }
    }
}

/// Lifetime of an operator's certificate: it is renewed when it is used, so that somebody who works daily logs in once.
pub(super) const OPERATOR_TTL: i64 = 86_400;
/// How far a certificate's start lies in the past: clocks of members may differ by this.
pub(super) const SKEW: i64 = 60;

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: i64,
    pub(super) not_after: i64,
}

impl Validity {
    /// A certificate made `now` to live for `ttl`, ending no later than its issuer.
    pub(super) fn starting(now: i64, ttl: i64, issuer_end: i64) -> Self {
        Self { not_before: now - SKEW, not_after: now.saturating_add(ttl).min(issuer_end) }
    }
}

/// When a certificate should be renewed: at half of its life. The skew before its start does not count.
pub(crate) fn renew_at(not_before: i64, not_after: i64) -> i64 {
    let start = not_before + SKEW;
    start + (not_after - start).max(0) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_never_outlives_its_issuer() {
        assert_eq!(Validity::starting(1000, 3600, 2000), Validity { not_before: 940, not_after: 2000 });
        assert_eq!(Validity::starting(1000, 3600, 9000).not_after, 4600);
    }

    #[test]
    fn half_of_the_life_is_the_renewal_point() {
        let leaf = Validity::starting(1000, 3600, i64::MAX);
        assert_eq!(renew_at(leaf.not_before, leaf.not_after), 2800);
        let short = Validity::starting(1000, 2, i64::MAX);
        assert_eq!(renew_at(short.not_before, short.not_after), 1001);
    }
}
