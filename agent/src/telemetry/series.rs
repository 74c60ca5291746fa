//! What is counted of one port of a service, on one side. Whoever counts holds the series: no name is looked up and no lock is
//! taken for a request. However many services come and go, there are at most `MOST` series.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use outrider_policy::{Effect, ServiceName};

use super::{Side, TraceContext};
use crate::refusal::Reason;

/// Ports of services that have series of their own; all others share one a side.
const MOST: usize = 256;
/// Classes of status, in the order of their hundreds.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
/// Served with a class of status, or refused for a reason.
const OUTCOMES: usize = CLASSES.len() + Reason::ALL.len();
/// Upper ends of the buckets of durations: microseconds, and as they are written, seconds.
const BUCKETS: [(u64, &str); 16] = [
    (100, "0.0001"),
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1.0"),
    (2_500_000, "2.5"),
    (10_000_000, "10.0"),
    (60_000_000, "60.0"),
];

/// The counters of one port of a service on one side.
#[derive(Debug)]
pub struct Series {
    labels: Labels,
    /// By effect, then by outcome.
    requests: [[AtomicU64; OUTCOMES]; 2],
    durations: Durations,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    side: &'static str,
    service: String,
    port: u16,
}

#[derive(Debug)]
struct Durations {
    /// One more than there are ends: the last has none.
    buckets: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
    /// The last recorded request of each bucket. Only requests of which a span is recorded look at it.
    exemplars: Mutex<[Option<Exemplar>; BUCKETS.len() + 1]>,
}

#[derive(Clone, Copy, Debug)]
struct Exemplar {
    trace: TraceContext,
    micros: u64,
    at: SystemTime,
}

impl Series {
    fn new(labels: Labels) -> Self {
        let zeros = || std::array::from_fn(|_| AtomicU64::new(0));
        let durations = Durations {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            micros: AtomicU64::new(0),
            exemplars: Mutex::default(),
        };
        Self { labels, requests: [zeros(), zeros()], durations }
    }

    /// The side that it counts on.
    pub(super) fn side(&self) -> &'static str {
        self.labels.side
    }

    /// Counts a finished request. `recorded` is its trace if a span of it is recorded.
    pub fn count(&self, effect: Effect, status: u16, reason: Option<Reason>, took: Duration, recorded: Option<TraceContext>) {
        let outcome = match reason {
            Some(reason) => CLASSES.len() + reason as usize,
            None => class(status),
        };
        if let Some(counter) = self.requests.get(usize::from(effect == Effect::Deny)).and_then(|of| of.get(outcome)) {
            counter.fetch_add(1, Relaxed);
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.iter().position(|(end, _)| micros <= *end).unwrap_or(BUCKETS.len());
        if let Some(counter) = self.durations.buckets.get(bucket) {
            counter.fetch_add(1, Relaxed);
        }
        self.durations.micros.fetch_add(micros, Relaxed);
        if let Some(trace) = recorded
            && let Ok(mut exemplars) = self.durations.exemplars.try_lock()
            && let Some(exemplar) = exemplars.get_mut(bucket)
        {
            *exemplar = Some(Exemplar { trace, micros, at: SystemTime::now() });
        }
    }

    fn write_requests(&self, out: &mut String) -> fmt::Result {
        let Labels { side, service, port } = &self.labels;
        for (effect, of) in ["allow", "deny"].into_iter().zip(&self.requests) {
            for (index, counter) in of.iter().enumerate() {
                let count = counter.load(Relaxed);
                if count == 0 {
                    continue;
                }
                let reason = index.checked_sub(CLASSES.len()).and_then(|reason| Reason::ALL.get(reason));
                let (outcome, stage) = reason.map_or(("served", ""), |reason| (reason.as_str(), reason.stage().as_str()));
                let status = CLASSES.get(reason.map_or(index, |reason| class(reason.status()))).copied().unwrap_or("none");
                writeln!(
                    out,
                    "outrider_agent_requests_total{{side=\"{side}\",outcome=\"{outcome}\",status=\"{status}\",stage=\"{stage}\",\
                     decision=\"{effect}\",service=\"{service}\",port=\"{port}\"}} {count}"
                )?;
            }
        }
        Ok(())
    }

    fn write_durations(&self, out: &mut String) -> fmt::Result {
        let Labels { side, service, port } = &self.labels;
        let labels = format!("side=\"{side}\",service=\"{service}\",port=\"{port}\"");
        let counts: Vec<u64> = self.durations.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let count: u64 = counts.iter().sum();
        if count == 0 {
            return Ok(());
        }
        let exemplars = *self.durations.exemplars.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = BUCKETS.iter().map(|(_, end)| *end).chain(["+Inf"]);
        let mut so_far = 0;
        for ((end, count), exemplar) in ends.zip(counts).zip(exemplars) {
            so_far += count;
            write!(out, "{DURATION}_bucket{{le=\"{end}\",{labels}}} {so_far}")?;
            if let Some(Exemplar { trace, micros, at }) = exemplar {
                let (trace_id, span_id) = (trace.trace_id(), trace.span_id());
                let text = |digits: &[u8]| String::from_utf8_lossy(digits).into_owned();
                let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
                let (trace_id, span_id) = (text(&trace_id), text(&span_id));
                write!(out, " # {{trace_id=\"{trace_id}\",span_id=\"{span_id}\"}} {} {at:.3}", seconds(micros))?;
            }
            out.push('\n');
        }
        writeln!(out, "{DURATION}_count{{{labels}}} {count}")?;
        writeln!(out, "{DURATION}_sum{{{labels}}} {}", seconds(self.durations.micros.load(Relaxed)))
    }
}

