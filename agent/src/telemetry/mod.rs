//! What happened: one record a request or connection becomes an access log line, metrics, a report to the control plane, and
//! of a sampled request a span for a collector.

mod access_log;
mod clock;
mod json;
mod line;
mod log_file;
mod metrics;
mod observer;
mod otlp;
mod record;
mod report;
mod series;
mod span;
mod trace;
mod upstream;
mod violations;

pub use access_log::{AccessLog, AccessLogTarget};
use clock::Clock;
pub use line::wire_protocol;
pub use metrics::{Metrics, Scrape};
pub use observer::{Destination, Observer};
pub use otlp::{Exporter, OtlpError, OtlpTarget};
pub use record::{Record, Side};
pub use report::{ReportQueue, ReportReceiver, Weight, report_queue};
pub use series::{Series, SeriesTable};
pub use span::{Span, SpanQueue, SpanReceiver};
pub use trace::{Sampler, TraceContext, Traced};
pub use upstream::{ServiceCounters, UpstreamMetrics};
pub use violations::MeshViolations;
