//! Candidates that a share of the agents has in force, and what these newly deny.
//!
//! A canary lives in memory only: a control plane that dies takes it back by dying, since agents that come back get what is
//! stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest;
use outrider_policy::{Diagnostic, Effect, TrustDomain, Unknown};
use outrider_proto::v1;
use tokio::{sync::watch, time::Instant};

use super::{
    Change, ChangeError, Policy, Session,
    apply::{Changed, Compared, is_broken},
};
use crate::{
    clock,
    compile::{Judge, in_short},
    publish::Publisher,
    store::{Author, Deed},
};

/// Newly denied requests that are named.
const EXAMPLES: usize = 10;
/// How long the chosen agents may take to put the candidates in force.
const PUSH: Duration = Duration::from_secs(60);

/// Candidates and who has them.
#[derive(Debug)]
pub(crate) struct Canary {
    /// Store revision that the candidates bear.
    pub(crate) revision: u64,
    /// By `namespace/name`.
    pub(crate) policies: BTreeMap<String, Arc<Policy>>,
    /// Ids of the agents that get them.
    pub(crate) chosen: BTreeSet<String>,
    trust_domain: TrustDomain,
    findings: Mutex<Findings>,
}

#[derive(Debug)]
struct Findings {
    /// Decides by what is stored.
    stored: Judge,
    newly_denied: u64,
    examples: Vec<v1::RecordedRequest>,
}

impl Canary {
    /// Takes note of a denial that an agent reported: was it the candidates' doing?
    pub(crate) fn note(&self, record: &v1::DecisionRecord) {
        if record.revision != self.revision || record.effect != "deny" || record.reason != "policy_denied" {
            return;
        }
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        if findings.stored.decide(&self.trust_domain, record).is_some_and(|(effect, _)| effect == Effect::Allow) {
            findings.newly_denied += 1;
            if findings.examples.len() < EXAMPLES {
                findings.examples.push(in_short(record));
            }
        }
    }
}

/// What an operator asks for.
#[derive(Clone, Debug)]
pub(crate) struct CanaryOrder {
    /// `(source, yaml)` each.
    pub(crate) documents: Vec<(String, String)>,
    pub(crate) unknown: Unknown,
    /// 1 to 100.
    pub(crate) percent: u32,
    pub(crate) watch: Duration,
    pub(crate) tolerate: u64,
    pub(crate) author: Author,
    pub(crate) trust_domain: TrustDomain,
}

/// How far a canary is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing was pushed: the documents hold mistakes, or nothing new.
    #[default]
    Nothing,
    Pushing,
    Watching,
    Promoted,
    RolledBack,
}

/// What operators are told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct CanaryState {
    pub(crate) diagnostics: Vec<Diagnostic>,
    pub(crate) phase: Phase,
    /// Of the candidates; once promoted, of the stored policies.
    pub(crate) revision: u64,
    /// Agents concerned.
    pub(crate) agents: usize,
    pub(crate) chosen: Vec<String>,
    /// Of those, the ones that have it in force.
    pub(crate) in_force: usize,
    pub(crate) newly_denied: u64,
    pub(crate) examples: Vec<v1::RecordedRequest>,
    /// Why it was taken back.
    pub(crate) reason: String,
    pub(crate) seconds_left: u64,
    /// What happens to each resource.
    pub(crate) changes: Vec<(String, Change)>,
}

/// A canary under way, as its keeper sees it.
#[derive(Debug)]
pub(crate) struct Keeper {
    canary: Arc<Canary>,
    order: CanaryOrder,
    started: Instant,
    /// Set once all chosen agents have it in force.
    watching: Option<Instant>,
    state: watch::Sender<CanaryState>,
}

impl Publisher {
    /// Begins a canary. The receiver tells how it goes, to its end.
    pub(crate) async fn begin_canary(&mut self, order: CanaryOrder) -> Result<watch::Receiver<CanaryState>, ChangeError> {
        self.refuse_during_canary()?;
        self.refuse_beside_others().await?;
        let (manifests, diagnostics) = self.world.check(&order.documents, order.unknown);
        let compared = if is_broken(&diagnostics) { Compared::default() } else { self.world.compare(&manifests)? };
        let Compared { changes, puts, .. } = compared;
        let mut state = CanaryState { diagnostics, changes, revision: self.world.revision, ..CanaryState::default() };
        if puts.is_empty() {
            return Ok(watch::channel(state).1);
        }
        let names: Vec<&str> = puts.iter().map(|policy| policy.resource.name.as_str()).collect();
        let deed = Deed { author: &order.author, call: "Canary", subject: &format!("tries {}", names.join(" ")) };
        let revision = self.store.take_revision(deed, clock::now()).await?;
        let puts = puts.into_iter().map(|policy| Policy::new(policy.stored.policy, policy.json, revision));
        let policies: BTreeMap<_, _> = puts.map(|policy| (policy.resource.name.clone(), Arc::new(policy))).collect();
        let concerned = self.concerned_by(&policies);
        let share = (concerned.len() * usize::try_from(order.percent).unwrap_or(100)).div_ceil(100);
        let chosen: BTreeSet<String> = in_random_order(&concerned, revision).into_iter().take(share).collect();
        (state.revision, state.agents, state.phase) = (revision, concerned.len(), Phase::Pushing);
        state.chosen = chosen.iter().cloned().collect();
        let stored = Judge::new(self.world.policies.values().map(|policy| policy.stored.clone()).collect(), self.world.labels());
        let findings = Mutex::new(Findings { stored, newly_denied: 0, examples: Vec::new() });
        let canary = Arc::new(Canary { revision, policies, chosen, trust_domain: order.trust_domain.clone(), findings });
        self.world.revision = revision;
        self.world.canary = Some(Arc::clone(&canary));
        let (tell, told) = watch::channel(state);
        self.canary = Some(Keeper { canary, order, started: Instant::now(), watching: None, state: tell });
        self.show();
        Ok(told)
    }

