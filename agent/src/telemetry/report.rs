//! Reports to the control plane: every refusal, a share of what was allowed; bounded, and dropped rather than waited for.

use std::sync::Arc;

use outrider_proto::v1::DecisionRecord;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;

/// Records that may wait.
const QUEUE: usize = 8192;
/// Of those, room that only refusals may use.
const RESERVED: usize = 2048;

/// A worker's end.
#[derive(Clone, Debug)]
pub struct ReportQueue {
    sender: mpsc::Sender<DecisionRecord>,
    /// Share of allowed requests that are reported, 0 to 1.
    share: f64,
    dropped: Arc<Counter>,
}

/// The reporting task's end.
pub type ReportReceiver = mpsc::Receiver<DecisionRecord>;

/// A queue that reports this share of what was allowed.
pub fn report_queue(share: f64, dropped: Arc<Counter>) -> (ReportQueue, ReportReceiver) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (ReportQueue { sender, share, dropped }, receiver)
}

impl ReportQueue {
    /// Queues a record if it is due and there is room.
    pub fn offer(&self, refused: bool, record: impl FnOnce() -> DecisionRecord) {
        let due = refused || (self.share > 0.0 && fastrand::f64() < self.share);
        if !due {
            return;
        }
        let room = self.sender.capacity() > if refused { 0 } else { RESERVED };
        if !room || self.sender.try_send(record()).is_err() {
            self.dropped.inc();
        }
    }
}