const DURATION: &str = "outrider_agent_request_duration_seconds";

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn class(status: u16) -> usize {
    Some(usize::from(status / 100)).filter(|class| *class < CLASSES.len()).unwrap_or_default()
}

/// All series there are.
#[derive(Debug, Default)]
pub struct SeriesTable(Mutex<BTreeMap<Labels, Arc<Series>>>);

impl SeriesTable {
    /// The series of a port of a service, or of calls that got to none. Beyond [`MOST`], the one that all others share.
    pub fn get(&self, side: Side, destination: Option<(&ServiceName, u16)>) -> Arc<Series> {
        let labels = |service: &str, port| Labels { side: side.as_str(), service: service.to_owned(), port };
        let wanted = destination.map_or_else(|| labels("", 0), |(service, port)| labels(service.as_str(), port));
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = table.get(&wanted) {
            return series.clone();
        }
        let own = table.len() < MOST || destination.is_none();
        let wanted = if own { wanted } else { labels("other", 0) };
        table.entry(wanted.clone()).or_insert_with(|| Arc::new(Series::new(wanted))).clone()
    }

    /// Writes all of them in the OpenMetrics text format.
    ///
    /// # Errors
    /// None but those of `out`.
    pub fn write(&self, out: &mut String) -> fmt::Result {
        let series: Vec<Arc<Series>> = self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        out.push_str("# HELP outrider_agent_requests Requests and opaque connections: by side, service and port, and what became of them.\n");
        out.push_str("# TYPE outrider_agent_requests counter\n");
        series.iter().try_for_each(|one| one.write_requests(out))?;
        writeln!(out, "# HELP {DURATION} From the first byte of a request to the last of its response.")?;
        writeln!(out, "# TYPE {DURATION} histogram\n# UNIT {DURATION} seconds")?;
        series.iter().try_for_each(|one| one.write_durations(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_services_have_a_bounded_number_of_series() {
        let table = SeriesTable::default();
        for number in 0..100_000_u32 {
            let service = ServiceName::new("shop", &format!("s{number}")).unwrap();
            let series = table.get(Side::Outbound, Some((&service, 80)));
            series.count(Effect::Allow, 200, None, Duration::from_micros(300), None);
        }
        let mut out = String::new();
        table.write(&mut out).unwrap();
        let requests: Vec<&str> = out.lines().filter(|line| line.starts_with("outrider_agent_requests_total{")).collect();
        assert_eq!(requests.len(), MOST + 1);
        let counted: u64 = requests.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(counted, 100_000);
        assert!(requests.iter().any(|line| line.contains("service=\"other\"")));
        assert!(out.lines().count() < MOST * 30);
    }

    #[test]
    fn a_recorded_request_is_the_exemplar_of_its_bucket() {
        let table = SeriesTable::default();
        let series = table.get(Side::Inbound, None);
        let trace = TraceContext::parse(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        series.count(Effect::Deny, 403, Some(Reason::PolicyDenied), Duration::from_micros(400), trace);
        series.count(Effect::Allow, 200, None, Duration::from_secs(100), None);
        let mut out = String::new();
        table.write(&mut out).unwrap();
        let with: Vec<&str> = out.lines().filter(|line| line.contains(" # {")).collect();
        assert_eq!(with.len(), 1, "{out}");
        assert!(with[0].contains("le=\"0.0005\"") && with[0].contains("} 1 # {trace_id=\"0af7651916cd43dd8448eb211c80319c\""));
        assert!(with[0].contains("} 0.0004 "));
        assert!(out.contains("outcome=\"policy_denied\",status=\"4xx\",stage=\"policy\",decision=\"deny\""), "{out}");
        assert!(out.contains("le=\"+Inf\",side=\"inbound\",service=\"\",port=\"0\"} 2\n"));
    }
}
