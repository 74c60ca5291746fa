//! All members, and what is known of each.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use hdrhistogram::Histogram;
use outrider_proto::v1::{ApplyRequest, Manifest, WatchRolloutRequest};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

use crate::{
    door::Door,
    member::{Member, News},
};

/// Members that join at the same time.
const JOINING: usize = 32;
/// Members of one identity: a service's agents share theirs.
const OF_ONE_IDENTITY: usize = 100;
/// Nothing here takes this long.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is known of a member.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Revision that it acknowledged on its present stream; none without one.
    revision: Option<u64>,
    at: Option<Instant>,
}

/// The members.
#[derive(Debug)]
pub(crate) struct Swarm {
    door: Door,
    states: Vec<State>,
    tell: mpsc::UnboundedSender<News>,
    news: mpsc::UnboundedReceiver<News>,
    /// They end with the swarm.
    members: JoinSet<()>,
    changes: u32,
}

impl Swarm {
    /// None yet.
    pub(crate) fn new(door: Door) -> Self {
        let (tell, news) = mpsc::unbounded_channel();
        Self { door, states: Vec::new(), tell, news, members: JoinSet::new(), changes: 0 }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    /// Adds members until there are this many, and waits until each has acknowledged its view.
    pub(crate) async fn grow(&mut self, to: usize) -> anyhow::Result<()> {
        let mut joining = JoinSet::new();
        for number in self.states.len()..to {
            if joining.len() >= JOINING
                && let Some(joined) = joining.join_next().await
            {
                self.members.spawn(Member::run(joined??));
            }
            joining.spawn(Self::join(self.door.clone(), number, self.tell.clone()));
            self.states.push(State::default());
        }
        while let Some(joined) = joining.join_next().await {
            self.members.spawn(Member::run(joined??));
        }
        self.until_current(|current, all| current == all).await
    }

    async fn join(door: Door, number: usize, news: mpsc::UnboundedSender<News>) -> anyhow::Result<Member> {
        let service = format!("swarm/service-{}", number / OF_ONE_IDENTITY);
        let identity = door.join(&service, &service).await?;
        Ok(Member { number, door, identity, service, news, held: BTreeMap::new() })
    }

    /// Waits until the number of members with an acknowledged stream is right.
    pub(crate) async fn until_current(&mut self, is_right: impl Fn(usize, usize) -> bool) -> anyhow::Result<()> {
        let current = |states: &[State]| states.iter().filter(|state| state.revision.is_some()).count();
        while !is_right(current(&self.states), self.states.len()) {
            let Ok(Some(news)) = timeout(PATIENCE, self.news.recv()).await else {
                bail!("{} of {} members are current", current(&self.states), self.states.len())
            };
            self.note(news);
        }
        Ok(())
    }

    fn note(&mut self, news: News) {
        let (member, state) = match news {
            News::Acknowledged { member, revision, at } => (member, State { revision: Some(revision), at: Some(at) }),
            News::Lost { member } => (member, State::default()),
        };
        if let Some(known) = self.states.get_mut(member) {
            *known = state;
        }
    }

    /// Changes a policy that concerns every member, and says how long it took until each had acknowledged it.
    pub(crate) async fn change(&mut self) -> anyhow::Result<serde_json::Value> {
        self.changes += 1;
        while let Ok(news) = self.news.try_recv() {
            self.note(news);
        }
        let mut admin = self.door.admin();
        let manifests = vec![Manifest { source: "swarm.yaml".to_owned(), yaml: base_layer(self.changes) }];
        let begun = Instant::now();
        let applied = admin.apply(ApplyRequest { manifests, ..ApplyRequest::default() }).await?.into_inner();
        ensure!(applied.revision > 0, "the policy was refused: {:?}", applied.diagnostics);
        let stored = begun.elapsed();
        let mut rollout = admin.watch_rollout(WatchRolloutRequest { revision: applied.revision }).await?.into_inner();
        while rollout.message().await?.is_some_and(|status| !status.done) {}
        let known = begun.elapsed();
        let late = |state: &State| state.revision.is_none_or(|revision| revision < applied.revision);
        while self.states.iter().any(late) {
            let news = timeout(PATIENCE, self.news.recv()).await.ok().flatten().context("a member never acknowledged")?;
            self.note(news);
        }
        let mut latency = Histogram::<u64>::new_with_bounds(1, 600_000_000, 3)?;
        for at in self.states.iter().filter_map(|state| state.at) {
            latency.saturating_record(u64::try_from(at.saturating_duration_since(begun).as_micros()).unwrap_or(u64::MAX).max(1));
        }
        Ok(serde_json::json!({
            "stored_us": u64::try_from(stored.as_micros())?,
            "p50_us": latency.value_at_quantile(0.50),
            "p99_us": latency.value_at_quantile(0.99),
            "max_us": latency.max(),
            "known_us": u64::try_from(known.as_micros())?,
        }))
    }
}

/// A policy of the base layer: it concerns every agent of the mesh.
fn base_layer(number: u32) -> String {
    format!(
        "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: {{ name: base, namespace: outrider-system }}\nspec:\n  \
         authorization:\n    rules:\n      - name: no-{number}\n        action: Deny\n        to: [{{ paths: [\"/no-{number}\"] }}]\n"
    )
}
