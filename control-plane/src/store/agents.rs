//! Agents and the endpoints they stand for: kept, so that a restarted control plane does not push empty views.

use std::collections::{BTreeMap, BTreeSet};

use outrider_policy::{identity::SpiffeId, names::ServiceName, protocol::Protocol};

use super::{
    Lease, Store, StoreError, next_revision, signed,
    sql::{Change, sql},
};

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
    /// Writes agents in one transaction. With `endpoints` their endpoints changed: they get one new revision.
    pub(crate) async fn put_agents(&self, agents: &mut [AgentRow], endpoints: bool) -> Result<Option<u64>, StoreError> {
        let mut change = self.begin().await?;
        let revision = if endpoints { Some(next_revision(&mut change).await?) } else { None };
        for agent in agents {
            agent.revision = revision.unwrap_or(agent.revision);
            let backings = serde_json::to_string(&agent.backings)
                .map_err(|error| StoreError::Corrupt { table: "agents", reason: error.to_string() })?;
            sql(
                "INSERT INTO agents (id, identity, version, backings, present, last_seen, revision)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)
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
            .run(&mut change)
            .await?;
        }
        change.commit().await?;
        Ok(revision)
    }

    /// Forgets these agents.
    pub(crate) async fn forget_agents(&self, ids: &BTreeSet<String>) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        for id in ids {
            sql("DELETE FROM agents WHERE id = $1").bind(id).run(&mut change).await?;
        }
        Ok(change.commit().await?)
    }

    /// Forgets agents that left before `before`.
    pub(crate) async fn prune_agents(&self, lease: &Lease, before: i64) -> Result<u64, StoreError> {
        let mut change = self.begin_under(lease).await?;
        let pruned = sql("DELETE FROM agents WHERE present = 0 AND last_seen < $1").bind(before).run(&mut change).await?;
        change.commit().await?;
        Ok(pruned)
    }
}

/// All agents.
pub(super) async fn all(moment: &mut Change) -> Result<Vec<AgentRow>, StoreError> {
    let rows: Vec<Columns> =
        sql("SELECT id, identity, version, backings, present, last_seen, revision FROM agents ORDER BY id").all(moment).await?;
    rows.into_iter().map(agent).collect()
}

type Columns = (String, String, String, String, i64, i64, i64);

fn agent((id, identity, version, backings, present, last_seen, revision): Columns) -> Result<AgentRow, StoreError> {
    let corrupt = |reason: String| StoreError::Corrupt { table: "agents", reason };
    let identity = SpiffeId::new(&identity).map_err(|error| corrupt(error.to_string()))?;
    let backings = serde_json::from_str(&backings).map_err(|error| corrupt(error.to_string()))?;
    Ok(AgentRow { id, identity, version, backings, present: present != 0, last_seen, revision: revision.unsigned_abs() })
}
