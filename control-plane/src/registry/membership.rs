//! Agents come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use outrider_policy::SpiffeId;
use tokio::{sync::oneshot, time::Instant};

use super::ChangeError;
use crate::{
    clock,
    publish::Publisher,
    store::{AgentRow, StoreError},
};

/// Most agents of one control plane that are part of the mesh.
const MAX_AGENTS: usize = 20_000;
/// Most of them of one identity: one that makes up ids must not fill the mesh.
const MAX_OF_IDENTITY: usize = 5_000;
/// Most agents that are remembered while they are away.
const MAX_AWAY: usize = 20_000;
/// Most of them of one identity.
const MAX_AWAY_OF_IDENTITY: usize = 500;
/// Agents that left are shown for a day.
const REMEMBER_AGENTS: i64 = 86_400;

/// An agent that opens a stream: its row, its epoch, and where to answer.
pub(crate) type Join = (AgentRow, u64, oneshot::Sender<Result<(), ChangeError>>);

impl Publisher {
    /// Takes agents in, all in one transaction.
    pub(crate) async fn join(&mut self, joins: Vec<Join>) {
        if joins.is_empty() {
            return;
        }
        let mut door = Door::new(self.world.agents.values());
        let mut accepted = Vec::new();
        let mut waiting = Vec::new();
        for (agent, epoch, reply) in joins {
            match door.admit(&agent) {
                Ok(()) => {
                    waiting.push((agent.id.clone(), epoch, reply));
                    accepted.push((agent, epoch));
                }
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            }
        }
        let stored = self.join_agents(accepted).await.map_err(Arc::new);
        for (id, epoch, reply) in waiting {
            let answer = match &stored {
                Ok(taken) if taken.contains(&id) => Err(ChangeError::AgentTaken(id)),
                Ok(_) => {
                    self.leaving.remove(&id);
                    self.streams.insert(id, epoch);
                    Ok(())
                }
                Err(error) => Err(ChangeError::Store(StoreError::Shared(Arc::clone(error)))),
            };
            let _ = reply.send(answer);
        }
        self.evict().await;
    }

    /// Forgets agents that are away when there are too many of them, oldest first: of each identity, then of all.
    async fn evict(&mut self) {
        let gone = too_many_away(self.world.agents.values().map(|agent| &**agent));
        if gone.is_empty() {
            return;
        }
        match self.store.forget_agents(&gone).await {
            Ok(()) => self.world.drop_agents(&gone),
            Err(error) => tracing::warn!(error = outrider_runtime::tasks::chain(&error), "agents not forgotten, trying again"),
        }
    }

    /// A stream ended. Its endpoints go when nobody comes back in time.
    pub(crate) async fn leave(&mut self, agent_id: &str, epoch: u64, goodbye: bool) {
        if self.streams.get(agent_id) == Some(&epoch) {
            self.streams.remove(agent_id);
            let wait = if goodbye { Duration::ZERO } else { self.grace };
            self.leaving.insert(agent_id.to_owned(), Instant::now() + wait);
            if goodbye {
                self.sessions.left(agent_id);
                self.expire().await;
            }
        }
    }

    /// Takes endpoints out whose agents did not come back in time.
    pub(crate) async fn expire(&mut self) {
        self.prune_revocations().await;
        self.follow_mounted().await;
        let now = Instant::now();
        let due: BTreeSet<String> = self.leaving.iter().filter(|(_, until)| **until <= now).map(|(id, _)| id.clone()).collect();
        if due.is_empty() {
            return;
        }
        match self.store.part_agents(&due, clock::now()).await {
            Ok(parted) => {
                self.leaving.retain(|id, _| !due.contains(id));
                if let Some((revision, gone)) = parted {
                    self.take_in(gone, Some(revision)).await;
                }
            }
            Err(error) => tracing::warn!(error = outrider_runtime::tasks::chain(&error), "endpoints not removed, trying again"),
        }
        self.world.forget_agents(clock::now() - REMEMBER_AGENTS);
    }

    /// Stores agents; a new revision only if their endpoints changed. Returns the ids that belong to others.
    async fn join_agents(&mut self, mut joins: Vec<(AgentRow, u64)>) -> Result<BTreeSet<String>, StoreError> {
        if joins.is_empty() {
            return Ok(BTreeSet::new());
        }
        let joined = self.store.join_agents(&mut joins).await?;
        let members = joins.into_iter().map(|(agent, _)| agent).filter(|agent| !joined.taken.contains(&agent.id)).collect();
        self.take_in(members, joined.revision).await;
        Ok(joined.taken)
    }

    /// Puts agents into the world that are in the store, and shows it if that made a revision.
    async fn take_in(&mut self, agents: Vec<AgentRow>, revision: Option<u64>) {
        if self.is_next(revision) {
            self.world.put_agents(agents, revision.unwrap_or(self.world.revision));
            if revision.is_some() {
                self.show();
            }
        } else {
            self.follow().await;
        }
    }
}

/// Who may come in. Keeps count over the joins of one batch.
struct Door {
    /// The identity that each id belongs to, as long as it is remembered, and whether it is present.
    ids: BTreeMap<String, (SpiffeId, bool)>,
    present: usize,
    of_identity: BTreeMap<SpiffeId, usize>,
}

