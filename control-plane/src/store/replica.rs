//! Which control plane this is, among those that share the store.

use super::{Store, StoreError, sql::composed};

/// A replica that was not heard of for this long is not counted on. Milliseconds by the store's clock.
pub(crate) const SILENT: i64 = 6_000;

/// Who this control plane is.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    /// The same after a restart: whose the issuing CA is.
    pub(crate) id: String,
    /// Of its state directory, which one process has at a time.
    home: String,
    /// Made anew at every start.
    pub(super) incarnation: String,
}

impl Replica {
    /// A start of the replica with that id, out of the state directory with the id `home`.
    pub(crate) fn starting(id: &str, home: &str) -> Self {
        Self { id: id.to_owned(), home: format!("{home}#"), incarnation: format!("{home}#{}", uuid::Uuid::now_v7()) }
    }
}

/// A replica as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReplicaRow {
    pub(crate) id: String,
    /// `host:port` that agents are told.
    pub(crate) address: String,
    pub(crate) version: String,
    /// Milliseconds since it was last heard of.
    pub(crate) silent: i64,
    /// Milliseconds since it started.
    pub(crate) up: i64,
}

impl ReplicaRow {
    /// Whether it is counted on.
    pub(crate) fn is_live(&self) -> bool {
        self.silent < SILENT
    }
}

impl Store {
    /// Says that this replica lives. False when one out of another state directory lives under its id.
    pub(crate) async fn heartbeat(&self, address: &str) -> Result<bool, StoreError> {
        // Held until it is written: a sign of life must not come after the farewell.
        let here = self.here.lock().await;
        if !*here {
            return Ok(true);
        }
        let now = self.writer.now();
        let text = format!(
            "INSERT INTO replicas (id, incarnation, address, version, started, last_seen) VALUES ($1, $2, $3, $4, {now}, {now})
             ON CONFLICT (id) DO UPDATE SET incarnation = excluded.incarnation, address = excluded.address,
             version = excluded.version, last_seen = excluded.last_seen,
             started = CASE WHEN replicas.incarnation = excluded.incarnation THEN replicas.started ELSE excluded.started END
             WHERE substr(replicas.incarnation, 1, {}) = $6 OR replicas.last_seen < excluded.last_seen - $5",
            self.replica.home.len()
        );
        let beat = composed(text)
            .bind(&self.replica.id)
            .bind(&self.replica.incarnation)
            .bind(address)
            .bind(env!("CARGO_PKG_VERSION"))
            .bind(SILENT)
            .bind(&self.replica.home);
        Ok(beat.run(&self.writer).await? > 0)
    }

    /// This replica ends in good order: nobody waits for it.
    pub(crate) async fn farewell(&self) -> Result<(), StoreError> {
        let mut here = self.here.lock().await;
        *here = false;
        let gone = composed("UPDATE replicas SET last_seen = 0 WHERE id = $1 AND incarnation = $2".to_owned());
        gone.bind(&self.replica.id).bind(&self.replica.incarnation).run(&self.writer).await?;
        Ok(())
    }

    /// All replicas that ever were, the live ones first.
    pub(crate) async fn replicas(&self) -> Result<Vec<ReplicaRow>, StoreError> {
        let now = self.writer.now();
        let text = format!(
            "SELECT id, address, version, {now} - last_seen, {now} - started FROM replicas ORDER BY last_seen DESC, id LIMIT 1000"
        );
        let rows: Vec<(String, String, String, i64, i64)> = composed(text).all(self.readers()).await?;
        let row = |(id, address, version, silent, up)| ReplicaRow { id, address, version, silent, up };
        Ok(rows.into_iter().map(row).collect())
    }
}
