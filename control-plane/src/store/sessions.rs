//! Which agents are connected where, and what is in force at each: how replicas know of each other's agents.
//!
//! Only a store that replicas share is told. The row of an agent belongs to the replica that the agent joined last.

use super::{
    Deed, Lease, Store, StoreError, WantsRow,
    audit::enter,
    replica::SILENT,
    signed,
    sql::{Change, Sql, composed, rows, sql},
    wants,
};

/// Rows of one statement.
const TOGETHER: usize = 200;

/// An agent's stream, as the replica that has it tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionRow {
    pub(crate) agent_id: String,
    /// Counts the streams of one start of a replica.
    pub(crate) epoch: u64,
    pub(crate) in_force: u64,
    /// Revision and reason of its last refusal.
    pub(crate) refused: Option<(u64, String)>,
    pub(crate) considered: u64,
    pub(crate) answering: bool,
    pub(crate) serial: String,
    /// Unix seconds.
    pub(crate) certificate_end: i64,
    /// Unix seconds.
    pub(crate) last_seen: i64,
}

type Columns = (String, i64, i64, i64, String, i64, i64, String, i64, i64);

impl SessionRow {
    fn read(columns: Columns) -> Self {
        let (agent_id, epoch, in_force, refused, reason, considered, answering, serial, certificate_end, last_seen) = columns;
        Self {
            agent_id,
            epoch: epoch.unsigned_abs(),
            in_force: in_force.unsigned_abs(),
            refused: (refused != 0).then(|| (refused.unsigned_abs(), reason)),
            considered: considered.unsigned_abs(),
            answering: answering != 0,
            serial,
            certificate_end,
            last_seen,
        }
    }

    /// Its ten values, in the order of the columns.
    fn bind(&self, query: Sql) -> Sql {
        let (refused, reason) = self.refused.as_ref().map_or((0, ""), |(revision, reason)| (signed(*revision), reason.as_str()));
        let query = query.bind(&self.agent_id).bind(signed(self.epoch)).bind(signed(self.in_force)).bind(refused).bind(reason);
        let query = query.bind(signed(self.considered)).bind(self.answering).bind(&self.serial);
        query.bind(self.certificate_end).bind(self.last_seen)
    }
}

