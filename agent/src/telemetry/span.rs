//! What is recorded of a sampled request: one span a side, handed to the exporter or dropped, never waited for.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use outrider_policy::ServiceName;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;

use super::Side;
use crate::refusal::Reason;

/// Spans that may wait for the exporter.
const QUEUE: usize = 4096;

/// One side of one request.
#[derive(Clone, Debug)]
pub struct Span {
    /// The trace's id.
    pub trace: u128,
    /// Its own id.
    pub id: u64,
    /// The span that called; none for the first of a trace.
    pub parent: Option<u64>,
    /// Which agent speaks.
    pub side: Side,
    /// When the request had arrived.
    pub began: SystemTime,
    /// Until the last byte of the response.
    pub took: Duration,
    /// Method; empty for opaque connections.
    pub method: String,
    /// Host, canonical.
    pub host: String,
    /// Path, canonical, without query.
    pub path: String,
    /// Service and port that it was for.
    pub destination: Option<(ServiceName, u16)>,
    /// SPIFFE ID of the other end.
    pub peer: String,
    /// `namespace/policy/rule` that decided.
    pub rule: String,
    /// Id of the request.
    pub request_id: String,
    /// Status sent to the caller; 0 for none.
    pub status: u16,
    /// Why it was not served, or broke off.
    pub reason: Option<Reason>,
}

/// A worker's end.
#[derive(Clone, Debug)]
pub struct SpanQueue {
    sender: Option<mpsc::Sender<Span>>,
    dropped: Arc<Counter>,
}

/// The exporter's end.
pub type SpanReceiver = mpsc::Receiver<Span>;

impl SpanQueue {
    /// A queue that leads nowhere.
    pub fn off() -> Self {
        Self { sender: None, dropped: Arc::default() }
    }

    /// A queue and its other end. What has no room is counted in `dropped`.
    pub fn new(dropped: Arc<Counter>) -> (Self, SpanReceiver) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self { sender: Some(sender), dropped }, receiver)
    }

    /// Whether it leads somewhere.
    pub fn is_on(&self) -> bool {
        self.sender.is_some()
    }

    /// Queues a span if there is room.
    pub fn offer(&self, span: impl FnOnce() -> Span) {
        let Some(sender) = &self.sender else { return };
        match sender.try_reserve() {
            Ok(room) => room.send(span()),
            Err(_) => {
                self.dropped.inc();
            }
        }
    }
}
