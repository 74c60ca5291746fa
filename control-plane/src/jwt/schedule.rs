//! When a key is made, signs, and goes: pure functions of the clock. All times are Unix seconds.
//!
//! ```text
//! made ── lead ──▶ signs ────── life ──────▶ the next one signs ── a token's life, skew ──▶ gone
//! └──────────────────────────── in the bundle ───────────────────────────────────────────┘
//! ```

/// Longest life of a token, seconds.
const TOKEN_TTL: i64 = 300;
/// How far the clocks of members may differ.
const SKEW: i64 = 60;

/// How long things about tokens last, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JwtTimes {
    /// A key signs for so long.
    life: i64,
}

/// What is due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// A key that signs from then on.
    pub(super) make: Option<i64>,
    /// So many of the oldest keys have no token left.
    pub(super) drop: usize,
}

impl JwtTimes {
    /// Keys that sign for `life` seconds each.
    pub(crate) fn new(life: i64) -> Self {
        Self { life }
    }

    /// How long before it signs a key is published.
    fn lead(self) -> i64 {
        self.life / 4
    }

    /// How long tokens live.
    pub(super) fn ttl(self) -> i64 {
        TOKEN_TTL.min(self.life / 4)
    }

    /// What is due for keys that sign from these times on, oldest first.
    pub(super) fn due(self, keys: &[i64], now: i64) -> Due {
        let Some(newest) = keys.last() else { return Due { make: Some(now), drop: 0 } };
        let next = newest + self.life;
        let make = (now >= next - self.lead()).then(|| next.max(now + self.lead()));
        let gone = self.ttl() + SKEW.min(self.lead());
        let drop = keys.iter().skip(1).take_while(|successor| *successor + gone <= now).count();
        Due { make, drop }
    }

    /// Which of these keys signs. A clock that was put back finds none whose time has come: then it is the oldest, which everybody
    /// has.
    pub(super) fn signer(keys: &[i64], now: i64) -> Option<usize> {
        let due = keys.iter().rposition(|signs_from| *signs_from <= now);
        due.or(if keys.is_empty() { None } else { Some(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;
    const HOUR: i64 = 3600;

    #[test]
    fn a_key_is_published_hours_before_it_signs_and_stays_until_its_last_token_has_ended() {
        let times = JwtTimes::new(DAY);
        assert_eq!(times.due(&[], 1000), Due { make: Some(1000), drop: 0 });
        let first = 1000;
        assert_eq!(times.due(&[first], first + 18 * HOUR - 1), Due::default());
        let second = first + DAY;
        assert_eq!(times.due(&[first], first + 18 * HOUR).make, Some(second));
        let both = [first, second];
        assert_eq!(JwtTimes::signer(&both, second - 1), Some(0), "published, and not signing yet");
        assert_eq!(JwtTimes::signer(&both, second), Some(1));
        assert_eq!(times.due(&both, second + 300 + 59).drop, 0);
        assert_eq!(times.due(&both, second + 300 + 60).drop, 1);
    }

    #[test]
    fn after_a_long_sleep_the_old_key_signs_until_the_new_one_is_known_everywhere() {
        let times = JwtTimes::new(DAY);
        let now = 1000 + 10 * DAY;
        let made = times.due(&[1000], now).make.unwrap();
        assert_eq!(made, now + 6 * HOUR);
        assert_eq!(JwtTimes::signer(&[1000, made], now), Some(0));
    }

    #[test]
    fn a_clock_that_was_put_back_signs_with_the_key_that_everybody_has() {
        let keys = [1000 + 30 * DAY, 1000 + 31 * DAY];
        assert_eq!(JwtTimes::signer(&keys, 1000), Some(0));
        assert_eq!(JwtTimes::new(DAY).due(&keys, 1000), Due::default());
        assert_eq!(JwtTimes::signer(&[], 1000), None);
    }

    #[test]
    fn tokens_live_five_minutes_at_most() {
        assert_eq!(JwtTimes::new(DAY).ttl(), 300);
        assert_eq!(JwtTimes::new(8).ttl(), 2);
    }
}
