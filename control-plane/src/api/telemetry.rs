//! `Telemetry`: takes what agents decided. The next batch is read only when the last one is stored and answered.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use outrider_policy::{ServiceName, SpiffeId};
use outrider_proto::v1::{DecisionRecord, ReportRequest, ReportResponse, Side, telemetry_server::Telemetry};
use outrider_runtime::{Drain, Tasks};
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{known_peer, unavailable};
use crate::{
    clock,
    issue::Issuance,
    limit::Limit,
    metrics::Metrics,
    peer::Peer,
    registry::{Revoked, World},
    store::{DecisionRow, Store},
};

/// Most records of a batch.
const MAX_BATCH: usize = 1000;
/// Most bytes kept of a text in a record.
const MAX_TEXT: usize = 1024;
/// Most bytes kept of the chain of causes.
const MAX_DETAIL: usize = 4096;
/// Most audit rules of a record.
const MAX_AUDITED: usize = 4;
/// Most headers kept of a record.
const MAX_HEADERS: usize = 32;
/// Most bytes of an encoded record: what does not fit loses its headers, then its details.
const MAX_RECORD: usize = 8192;
/// Records that the agents of one identity may report at once.
const RECORDS_AT_ONCE: u32 = 20_000;
/// Records that they may report in a second after that.
const RECORDS_A_SECOND: u32 = 2_000;

/// The service.
#[derive(Clone)]
pub(crate) struct Reports {
    store: Store,
    metrics: Metrics,
    /// Knows whether candidates are being tried.
    world: watch::Receiver<Arc<World>>,
    limit: Arc<Limit>,
    revoked: Revoked,
    tasks: Tasks,
    drain: Drain,
}

#[tonic::async_trait]
impl Telemetry for Reports {
    type ReportStream = ReceiverStream<Result<ReportResponse, Status>>;

