//! Trying policies before they are stored: replay of recorded requests, and the order for a canary.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use outrider_policy::{Severity, StoredPolicy, Unknown};
use outrider_proto::v1;
use prost::Message as _;
use tonic::Status;

use super::{Operators, admin_words as words, unavailable};
use crate::{
    clock,
    compile::Replay,
    registry::{CanaryOrder, Checked, World},
    store::Author,
};

/// Records read at a time.
const PAGE: u32 = 1000;
/// How far back a replay looks when nobody says, seconds.
const HOUR: u64 = 3600;
/// How long a canary is watched when nobody says, seconds.
const WATCH: u32 = 60;

impl Operators {
    /// Decides recorded requests by what is stored and by candidates in its place.
    pub(super) async fn replayed(&self, request: v1::ReplayRequest) -> Result<v1::ReplayResponse, Status> {
        let world = Arc::clone(&self.mesh.world.borrow());
        let documents = documents(request.manifests);
        // Routes decide nothing: who may call is the same with and without them.
        let Checked { policies: manifests, diagnostics, .. } = world.check_all(&documents, Unknown::Expected);
        let broken = diagnostics.iter().any(|one| one.severity == Severity::Error);
        let diagnostics = diagnostics.into_iter().map(words::diagnostic).collect();
        if broken {
            return Ok(v1::ReplayResponse { diagnostics, ..v1::ReplayResponse::default() });
        }
        let candidates =
            manifests.iter().map(|one| StoredPolicy { policy: Arc::clone(&one.policy), revision: world.revision + 1 });
        let (before, after) = (stored(&world), candidates);
        let mut replaced = before.clone();
        replaced.extend(after.map(|policy| (policy.policy.full_name(), policy)));
        let policies = |all: BTreeMap<String, StoredPolicy>| all.into_values().collect();
        let mut replay = Replay::new(self.authority.trust_domain(), policies(before), policies(replaced), world.labels());
        let since = if request.since_seconds == 0 { HOUR } else { request.since_seconds };
        let since = clock::now().saturating_sub(i64::try_from(since).unwrap_or(i64::MAX)).saturating_mul(1_000_000_000);
        let mut before = i64::MAX;
        loop {
            let page = self.store.decisions_before(before, PAGE).await.map_err(|error| unavailable("decisions", &error))?;
            let Some((last, _)) = page.last() else { break };
            before = *last;
            let mut older = 0;
            for (_, record) in &page {
                let record = v1::DecisionRecord::decode(record.as_slice()).map_err(|error| unavailable("decisions", &error))?;
                if record.time < since {
                    older += 1;
                } else {
                    replay.record(&record);
                }
            }
            // Agents report with delay, and their clocks differ: records are only nearly in the order of their time.
            if older == page.len() {
                break;
            }
            // A page takes a while to decide: others want their turn too.
            tokio::task::yield_now().await;
        }
        Ok(replay.finish(diagnostics))
    }

    /// Reads the order for a canary.
    pub(super) fn order(&self, request: v1::CanaryRequest, author: Author) -> Result<CanaryOrder, Status> {
        let v1::CanaryRequest { manifests, percent, watch_seconds, tolerate, allow_unknown_services } = request;
        let unknown = words::unknown(allow_unknown_services);
        if !(1..=100).contains(&percent) {
            return Err(Status::invalid_argument("the share of agents is 1 to 100 percent"));
        }
        if watch_seconds > 86_400 {
            return Err(Status::invalid_argument("a canary is watched for at most a day"));
        }
        let watch = Duration::from_secs(u64::from(if watch_seconds == 0 { WATCH } else { watch_seconds }));
        let trust_domain = self.authority.trust_domain().clone();
        Ok(CanaryOrder { documents: documents(manifests), unknown, percent, watch, tolerate, author, trust_domain })
    }
}

fn documents(manifests: Vec<v1::Manifest>) -> Vec<(String, String)> {
    manifests.into_iter().map(|manifest| (manifest.source, manifest.yaml)).collect()
}

fn stored(world: &World) -> BTreeMap<String, StoredPolicy> {
    world.policies.iter().map(|(name, policy)| (name.clone(), policy.stored.clone())).collect()
}
