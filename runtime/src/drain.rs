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
    succeeded: CancellationToken,
    idle: CancellationToken,
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

    /// Ends when connections without work under way should end. Where a successor serves on, that is a while after
    /// [`Drain::stopping`]: a connection that is closed while a request is on its way to it loses the request.
    pub fn idle(&self) -> WaitForCancellationFuture<'_> {
        self.idle.cancelled()
    }

    /// Ends when a successor has taken over; never otherwise.
    pub fn succeeded(&self) -> WaitForCancellationFuture<'_> {
        self.succeeded.cancelled()
    }

    /// Whether a successor has taken over.
    pub fn is_succeeded(&self) -> bool {
        self.succeeded.is_cancelled()
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
        self.idle.cancel();
    }

    /// Stops new work, waits for all holds up to `deadline`, then forces the rest.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.stop();
        self.finish(deadline).await
    }

    /// As [`Drain::drain`], with a successor that serves from now on: connections that wait for a next request get up to
    /// `grace` for it, so that its answer can tell them to go.
    pub async fn succeed(&self, grace: Duration, deadline: Duration) -> Drained {
        self.succeeded.cancel();
        self.stopping.cancel();
        self.holds.close();
        let grace = grace.min(deadline);
        let _ = tokio::time::timeout(grace, self.holds.wait()).await;
        self.idle.cancel();
        self.finish(deadline - grace).await
    }

    async fn finish(&self, deadline: Duration) -> Drained {
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
    async fn a_successor_gives_idle_connections_time() {
        let drain = Drain::new();
        let hold = drain.hold();
        let connection = drain.clone();
        let began = tokio::time::Instant::now();
        let waiter = tokio::task::JoinSet::from_iter([async move {
            connection.stopping().await;
            assert!(began.elapsed() < Duration::from_secs(1) && connection.is_succeeded());
            connection.idle().await;
            drop(hold);
        }]);
        assert_eq!(drain.succeed(Duration::from_secs(5), Duration::from_secs(30)).await, Drained::Clean);
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        drop(waiter);
        let alone = Drain::new();
        alone.stop();
        alone.idle().await;
        assert!(!alone.is_succeeded());
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_forces_the_rest() {
        let drain = Drain::new();
        let _hold = drain.hold();
        assert_eq!(drain.drain(Duration::from_secs(5)).await, Drained::Forced(1));
        drain.forced().await;
    }
}
