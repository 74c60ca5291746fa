//! The agents that are connected now, and what is in force at each. Written by their streams, read by operators.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use outrider_policy::{ServiceName, Target};
use tokio::sync::{mpsc, watch};

use crate::store::AgentRow;

/// Changes whose reach is remembered.
const REMEMBERED: usize = 256;

/// What an operator, or a newer stream, tells a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Ask the agent for a new certificate.
    Renew,
    /// The agent has a newer stream.
    Replaced,
}

/// A connected agent.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) agent_id: String,
    /// Counts streams: tells this one from an older one of the same agent.
    pub(crate) epoch: u64,
    pub(crate) identity: String,
    pub(crate) version: String,
    pub(crate) targets: Arc<[Target]>,
    /// Namespace of its identity; empty when it is of another form.
    pub(crate) namespace: String,
    /// The services it calls.
    pub(crate) wants: Arc<BTreeSet<ServiceName>>,
    /// Store revision in force there; 0 before the first acknowledgement.
    pub(crate) in_force: u64,
    /// Revision and reason of its last refusal, until it acknowledges something newer.
    pub(crate) refused: Option<(u64, String)>,
    /// Newest store revision that it was sent, or had nothing to be sent of.
    pub(crate) considered: u64,
    /// An update is on the way to it.
    pub(crate) answering: bool,
    /// Lower-case hex; empty until it said.
    pub(crate) serial: String,
    /// Unix seconds.
    pub(crate) certificate_end: i64,
    /// Unix seconds.
    pub(crate) last_seen: i64,
    /// `None` when its stream goes to another replica.
    pub(crate) commands: Option<mpsc::Sender<Command>>,
}

impl Session {
    /// Tells its stream, if that is ours.
    fn tell(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // A full queue means that it does not read: its own time-outs end it.
            let _ = commands.try_send(command);
        }
    }
}

/// Agents that a change concerns.
pub(crate) type Reach = Vec<Arc<AgentRow>>;

/// An agent that a change concerns.
#[derive(Clone, Debug)]
pub(crate) struct Concerned {
    pub(crate) agent_id: String,
    pub(crate) identity: String,
    /// `None` while it is not connected.
    pub(crate) session: Option<Session>,
}

/// All connected agents. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Sessions {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeMap<String, Session>,
    /// Those of other replicas.
    elsewhere: BTreeMap<String, Session>,
    epoch: u64,
    /// Which agents a change concerns, newest last.
    reach: VecDeque<(u64, Reach)>,
}

impl State {
    fn find(&self, agent_id: &str) -> Option<&Session> {
        // Where it joined last counts: a stream of ours that it has left behind may not have ended yet.
        self.elsewhere.get(agent_id).or_else(|| self.open.get(agent_id))
    }
}

impl Sessions {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), changed: watch::Sender::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Takes the next epoch.
    pub(crate) fn next_epoch(&self) -> u64 {
        let mut state = self.state();
        state.epoch += 1;
        state.epoch
    }

    /// Adds a stream; an older one of the same agent is told to end.
    pub(crate) fn open(&self, session: Session) {
        let mut state = self.state();
        state.elsewhere.remove(&session.agent_id);
        let before = state.open.insert(session.agent_id.clone(), session);
        drop(state);
        if let Some(before) = before {
            before.tell(Command::Replaced);
        }
        self.tick();
    }

    /// Changes a stream's entry, if it is still the agent's newest one.
    pub(crate) fn update(&self, agent_id: &str, epoch: u64, change: impl FnOnce(&mut Session)) {
        let mut state = self.state();
        if let Some(session) = state.open.get_mut(agent_id).filter(|session| session.epoch == epoch) {
            change(session);
            drop(state);
            self.tick();
        }
    }

    /// Removes a stream. `None` when the agent has a newer one.
    pub(crate) fn close(&self, agent_id: &str, epoch: u64) -> Option<Session> {
        let mut state = self.state();
        if state.open.get(agent_id)?.epoch != epoch {
            return None;
        }
        let closed = state.open.remove(agent_id);
        drop(state);
        self.tick();
        closed
    }

    /// All of them by agent id, those of other replicas too.
    pub(crate) fn list(&self) -> Vec<Session> {
        let state = self.state();
        let ours = state.open.values().filter(|session| !state.elsewhere.contains_key(&session.agent_id));
        let mut all: Vec<Session> = ours.chain(state.elsewhere.values()).cloned().collect();
        all.sort_by(|left, right| left.agent_id.cmp(&right.agent_id));
        all
    }

    /// Those whose streams are ours.
    pub(crate) fn ours(&self) -> Vec<Session> {
        self.state().open.values().cloned().collect()
    }

    /// One of all.
    pub(crate) fn find(&self, agent_id: &str) -> Option<Session> {
        self.state().find(agent_id).cloned()
    }

    /// Tells a stream of ours.
    pub(crate) fn command(&self, agent_id: &str, command: Command) {
        if let Some(session) = self.state().open.get(agent_id) {
            session.tell(command);
        }
    }

    /// Learns which agents other replicas have.
    pub(crate) fn learn(&self, elsewhere: Vec<Session>) {
        let elsewhere = elsewhere.into_iter().map(|session| (session.agent_id.clone(), session)).collect();
        self.state().elsewhere = elsewhere;
        self.tick();
    }

    /// How many are ours.
    pub(crate) fn count(&self) -> usize {
        self.state().open.len()
    }

    /// Wakes at every change of any entry.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Remembers which agents a change concerns. Every connected agent is part of the mesh: who is not cannot be among them.
    pub(crate) fn remember(&self, revision: u64, concerned: Reach) {
        let mut state = self.state();
        match state.reach.iter_mut().find(|(known, _)| *known == revision) {
            Some((_, before)) => {
                before.extend(concerned);
                before.sort_by(|left, right| left.id.cmp(&right.id));
                before.dedup_by(|left, right| left.id == right.id);
            }
            None => state.reach.push_back((revision, concerned)),
        }
        if state.reach.len() > REMEMBERED {
            state.reach.pop_front();
        }
    }

    /// An agent has left in good order: nothing concerns it any more.
    pub(crate) fn left(&self, agent_id: &str) {
        for (_, reach) in &mut self.state().reach {
            reach.retain(|agent| agent.id != agent_id);
        }
        self.tick();
    }

    /// The agents that a change concerns, each with its session if it has one; `None` when that is not remembered.
    pub(crate) fn concerned(&self, revision: u64) -> Option<Vec<Concerned>> {
        let state = self.state();
        let (_, reach) = state.reach.iter().find(|(known, _)| *known == revision)?;
        let concerned = |agent: &Arc<AgentRow>| Concerned {
            agent_id: agent.id.clone(),
            identity: agent.identity.to_string(),
            session: state.find(&agent.id).cloned(),
        };
        Some(reach.iter().map(concerned).collect())
    }
}
