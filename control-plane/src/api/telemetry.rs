//! `Telemetry`: takes what agents decided. The next batch is read only when the last one is stored.

use std::collections::BTreeSet;

use outrider_policy::{ServiceName, SpiffeId};
use outrider_proto::v1::{DecisionRecord, ReportRequest, ReportResponse, Side, telemetry_server::Telemetry};
use outrider_runtime::Drain;
use prost::Message as _;
use tonic::{Request, Response, Status, Streaming};

use super::{known_peer, unavailable};
use crate::{
    clock,
    metrics::Metrics,
    store::{DecisionRow, Store},
};

/// Most records of a batch.
const MAX_BATCH: usize = 1000;
/// Most bytes of a text in a record.
const MAX_TEXT: usize = 1024;
/// Most bytes of the chain of causes.
const MAX_DETAIL: usize = 4096;
/// Most headers of a record.
const MAX_HEADERS: usize = 32;

/// The service.
pub(crate) struct Reports {
    pub(crate) store: Store,
    pub(crate) metrics: Metrics,
    pub(crate) drain: Drain,
}

#[tonic::async_trait]
impl Telemetry for Reports {
    async fn report(&self, request: Request<Streaming<ReportRequest>>) -> Result<Response<ReportResponse>, Status> {
        let peer = known_peer(&request)?;
        let mut inbound = request.into_inner();
        loop {
            let batch = tokio::select! {
                batch = inbound.message() => batch?,
                () = self.drain.stopping() => return Err(Status::unavailable("the control plane is stopping")),
            };
            let Some(batch) = batch else { return Ok(Response::new(ReportResponse {})) };
            if peer.not_after <= clock::now() {
                return Err(Status::unauthenticated("the certificate of the connection has expired"));
            }
            self.metrics.dropped.inc_by(batch.dropped);
            let grants = self.store.grants(&peer.identity).await.map_err(|error| unavailable("grants", &error))?;
            let rows = rows(batch, &peer.identity, &grants)?;
            let count = rows.len();
            if let Err(error) = self.store.put_decisions(&rows).await {
                self.metrics.store_errors.inc();
                return Err(unavailable("decisions", &error));
            }
            self.metrics.decisions.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        }
    }
}

fn rows(batch: ReportRequest, identity: &SpiffeId, grants: &BTreeSet<ServiceName>) -> Result<Vec<DecisionRow>, Status> {
    if batch.decisions.len() > MAX_BATCH {
        return Err(Status::resource_exhausted(format!("a batch has at most {MAX_BATCH} records")));
    }
    batch.decisions.into_iter().map(|record| row(record, identity, grants)).collect()
}

/// An agent speaks only for itself: as callee for its own services, as caller under its own identity.
fn row(record: DecisionRecord, identity: &SpiffeId, grants: &BTreeSet<ServiceName>) -> Result<DecisionRow, Status> {
    let own = match record.side() {
        Side::Inbound => record.destination.parse().is_ok_and(|service: ServiceName| grants.contains(&service)),
        Side::Outbound => record.source == identity.as_str(),
        Side::Unspecified => return Err(Status::invalid_argument("a record must name its side")),
    };
    if !own {
        return Err(Status::permission_denied("an agent reports only calls that it took or made itself"));
    }
    let denied = match record.effect.as_str() {
        "allow" => false,
        "deny" => true,
        _ => return Err(Status::invalid_argument("a record's effect is `allow` or `deny`")),
    };
    let texts = [&record.request_id, &record.destination, &record.method, &record.host, &record.path];
    let more = [&record.rule, &record.reason, &record.tls, &record.peer_address];
    let long = texts.into_iter().chain(more).any(|text| text.len() > MAX_TEXT)
        || record.detail.len() > MAX_DETAIL
        || record.source.len() > 2048
        || record.headers.len() > MAX_HEADERS
        || record.headers.iter().any(|header| header.name.len() > MAX_TEXT || header.value.len() > MAX_TEXT);
    if long {
        return Err(Status::invalid_argument("a record exceeds the documented sizes"));
    }
    let encoded = record.encode_to_vec();
    Ok(DecisionRow { request_id: record.request_id, destination: record.destination, denied, record: encoded })
}
