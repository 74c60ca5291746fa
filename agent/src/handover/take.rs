//! The next agent's side: it takes over, serves, and then says so.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    SOCKET, Sockets, VERSION,
    record::{Word, expect, receive, send},
};

/// How long the running agent may take for a word.
const PATIENCE: Duration = Duration::from_secs(10);
/// Sockets taken at most.
const MOST: usize = 4096;

/// Nothing could be taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// The running agent did not give, or did not leave.
    #[error("cannot take over from the agent that uses `{}`: {reason}: it goes on; stop it, or start without `--take-over`", path.display())]
    Failed {
        /// The state directory.
        path: PathBuf,
        /// What went wrong.
        reason: io::Error,
    },
    /// There is no identity or no view to serve by before the control plane has been asked, and asking it would take it from the
    /// running agent.
    #[error("cannot take over: the state directory has nothing to serve by (waiting for {0}): the running agent goes on")]
    NotReady(String),
}

/// What a running agent gave.
#[derive(Debug)]
pub struct TakeOver {
    path: PathBuf,
    stream: UnixStream,
    lock: Option<File>,
    sockets: Vec<(String, OwnedFd)>,
}

impl TakeOver {
    /// Asks the agent that uses this state directory for its sockets; none when no agent does.
    ///
    /// # Errors
    /// When there is one and it does not give them.
    pub fn ask(state_dir: &Path) -> Result<Option<Self>, TakeOverError> {
        let failed = |reason: io::Error| TakeOverError::Failed { path: state_dir.to_owned(), reason };
        let stream = match UnixStream::connect(state_dir.join(SOCKET)) {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let (lock, sockets) = Self::receive(&stream).map_err(failed)?;
        Ok(Some(Self { path: state_dir.to_owned(), stream, lock: Some(lock), sockets }))
    }

    fn receive(stream: &UnixStream) -> io::Result<(File, Vec<(String, OwnedFd)>)> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        send(stream, Word::Hello, VERSION, None)?;
        let hello = expect(stream, Word::Hello)?;
        if hello.text != VERSION {
            return Err(io::Error::other(format!("it speaks `{}`, this one `{VERSION}`", hello.text.escape_debug())));
        }
        let nothing = || io::Error::other("a descriptor is missing");
        let lock = expect(stream, Word::Lock)?.descriptor.ok_or_else(nothing)?;
        let mut sockets = Vec::new();
        loop {
            let record = receive(stream)?;
            match record.word {
                Word::Socket if sockets.len() < MOST => sockets.push((record.text, record.descriptor.ok_or_else(nothing)?)),
                Word::End => return Ok((lock.into(), sockets)),
                word => return Err(io::Error::other(format!("it said {word:?}"))),
            }
        }
    }

    /// The state directory's lock.
    pub fn lock(&mut self) -> Option<File> {
        self.lock.take()
    }

    /// The sockets.
    pub(crate) fn sockets(&mut self) -> Sockets {
        Sockets::of(std::mem::take(&mut self.sockets))
    }

    /// Says that this agent serves, and waits until the other one takes no more connections.
    ///
    /// # Errors
    /// When it does not say so in time.
    pub async fn serve(self) -> Result<(), TakeOverError> {
        let Self { path, stream, .. } = self;
        let talk = move || {
            send(&stream, Word::Serving, "", None)?;
            expect(&stream, Word::Leaving).map(drop)
        };
        let outcome = tokio::task::spawn_blocking(talk).await.map_err(io::Error::from).and_then(|said| said);
        let is_gone = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
        };
        if let Some(error) = outcome.as_ref().err().filter(|error| is_gone(error)) {
            tracing::warn!(%error, "the agent before ended in the middle of it: this one serves on");
            return Ok(());
        }
        outcome.map_err(|reason| TakeOverError::Failed { path, reason })
    }
}
