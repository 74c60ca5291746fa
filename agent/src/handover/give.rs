//! The running agent's side: it offers its sockets for as long as it serves.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use outrider_runtime::Drain;
use tokio::{net::UnixListener, sync::Notify};

use super::{
    SOCKET, Sockets, VERSION,
    record::{Word, expect, send},
};

/// How long the other side may take for its first word.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// How long the next agent may take to serve.
const START: Duration = Duration::from_secs(120);
/// Pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Tells that the next agent serves. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Succeeded(Arc<Notify>);

impl Succeeded {
    /// Ends when the next agent serves.
    pub(crate) async fn wait(&self) {
        self.0.notified().await;
    }
}

/// What the next agent gets.
#[derive(Debug)]
struct Estate {
    lock: File,
    sockets: Vec<(String, OwnedFd)>,
}

/// The offer to a next agent.
#[derive(Debug)]
pub(crate) struct Offer {
    listener: UnixListener,
    estate: Arc<Estate>,
    succeeded: Succeeded,
    drain: Drain,
}

impl Offer {
    /// Listens in the state directory, which belongs to whoever holds its lock.
    ///
    /// # Errors
    /// When the socket cannot be made, for example because its path is too long.
    pub(crate) fn open(state_dir: &Path, lock: File, sockets: Sockets, succeeded: Succeeded, drain: Drain) -> io::Result<Self> {
        let path = state_dir.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let estate = Arc::new(Estate { lock, sockets: sockets.into_kept() });
        Ok(Self { listener: UnixListener::bind(path)?, estate, succeeded, drain })
    }

    /// Waits for next agents, one at a time, until this one leaves. The copies of the sockets go with that: otherwise they
    /// would go on to queue connections that nobody accepts.
    ///
    /// # Errors
    /// None: a next agent that does not come to serve is not the last one.
    pub(crate) async fn run(self) -> io::Result<()> {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = self.drain.stopping() => return Ok(()),
            };
            let outcome = match accepted {
                Ok((stream, _)) => tokio::select! {
                    outcome = self.serve(stream) => outcome,
                    () = self.drain.stopping() => return Ok(()),
                },
                Err(error) => Err(error),
            };
            match outcome {
                Ok(stream) => {
                    tracing::info!("the next agent serves: leaving");
                    self.succeeded.0.notify_one();
                    self.drain.stopping().await;
                    // It waits for this word before it talks to the control plane in our name.
                    return send(&stream, Word::Leaving, "", None);
                }
                Err(error) => {
                    tracing::warn!(%error, "the next agent did not come to serve: this one goes on");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn serve(&self, stream: tokio::net::UnixStream) -> io::Result<UnixStream> {
        let own = rustix::process::geteuid();
        let peer = rustix::net::sockopt::socket_peercred(&stream)?;
        if peer.uid != own && !peer.uid.is_root() {
            return Err(io::Error::other(format!("it runs as user {}", peer.uid.as_raw())));
        }
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        let estate = self.estate.clone();
        tokio::task::spawn_blocking(move || give(&stream, &estate).map(|()| stream)).await?
    }
}

fn give(stream: &UnixStream, estate: &Estate) -> io::Result<()> {
    stream.set_read_timeout(Some(FIRST_WORD))?;
    stream.set_write_timeout(Some(FIRST_WORD))?;
    let hello = expect(stream, Word::Hello)?;
    send(stream, Word::Hello, VERSION, None)?;
    if hello.text != VERSION {
        return Err(io::Error::other(format!("it speaks `{}`", hello.text.escape_debug())));
    }
    send(stream, Word::Lock, "", Some(estate.lock.as_fd()))?;
    for (name, socket) in &estate.sockets {
        send(stream, Word::Socket, name, Some(socket.as_fd()))?;
    }
    send(stream, Word::End, "", None)?;
    tracing::info!(sockets = estate.sockets.len(), "sockets handed to the next agent");
    stream.set_read_timeout(Some(START))?;
    expect(stream, Word::Serving).map(drop)
}
