//! The accept loop of the agents' door. Nothing that a stranger sends ends it, and what strangers can hold is bounded.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use outrider_policy::TrustDomain;
use outrider_runtime::{Drain, Tasks};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use rustls_pki_types::CertificateDer;

use crate::{
    ca::{Anchor, Authority},
    clock,
    metrics::Metrics,
    operators::{OperatorName, Roster},
    peer::{Peer, PeerError},
    registry::Revoked,
};

/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Life of a connection without certificate: enough to join.
const STRANGER: Duration = Duration::from_secs(60);
/// Connections of certificates whose root was retired end within this time.
const LEAVE: Duration = Duration::from_secs(5);
/// Connections at one time.
const MAX_CONNECTIONS: usize = 32_768;
/// Handshakes at one time.
const MAX_HANDSHAKES: usize = 1024;
/// Connections without certificate at one time. One more is closed: strangers must not keep agents from renewing.
const MAX_STRANGERS: usize = 1024;
/// Pause after an accept error, for example when no file descriptor is left.
const BACK_OFF: Duration = Duration::from_millis(50);

/// What requests know of their connection.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// Who its certificate names.
    pub(crate) peer: Option<Arc<Peer>>,
    /// Where it comes from.
    pub(crate) address: SocketAddr,
}

/// What ends a connection from our side.
type End = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Whom a door is for.
#[derive(Clone, Debug)]
pub(crate) enum Entrance {
    /// Workloads' agents.
    Agents,
    /// Operators of this roster, as long as they are not revoked.
    Operators(Roster, Revoked),
}

impl Entrance {
    fn read(&self, leaf: &CertificateDer<'_>, trust_domain: &TrustDomain) -> Result<Peer, PeerError> {
        match self {
            Self::Agents => Peer::read(leaf, trust_domain),
            Self::Operators(..) => Peer::read_operator(leaf, trust_domain),
        }
    }

    /// When the connection of somebody with a certificate ends from our side: a while after its root is trusted no more, and for
    /// an operator with the certificate, at its revocation, and when the operator is removed or gets another role.
    fn end(&self, peer: &Peer, authority: Arc<Authority>, root: Anchor) -> End {
        let retired = async move {
            authority.retired(root).await;
            // Not all at once: whoever has a new certificate comes back with it.
            sleep(LEAVE.mul_f64(fastrand::f64())).await;
        };
        let Self::Operators(roster, revoked) = self else { return Box::pin(retired) };
        let changed = OperatorName::of(&peer.identity).map(|name| roster.clone().changed(name));
        let left = Duration::from_secs(u64::try_from(peer.not_after - clock::now()).unwrap_or(0));
        let (mut revoked, peer) = (revoked.clone(), peer.clone());
        Box::pin(async move {
            tokio::select! {
                () = retired => {}
                () = sleep(left) => {}
                () = revoked.fall(&peer) => {}
                () = async { if let Some(changed) = changed { changed.await } } => {}
            }
        })
    }
}

/// A connection after its handshake.
pub(crate) struct Secured {
    stream: TlsStream<TcpStream>,
    connection: Connection,
    end: End,
    ended: bool,
    _permits: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

/// Accepts connections until drain; those that pass the handshake come out of the channel.
pub(crate) fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    (entrance, authority): (Entrance, Arc<Authority>),
    metrics: Metrics,
    tasks: &Tasks,
    drain: Drain,
) -> mpsc::Receiver<Result<Secured, io::Error>> {
    let (send, secured) = mpsc::channel(64);
    let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
    let door = Door { tls, entrance, authority, metrics, strangers, send };
    let scope = tasks.clone();
    tasks.spawn("accept", async move {
        let (all, handshakes) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), Arc::new(Semaphore::new(MAX_HANDSHAKES)));
        loop {
            // Without room we do not accept: the backlog of the kernel is bounded too.
            let accepted = tokio::select! {
                accepted = async {
                    let room = Arc::clone(&all).acquire_owned().await.ok();
                    let turn = Arc::clone(&handshakes).acquire_owned().await.ok();
                    (listener.accept().await, room, turn)
                } => accepted,
                () = drain.stopping() => return Ok::<_, io::Error>(()),
            };
            match accepted {
                (Ok((stream, address)), Some(room), Some(turn)) => {
                    scope.spawn_scoped(door.clone().handshake(stream, address, (room, turn)));
                }
                (Ok(_), _, _) => return Ok(()),
                (Err(error), _, _) => {
                    tracing::warn!(%error, "accept failed");
                    sleep(BACK_OFF).await;
                }
            }
        }
    });
    secured
}

#[derive(Clone)]
struct Door {
    tls: TlsAcceptor,
    entrance: Entrance,
    authority: Arc<Authority>,
    metrics: Metrics,
    strangers: Arc<Semaphore>,
    send: mpsc::Sender<Result<Secured, io::Error>>,
}

impl Door {
    async fn handshake(self, stream: TcpStream, address: SocketAddr, (room, turn): (OwnedSemaphorePermit, OwnedSemaphorePermit)) {
        match self.secure(stream, address, room).await {
            Ok(secured) => {
                drop(turn);
                // The server has ended: so does the connection.
                let _ = self.send.send(Ok(secured)).await;
            }
            Err(error) => {
                self.metrics.handshakes_failed.inc();
                tracing::debug!(%address, error, "handshake failed");
            }
        }
    }

    async fn secure(&self, stream: TcpStream, address: SocketAddr, room: OwnedSemaphorePermit) -> Result<Secured, String> {
        // Only latency is at stake.
        let _ = stream.set_nodelay(true);
        let stream = timeout(HANDSHAKE, self.tls.accept(stream)).await;
        let stream =
            stream.map_err(|_| format!("not done within {} s", HANDSHAKE.as_secs()))?.map_err(|error| error.to_string())?;
        let peer = self.peer(&stream)?;
        let stranger = match peer {
            Some(_) => None,
            None => {
                Some(Arc::clone(&self.strangers).try_acquire_owned().map_err(|_| "too many connections without certificate")?)
            }
        };
        Ok(Secured {
            stream,
            end: match &peer {
                Some((peer, root)) => self.entrance.end(peer, Arc::clone(&self.authority), *root),
                None => Box::pin(sleep(STRANGER)),
            },
            ended: false,
            connection: Connection { peer: peer.map(|(peer, _)| Arc::new(peer)), address },
            _permits: (room, stranger),
        })
    }

    /// Whom the certificate names, and the root that it chains to.
    fn peer(&self, stream: &TlsStream<TcpStream>) -> Result<Option<(Peer, Anchor)>, String> {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let Some(leaf) = chain.first() else { return Ok(None) };
        let peer = self.entrance.read(leaf, self.authority.trust_domain()).map_err(|error| error.to_string())?;
        let root = self.authority.anchor_of(chain).ok_or("the root of the certificate has left the bundle")?;
        Ok(Some((peer, root)))
    }
}

impl Connected for Secured {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // An end that has come is not asked again.
        if !self.ended && self.end.as_mut().poll(context).is_ready() {
            self.ended = true;
        }
        if self.ended {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "this connection has lasted long enough")));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Secured {
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
