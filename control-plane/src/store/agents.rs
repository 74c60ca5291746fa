//! Agents and the endpoints they stand for: kept, so that a restarted control plane does not push empty views.

use std::collections::{BTreeMap, BTreeSet};

use outrider_policy::{identity::SpiffeId, names::ServiceName, protocol::Protocol};

use super::{
    Lease, Store, StoreError, next_revision,
    replica::SILENT,
    sessions, signed,
    sql::{Change, composed, sql},
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
    /// The workload's labels.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
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
    /// Makes agents members, all in one transaction: `(agent, epoch of its stream)` each. They get one new revision if the
    /// endpoints of any of them changed. An id that belongs to another identity is left alone and named.
    pub(crate) async fn join_agents(&self, joins: &mut [(AgentRow, u64)]) -> Result<Joined, StoreError> {
        joins.sort_by(|left, right| left.0.id.cmp(&right.0.id));
        let mut change = self.begin().await?;
        let ids: Vec<&str> = joins.iter().map(|(agent, _)| agent.id.as_str()).collect();
        let before = hold(&mut change, &ids).await?;
        let mut joined = Joined::default();
        let mut moved = BTreeSet::new();
        for (agent, _) in joins.iter_mut() {
            match before.get(&agent.id) {
                Some(old) if old.identity != agent.identity => drop(joined.taken.insert(agent.id.clone())),
                Some(old) if (&old.backings, old.present) == (&agent.backings, agent.present) => agent.revision = old.revision,
                _ => drop(moved.insert(agent.id.clone())),
            }
        }
        joined.revision = if moved.is_empty() { None } else { Some(next_revision(&mut change).await?) };
        for (agent, _) in joins.iter_mut().filter(|(agent, _)| !joined.taken.contains(&agent.id)) {
            if let Some(revision) = joined.revision.filter(|_| moved.contains(&agent.id)) {
                agent.revision = revision;
            }
            put(&mut change, agent).await?;
        }
        if self.is_shared() {
            let ours = joins.iter().filter(|(agent, _)| !joined.taken.contains(&agent.id));
            let ours: Vec<(String, u64)> = ours.map(|(agent, epoch)| (agent.id.clone(), *epoch)).collect();
            sessions::take(&mut change, self.replica(), &ours).await?;
        }
        change.commit().await?;
        Ok(joined)
    }

    /// Takes the endpoints of these agents out of the mesh, except of those that another replica has in the meantime. Returns
    /// the revision and those that are out, if there are any.
    pub(crate) async fn part_agents(&self, ids: &BTreeSet<String>, now: i64) -> Result<Option<(u64, Vec<AgentRow>)>, StoreError> {
        let mut change = self.begin().await?;
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        // Whoever joins one of them at this moment is waited for, so that the next statement sees it.
        let before = hold(&mut change, &ids).await?;
        let present = before.into_values().filter(|agent| agent.present);
        let elsewhere = self.elsewhere(&mut change).await?;
        let mut gone: Vec<AgentRow> = present.filter(|agent| !elsewhere.contains(&agent.id)).collect();
        if gone.is_empty() {
            return Ok(None);
        }
        let revision = next_revision(&mut change).await?;
        for agent in &mut gone {
            (agent.present, agent.last_seen, agent.revision) = (false, now, revision);
            put(&mut change, agent).await?;
        }
        change.commit().await?;
        Ok(Some((revision, gone)))
    }

    /// Ids of agents with a stream to another replica that lives.
    async fn elsewhere(&self, change: &mut Change) -> Result<BTreeSet<String>, StoreError> {
        if !self.is_shared() {
            return Ok(BTreeSet::new());
        }
        let text = format!(
            "SELECT agent_id FROM sessions JOIN replicas ON replicas.id = sessions.replica
             WHERE sessions.replica <> $1 AND replicas.last_seen > {} - $2",
            self.writer.now()
        );
        let ids: Vec<(String,)> = composed(text).bind(self.replica()).bind(SILENT).all(change).await?;
        Ok(ids.into_iter().map(|(id,)| id).collect())
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

/// What became of agents that want to be members.
#[derive(Debug, Default)]
pub(crate) struct Joined {
    /// The revision that they made, if their endpoints are news.
    pub(crate) revision: Option<u64>,
    /// Ids that belong to other identities.
    pub(crate) taken: BTreeSet<String>,
}

/// Most ids of one statement.
const TOGETHER: usize = 500;

/// Reads agents and keeps everybody else from changing them until the end of the change.
async fn hold(change: &mut Change, ids: &[&str]) -> Result<BTreeMap<String, AgentRow>, StoreError> {
    let mut found = BTreeMap::new();
    for some in ids.chunks(TOGETHER) {
        let places: Vec<String> = (1..=some.len()).map(|place| format!("${place}")).collect();
        let text = format!(
            "UPDATE agents SET last_seen = last_seen WHERE id IN ({})
             RETURNING id, identity, version, backings, present, last_seen, revision",
            places.join(", ")
        );
        let query = some.iter().fold(composed(text), |query, id| query.bind(*id));
        for row in query.all::<Columns>(&mut *change).await? {
            let agent = agent(row)?;
            found.insert(agent.id.clone(), agent);
        }
    }
    Ok(found)
}

async fn put(change: &mut Change, agent: &AgentRow) -> Result<(), StoreError> {
    let backings = serde_json::to_string(&agent.backings)
        .map_err(|error| StoreError::Corrupt { table: "agents", reason: error.to_string() })?;
    sql("INSERT INTO agents (id, identity, version, backings, present, last_seen, revision)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (id) DO UPDATE SET identity = excluded.identity, version = excluded.version,
         backings = excluded.backings, present = excluded.present, last_seen = excluded.last_seen, revision = excluded.revision")
    .bind(&agent.id)
    .bind(agent.identity.as_str())
    .bind(&agent.version)
    .bind(backings)
    .bind(agent.present)
    .bind(agent.last_seen)
    .bind(signed(agent.revision))
    .run(change)
    .await?;
    Ok(())
}

/// Agents whose endpoints changed after a revision.
pub(super) async fn since(moment: &mut Change, revision: u64) -> Result<Vec<AgentRow>, StoreError> {
    let rows: Vec<Columns> =
        sql("SELECT id, identity, version, backings, present, last_seen, revision FROM agents WHERE revision > $1 ORDER BY id")
            .bind(signed(revision))
            .all(moment)
            .await?;
    rows.into_iter().map(agent).collect()
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