    async fn report(&self, request: Request<Streaming<ReportRequest>>) -> Result<Response<Self::ReportStream>, Status> {
        let peer = known_peer(&request)?;
        let inbound = request.into_inner();
        let (out, answers) = mpsc::channel(1);
        let reports = self.clone();
        self.tasks.spawn_scoped(async move {
            if let Err(status) = reports.take_all(inbound, &peer, &out).await {
                // Nobody listens any more, or it hears why the stream ends.
                let _ = out.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// Why a record is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// It is about calls that the agent neither took nor made.
    Foreign,
    /// It does not say what it is about.
    Malformed,
}

impl Refused {
    fn as_str(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Malformed => "malformed",
        }
    }
}

impl Reports {
    pub(crate) fn new(issuance: Issuance, world: watch::Receiver<Arc<World>>, tasks: Tasks, drain: Drain) -> Self {
        let Issuance { store, metrics, revoked, .. } = issuance;
        let limit = Arc::new(Limit::new(RECORDS_AT_ONCE, RECORDS_A_SECOND));
        Self { store, metrics, world, limit, revoked, tasks, drain }
    }

    async fn take_all(
        &self,
        mut inbound: Streaming<ReportRequest>,
        peer: &Peer,
        out: &mpsc::Sender<Result<ReportResponse, Status>>,
    ) -> Result<(), Status> {
        let mut revoked = self.revoked.clone();
        loop {
            let batch = tokio::select! {
                biased;
                () = revoked.fall(peer) => return Err(Status::permission_denied("revoked")),
                batch = inbound.message() => batch?,
                () = self.drain.stopping() => return Err(Status::unavailable("the control plane is stopping")),
                () = out.closed() => return Ok(()),
            };
            let Some(batch) = batch else { return Ok(()) };
            if peer.not_after <= clock::now() {
                return Err(Status::unauthenticated("the certificate of the connection has expired"));
            }
            // On the heap while it lasts: what waits for the store is large, and most streams rest most of the time.
            let answer = Box::pin(self.take(batch, peer)).await?;
            if out.send(Ok(answer)).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn take(&self, batch: ReportRequest, peer: &Peer) -> Result<ReportResponse, Status> {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let all = batch.decisions.len();
        if all > MAX_BATCH {
            return Err(Status::resource_exhausted(format!("a batch has at most {MAX_BATCH} records")));
        }
        self.metrics.dropped.inc_by(batch.dropped);
        let grants = self.store.grants(&peer.identity).await.map_err(|error| unavailable("grants", &error))?;
        let mut rows = Vec::with_capacity(all);
        let canary = self.world.borrow().canary.clone();
        for record in batch.decisions {
            let tried = canary.as_ref().map(|canary| (canary, record.clone()));
            match row(record, &peer.identity, &grants) {
                Ok(row) => {
                    if let Some((canary, record)) = tried {
                        canary.note(&record);
                    }
                    rows.push(row);
                }
                Err(refused) => self.metrics.records_refused(refused.as_str(), 1),
            }
        }
        let good = rows.len();
        if good < all {
            tracing::warn!(identity = %peer.identity, refused = all - good, "records of other agents' calls, or malformed ones");
        }
        // Within a flood the denials are what an operator wants to keep, and not those of strangers at the door.
        rows.sort_by_key(|row| !row.denied || row.destination.is_empty());
        rows.truncate(self.limit.admit_of(&peer.identity, good, Instant::now()));
        self.metrics.records_refused("rate", count(good - rows.len()));
        if let Err(error) = self.store.put_decisions(&rows).await {
            self.metrics.store_errors.inc();
            return Err(unavailable("decisions", &error));
        }
        self.metrics.decisions.inc_by(count(rows.len()));
        Ok(ReportResponse { stored: count(rows.len()), refused: count(all - rows.len()) })
    }
}

/// An agent speaks only for itself: as callee for its own services, as caller under its own identity. Of a caller that got no
/// further than the handshake it does not know where it wanted to go.
fn row(mut record: DecisionRecord, identity: &SpiffeId, grants: &BTreeSet<ServiceName>) -> Result<DecisionRow, Refused> {
    let denied = match record.effect.as_str() {
        "allow" => false,
        "deny" => true,
        _ => return Err(Refused::Malformed),
    };
    let own = match record.side() {
        Side::Inbound if record.destination.is_empty() => denied && record.source.is_empty(),
        Side::Inbound => record.destination.parse().is_ok_and(|service: ServiceName| grants.contains(&service)),
        Side::Outbound => record.source == identity.as_str(),
        Side::Unspecified => return Err(Refused::Malformed),
    };
    if !own {
        return Err(Refused::Foreign);
    }
    cut(&mut record);
    let encoded = record.encode_to_vec();
    Ok(DecisionRow { request_id: record.request_id, destination: record.destination, denied, record: encoded })
}

/// Cuts a record to the sizes that are documented.
fn cut(record: &mut DecisionRecord) {
    let DecisionRecord { request_id, source, destination, method, host, path, rule, reason, tls, peer_address, .. } = record;
    for text in [request_id, source, destination, method, host, path, rule, reason, tls, peer_address] {
        cut_text(text, MAX_TEXT);
    }
    cut_text(&mut record.detail, MAX_DETAIL);
    record.audited.truncate(MAX_AUDITED);
    record.audited.iter_mut().for_each(|rule| cut_text(rule, MAX_TEXT));
    record.headers.truncate(MAX_HEADERS);
    for header in &mut record.headers {
        cut_text(&mut header.name, MAX_TEXT);
        header.value.truncate(MAX_TEXT);
    }
    while record.encoded_len() > MAX_RECORD && (record.headers.pop().is_some() || record.audited.pop().is_some()) {}
    let over = record.encoded_len().saturating_sub(MAX_RECORD);
    let left = record.detail.len().saturating_sub(over);
    cut_text(&mut record.detail, left);
}

fn cut_text(text: &mut String, most: usize) {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
    }
}

#[cfg(test)]
mod tests {
    use outrider_proto::v1::HeaderValue;

    use super::*;

    fn record() -> DecisionRecord {
        DecisionRecord {
            side: Side::Inbound.into(),
            destination: "shop/orders".into(),
            effect: "deny".into(),
            ..DecisionRecord::default()
        }
    }

    fn read(record: DecisionRecord) -> Result<DecisionRow, Refused> {
        let identity = SpiffeId::new("spiffe://mesh.internal/ns/shop/sa/orders").unwrap();
        row(record, &identity, &BTreeSet::from(["shop/orders".parse().unwrap()]))
    }

    #[test]
    fn an_agent_speaks_for_its_own_calls_and_for_failed_handshakes_at_its_door() {
        assert!(read(record()).is_ok());
        assert!(read(DecisionRecord { destination: String::new(), ..record() }).is_ok());
        let source = "spiffe://mesh.internal/ns/shop/sa/web".to_owned();
        let wrong = [
            (DecisionRecord { destination: "shop/web".into(), ..record() }, Refused::Foreign),
            (DecisionRecord { destination: String::new(), effect: "allow".into(), ..record() }, Refused::Foreign),
            (DecisionRecord { destination: String::new(), source: source.clone(), ..record() }, Refused::Foreign),
            (DecisionRecord { side: Side::Outbound.into(), source, ..record() }, Refused::Foreign),
            (DecisionRecord { effect: "maybe".into(), ..record() }, Refused::Malformed),
            (DecisionRecord { side: 0, ..record() }, Refused::Malformed),
        ];
        for (record, refused) in wrong {
            assert_eq!(read(record.clone()).map(|_| ()), Err(refused), "{record:?}");
        }
    }

    #[test]
    fn no_record_takes_more_than_its_budget() {
        let headers = vec![HeaderValue { name: "x-long".into(), value: vec![b'x'; 100_000] }; 100];
        let long = "ü".repeat(100_000);
        let fat = DecisionRecord {
            path: long.clone(),
            host: long.clone(),
            detail: long.clone(),
            audited: vec![long.clone(); 100],
            rule: long,
            headers,
            ..record()
        };
        let row = read(fat).unwrap();
        assert!(row.record.len() <= MAX_RECORD, "{}", row.record.len());
        let kept = DecisionRecord::decode(row.record.as_slice()).unwrap();
        assert!(kept.path.len() == MAX_TEXT && !kept.detail.is_empty());
    }
}