impl Store {
    /// Tells the others what changed at our agents. Rows that another replica has taken over stay as they are.
    pub(crate) async fn tell_sessions(
        &self,
        changed: &[SessionRow],
        wants: &[WantsRow],
        gone: &[(String, u64)],
    ) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        for some in changed.chunks(TOGETHER) {
            let text = format!(
                "WITH news (id, era, in_force, refused, reason, considered, answering, serial, certificate_end, last_seen) AS
                 (VALUES {}) UPDATE sessions SET in_force = news.in_force, refused = news.refused, reason = news.reason,
                 considered = news.considered, answering = news.answering, serial = news.serial,
                 certificate_end = news.certificate_end, last_seen = news.last_seen FROM news
                 WHERE sessions.agent_id = news.id AND sessions.epoch = news.era AND sessions.replica = $1",
                rows(2, some.len(), 10)
            );
            some.iter().fold(composed(text).bind(self.replica()), |query, row| row.bind(query)).run(&mut change).await?;
        }
        wants::tell(&mut change, self.replica(), wants).await?;
        for (agent_id, epoch) in gone {
            let delete = sql("DELETE FROM sessions WHERE agent_id = $1 AND epoch = $2 AND replica = $3");
            delete.bind(agent_id).bind(signed(*epoch)).bind(self.replica()).run(&mut change).await?;
        }
        change.hint("sessions").await?;
        Ok(change.commit().await?)
    }

    /// Says again which agents we have, in case that the others had given us up. How many were new to them.
    pub(crate) async fn assert_sessions(&self, ours: &[SessionRow]) -> Result<u64, StoreError> {
        let mut new = 0;
        for some in ours.chunks(TOGETHER) {
            let text = format!(
                "INSERT INTO sessions (replica, agent_id, epoch, in_force, refused, reason, considered, answering, serial,
                 certificate_end, last_seen) SELECT $1, news.* FROM (VALUES {}) AS news WHERE true ON CONFLICT (agent_id) DO NOTHING",
                rows(2, some.len(), 10)
            );
            new += some.iter().fold(composed(text).bind(self.replica()), |query, row| row.bind(query)).run(&self.writer).await?;
        }
        Ok(new)
    }

    /// Agents of the other replicas that live.
    pub(crate) async fn other_sessions(&self) -> Result<Vec<SessionRow>, StoreError> {
        let text = format!(
            "SELECT agent_id, epoch, in_force, refused, reason, considered, answering, serial, certificate_end, sessions.last_seen
             FROM sessions JOIN replicas ON replicas.id = sessions.replica
             WHERE sessions.replica <> $1 AND replicas.last_seen > {} - $2",
            self.writer.now()
        );
        let rows: Vec<Columns> = composed(text).bind(self.replica()).bind(SILENT).all(self.readers()).await?;
        Ok(rows.into_iter().map(SessionRow::read).collect())
    }

    /// Forgets sessions of a former start of this replica.
    pub(crate) async fn forget_sessions(&self) -> Result<(), StoreError> {
        sql("DELETE FROM sessions WHERE replica = $1").bind(self.replica()).run(&self.writer).await?;
        Ok(())
    }

    /// Forgets sessions of replicas that do not live.
    pub(crate) async fn forget_sessions_of_the_dead(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut change = self.begin_under(lease).await?;
        let text = format!(
            "DELETE FROM sessions WHERE replica NOT IN (SELECT id FROM replicas WHERE last_seen > {} - $1)",
            self.writer.now()
        );
        composed(text).bind(SILENT).run(&mut change).await?;
        Ok(change.commit().await?)
    }

    /// Asks the replicas that have these agents to have their certificates renewed. The entry is of all agents that are asked.
    pub(crate) async fn ask_renewals(&self, agents: &[String], deed: Deed<'_>, now: i64) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        enter(&mut change, deed, 0, now).await?;
        for agent in agents {
            sql("UPDATE sessions SET renewals_asked = renewals_asked + 1 WHERE agent_id = $1")
                .bind(agent)
                .run(&mut change)
                .await?;
        }
        if !agents.is_empty() {
            change.hint("sessions").await?;
        }
        Ok(change.commit().await?)
    }

    /// Agents of ours that others ask to renew. Each order is returned once.
    pub(crate) async fn take_renewals(&self) -> Result<Vec<String>, StoreError> {
        let asked: Vec<(String,)> = sql("SELECT agent_id FROM sessions WHERE replica = $1 AND renewals_asked > renewals_passed")
            .bind(self.replica())
            .all(self.readers())
            .await?;
        for (agent,) in &asked {
            let passed = sql("UPDATE sessions SET renewals_passed = renewals_asked WHERE agent_id = $1 AND replica = $2");
            passed.bind(agent).bind(self.replica()).run(&self.writer).await?;
        }
        Ok(asked.into_iter().map(|(agent,)| agent).collect())
    }
}

/// Takes agents over from whichever replica had them, as part of the change that makes them members.
pub(super) async fn take(change: &mut Change, replica: &str, joined: &[(String, u64)]) -> Result<(), StoreError> {
    for some in joined.chunks(TOGETHER) {
        let text = format!(
            "INSERT INTO sessions (replica, in_force, refused, reason, considered, answering, serial, certificate_end, last_seen,
             agent_id, epoch) SELECT $1, 0, 0, '', 0, 0, '', 0, 0, news.* FROM (VALUES {}) AS news WHERE true
             ON CONFLICT (agent_id) DO UPDATE SET replica = excluded.replica, epoch = excluded.epoch, in_force = 0, refused = 0,
             reason = '', considered = 0, answering = 0, renewals_asked = 0, renewals_passed = 0, wants = ''",
            rows(2, some.len(), 2)
        );
        let query = composed(text).bind(replica);
        let query = some.iter().fold(query, |query, (agent, epoch)| query.bind(agent).bind(signed(*epoch)));
        query.run(&mut *change).await?;
    }
    Ok(())
}
