//! The agent as a service of the system: it says when it is ready, and starts its own successor when it is asked to.

use std::{convert::Infallible, process::ExitStatus};

use outrider_runtime::{Drain, Readiness, drain};
use sd_notify::NotifyState;
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};

/// Tells the service manager when the agent is ready, and that it is this process: its predecessor may have been another.
pub(crate) async fn ready(readiness: Readiness, drain: Drain) -> Result<(), Infallible> {
    tokio::select! {
        () = readiness.ready() => tell(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]),
        () = drain.stopping() => {}
    }
    Ok(())
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager was not told");
    }
}

/// Ends at a signal to stop. At SIGUSR2 a successor is started, which takes over as soon as it can serve.
pub(crate) async fn told_to_stop() {
    match wait().await {
        Ok(signal) => tracing::info!(signal, "draining"),
        Err(error) => tracing::error!(%error, "no signals: draining"),
    }
    tell(&[NotifyState::Stopping]);
}

async fn wait() -> std::io::Result<&'static str> {
    let mut upgrade = signal(SignalKind::user_defined2())?;
    let mut stop = std::pin::pin!(drain::signal());
    let mut successor: Option<Child> = None;
    loop {
        tokio::select! {
            signal = &mut stop => return signal,
            _ = upgrade.recv() => match successor {
                Some(_) => tracing::warn!("a successor is starting already"),
                None => successor = start_successor(),
            },
            status = ended(&mut successor) => {
                tracing::error!(status = %status.map_or_else(|error| error.to_string(), |status| status.to_string()), "the successor ended: this agent goes on");
                successor = None;
            }
        }
    }
}

async fn ended(successor: &mut Option<Child>) -> std::io::Result<ExitStatus> {
    match successor {
        Some(successor) => successor.wait().await,
        None => std::future::pending().await,
    }
}

/// This program as it is on disk now, with the same arguments.
fn start_successor() -> Option<Child> {
    let mut arguments = std::env::args_os();
    let program = arguments.next()?;
    let arguments = arguments.filter(|argument| argument != "--take-over");
    match Command::new(&program).args(arguments).arg("--take-over").spawn() {
        Ok(successor) => {
            tracing::info!(pid = successor.id(), "successor started");
            Some(successor)
        }
        Err(error) => {
            tracing::error!(%error, program = %program.display(), "no successor: this agent goes on");
            None
        }
    }
}
