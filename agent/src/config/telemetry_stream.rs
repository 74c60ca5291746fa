//! The stream to the control plane: decision records in batches, each kept until the control plane has stored it.

use std::{sync::Arc, time::Duration};

use outrider_proto::v1::{DecisionRecord, ReportRequest, telemetry_client::TelemetryClient};
use outrider_runtime::Drain;
use prometheus_client::metrics::counter::Counter;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::ControlPlane;
use crate::{identity::retry_after, telemetry::ReportReceiver};

/// Records in one message, and records that wait to be taken by the control plane.
const BATCH: usize = 500;
/// Bytes of the records in one message: well below what the control plane reads.
const BYTES: usize = 1 << 20;
/// How often a batch is offered to a control plane that says no to it.
const OFFERS: u32 = 3;
/// How long records are gathered before a batch leaves, unless there are enough for one: to send one, and to store it, costs as much as
/// a hundred records.
const GATHER: Duration = Duration::from_millis(100);
/// How often it is looked whether there are enough, in that time.
const LOOKS: u32 = 4;
/// Time for the last records when the agent leaves.
const LAST: Duration = Duration::from_secs(1);
/// Time for the control plane to take a batch.
const ANSWER: Duration = Duration::from_secs(20);

/// Reporting ended for good; it never does before drain.
#[derive(Debug, thiserror::Error)]
#[error("reporting ended")]
pub struct TelemetryError;

/// Sends records until the last worker is gone, or drain has used up its time. Records that come while there is no control
/// plane wait in the queue, which is bounded.
///
/// # Errors
/// None: a lost stream is opened again.
pub async fn send_reports(
    control_plane: ControlPlane,
    records: ReportReceiver,
    dropped: Arc<Counter>,
    drain: Drain,
) -> Result<(), TelemetryError> {
    let mut reporter = Reporter { control_plane, records, dropped, reported: 0, pending: Vec::new(), failures: 0, offers: 0 };
    tokio::select! {
        () = reporter.run() => {}
        () = drain.forced() => {
            let _ = tokio::time::timeout(LAST, reporter.flush()).await;
        }
    }
    Ok(())
}

struct Reporter {
    control_plane: ControlPlane,
    records: ReportReceiver,
    dropped: Arc<Counter>,
    /// How many of the dropped ones the control plane heard of.
    reported: u64,
    /// Taken from the queue and not yet taken by the control plane.
    pending: Vec<DecisionRecord>,
    /// In a row.
    failures: u32,
    /// How often the first of the pending ones were refused.
    offers: u32,
}

/// How a stream ended.
enum End {
    /// Nobody makes records any more.
    Done,
    /// Our certificate was replaced.
    Renewed,
}

/// Why a stream broke.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Connection(String),
    #[error("the control plane refused: {}", .0.message())]
    Refused(tonic::Status),
}

impl Reporter {
    async fn run(&mut self) {
        loop {
            if self.pending.is_empty() && self.records.recv_many(&mut self.pending, BATCH).await == 0 {
                return;
            }
            match self.stream(false).await {
                Ok(End::Done) => return,
                Ok(End::Renewed) => {}
                Err(error) => {
                    self.refused(&error);
                    self.failures += 1;
                    let pause = retry_after(self.failures, fastrand::f64());
                    tracing::debug!(%error, retry_in = ?pause, "reports wait");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Sends what there is, once.
    async fn flush(&mut self) {
        self.records.close();
        if let Err(error) = self.stream(true).await {
            tracing::debug!(%error, "the last reports were not sent");
        }
    }

    /// A batch that the control plane says no to, and not because of its own state, must not hold back the rest for ever.
    fn refused(&mut self, error: &Broken) {
        let Broken::Refused(status) = error else { return };
        let hopeless = [Code::InvalidArgument, Code::OutOfRange, Code::ResourceExhausted, Code::PermissionDenied];
        if !hopeless.contains(&status.code()) {
            return;
        }
        self.offers += 1;
        if self.offers >= OFFERS {
            let batch = first_batch(&self.pending);
            tracing::warn!(records = batch, reason = status.message(), "the control plane does not take these reports");
            self.pending.drain(..batch);
            self.dropped.inc_by(u64::try_from(batch).unwrap_or(u64::MAX));
            self.offers = 0;
        }
    }

    /// Takes records from the queue, as many as a batch holds. Whoever waits for them is not woken by each: after the first
    /// one others may come for a while, unless there were many already or it is `urgent`. None when no more will come.
    async fn receive(&mut self, urgent: bool) -> usize {
        let first = self.records.recv_many(&mut self.pending, BATCH).await;
        if first == 0 || first == BATCH || urgent {
            return first;
        }
        for _ in 0..LOOKS {
            if first + self.records.len() < BATCH {
                tokio::time::sleep(GATHER / LOOKS).await;
            }
        }
        if !self.records.is_empty() {
            self.records.recv_many(&mut self.pending, BATCH - first).await;
        }
        self.pending.len()
    }

    /// Sends records on one stream; with `once` only those that there are.
    async fn stream(&mut self, once: bool) -> Result<End, Broken> {
        let mut renewals = self.control_plane.renewals();
        renewals.mark_unchanged();
        let channel = self.control_plane.shared().await.map_err(|error| Broken::Connection(error.to_string()))?;
        let (out, requests) = mpsc::channel(1);
        let call = TelemetryClient::new(channel).report(ReceiverStream::new(requests)).await;
        let mut answers = call.map_err(Broken::Refused)?.into_inner();
        loop {
            if self.pending.is_empty() {
                if once && self.records.is_empty() {
                    return Ok(End::Done);
                }
                tokio::select! {
                    received = self.receive(once) => if received == 0 { return Ok(End::Done) },
                    Ok(()) = renewals.changed() => return Ok(End::Renewed),
                    ended = answers.message() => return Err(ended.map_or_else(Broken::Refused, |_| closed())),
                }
            }
            let batch = first_batch(&self.pending);
            let total = self.dropped.get();
            let decisions = self.pending.iter().take(batch).cloned().collect();
            let request = ReportRequest { decisions, dropped: total.saturating_sub(self.reported) };
            out.send(request).await.map_err(|_| closed())?;
            let answer = tokio::time::timeout(ANSWER, answers.message()).await;
            let answer = answer.map_err(|_| Broken::Connection("no answer in time".to_owned()))?;
            answer.map_err(Broken::Refused)?.ok_or_else(closed)?;
            self.pending.drain(..batch);
            self.reported = total;
            (self.failures, self.offers) = (0, 0);
        }
    }
}

fn closed() -> Broken {
    Broken::Connection("the stream is closed".to_owned())
}

/// How many of these go into one message: at least one.
fn first_batch(records: &[DecisionRecord]) -> usize {
    let mut bytes = 0;
    let fits = records.iter().take(BATCH).take_while(|record| {
        bytes += record.encoded_len() + 8;
        bytes <= BYTES
    });
    fits.count().max(1).min(records.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_bounded_in_records_and_in_bytes() {
        let small = vec![DecisionRecord::default(); 2 * BATCH];
        assert_eq!(first_batch(&small), BATCH);
        let large = vec![DecisionRecord { detail: "x".repeat(50_000), ..DecisionRecord::default() }; 100];
        assert_eq!(first_batch(&large), 20);
        let huge = vec![DecisionRecord { detail: "x".repeat(2 * BYTES), ..DecisionRecord::default() }; 2];
        assert_eq!(first_batch(&huge), 1, "the control plane cuts it, it does not stop the rest");
        assert_eq!(first_batch(&[]), 0);
    }
}
