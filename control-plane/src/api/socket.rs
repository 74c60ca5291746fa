//! The operators' unix socket: mode 0600, and the kernel says who is at the other end.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use outrider_runtime::{
    Drain, Tasks,
    unix_socket::{self, SocketError, SocketPurpose},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::sleep,
};
use tonic::transport::server::Connected;

/// Pause after an accept error.
const BACK_OFF: Duration = Duration::from_millis(50);

const PURPOSE: SocketPurpose = SocketPurpose { name: "admin socket", flag: "--admin-socket" };

/// Listens on `path`, for the own user. A socket that nobody serves any more is replaced.
///
/// # Errors
/// When the path is too long, in use, or not writable.
pub(crate) async fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    unix_socket::bind(path, 0o600, PURPOSE).await
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
