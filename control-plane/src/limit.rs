//! How much one identity may ask for: a flood from one must not slow the others down.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use outrider_policy::SpiffeId;

/// Identities remembered; those that have been quiet are forgotten first.
const REMEMBERED: usize = 10_000;

/// A leaky bucket for each identity.
#[derive(Debug)]
pub(crate) struct Limit {
    /// How much one identity may ask for at once.
    burst: f64,
    /// How much a second after that.
    rate: f64,
    buckets: Mutex<HashMap<SpiffeId, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    fn level(self, now: Instant, rate: f64) -> f64 {
        (self.level - now.saturating_duration_since(self.at).as_secs_f64() * rate).max(0.0)
    }
}

impl Limit {
    pub(crate) fn new(burst: u32, rate: u32) -> Self {
        Self { burst: burst.into(), rate: rate.into(), buckets: Mutex::default() }
    }

    /// Counts one request; false when the identity has made too many.
    pub(crate) fn admit(&self, identity: &SpiffeId, now: Instant) -> bool {
        self.admit_of(identity, 1, now) == 1
    }

    /// Counts what may pass of `wanted`, and says how much that is.
    pub(crate) fn admit_of(&self, identity: &SpiffeId, wanted: usize, now: Instant) -> usize {
        // Nothing in here can panic half-way.
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= REMEMBERED {
            buckets.retain(|_, bucket| bucket.level(now, self.rate) > 0.0);
        }
        let bucket = buckets.entry(identity.clone()).or_insert(Bucket { level: 0.0, at: now });
        let mut level = bucket.level(now, self.rate);
        let mut admitted = 0;
        while admitted < wanted && level + 1.0 <= self.burst {
            level += 1.0;
            admitted += 1;
        }
        *bucket = Bucket { level, at: now };
        admitted
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_from_one_identity_is_held_back_and_others_are_not() {
        let (limit, now) = (Limit::new(200, 50), Instant::now());
        let [loud, calm] = ["loud", "calm"].map(|name| SpiffeId::new(&format!("spiffe://td/ns/a/sa/{name}")).unwrap());
        let admitted = (0..1000).filter(|_| limit.admit(&loud, now)).count();
        assert_eq!(admitted, 200);
        assert!(limit.admit(&calm, now));
        let later = now + Duration::from_secs(1);
        assert_eq!(limit.admit_of(&loud, 1000, later), 50);
    }
}
