//! The unix socket that programs ask: served to the agent's own user, to root, and to users that were named.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use outrider_proto::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use outrider_runtime::{
    Drain, Tasks,
    unix_socket::{self, SocketError, SocketPurpose},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Server, server::Connected};

use super::{WorkloadApi, authority::Frames};
use crate::handover::Sockets;

const PURPOSE: SocketPurpose = SocketPurpose { name: "workload socket", flag: "--workload-socket" };
/// Connections at a time; others wait to be accepted.
const CONNECTIONS: usize = 64;
/// Calls at a time on one connection, streams included.
const CALLS: u32 = 32;
/// Most bytes of a call: a token and an audience.
const MESSAGE: usize = 16 * 1024;
/// Most bytes of a call's metadata.
const HEADERS: u32 = 8 * 1024;
/// Pause after an accept error.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Where programs ask, and who may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadSocket {
    /// Its path, absolute.
    pub path: PathBuf,
    /// User ids that may ask beside our own and root. When there are any the file's mode is 0666: what counts is what the kernel
    /// says about who connects.
    pub users: Vec<u32>,
    /// Whether it was asked for by name: then an agent that cannot serve it does not start.
    pub is_required: bool,
}

/// A program's connection.
struct Connection {
    stream: UnixStream,
    frames: Frames,
    _room: OwnedSemaphorePermit,
}

/// Binds the socket and serves the API until drain. `false` when it cannot be served and was not asked for.
///
/// # Errors
/// When it was asked for and cannot be served.
pub(crate) async fn serve(
    socket: &WorkloadSocket,
    sockets: &mut Sockets,
    api: WorkloadApi,
    tasks: &Tasks,
    drain: &Drain,
) -> Result<bool, SocketError> {
    let mode = if socket.users.is_empty() { 0o600 } else { 0o666 };
    let bound = match sockets.inherited_unix(&socket.path) {
        Some(listener) => Ok(listener),
        None => unix_socket::bind(&socket.path, mode, PURPOSE).await,
    };
    let listener = match bound {
        Ok(listener) => listener,
        Err(error) if socket.is_required => return Err(error),
        Err(error) => {
            tracing::warn!(%error, "programs get no SPIFFE Workload API");
            return Ok(false);
        }
    };
    sockets.keep_unix(&socket.path, &listener);
    let (send, connections) = mpsc::channel(4);
    tasks.spawn("accept workloads", accept(listener, socket.clone(), send, drain.clone()));
    let service = SpiffeWorkloadApiServer::new(api).max_decoding_message_size(MESSAGE);
    let server = Server::builder()
        .concurrency_limit_per_connection(CALLS as usize)
        .max_concurrent_streams(CALLS)
        .http2_max_header_list_size(HEADERS)
        .http2_max_pending_accept_reset_streams(Some(20))
        .add_service(service);
    let stop = drain.clone();
    tasks.spawn("serve workloads", async move {
        server.serve_with_incoming_shutdown(ReceiverStream::new(connections), async move { stop.stopping().await }).await
    });
    Ok(true)
}

async fn accept(
    listener: UnixListener,
    socket: WorkloadSocket,
    send: mpsc::Sender<io::Result<Connection>>,
    drain: Drain,
) -> io::Result<()> {
    let own = std::fs::metadata(&socket.path)?.uid();
    let rooms = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = next(&listener, &rooms) => accepted,
            () = drain.stopping() => break,
        };
        match accepted {
            Ok((stream, uid, room)) if uid == own || uid == 0 || socket.users.contains(&uid) => {
                // The server has ended: so does the connection.
                let _ = send.send(Ok(Connection { stream, frames: Frames::new(), _room: room })).await;
            }
            Ok((_, uid, _)) => tracing::warn!(uid, "workload socket: connection of another user refused"),
            Err(error) => {
                tracing::warn!(%error, "workload socket: accept failed");
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
    drop(listener);
    // A successor goes on at the same path.
    if drain.is_succeeded() {
        return Ok(());
    }
    remove(&socket.path)
}

async fn next(listener: &UnixListener, rooms: &Arc<Semaphore>) -> io::Result<(UnixStream, u32, OwnedSemaphorePermit)> {
    let room = Arc::clone(rooms).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    let uid = stream.peer_cred()?.uid();
    Ok((stream, uid, room))
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, frames, .. } = self.get_mut();
        frames.poll_read(stream, context, buffer)
    }
}

impl AsyncWrite for Connection {
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
