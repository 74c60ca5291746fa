//! Agents come and go.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use super::ChangeError;
use crate::{
    clock,
    publish::Publisher,
    store::{AgentRow, StoreError},
};

/// Most agents of one control plane.
const MAX_AGENTS: usize = 20_000;
/// Agents that left are shown for a day.
const REMEMBER_AGENTS: i64 = 86_400;

/// An agent that opens a stream: its row, its epoch, and where to answer.
pub(crate) type Join = (AgentRow, u64, oneshot::Sender<Result<(), ChangeError>>);

impl Publisher {
    /// Takes agents in, all in one transaction.
    pub(crate) async fn join(&mut self, joins: Vec<Join>) {
        let mut accepted = Vec::new();
        let mut waiting = Vec::new();
        for (agent, epoch, reply) in joins {
            let known = self.world.agents.get(&agent.id).filter(|known| known.present);
            if known.is_some_and(|known| known.identity != agent.identity) {
                let _ = reply.send(Err(ChangeError::AgentTaken(agent.id)));
            } else if known.is_none() && self.world.agents.len() + accepted.len() >= MAX_AGENTS {
                let _ = reply.send(Err(ChangeError::TooManyAgents(MAX_AGENTS)));
            } else {
                waiting.push((agent.id.clone(), epoch, reply));
                accepted.push(agent);
            }
        }
        let stored = self.put_agents(accepted).await.map_err(Arc::new);
        for (id, epoch, reply) in waiting {
            if stored.is_ok() {
                self.leaving.remove(&id);
                self.streams.insert(id, epoch);
            }
            let failed = |error: &Arc<StoreError>| ChangeError::Store(StoreError::Shared(Arc::clone(error)));
            let _ = reply.send(stored.as_ref().copied().map_err(failed));
        }
    }

    /// A stream ended. Its endpoints go when nobody comes back in time.
    pub(crate) async fn leave(&mut self, agent_id: &str, epoch: u64, goodbye: bool) {
        if self.streams.get(agent_id) == Some(&epoch) {
            self.streams.remove(agent_id);
            let wait = if goodbye { Duration::ZERO } else { self.grace };
            self.leaving.insert(agent_id.to_owned(), Instant::now() + wait);
            if goodbye {
                self.expire().await;
            }
        }
    }

    /// Takes endpoints out whose agents did not come back in time.
    pub(crate) async fn expire(&mut self) {
        let now = Instant::now();
        let due: BTreeSet<String> = self.leaving.iter().filter(|(_, until)| **until <= now).map(|(id, _)| id.clone()).collect();
        if due.is_empty() {
            return;
        }
        let gone = due.iter().filter_map(|id| self.world.agents.get(id));
        let gone = gone.map(|agent| AgentRow { present: false, last_seen: clock::now(), ..AgentRow::clone(agent) }).collect();
        match self.put_agents(gone).await {
            Ok(()) => self.leaving.retain(|id, _| !due.contains(id)),
            Err(error) => tracing::warn!(error = outrider_runtime::tasks::chain(&error), "endpoints not removed, trying again"),
        }
        self.world.forget_agents(clock::now() - REMEMBER_AGENTS);
    }

    /// Stores agents; a new revision only if their endpoints changed.
    async fn put_agents(&mut self, mut rows: Vec<AgentRow>) -> Result<(), StoreError> {
        let same = |row: &AgentRow| {
            let old = self.world.agents.get(&row.id);
            old.is_some_and(|old| (&old.identity, &old.backings, old.present) == (&row.identity, &row.backings, row.present))
        };
        for row in &mut rows {
            row.revision = self.world.agents.get(&row.id).map_or(0, |old| old.revision);
        }
        let changed = !rows.iter().all(same);
        if !rows.is_empty() {
            let revision = self.store.put_agents(&mut rows, changed).await?;
            self.world.put_agents(rows, revision.unwrap_or(self.world.revision));
            if changed {
                self.show();
            }
        }
        Ok(())
    }
}
