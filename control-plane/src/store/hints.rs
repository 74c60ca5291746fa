//! Hints that something changed in a store that replicas share. They may be lost: whoever needs the truth asks now and then.

use std::{sync::Arc, time::Duration};

use outrider_runtime::Drain;
use sqlx::postgres::PgListener;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Store, StoreError,
    sql::{Change, Connections, sql},
};

/// Pause before the next attempt to listen.
const AGAIN: Duration = Duration::from_secs(1);
/// A server that says nothing for so long, or does not answer for so long, is asked whether it is there, or given up.
const QUIET: Duration = Duration::from_secs(5);

/// What changed. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hints {
    /// Policies, agents, or whatever else agents can see.
    pub(crate) mesh: Arc<watch::Sender<u64>>,
    /// What is in force where.
    pub(crate) sessions: Arc<watch::Sender<u64>>,
}

impl Store {
    /// Listens to what other replicas change, until drain.
    ///
    /// # Errors
    /// Never.
    pub(crate) async fn listen(self, drain: Drain) -> Result<(), std::convert::Infallible> {
        loop {
            tokio::select! {
                heard = self.hear() => {
                    let error: Result<(), sqlx::Error> = heard;
                    if let Err(error) = error {
                        tracing::debug!(%error, "not listening to the store, asking it instead");
                    }
                }
                () = drain.stopping() => return Ok(()),
            }
            tokio::select! {
                () = sleep(AGAIN) => {}
                () = drain.stopping() => return Ok(()),
            }
        }
    }

    async fn hear(&self) -> Result<(), sqlx::Error> {
        let Connections::Postgres(pool) = &self.writer.database else {
            // There is nobody else.
            return std::future::pending().await;
        };
        let late = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
        let begin = async {
            let mut listener = PgListener::connect_with(pool).await?;
            listener.listen("outrider").await?;
            Ok::<_, sqlx::Error>(listener)
        };
        let mut listener = timeout(QUIET, begin).await.map_err(late)??;
        loop {
            let Ok(hint) = timeout(QUIET, listener.recv()).await else {
                timeout(QUIET, sqlx::query("SELECT 'still listening'").execute(&mut listener)).await.map_err(late)??;
                continue;
            };
            let hint = hint?;
            let what = if hint.payload() == "sessions" { &self.hints.sessions } else { &self.hints.mesh };
            what.send_modify(|count| *count += 1);
        }
    }
}

impl Change {
    /// Tells the other replicas, once it is committed.
    pub(super) async fn hint(&mut self, what: &'static str) -> Result<(), StoreError> {
        if self.is_shared() {
            sql("SELECT pg_notify('outrider', $1)").bind(what).run(self).await?;
        }
        Ok(())
    }
}
