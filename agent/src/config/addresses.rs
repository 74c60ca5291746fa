//! Where the control plane is: its replicas, which serve one mesh and of which any will do.

use std::{
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Most replicas that an agent is told of.
const MOST: usize = 32;
/// A replica that failed is tried last for this long.
const AVOIDED: Duration = Duration::from_secs(20);

/// The addresses of the replicas, `HOST:PORT` each.
#[derive(Debug)]
pub struct Addresses {
    all: Vec<String>,
    /// When each of them failed last.
    failed: Mutex<Vec<Option<Instant>>>,
}

impl FromStr for Addresses {
    type Err = String;

    /// Reads `HOST:PORT[,HOST:PORT…]`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all: Vec<String> = Vec::new();
        for part in text.split(',') {
            let plain = part.trim();
            let plain = plain.strip_prefix("https://").unwrap_or(plain);
            let well_formed = plain.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
            if !well_formed {
                return Err(format!("`{part}` is not HOST:PORT"));
            }
            if !all.iter().any(|known| known == plain) {
                all.push(plain.to_owned());
            }
        }
        if all.len() > MOST {
            return Err(format!("at most {MOST} addresses can be named, not {}", all.len()));
        }
        let failed = Mutex::new(vec![None; all.len()]);
        Ok(Self { all, failed })
    }
}

impl std::fmt::Display for Addresses {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.all.join(","))
    }
}

impl Addresses {
    /// The order in which to try them: agents start anywhere, so that they spread, and end with those that failed a moment ago.
    pub(crate) fn order(&self, start: usize, now: Instant) -> Vec<String> {
        // Nothing in here can panic half-way.
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let avoided = |index: usize| failed.get(index).copied().flatten().filter(|at| now.duration_since(*at) < AVOIDED);
        let start = start % self.all.len().max(1);
        let mut order: Vec<usize> = (start..self.all.len()).chain(0..start).collect();
        // Those that failed longest ago come first among them; the sort keeps the order of the others.
        order.sort_by_key(|index| avoided(*index));
        order.into_iter().filter_map(|index| self.all.get(index).cloned()).collect()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// Takes note that one failed.
    pub(crate) fn failed(&self, address: &str, now: Instant) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let place = self.all.iter().position(|one| one == address).and_then(|index| failed.get_mut(index));
        if let Some(place) = place {
            *place = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_start_anywhere_and_end_with_those_that_failed_a_moment_ago() {
        let addresses: Addresses = "a:1, b:2,https://c:3,a:1".parse().unwrap();
        let now = Instant::now();
        assert_eq!(addresses.to_string(), "a:1,b:2,c:3");
        assert_eq!(addresses.order(1, now), ["b:2", "c:3", "a:1"]);
        addresses.failed("b:2", now);
        assert_eq!(addresses.order(1, now), ["c:3", "a:1", "b:2"]);
        addresses.failed("c:3", now + Duration::from_secs(1));
        assert_eq!(addresses.order(4, now + Duration::from_secs(1)), ["a:1", "b:2", "c:3"], "the older failure comes first");
        assert_eq!(addresses.order(1, now + AVOIDED), ["b:2", "a:1", "c:3"], "failures are forgotten");
    }

    #[test]
    fn what_is_not_an_address_is_named() {
        for (text, part) in [("a:1,b", "`b`"), ("", "``"), ("a:1,,b:2", "``"), (":1", "`:1`"), ("a:99999", "`a:99999`")] {
            assert!(text.parse::<Addresses>().unwrap_err().contains(part), "{text}");
        }
        let many: Vec<String> = (0..40).map(|port| format!("h:{port}")).collect();
        assert!(many.join(",").parse::<Addresses>().is_err());
    }
}
