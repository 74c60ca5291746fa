//! Prometheus metrics. Every label comes from a closed or bounded set: no caller can make new series without end.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use outrider_policy::Effect;
use outrider_runtime::health::Exposition;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{MeshViolations, record::Side, series::SeriesTable, upstream::UpstreamMetrics};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    effect: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SideLabels {
    side: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

/// The agent's metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Requests, by what they were for.
    pub series: Arc<SeriesTable>,
    allowed: Counter,
    denied: Counter,
    /// Lines that the access log had no room for.
    pub log_dropped: Arc<Counter>,
    /// Reports to the control plane that had no room.
    pub reports_dropped: Arc<Counter>,
    /// Spans that had no room, or that the collector did not take.
    pub spans_dropped: Arc<Counter>,
    /// Spans that the collector took.
    pub spans_exported: Counter,
    connections: [Gauge; 2],
    /// Idle connections to upstreams, all workers together.
    pub pooled: Gauge,
    /// Shared HTTP/2 connections to upstreams, all workers together.
    pub shared: Gauge,
    /// Revision of the view in force.
    pub revision: Gauge,
    /// Start of the certificate in use, Unix seconds.
    pub certificate_not_before: Arc<AtomicI64>,
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
    /// What other agents do against the mesh protocol.
    pub mesh_violations: MeshViolations,
}

impl Metrics {
    /// Registers everything.
    pub fn new(registry: &mut Registry) -> Self {
        let decisions = Family::<DecisionLabels, Counter>::default();
        registry.register("decisions", "Policy decisions", decisions.clone());
        let renewals = Family::<ResultLabels, Counter>::default();
        registry.register("certificate_renewals", "Certificate renewals", renewals.clone());
        let connections = Family::<SideLabels, Gauge>::default();
        registry.register("connections", "Open connections from callers", connections.clone());
        let upstream = Family::<StateLabels, Gauge>::default();
        registry.register("upstream_connections", "Connections to upstreams that wait or are shared", upstream.clone());
        let violations = MeshViolations::new(registry);
        let metrics = Self {
            series: Arc::default(),
            allowed: decisions.get_or_create_owned(&DecisionLabels { effect: "allow" }),
            denied: decisions.get_or_create_owned(&DecisionLabels { effect: "deny" }),
            log_dropped: Arc::default(),
            reports_dropped: Arc::default(),
            spans_dropped: Arc::default(),
            spans_exported: Counter::default(),
            connections: [Side::Inbound, Side::Outbound]
                .map(|side| connections.get_or_create_owned(&SideLabels { side: side.as_str() })),
            pooled: upstream.get_or_create_owned(&StateLabels { state: "idle" }),
            shared: upstream.get_or_create_owned(&StateLabels { state: "shared" }),
            revision: Gauge::default(),
            certificate_not_before: Arc::default(),
            certificate_not_after: Gauge::default(),
            renewals: renewals.get_or_create_owned(&ResultLabels { result: "ok" }),
            renewal_failures: renewals.get_or_create_owned(&ResultLabels { result: "failed" }),
            control_plane_connected: Gauge::default(),
            upstream: UpstreamMetrics::new(registry, violations.clone()),
            mesh_violations: violations,
        };
        metrics.register(registry);
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        for (name, help, counter) in [
            ("access_log_dropped_lines", "Access log lines that had no room", &*self.log_dropped),
            ("reports_dropped", "Decision records that had no room", &*self.reports_dropped),
            ("spans_dropped", "Spans that had no room or were not taken", &*self.spans_dropped),
            ("spans_exported", "Spans that the collector took", &self.spans_exported),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, gauge) in [
            ("policy_revision", "Revision of the view in force", &self.revision),
            ("certificate_not_after_seconds", "End of the certificate in use, Unix time", &self.certificate_not_after),
            ("control_plane_connected", "Whether the configuration stream is up", &self.control_plane_connected),
        ] {
            registry.register(name, help, gauge.clone());
        }
    }

    /// Open connections from callers on one side.
    pub fn connections(&self, side: Side) -> &Gauge {
        let [inbound, outbound] = &self.connections;
        match side {
            Side::Inbound => inbound,
            Side::Outbound => outbound,
        }
    }

    /// Counts a decision.
    pub(super) fn decision(&self, effect: Effect) {
        match effect {
            Effect::Allow => self.allowed.inc(),
            Effect::Deny => self.denied.inc(),
        };
    }

    /// A certificate was put to use that is valid between these times.
    pub fn certificate(&self, not_before: SystemTime, not_after: SystemTime) {
        self.certificate_not_before.store(unix(not_before), Relaxed);
        self.certificate_not_after.set(unix(not_after));
    }
}

fn unix(time: SystemTime) -> i64 {
    i64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

/// All that `/metrics` tells.
#[derive(Debug)]
pub struct Scrape {
    /// What the registry holds.
    pub registry: Registry,
    /// The rest.
    pub metrics: Metrics,
}

impl Exposition for Scrape {
    fn openmetrics(&self, out: &mut String) -> fmt::Result {
        text::encode(out, &self.registry)?;
        let end = out.trim_end_matches("# EOF\n").len();
        out.truncate(end);
        let began = self.metrics.certificate_not_before.load(Relaxed);
        if began > 0 {
            let age = unix(SystemTime::now()).saturating_sub(began);
            fmt::Write::write_fmt(
                out,
                format_args!(
                    "# HELP outrider_agent_certificate_age_seconds Age of the certificate in use.\n\
                     # TYPE outrider_agent_certificate_age_seconds gauge\n# UNIT outrider_agent_certificate_age_seconds seconds\n\
                     outrider_agent_certificate_age_seconds {age}\n"
                ),
            )?;
        }
        self.metrics.series.write(out)?;
        out.push_str("# EOF\n");
        Ok(())
    }
}
