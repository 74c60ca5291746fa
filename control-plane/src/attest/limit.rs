//! How often one identity may ask for a leaf: a flood from one must not slow the others down.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use outrider_policy::SpiffeId;

/// Requests that one identity may make at once: all replicas of a service renew under one identity.
const BURST: f64 = 200.0;
/// Requests a second after that.
const RATE: f64 = 50.0;
/// Identities remembered; those that have been quiet are forgotten first.
const REMEMBERED: usize = 10_000;

/// A leaky bucket for each identity.
#[derive(Debug, Default)]
pub(crate) struct Limit(Mutex<HashMap<SpiffeId, Bucket>>);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    fn level(self, now: Instant) -> f64 {
        (self.level - now.saturating_duration_since(self.at).as_secs_f64() * RATE).max(0.0)
    }
}

impl Limit {
    /// Counts a request; false when the identity has made too many.
    pub(crate) fn admit(&self, identity: &SpiffeId, now: Instant) -> bool {
        // Nothing in here can panic half-way.
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= REMEMBERED {
            buckets.retain(|_, bucket| bucket.level(now) > 0.0);
        }
        let bucket = buckets.entry(identity.clone()).or_insert(Bucket { level: 0.0, at: now });
        let level = bucket.level(now);
        if level + 1.0 > BURST {
            return false;
        }
        *bucket = Bucket { level: level + 1.0, at: now };
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_from_one_identity_is_held_back_and_others_are_not() {
        let (limit, now) = (Limit::default(), Instant::now());
        let [loud, calm] = ["loud", "calm"].map(|name| SpiffeId::new(&format!("spiffe://td/ns/a/sa/{name}")).unwrap());
        let admitted = (0..1000).filter(|_| limit.admit(&loud, now)).count();
        assert_eq!(admitted, 200);
        assert!(limit.admit(&calm, now));
        let later = now + Duration::from_secs(1);
        assert_eq!((0..1000).filter(|_| limit.admit(&loud, later)).count(), 50);
    }
}
