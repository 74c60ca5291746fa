//! What happened: one record a request or connection becomes an access log line, metrics, and a report to the control plane.

mod access_log;
mod json;
mod metrics;
mod record;
mod report;
mod upstream;

pub use access_log::{AccessLog, AccessLogTarget};
pub use metrics::Metrics;
pub use record::{Observer, Record, Side, wire_protocol};
pub use report::{ReportQueue, ReportReceiver, Weight, report_queue};
pub use upstream::{ServiceCounters, UpstreamMetrics};
