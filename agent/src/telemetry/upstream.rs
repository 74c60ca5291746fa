//! Metrics of calls by service. Services are those that the control plane describes, and only so many of them have a name here.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::MeshViolations;

/// Services with a series of their own; the rest is `other`.
const MOST: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TryLabels {
    service: String,
    zone: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RetryLabels {
    service: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabels {
    service: String,
}

/// The families. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct UpstreamMetrics {
    tries: Family<TryLabels, Counter>,
    retries: Family<RetryLabels, Counter>,
    ejections: Family<ServiceLabels, Counter>,
    named: Arc<Mutex<HashSet<String>>>,
    /// What other agents that were called do against the mesh protocol.
    pub violations: MeshViolations,
}

/// The counters of one service, looked up once.
#[derive(Clone, Debug)]
pub struct ServiceCounters {
    /// Tries at endpoints of the own zone and of others, each served and failed.
    tries: [[Counter; 2]; 2],
    /// Retries that were made.
    pub retried: Counter,
    /// Retries that the budget had no room for.
    pub over_budget: Counter,
    /// Endpoints that were left alone for a while.
    pub ejected: Counter,
}

impl UpstreamMetrics {
    /// Registers the families.
    pub fn new(registry: &mut Registry, violations: MeshViolations) -> Self {
        let own = Self { violations, ..Self::default() };
        registry.register("upstream_tries", "Tries of requests at endpoints, by service, zone and outcome", own.tries.clone());
        registry.register("upstream_retries", "Retries, by service and whether the budget had room", own.retries.clone());
        registry.register("upstream_ejections", "Endpoints left alone for their failures", own.ejections.clone());
        own
    }

    /// The counters of a service.
    pub fn service(&self, name: &str) -> ServiceCounters {
        let service = {
            let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
            let room = named.contains(name) || named.len() < MOST;
            let service = if room { name } else { "other" }.to_owned();
            if room {
                named.insert(service.clone());
            }
            service
        };
        let tries = ["own", "other"].map(|zone| {
            ["served", "failed"]
                .map(|outcome| self.tries.get_or_create_owned(&TryLabels { service: service.clone(), zone, outcome }))
        });
        let retries = |outcome| self.retries.get_or_create_owned(&RetryLabels { service: service.clone(), outcome });
        let (retried, over_budget) = (retries("retried"), retries("over_budget"));
        let ejected = self.ejections.get_or_create_owned(&ServiceLabels { service });
        ServiceCounters { tries, retried, over_budget, ejected }
    }
}

impl ServiceCounters {
    /// Counts a try.
    pub fn tried(&self, near: bool, served: bool) {
        let zone = self.tries.get(usize::from(!near));
        if let Some(counter) = zone.and_then(|outcomes| outcomes.get(usize::from(!served))) {
            counter.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_beyond_the_bound_share_one_series() {
        let metrics = UpstreamMetrics::default();
        for number in 0..2 * MOST {
            metrics.service(&format!("shop/s{number}")).retried.inc();
        }
        assert_eq!(metrics.service("shop/more").retried.get(), MOST as u64);
        assert_eq!(metrics.service("shop/s1").retried.get(), 1);
    }
}