impl Door {
    fn new<'a>(agents: impl Iterator<Item = &'a Arc<AgentRow>>) -> Self {
        let mut door = Self { ids: BTreeMap::new(), present: 0, of_identity: BTreeMap::new() };
        for agent in agents {
            door.ids.insert(agent.id.clone(), (agent.identity.clone(), agent.present));
            if agent.present {
                door.count(&agent.identity);
            }
        }
        door
    }

    fn count(&mut self, identity: &SpiffeId) {
        self.present += 1;
        *self.of_identity.entry(identity.clone()).or_default() += 1;
    }

    fn admit(&mut self, agent: &AgentRow) -> Result<(), ChangeError> {
        match self.ids.get(&agent.id) {
            Some((identity, _)) if *identity != agent.identity => return Err(ChangeError::AgentTaken(agent.id.clone())),
            // One that is known is never kept out.
            Some((_, true)) => return Ok(()),
            Some((_, false)) => {}
            None if self.present >= MAX_AGENTS => return Err(ChangeError::TooManyAgents(MAX_AGENTS)),
            None if self.of_identity.get(&agent.identity).is_some_and(|count| *count >= MAX_OF_IDENTITY) => {
                return Err(ChangeError::TooManyOfIdentity(agent.identity.clone(), MAX_OF_IDENTITY));
            }
            None => {}
        }
        self.ids.insert(agent.id.clone(), (agent.identity.clone(), true));
        self.count(&agent.identity);
        Ok(())
    }
}

/// Ids of agents that are away and too many to be remembered.
fn too_many_away<'a>(agents: impl Iterator<Item = &'a AgentRow>) -> BTreeSet<String> {
    let mut away: Vec<&AgentRow> = agents.filter(|agent| !agent.present).collect();
    if away.len() <= MAX_AWAY_OF_IDENTITY {
        return BTreeSet::new();
    }
    away.sort_by_key(|agent| std::cmp::Reverse(agent.last_seen));
    let mut of_identity: BTreeMap<&SpiffeId, usize> = BTreeMap::new();
    let (mut kept, mut gone) = (0, BTreeSet::new());
    for agent in away {
        let own = of_identity.entry(&agent.identity).or_default();
        if kept < MAX_AWAY && *own < MAX_AWAY_OF_IDENTITY {
            (kept, *own) = (kept + 1, *own + 1);
        } else {
            gone.insert(agent.id.clone());
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(id: usize, account: &str, present: bool) -> AgentRow {
        AgentRow {
            id: format!("{id:x}"),
            identity: SpiffeId::new(&format!("spiffe://td/ns/a/sa/{account}")).unwrap(),
            version: String::new(),
            backings: Vec::new(),
            present,
            last_seen: i64::try_from(id).unwrap(),
            revision: 0,
        }
    }

    #[test]
    fn an_id_belongs_to_its_identity_as_long_as_it_is_remembered_and_within_a_batch() {
        let remembered = [Arc::new(agent(1, "web", true)), Arc::new(agent(2, "web", false))];
        let mut door = Door::new(remembered.iter());
        for id in [1, 2] {
            assert!(matches!(door.admit(&agent(id, "thief", true)), Err(ChangeError::AgentTaken(_))), "{id}");
            assert!(door.admit(&agent(id, "web", true)).is_ok(), "{id}");
        }
        assert!(door.admit(&agent(3, "web", true)).is_ok());
        assert!(matches!(door.admit(&agent(3, "thief", true)), Err(ChangeError::AgentTaken(_))), "in the same batch");
    }

    #[test]
    fn only_agents_that_are_present_count_and_no_identity_takes_all_places() {
        let away: Vec<_> = (0..MAX_AGENTS).map(|id| Arc::new(agent(id, "away", false))).collect();
        let mut door = Door::new(away.iter());
        for id in 0..MAX_OF_IDENTITY {
            assert!(door.admit(&agent(MAX_AGENTS + id, "loud", true)).is_ok());
        }
        assert!(matches!(door.admit(&agent(99_999, "loud", true)), Err(ChangeError::TooManyOfIdentity(..))));
        assert!(door.admit(&agent(99_999, "calm", true)).is_ok());
        let full: Vec<_> = (0..MAX_AGENTS).map(|id| Arc::new(agent(id, &format!("s{}", id % 9), true))).collect();
        let mut door = Door::new(full.iter().chain(&[Arc::new(agent(77_777, "back", false))]));
        assert!(matches!(door.admit(&agent(88_888, "new", true)), Err(ChangeError::TooManyAgents(_))));
        assert!(door.admit(&agent(77_777, "back", true)).is_ok(), "who is known comes back in");
    }

    #[test]
    fn the_oldest_of_those_away_are_forgotten_first_and_only_of_the_identity_that_has_too_many() {
        let loud = (0..MAX_AWAY_OF_IDENTITY + 2).map(|id| agent(id + 10, "loud", false));
        let all: Vec<AgentRow> = loud.chain([agent(0, "calm", false), agent(1, "loud", true)]).collect();
        assert_eq!(too_many_away(all.iter()), BTreeSet::from(["a".to_owned(), "b".to_owned()]));
    }
}