    /// Agents of other replicas would not get the candidates.
    async fn refuse_beside_others(&self) -> Result<(), ChangeError> {
        if !self.store.is_shared() {
            return Ok(());
        }
        match self.store.replicas().await?.iter().filter(|replica| replica.is_live()).count() {
            0 | 1 => Ok(()),
            live => Err(ChangeError::Replicas(live)),
        }
    }

    /// Connected agents that the candidates, or the policies they replace, apply to.
    fn concerned_by(&self, candidates: &BTreeMap<String, Arc<Policy>>) -> Vec<String> {
        let replaced = candidates.keys().filter_map(|name| self.world.policies.get(name));
        let touched: Vec<&Arc<Policy>> = candidates.values().chain(replaced).collect();
        let sessions = self.sessions.list();
        let concerned = sessions.iter().filter(|session| touched.iter().any(|policy| policy.applies_to_any(&session.targets)));
        concerned.map(|session| session.agent_id.clone()).collect()
    }

    /// Looks after the canary: promotes it, or takes it back.
    pub(crate) async fn tend_canary(&mut self) {
        let Some(mut keeper) = self.canary.take() else { return };
        let sessions: Vec<_> = keeper.canary.chosen.iter().map(|id| (id, self.sessions.find(id))).collect();
        let in_force = |session: &Session| session.in_force >= keeper.canary.revision;
        let ready = sessions.iter().filter(|(_, session)| session.as_ref().is_some_and(in_force)).count();
        let refused = sessions.iter().find_map(|(id, session)| {
            let (_, reason) = session.as_ref()?.refused.as_ref()?;
            Some(format!("agent {id} refused it: {reason}"))
        });
        // Agents that have left for good have no say.
        let expected = sessions.iter().filter(|(id, session)| session.is_some() || self.world.is_present(id)).count();
        let (newly_denied, examples) = {
            let findings = keeper.canary.findings.lock().unwrap_or_else(PoisonError::into_inner);
            (findings.newly_denied, findings.examples.clone())
        };
        if keeper.watching.is_none() && ready >= expected {
            keeper.watching = Some(Instant::now());
        }
        let left = keeper.watching.map_or(keeper.order.watch, |since| keeper.order.watch.saturating_sub(since.elapsed()));
        keeper.state.send_if_modified(|state| {
            let before = state.clone();
            (state.in_force, state.newly_denied, state.examples) = (ready, newly_denied, examples);
            state.seconds_left = left.as_secs() + u64::from(left.subsec_nanos() > 0);
            if keeper.watching.is_some() {
                state.phase = Phase::Watching;
            }
            *state != before
        });
        let tolerate = keeper.order.tolerate;
        let fault = if newly_denied > tolerate {
            Some(format!("{newly_denied} requests were denied that the stored policies allow, {tolerate} are tolerated"))
        } else if keeper.watching.is_none() && keeper.started.elapsed() > PUSH {
            Some(format!("{} of {expected} agents did not put it in force within {} s", expected - ready, PUSH.as_secs()))
        } else {
            refused
        };
        match fault {
            Some(reason) => self.end_canary(&keeper, reason),
            None if left.is_zero() => self.promote(keeper).await,
            None => self.canary = Some(keeper),
        }
    }

    async fn promote(&mut self, keeper: Keeper) {
        let puts: Vec<Policy> = keeper.canary.policies.values().map(|policy| Policy::clone(policy)).collect();
        self.world.canary = None;
        let names: Vec<&str> = puts.iter().map(|policy| policy.resource.name.as_str()).collect();
        let subject = names.join(" ");
        let deed = Deed { author: &keeper.order.author, call: "Canary", subject: &subject };
        match self.store_change(Changed { puts, ..Changed::default() }, deed).await {
            Ok(revision) => keeper.state.send_modify(|state| (state.phase, state.revision) = (Phase::Promoted, revision)),
            Err(error) => self.end_canary(&keeper, format!("it could not be stored: {}", outrider_runtime::tasks::chain(&error))),
        }
    }

    fn end_canary(&mut self, keeper: &Keeper, reason: String) {
        tracing::warn!(revision = keeper.canary.revision, reason, "canary taken back");
        self.world.canary = None;
        self.show();
        keeper.state.send_modify(|state| (state.phase, state.reason) = (Phase::RolledBack, reason));
    }

    /// Takes the canary back because an operator says so. `false` when there is none.
    pub(crate) fn abort_canary(&mut self) -> bool {
        let Some(keeper) = self.canary.take() else { return false };
        self.end_canary(&keeper, "an operator took it back".to_owned());
        true
    }

    /// Policies do not change under a canary's feet.
    pub(crate) fn refuse_during_canary(&self) -> Result<(), ChangeError> {
        match &self.canary {
            Some(keeper) => Err(ChangeError::Canary(keeper.canary.revision)),
            None => Ok(()),
        }
    }
}

/// Every canary chooses anew, and nobody can arrange to be chosen or spared.
fn in_random_order(ids: &[String], revision: u64) -> Vec<String> {
    let place = |id: &String| digest::digest(&digest::SHA256, format!("{revision} {id}").as_bytes()).as_ref().to_vec();
    let mut ids = ids.to_vec();
    ids.sort_by_cached_key(place);
    ids
}
