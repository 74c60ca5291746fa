//! What the control plane counts. Every label has a closed set of values.

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The metrics. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    issued: Family<Labels<2>, Counter>,
    tokens: Family<Labels<1>, Counter>,
    pub(crate) agents: Gauge,
    pub(crate) revision: Gauge,
    pub(crate) pushes: Counter,
    pub(crate) acks: Counter,
    pub(crate) nacks: Counter,
    /// Seconds from push to acknowledgement.
    pub(crate) in_force: Histogram,
    pub(crate) store_errors: Counter,
    pub(crate) decisions: Counter,
    pub(crate) dropped: Counter,
    refused: Family<Labels<1>, Counter>,
    /// Replicas that live, this one among them.
    pub(crate) replicas: Gauge,
    leases: Family<Labels<1>, Gauge>,
    pub(crate) handshakes_failed: Counter,
    pub(crate) leaf_ends: Gauge,
    pub(crate) issuing_ends: Gauge,
    pub(crate) mounted_refused: Gauge,
}

impl Metrics {
    /// Metrics at zero, and the registry that shows them.
    pub(crate) fn new() -> (Self, Registry) {
        let metrics = Self {
            issued: Family::default(),
            tokens: Family::default(),
            agents: Gauge::default(),
            revision: Gauge::default(),
            pushes: Counter::default(),
            acks: Counter::default(),
            nacks: Counter::default(),
            in_force: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            store_errors: Counter::default(),
            decisions: Counter::default(),
            dropped: Counter::default(),
            refused: Family::default(),
            replicas: Gauge::default(),
            leases: Family::default(),
            handshakes_failed: Counter::default(),
            leaf_ends: Gauge::default(),
            issuing_ends: Gauge::default(),
            mounted_refused: Gauge::default(),
        };
        let mut registry = Registry::with_prefix("outrider_control_plane");
        let m = metrics.clone();
        registry.register("certificates_issued", "Requests for leaf certificates by evidence and result", m.issued);
        registry.register("join_tokens", "Join tokens redeemed or refused, by result", m.tokens);
        registry.register("agents_connected", "Agents with an open stream", m.agents);
        registry.register("revision", "Store revision", m.revision);
        registry.register("pushes", "Updates sent to agents", m.pushes);
        registry.register("acks", "Updates that agents put in force", m.acks);
        registry.register("nacks", "Updates that agents refused", m.nacks);
        registry.register("push_to_ack_seconds", "Time from an update to its acknowledgement", m.in_force);
        registry.register("store_errors", "Failed operations of the store", m.store_errors);
        registry.register("decisions", "Decision records stored", m.decisions);
        registry.register("decisions_dropped", "Decision records that agents had to drop", m.dropped);
        registry.register("decisions_refused", "Decision records that were not taken, by reason", m.refused);
        registry.register("replicas_live", "Replicas on this store that live", m.replicas);
        registry.register("lease_held", "1 while this replica holds the lease of a single task", m.leases);
        registry.register("handshakes_failed", "TLS handshakes that failed", m.handshakes_failed);
        registry.register("certificate_end_seconds", "End of the control plane's own leaf, Unix seconds", m.leaf_ends);
        registry.register("issuing_ca_end_seconds", "End of the issuing CA, Unix seconds", m.issuing_ends);
        registry.register("mounted_ca_refused", "1 while the files of a mounted CA are refused", m.mounted_refused);
        (metrics, registry)
    }

    /// Counts records that were not taken.
    pub(crate) fn records_refused(&self, reason: &'static str, count: u64) {
        self.refused.get_or_create(&[("reason", reason)]).inc_by(count);
    }

    /// Notes whether this replica holds a lease.
    pub(crate) fn lease_held(&self, name: &'static str, held: bool) {
        self.leases.get_or_create(&[("lease", name)]).set(held.into());
    }

    /// Counts a request for a leaf.
    pub(crate) fn issued(&self, evidence: &'static str, result: &'static str) {
        self.issued.get_or_create(&[("evidence", evidence), ("result", result)]).inc();
        if evidence == "join-token" {
            self.tokens.get_or_create(&[("result", if result == "issued" { "redeemed" } else { result })]).inc();
        }
    }
}
