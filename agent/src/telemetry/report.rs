//! Reports to the control plane: every refusal and failure, a share of what was served; bounded, and dropped rather than
//! waited for.

use std::sync::Arc;

use outrider_proto::v1::DecisionRecord;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;

/// Records that may wait.
const QUEUE: usize = 8192;
/// Of those, room that only denials may use.
const RESERVED: usize = 2048;

/// How much a record matters when there is little room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// A call that was denied to somebody who proved an identity, or to the own program.
    Denial,
    /// A call that was allowed and failed, or is to be recorded by an audit rule, or a stranger at the door: reported, but nobody can crowd out denials with it.
    Failure,
    /// A call that was served: only a share is reported.
    Served,
}

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
    pub fn offer(&self, weight: Weight, record: impl FnOnce() -> DecisionRecord) {
        let due = weight != Weight::Served || (self.share > 0.0 && fastrand::f64() < self.share);
        if !due {
            return;
        }
        let room = self.sender.capacity() > if weight == Weight::Denial { 0 } else { RESERVED };
        if !room || self.sender.try_send(record()).is_err() {
            self.dropped.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_and_failures_leave_room_for_denials() {
        let (queue, mut receiver) = report_queue(1.0, Arc::default());
        for _ in 0..QUEUE {
            queue.offer(Weight::Failure, DecisionRecord::default);
            queue.offer(Weight::Served, DecisionRecord::default);
        }
        assert_eq!(receiver.len(), QUEUE - RESERVED);
        for _ in 0..RESERVED {
            queue.offer(Weight::Denial, || DecisionRecord { effect: "deny".into(), ..DecisionRecord::default() });
        }
        assert_eq!(receiver.len(), QUEUE);
        queue.offer(Weight::Denial, DecisionRecord::default);
        assert_eq!(queue.dropped.get(), (QUEUE + RESERVED + 1) as u64);
        assert!(receiver.try_recv().is_ok());
    }
}
