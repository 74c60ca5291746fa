//! Named tasks: the first one that fails is heard of, panics are failures, and everything that runs can be waited for.

use std::{fmt, future::Future, time::Duration};

use tokio::{sync::watch, task::JoinHandle};
use tokio_util::task::TaskTracker;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A group of tasks. Clones share the group.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    failed: watch::Sender<Option<TaskFailed>>,
}

/// A task ended with an error, or panicked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("task `{task}` failed: {reason}")]
pub struct TaskFailed {
    /// The name it was spawned with.
    pub task: &'static str,
    /// The chain of causes, or what it panicked with.
    pub reason: String,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// An empty group.
    pub fn new() -> Self {
        Self { tracker: TaskTracker::new(), failed: watch::Sender::new(None) }
    }

    /// Runs `future` on the runtime. An error or a panic fails the group.
    pub fn spawn<E: Into<Cause> + 'static>(
        &self,
        name: &'static str,
        future: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let task = self.tracker.spawn(async move { future.await.map_err(|error| chain(&*error.into())) });
        self.tracker.spawn(watch_over(self.failed.clone(), name, task));
    }

    /// Runs `future` on the current thread's local runtime. An error or a panic fails the group.
    pub fn spawn_local<E: Into<Cause> + 'static>(
        &self,
        name: &'static str,
        future: impl Future<Output = Result<(), E>> + 'static,
    ) {
        let task = self.tracker.spawn_local(async move { future.await.map_err(|error| chain(&*error.into())) });
        self.tracker.spawn_local(watch_over(self.failed.clone(), name, task));
    }

    /// Runs something that belongs to one connection or request: it is waited for, but its end concerns nobody else.
    /// The panic hook of [`crate::telemetry`] logs a panic.
    pub fn spawn_scoped(&self, future: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.tracker.spawn(future)
    }

    /// Like [`Tasks::spawn_scoped`], on the current thread's local runtime.
    pub fn spawn_scoped_local<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        // In a box: the runtime moves a task several times from its beginning to its end.
        self.tracker.spawn_local(Box::pin(future))
    }

    /// Ends when a task has failed; never otherwise.
    pub async fn failure(&self) -> TaskFailed {
        let mut failed = self.failed.subscribe();
        loop {
            if let Some(failure) = failed.borrow_and_update().clone() {
                return failure;
            }
            if failed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until every task has ended, at most `deadline`. Returns how many were still running.
    pub async fn finish(&self, deadline: Duration) -> usize {
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait()).await.ok();
        self.tracker.len()
    }
}

async fn watch_over(failed: watch::Sender<Option<TaskFailed>>, task: &'static str, handle: JoinHandle<Result<(), String>>) {
    let reason = match handle.await {
        Ok(Ok(())) => return,
        Ok(Err(reason)) => reason,
        Err(join) if join.is_cancelled() => return,
        Err(join) => join.to_string(),
    };
    tracing::error!(task, reason, "task failed");
    failed.send_if_modified(|first| {
        let is_first = first.is_none();
        first.get_or_insert(TaskFailed { task, reason });
        is_first
    });
}

/// An error with all its causes on one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    struct Chain<'a>(&'a (dyn std::error::Error + 'static));
    impl fmt::Display for Chain<'_> {
        fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            let mut last = self.0.to_string();
            write!(out, "{last}")?;
            let mut next = self.0.source();
            while let Some(cause) = next {
                let text = cause.to_string();
                // Some libraries repeat the cause in their own message.
                if !last.ends_with(&text) {
                    write!(out, ": {text}")?;
                    last = text;
                }
                next = cause.source();
            }
            Ok(())
        }
    }
    Chain(error).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_failed_task_is_named() {
        let tasks = Tasks::new();
        tasks.spawn("fine", async { Ok::<_, std::io::Error>(()) });
        tasks.spawn("broken", async { Err(std::io::Error::other("disk on fire")) });
        let failure = tasks.failure().await;
        assert_eq!((failure.task, failure.reason.as_str()), ("broken", "disk on fire"));
    }

    #[tokio::test]
    async fn a_panic_is_a_failure() {
        let tasks = Tasks::new();
        tasks.spawn::<std::io::Error>("bug", async { panic!("seven is not eight") });
        assert!(tasks.failure().await.reason.contains("seven is not eight"));
    }

    #[tokio::test]
    async fn finish_counts_what_did_not_end() {
        let tasks = Tasks::new();
        tasks.spawn_scoped(std::future::pending());
        tasks.spawn_scoped(async {});
        assert_eq!(tasks.finish(Duration::from_millis(20)).await, 1);
    }
}
