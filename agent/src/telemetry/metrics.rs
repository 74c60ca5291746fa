//! Prometheus metrics. Every label comes from a closed set: no caller can make a new series.

use std::sync::Arc;

use outrider_policy::Effect;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::{record::Side, upstream::UpstreamMetrics};
use crate::refusal::Reason;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    side: &'static str,
    outcome: &'static str,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    effect: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// The agent's metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Arc<[[Counter; OUTCOMES]; 2]>,
    durations: [Histogram; 2],
    allowed: Counter,
    denied: Counter,
    /// Lines that the access log had no room for.
    pub log_dropped: Arc<Counter>,
    /// Reports to the control plane that had no room.
    pub reports_dropped: Arc<Counter>,
    /// Open connections on the mesh listener and on outbound listeners.
    pub connections: Gauge,
    /// Revision of the view in force.
    pub revision: Gauge,
    /// End of the certificate in use, Unix seconds.
    pub certificate_not_after: Gauge,
    /// Renewals that succeeded.
    pub renewals: Counter,
    /// Renewals that failed.
    pub renewal_failures: Counter,
    /// Whether the stream from the control plane is up.
    pub control_plane_connected: Gauge,
    /// Calls by service.
    pub upstream: UpstreamMetrics,
}

const STATUSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
/// Outcomes: served with a status class, or refused for a reason.
const OUTCOMES: usize = STATUSES.len() + Reason::ALL.len();

impl Metrics {
    /// Registers everything.
    pub fn new(registry: &mut Registry) -> Self {
        let requests = Family::<RequestLabels, Counter>::default();
        registry.register("requests", "Requests and opaque connections, by side and outcome", requests.clone());
        let counters = [Side::Inbound, Side::Outbound].map(|side| {
            std::array::from_fn(|outcome| {
                let side = side.as_str();
                let labels = match outcome.checked_sub(STATUSES.len()).and_then(|reason| Reason::ALL.get(reason)) {
                    Some(reason) => RequestLabels { side, outcome: reason.as_str(), status: class(reason.status()) },
                    None => RequestLabels { side, outcome: "served", status: STATUSES.get(outcome).copied().unwrap_or("none") },
                };
                requests.get_or_create_owned(&labels)
            })
        });
        let durations = [Side::Inbound, Side::Outbound].map(|side| {
            let histogram = Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(0.0001, 2.5, 12));
            let name = format!("{}_request_duration", side.as_str());
            registry.register_with_unit(
                name,
                "From the first byte of a request to the last of its response",
                Unit::Seconds,
                histogram.clone(),
            );
            histogram
        });
        let decisions = Family::<DecisionLabels, Counter>::default();
        registry.register("decisions", "Policy decisions", decisions.clone());
        let renewals = Family::<ResultLabels, Counter>::default();
        registry.register("certificate_renewals", "Certificate renewals", renewals.clone());
        let metrics = Self {
            requests: Arc::new(counters),
            durations,
            allowed: decisions.get_or_create_owned(&DecisionLabels { effect: "allow" }),
            denied: decisions.get_or_create_owned(&DecisionLabels { effect: "deny" }),
            log_dropped: Arc::default(),
            reports_dropped: Arc::default(),
            connections: Gauge::default(),
            revision: Gauge::default(),
            certificate_not_after: Gauge::default(),
            renewals: renewals.get_or_create_owned(&ResultLabels { result: "ok" }),
            renewal_failures: renewals.get_or_create_owned(&ResultLabels { result: "failed" }),
            control_plane_connected: Gauge::default(),
            upstream: UpstreamMetrics::new(registry),
        };
        registry.register("access_log_dropped_lines", "Access log lines that had no room", (*metrics.log_dropped).clone());
        registry.register("reports_dropped", "Decision records that had no room", (*metrics.reports_dropped).clone());
        registry.register("connections", "Open connections from callers", metrics.connections.clone());
        registry.register("policy_revision", "Revision of the view in force", metrics.revision.clone());
        registry.register(
            "certificate_not_after_seconds",
            "End of the certificate in use, Unix time",
            metrics.certificate_not_after.clone(),
        );
        registry.register(
            "control_plane_connected",
            "Whether the configuration stream is up",
            metrics.control_plane_connected.clone(),
        );
        metrics
    }

    /// Counts a finished request.
    pub(super) fn request(&self, side: Side, status: u16, refusal: Option<Reason>, seconds: f64) {
        let outcome = match refusal {
            Some(reason) => STATUSES.len() + reason as usize,
            None => STATUSES.iter().position(|each| *each == class(status)).unwrap_or_default(),
        };
        if let Some(counter) = self.requests.get(side as usize).and_then(|counters| counters.get(outcome)) {
            counter.inc();
        }
        if let Some(histogram) = self.durations.get(side as usize) {
            histogram.observe(seconds);
        }
    }

    /// Counts a decision.
    pub(super) fn decision(&self, effect: Effect) {
        match effect {
            Effect::Allow => self.allowed.inc(),
            Effect::Deny => self.denied.inc(),
        };
    }
}

fn class(status: u16) -> &'static str {
    STATUSES.get(usize::from(status / 100)).copied().unwrap_or("none")
}
