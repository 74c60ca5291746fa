//! A program whose life is tied to ours: it gets our signals, and ends when we do.

use std::{io::IsTerminal as _, os::unix::process::CommandExt as _, process::ExitStatus, task::Poll, time::Duration};

use rustix::process;
use tokio::{
    process::Child,
    signal::unix::{self, SignalKind},
    time::Instant,
};

use crate::failure::{Exit, Failure};

/// How long a program may take to end after TERM.
const PATIENCE: Duration = Duration::from_secs(30);

/// Becomes a program that the kernel ends when its parent ends, however that ends
#[derive(Debug, clap::Args)]
pub(crate) struct Tied {
    /// Process that must be the parent
    parent: i32,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Tied {
    /// Runs the verb; it returns only when the program cannot be started.
    pub(crate) fn run(self) -> Result<Exit, Failure> {
        let (program, arguments) = self.command.split_first().ok_or_else(|| Failure::Usage("no command".to_owned()))?;
        let tied = process::set_parent_process_death_signal(Some(process::Signal::KILL));
        tied.map_err(|error| Failure::Runtime(error.into()))?;
        // The parent may have ended before the kernel knew.
        if process::getppid().map(process::Pid::as_raw_pid) != Some(self.parent) {
            return Ok(Exit::Failed);
        }
        let error = std::process::Command::new(program).args(arguments).exec();
        Err(Failure::Usage(format!("cannot start `{program}`: {error}")))
    }
}

/// Signals that reach us.
pub(crate) struct Signals(Vec<(process::Signal, unix::Signal)>);

impl Signals {
    /// Listens from now on.
    pub(crate) fn new() -> std::io::Result<Self> {
        use process::Signal;
        let all = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];
        let listen = |signal: Signal| Ok((signal, unix::signal(SignalKind::from_raw(signal.as_raw()))?));
        all.into_iter().map(listen).collect::<std::io::Result<_>>().map(Self)
    }

    async fn next(&mut self) -> process::Signal {
        std::future::poll_fn(|context| {
            let arrived =
                self.0.iter_mut().find_map(|(signal, arrivals)| arrivals.poll_recv(context).is_ready().then_some(*signal));
            arrived.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// Passes signals on to the program and waits for its end. After a TERM it has [`PATIENCE`] to end, or until a second TERM.
pub(crate) async fn supervise(program: &mut Child, mut signals: Signals) -> std::io::Result<ExitStatus> {
    // What is typed at a terminal reaches the program by itself.
    let terminal = std::io::stdin().is_terminal();
    let mut deadline: Option<Instant> = None;
    loop {
        let signal = tokio::select! {
            status = program.wait() => return status,
            signal = signals.next() => signal,
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                tracing::warn!("the program did not end in time: killed");
                program.start_kill()?;
                deadline = None;
                continue;
            }
        };
        match signal {
            process::Signal::INT | process::Signal::QUIT if terminal => {}
            process::Signal::TERM if deadline.is_some() => program.start_kill()?,
            signal => {
                if let Some(pid) = program.id().and_then(|pid| i32::try_from(pid).ok()).and_then(process::Pid::from_raw) {
                    let _ = process::kill_process(pid, signal);
                }
                if signal == process::Signal::TERM {
                    deadline = Some(Instant::now() + PATIENCE);
                }
            }
        }
    }
}
