//! What the programs of connected agents call: how replicas know whom a change of a route concerns.

use super::{
    Store, StoreError,
    replica::SILENT,
    signed,
    sql::{Change, composed, rows},
};

/// Rows of one statement.
const TOGETHER: usize = 200;

/// The services that an agent's program calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WantsRow {
    pub(crate) agent_id: String,
    /// Of its stream.
    pub(crate) epoch: u64,
    /// `namespace/name` each, with a space between.
    pub(crate) services: String,
}

impl Store {
    /// What agents of the other replicas that live call, by agent; those that call nothing are not among them.
    pub(crate) async fn other_wants(&self) -> Result<Vec<(String, String)>, StoreError> {
        let text = format!(
            "SELECT agent_id, wants FROM sessions JOIN replicas ON replicas.id = sessions.replica
             WHERE sessions.replica <> $1 AND wants <> '' AND replicas.last_seen > {} - $2",
            self.writer.now()
        );
        Ok(composed(text).bind(self.replica()).bind(SILENT).all(self.readers()).await?)
    }
}

/// Tells the others as part of a change. Rows that another replica has taken over stay as they are.
pub(super) async fn tell(change: &mut Change, replica: &str, wants: &[WantsRow]) -> Result<(), StoreError> {
    for some in wants.chunks(TOGETHER) {
        let text = format!(
            "WITH news (id, era, services) AS (VALUES {}) UPDATE sessions SET wants = news.services FROM news
             WHERE sessions.agent_id = news.id AND sessions.epoch = news.era AND sessions.replica = $1",
            rows(2, some.len(), 3)
        );
        let query = some.iter().fold(composed(text).bind(replica), |query, row| {
            query.bind(&row.agent_id).bind(signed(row.epoch)).bind(&row.services)
        });
        query.run(&mut *change).await?;
    }
    Ok(())
}
