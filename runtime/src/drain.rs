//! Leaving in good order: stop taking work, finish what is under way, and after a deadline end by force.

use std::time::Duration;

use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFuture},
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// Tells everybody that the process leaves, and waits for those who hold work. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    stopping: CancellationToken,
    forced: CancellationToken,
    holds: TaskTracker,
}

/// Work under way: drain waits until it is dropped.
#[must_use = "drain waits only for holds that live"]
#[derive(Debug)]
pub struct Hold {
    _token: TaskTrackerToken,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All work ended by itself.
    Clean,
    /// This many pieces of work were cut off at the deadline.
    Forced(usize),
}

impl Drain {
    /// A drain that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends when the process should take no more work.
    pub fn stopping(&self) -> WaitForCancellationFuture<'_> {
        self.stopping.cancelled()
    }

    /// Whether the process should take no more work.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Ends when work under way must end now.
    pub fn forced(&self) -> WaitForCancellationFuture<'_> {
        self.forced.cancelled()
    }

    /// Marks a piece of work that deserves to be finished.
    pub fn hold(&self) -> Hold {
        Hold { _token: self.holds.token() }
    }

    /// Starts to leave without waiting.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Stops new work, waits for all holds up to `deadline`, then forces the rest.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.stopping.cancel();
        self.holds.close();
        let clean = tokio::time::timeout(deadline, self.holds.wait()).await.is_ok();
        let left = self.holds.len();
        self.forced.cancel();
        if clean { Drained::Clean } else { Drained::Forced(left) }
    }
}

/// Ends at SIGTERM or SIGINT and names the signal.
///
/// # Errors
/// When the process may not install signal handlers.
pub async fn signal() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => Ok("SIGTERM"),
        _ = int.recv() => Ok("SIGINT"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_under_way_is_waited_for() {
        let drain = Drain::new();
        let hold = drain.hold();
        let worker = drain.clone();
        let waiter = tokio::task::JoinSet::from_iter([async move {
            worker.stopping().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(hold);
        }]);
        assert_eq!(drain.drain(Duration::from_secs(5)).await, Drained::Clean);
        drop(waiter);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_forces_the_rest() {
        let drain = Drain::new();
        let _hold = drain.hold();
        assert_eq!(drain.drain(Duration::from_secs(5)).await, Drained::Forced(1));
        drain.forced().await;
    }
}
