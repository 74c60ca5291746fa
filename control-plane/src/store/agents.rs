//! Agents and the endpoints they stand for: kept, so that a restarted control plane does not push empty views.

use std::collections::{BTreeMap, BTreeSet};

use outrider_policy::{identity::SpiffeId, names::ServiceName, protocol::Protocol};

use super::{Store, StoreError, next_revision, signed};

/// A service as one agent backs it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Backing {
    /// Which service.
    pub(crate) service: ServiceName,
    /// `host:port` of the agent's mesh listener.
    pub(crate) mesh_address: String,
    /// What each port of the service speaks.
    pub(crate) ports: BTreeMap<u16, Protocol>,
    /// Where the agent is; empty when it does not say.
    #[serde(default)]
    pub(crate) zone: String,
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentRow {
    /// UUID text.
    pub(crate) id: String,
    pub(crate) identity: SpiffeId,
    /// Version of its program.
    pub(crate) version: String,
    pub(crate) backings: Vec<Backing>,
    /// Whether its endpoints are part of the mesh.
    pub(crate) present: bool,
    /// Unix seconds.
    pub(crate) last_seen: i64,
    /// Store revision at which its endpoints last changed.
    pub(crate) revision: u64,
}

impl Store {
    /// All agents.
    pub(crate) async fn agents(&self) -> Result<Vec<AgentRow>, StoreError> {
        let rows: Vec<(String, String, String, String, bool, i64, i64)> =
            sqlx::query_as("SELECT id, identity, version, backings, present, last_seen, revision FROM agents ORDER BY id")
                .fetch_all(self.readers())
                .await?;
        let corrupt = |reason: String| StoreError::Corrupt { table: "agents", reason };
        rows.into_iter()
            .map(|(id, identity, version, backings, present, last_seen, revision)| {
                let identity = SpiffeId::new(&identity).map_err(|error| corrupt(error.to_string()))?;
                let backings = serde_json::from_str(&backings).map_err(|error| corrupt(error.to_string()))?;
                Ok(AgentRow { id, identity, version, backings, present, last_seen, revision: revision.unsigned_abs() })
            })
            .collect()
    }

    /// Writes agents in one transaction. With `endpoints` their endpoints changed: they get one new revision.
    pub(crate) async fn put_agents(&self, agents: &mut [AgentRow], endpoints: bool) -> Result<Option<u64>, StoreError> {
        let mut change = self.begin().await?;
        let revision = if endpoints { Some(next_revision(&mut change).await?) } else { None };
        for agent in agents {
            agent.revision = revision.unwrap_or(agent.revision);
            let backings = serde_json::to_string(&agent.backings)
                .map_err(|error| StoreError::Corrupt { table: "agents", reason: error.to_string() })?;
            sqlx::query(
                "INSERT INTO agents (id, identity, version, backings, present, last_seen, revision) VALUES (?, ?, ?, ?, ?, ?, ?)
                 ON CONFLICT (id) DO UPDATE SET identity = excluded.identity, version = excluded.version,
                 backings = excluded.backings, present = excluded.present, last_seen = excluded.last_seen, revision = excluded.revision",
            )
            .bind(&agent.id)
            .bind(agent.identity.as_str())
            .bind(&agent.version)
            .bind(backings)
            .bind(agent.present)
            .bind(agent.last_seen)
            .bind(signed(agent.revision))
            .execute(&mut *change)
            .await?;
        }
        change.commit().await?;
        Ok(revision)
    }

    /// Forgets these agents.
    pub(crate) async fn forget_agents(&self, ids: &BTreeSet<String>) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        for id in ids {
            sqlx::query("DELETE FROM agents WHERE id = ?").bind(id).execute(&mut *change).await?;
        }
        Ok(change.commit().await?)
    }

    /// Forgets agents that left before `before`.
    pub(crate) async fn prune_agents(&self, before: i64) -> Result<u64, StoreError> {
        let pruned =
            sqlx::query("DELETE FROM agents WHERE present = 0 AND last_seen < ?").bind(before).execute(&self.writer).await?;
        Ok(pruned.rows_affected())
    }
}
