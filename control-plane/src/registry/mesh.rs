//! Where changes are asked for, and where the mesh is watched.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::{ChangeError, Request, Sessions, World};

/// How long an agent that says goodbye is kept waiting for its endpoints to go.
const GOODBYE: Duration = Duration::from_secs(1);

/// Where to ask for changes, and where to watch them. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Mesh {
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) world: watch::Receiver<Arc<World>>,
    pub(crate) sessions: Sessions,
}

impl Mesh {
    /// Asks for a change and waits until it is stored and shown.
    pub(crate) async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, ChangeError>>) -> Request,
    ) -> Result<T, ChangeError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| ChangeError::Stopping)?;
        answer.await.map_err(|_| ChangeError::Stopping)?
    }

    /// Ends when no stream is open.
    pub(crate) async fn closed(&self) {
        let mut changes = self.sessions.changes();
        while self.sessions.count() > 0 && changes.changed().await.is_ok() {}
    }

    /// Says that a stream ended. After a goodbye this waits a little until the agent's endpoints are out of the mesh.
    pub(crate) async fn leave(&self, agent_id: String, epoch: u64, goodbye: bool) {
        let (_done, handled) = oneshot::channel();
        // When the control plane stops, agents stay present in the store: they come back after the restart.
        let asked = self.requests.send(Request::Leave { agent_id, epoch, goodbye, _done }).await;
        if asked.is_ok() && goodbye {
            let _ = timeout(GOODBYE, handled).await;
        }
    }
}
