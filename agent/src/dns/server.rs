//! Questions over UDP and TCP, as many as one program has a use for, and no more.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use outrider_runtime::{Drain, Tasks};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{Resolver, message::LARGEST_QUERY};
use crate::{handover::Sockets, listener::ListenError};

/// Questions under way at a time, and connections. Over that, new ones go unanswered.
const IN_FLIGHT: usize = 256;
/// Questions over UDP in a second, and at once. Over that, new ones go unanswered, and callers ask again.
const RATE: f64 = 5000.0;
const BURST: f64 = 10_000.0;
/// Time for the next question of a connection.
const IDLE: Duration = Duration::from_secs(10);
/// Pause when the system has no connection or message to give.
const PAUSE: Duration = Duration::from_millis(100);

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In one datagram.
    Udp,
    /// Over a connection.
    Tcp,
}

/// Sockets for questions at one address.
#[derive(Debug)]
pub struct Listener {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

/// Opens the sockets for captured questions, which the kernel's rules send to loopback of either family.
///
/// # Errors
/// When a port is taken.
pub(crate) fn listen(port: u16, sockets: &mut Sockets) -> Result<Vec<Listener>, ListenError> {
    let mut listeners = Vec::new();
    for address in [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), (Ipv6Addr::LOCALHOST, port).into()] {
        let flag = "--capture-dns-port";
        let bound = sockets.bind(address, 1, flag).and_then(|mut tcp| {
            let failed = |reason| ListenError::Failed { address, flag, reason };
            let tcp = tcp.take().ok_or_else(|| failed(io::Error::other("no socket")))?.into_socket();
            Ok(Listener { udp: sockets.bind_udp(address, flag)?, tcp })
        });
        match bound {
            Ok(bound) => listeners.push(bound),
            Err(error) if error.has_no_such_family() => tracing::warn!(%error, "no IPv6 here: no DNS over it"),
            Err(error) => return Err(error),
        }
    }
    Ok(listeners)
}

impl Listener {
    /// Answers until drain.
    pub fn start(self, resolver: &Arc<Resolver>, tasks: &Tasks, drain: &Drain) {
        tasks.spawn("DNS over UDP", serve_udp(self.udp, resolver.clone(), tasks.clone(), drain.clone()));
        tasks.spawn("DNS over TCP", serve_tcp(self.tcp, resolver.clone(), tasks.clone(), drain.clone()));
    }
}

/// So many questions a second.
#[derive(Debug)]
struct Bucket {
    left: f64,
    filled: Instant,
}

impl Bucket {
    fn full(now: Instant) -> Self {
        Self { left: BURST, filled: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let earned = now.duration_since(self.filled).as_secs_f64() * RATE;
        self.left = (self.left + earned).min(BURST);
        self.filled = now;
        let has = self.left >= 1.0;
        if has {
            self.left -= 1.0;
        }
        has
    }
}

/// Answers datagrams until drain.
///
/// # Errors
/// When the socket cannot be used at all.
async fn serve_udp(socket: std::net::UdpSocket, resolver: Arc<Resolver>, tasks: Tasks, drain: Drain) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let socket = Arc::new(UdpSocket::from_std(socket)?);
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut bucket = Bucket::full(Instant::now());
    // A byte more than is taken, so that a longer question is not mistaken for a whole one.
    let mut buffer = [0; LARGEST_QUERY + 1];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            () = drain.stopping() => return Ok(()),
        };
        let (length, caller) = match received {
            Ok(received) => received,
            // An answer before could not be delivered.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => {
                tracing::warn!(%error, "DNS: receive failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (true, Ok(place)) = (bucket.take(Instant::now()), Arc::clone(&places).try_acquire_owned()) else { continue };
        let message = buffer.get(..length).unwrap_or_default().to_vec();
        let (socket, resolver) = (socket.clone(), resolver.clone());
        tasks.spawn_scoped(async move {
            let _place = place;
            if let Some(answer) = resolver.respond(&message, Transport::Udp).await {
                let _ = socket.send_to(&answer, caller).await;
            }
        });
    }
}

/// Answers connections until drain.
///
/// # Errors
/// When the socket cannot be used at all.
async fn serve_tcp(socket: std::net::TcpListener, resolver: Arc<Resolver>, tasks: Tasks, drain: Drain) -> io::Result<()> {
    let listener = TcpListener::from_std(socket)?;
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.stopping() => return Ok(()),
        };
        match (accepted, Arc::clone(&places).try_acquire_owned()) {
            (Ok((stream, _)), Ok(place)) => {
                let (resolver, drain) = (resolver.clone(), drain.clone());
                tasks.spawn_scoped(async move {
                    tokio::select! {
                        _ = connection(stream, place, &resolver) => {}
                        () = drain.forced() => {}
                    }
                });
            }
            (Ok(_), Err(_)) => tracing::debug!(most = IN_FLIGHT, "DNS: too many connections"),
            (Err(error), _) => {
                tracing::warn!(%error, "DNS: accept failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(mut stream: TcpStream, _place: OwnedSemaphorePermit, resolver: &Resolver) -> io::Result<()> {
    loop {
        let message = tokio::time::timeout(IDLE, read(&mut stream)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let Some(answer) = resolver.respond(&message, Transport::Tcp).await else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let framed = [length.to_be_bytes().as_slice(), &answer].concat();
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    }
}

async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > LARGEST_QUERY {
        return Err(io::Error::other("too long a question"));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_held_back_and_forgiven() {
        let mut bucket = Bucket::full(Instant::now());
        let taken = (0..20_000).filter(|_| bucket.take(Instant::now())).count();
        assert_eq!(taken, 10_000);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((0..20_000).filter(|_| bucket.take(Instant::now())).count(), 5000);
    }
}
