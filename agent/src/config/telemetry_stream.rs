//! The stream to the control plane: decision records in batches.

use std::{sync::Arc, time::Duration};

use outrider_proto::v1::{ReportRequest, telemetry_client::TelemetryClient};
use outrider_runtime::Drain;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::ControlPlane;
use crate::{identity::retry_after, telemetry::ReportReceiver};

/// Records in one message.
const BATCH: usize = 500;

/// Reporting ended for good; it never does before drain.
#[derive(Debug, thiserror::Error)]
#[error("reporting ended")]
pub struct TelemetryError;

/// Sends records until drain. Records that come while there is no control plane wait in the queue, which is bounded.
///
/// # Errors
/// None: a lost stream is opened again.
pub async fn send_reports(
    control_plane: ControlPlane,
    mut records: ReportReceiver,
    dropped: Arc<Counter>,
    drain: Drain,
) -> Result<(), TelemetryError> {
    let (mut failures, mut reported) = (0, 0);
    let mut batch = Vec::new();
    while !(drain.is_stopping() && records.is_empty() && batch.is_empty()) {
        if batch.is_empty() {
            let received = tokio::select! {
                received = records.recv_many(&mut batch, BATCH) => received,
                () = drain.stopping() => return Ok(()),
            };
            if received == 0 {
                return Ok(());
            }
        }
        let pause = match stream(&control_plane, &mut records, &mut batch, &dropped, &mut reported, &drain).await {
            Ok(()) => {
                failures = 0;
                Duration::from_millis(200)
            }
            Err(error) => {
                failures += 1;
                tracing::debug!(error, "reports wait");
                retry_after(failures, fastrand::f64())
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = drain.stopping() => return Ok(()),
        }
    }
    Ok(())
}

async fn stream(
    control_plane: &ControlPlane,
    records: &mut ReportReceiver,
    batch: &mut Vec<outrider_proto::v1::DecisionRecord>,
    dropped: &Counter,
    reported: &mut u64,
    drain: &Drain,
) -> Result<(), String> {
    let channel = control_plane.connect().await.map_err(|error| error.to_string())?;
    let (out, requests) = mpsc::channel(4);
    let mut client = TelemetryClient::new(channel);
    let mut call = std::pin::pin!(client.report(ReceiverStream::new(requests)));
    loop {
        if batch.is_empty() {
            tokio::select! {
                received = records.recv_many(batch, BATCH) => if received == 0 { return Ok(()) },
                ended = &mut call => return ended.map(drop).map_err(|status| status.message().to_owned()),
                () = drain.stopping() => return Ok(()),
            }
        }
        let total = dropped.get();
        let request = ReportRequest { decisions: batch.clone(), dropped: total.saturating_sub(*reported) };
        tokio::select! {
            sent = out.send(request) => sent.map_err(|_| "the stream is closed".to_owned())?,
            ended = &mut call => return ended.map(drop).map_err(|status| status.message().to_owned()),
        }
        *reported = total;
        batch.clear();
    }
}
