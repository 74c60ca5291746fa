//! The operators' unix socket: mode 0600, and the kernel says who is at the other end.

use std::{
    fs::Permissions,
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use outrider_runtime::{Drain, Tasks};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::sleep,
};
use tonic::transport::server::Connected;

/// Bytes of `sun_path`, with its closing zero.
const MAX_PATH: usize = 108;
/// Pause after an accept error.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Why the operators' socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Unix sockets have short names.
    #[error("admin socket path `{}` is too long: {} bytes, at most {} are possible (choose another with `--admin-socket`)", path.display(), length, MAX_PATH - 1)]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        length: usize,
    },
    /// Somebody listens there.
    #[error("admin socket `{}` is in use by another process (choose another with `--admin-socket`)", .0.display())]
    InUse(PathBuf),
    /// Something else is there.
    #[error("`{}` exists and is not a socket: remove it, or choose another path with `--admin-socket`", .0.display())]
    NotASocket(PathBuf),
    /// The system said no.
    #[error("cannot listen on admin socket `{}`: {reason} (choose another with `--admin-socket`)", path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
}

/// Listens on `path`. A socket that nobody serves any more is replaced.
///
/// # Errors
/// When the path is too long, in use, or not writable.
pub(crate) async fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let length = path.as_os_str().len();
    if length >= MAX_PATH {
        return Err(SocketError::TooLong { path: path.to_owned(), length });
    }
    let failed = |reason| SocketError::Bind { path: path.to_owned(), reason };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => return Err(SocketError::InUse(path.to_owned())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Between these two lines the file's mode is the umask's: the check of the peer's user holds all the time.
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operator {
    /// User id of the process at the other end.
    pub(crate) uid: u32,
}

/// An operator's connection.
pub(crate) struct OperatorStream {
    stream: UnixStream,
    operator: Operator,
}

/// Accepts connections of our own user and of root until drain; then the socket's file is removed.
pub(crate) fn operators(
    listener: UnixListener,
    path: PathBuf,
    tasks: &Tasks,
    drain: Drain,
) -> mpsc::Receiver<io::Result<OperatorStream>> {
    let (send, accepted) = mpsc::channel(16);
    tasks.spawn("accept operators", async move {
        let own = std::fs::metadata(&path)?.uid();
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => accepted.map(|(stream, _)| stream),
                () = drain.stopping() => break,
            };
            match stream.and_then(|stream| stream.peer_cred().map(|peer| (stream, peer.uid()))) {
                Ok((stream, uid)) if uid == own || uid == 0 => {
                    // The server has ended: so does the connection.
                    let _ = send.send(Ok(OperatorStream { stream, operator: Operator { uid } })).await;
                }
                Ok((_, uid)) => tracing::warn!(uid, "operator's socket: connection of another user refused"),
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    sleep(BACK_OFF).await;
                }
            }
        }
        drop(listener);
        std::fs::remove_file(&path)
    });
    accepted
}

impl Connected for OperatorStream {
    type ConnectInfo = Operator;

    fn connect_info(&self) -> Operator {
        self.operator
    }
}

impl AsyncRead for OperatorStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for OperatorStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
