//! Listening sockets: one for each worker on the same port, and an accept loop that survives whatever accept says.

mod crowd;
mod share;

use std::{net::SocketAddr, sync::Arc, time::Duration};

pub use crowd::{Callers, Crowd, Place};
pub use share::Door;

use outrider_runtime::{Drain, drain::Hold};
use share::{Share, Taken};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// Pending connections of a socket.
const BACKLOG: i32 = 4096;
/// Bytes that the system takes for a caller beyond what is under way to it. By itself it would take megabytes of an answer that nobody
/// reads, and have us wait for a third of them before it says that some were taken.
const UNSENT: u32 = 64 << 10;
/// Longest pause after accept has failed, for example for want of file descriptors.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A listener that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else has it.
    #[error("`{address}` is in use: stop what listens there, or choose another address with `{flag}`")]
    InUse {
        /// The address.
        address: SocketAddr,
        /// The flag that chooses it.
        flag: &'static str,
    },
    /// Anything else.
    #[error("cannot listen on `{address}` (`{flag}`): {reason}")]
    Failed {
        /// The address.
        address: SocketAddr,
        /// The flag that chooses it.
        flag: &'static str,
        /// What the system said.
        reason: std::io::Error,
    },
}

impl ListenError {
    /// Whether this machine lacks the address's family, IPv6 that is.
    pub fn has_no_such_family(&self) -> bool {
        use std::io::ErrorKind::{AddrNotAvailable, Unsupported};
        let Self::Failed { address, reason, .. } = self else { return false };
        // Linux: EAFNOSUPPORT, which the standard library has no kind for.
        address.is_ipv6() && (matches!(reason.kind(), AddrNotAvailable | Unsupported) || reason.raw_os_error() == Some(97))
    }
}

/// An address with a socket for each worker.
#[derive(Debug)]
pub struct Bound {
    /// The address, with the port that was chosen.
    pub address: SocketAddr,
    sockets: Vec<std::net::TcpListener>,
    shares: Vec<Share>,
}

/// Opens `address` once for each worker.
///
/// # Errors
/// When it is taken or not ours.
pub fn bind(address: SocketAddr, workers: usize, flag: &'static str) -> Result<Bound, ListenError> {
    let failed = |reason: std::io::Error| match reason.kind() {
        std::io::ErrorKind::AddrInUse => ListenError::InUse { address, flag },
        _ => ListenError::Failed { address, flag, reason },
    };
    // Sockets that share a port would also share it with another process of this user. A first one that does not share
    // notices that.
    let probe = open(address, false).map_err(failed)?;
    let address = probe.local_addr().ok().and_then(|local| local.as_socket()).unwrap_or(address);
    drop(probe);
    let sockets = (0..workers)
        .map(|_| {
            let socket = open(address, true)?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    Ok(Bound::new(address, sockets))
}

fn open(address: SocketAddr, share: bool) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // Every address of either family, whatever the system's default is.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    socket.set_nonblocking(true)?;
    // Connections have it from the socket that accepts them.
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Goes on with sockets of the agent before, and opens more at their address when there are more workers.
///
/// # Errors
/// When these are no listening sockets, or no more can be opened.
pub fn adopt(mut sockets: Vec<std::net::TcpListener>, workers: usize) -> std::io::Result<Bound> {
    let address = sockets.first().ok_or_else(|| std::io::Error::other("no socket"))?.local_addr()?;
    for socket in &sockets {
        socket.set_nonblocking(true)?;
        // An agent of an earlier version may not have done so.
        SockRef::from(socket).set_tcp_notsent_lowat(UNSENT)?;
    }
    while sockets.len() < workers {
        let socket = open(address, true)?;
        socket.listen(BACKLOG)?;
        sockets.push(socket.into());
    }
    Ok(Bound::new(address, sockets))
}

impl Bound {
    fn new(address: SocketAddr, sockets: Vec<std::net::TcpListener>) -> Self {
        Self { address, shares: Share::among(sockets.len()), sockets }
    }

    /// The sockets that are still here.
    pub fn sockets(&self) -> &[std::net::TcpListener] {
        &self.sockets
    }

    /// Takes one worker's socket.
    pub fn take(&mut self) -> Option<Door> {
        Some(Door { socket: self.sockets.pop()?, share: self.shares.pop()? })
    }
}

/// A connection that somebody opened to us.
#[derive(Debug)]
pub struct Accepted {
    /// The stream.
    pub stream: TcpStream,
    /// Who opened it.
    pub address: SocketAddr,
    /// Drain waits for it.
    _hold: Hold,
    /// Its place among all connections.
    _place: Place,
    /// Its place among this worker's.
    _taken: Taken,
}

/// Kept by a connection as long as it lives.
#[derive(Debug)]
pub struct Held {
    _hold: Hold,
    _place: Place,
    _taken: Taken,
}

impl Accepted {
    /// The stream, and what must live as long as it is served.
    pub fn split(self) -> (TcpStream, SocketAddr, Held) {
        (self.stream, self.address, Held { _hold: self._hold, _place: self._place, _taken: self._taken })
    }
}

/// Accepts until drain and hands every connection to `serve`, here or at the worker that has fewer of them. Those that the crowd has no
/// place for are closed at once; `turned_away` hears of them.
///
/// # Errors
/// When the socket cannot be used at all.
pub async fn accept(
    door: Door,
    (crowd, callers): (Arc<Crowd>, Callers),
    drain: Drain,
    serve: impl Fn(Accepted),
    turned_away: impl Fn(SocketAddr),
) -> std::io::Result<()> {
    let Door { socket, mut share } = door;
    let listener = TcpListener::from_std(socket)?;
    // A connection that broke meanwhile is nobody's loss.
    let take = |given: share::Given| given.take().map(&serve).unwrap_or_default();
    let mut pause = Duration::from_millis(5);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            given = share.given() => {
                take(given);
                continue;
            }
            () = drain.stopping() => {
                share.close().for_each(take);
                return Ok(());
            }
        };
        match accepted {
            Ok((stream, address)) => {
                pause = Duration::from_millis(5);
                let Some(place) = crowd.enter(address.ip(), callers) else {
                    turned_away(address);
                    continue;
                };
                let _ = stream.set_nodelay(true);
                if let Ok(Some(accepted)) = share.out(stream, address, drain.hold(), place) {
                    serve(accepted);
                }
            }
            // The connection is gone already; the next one may be fine.
            Err(error) if matches!(error.kind(), std::io::ErrorKind::ConnectionAborted | std::io::ErrorKind::ConnectionReset) => {
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn whoever_accepts_them_connections_are_shared_out_evenly() {
        let mut bound = bind("127.0.0.1:0".parse().unwrap(), 3, "--mesh").unwrap();
        let (drain, crowd) = (Drain::new(), Crowd::new(100, 100));
        let (doors, counts): (Vec<Door>, [Cell<usize>; 3]) =
            ((0..3).map(|_| bound.take().unwrap()).collect(), Default::default());
        let (served, mut each) = tokio::sync::mpsc::unbounded_channel();
        let mut accepting: futures_util::stream::FuturesUnordered<_> = (doors.into_iter().zip(&counts))
            .map(|(door, count)| {
                let (served, crowd) = (served.clone(), (crowd.clone(), Callers::Program));
                let serve = move |accepted| {
                    count.set(count.get() + 1);
                    served.send(accepted).unwrap();
                };
                accept(door, crowd, drain.clone(), serve, |_| {})
            })
            .collect();
        let connecting = async {
            let (mut near, mut far) = (Vec::new(), Vec::new());
            for _ in 0..30 {
                near.push(TcpStream::connect(bound.address).await.unwrap());
                far.push(each.recv().await.unwrap());
            }
            (near, far)
        };
        let held = tokio::select! {
            held = connecting => held,
            _ = futures_util::StreamExt::next(&mut accepting) => panic!("nothing stops"),
        };
        assert_eq!(counts.each_ref().map(Cell::get), [10; 3]);
        drop(held);
    }

    #[test]
    fn a_taken_port_is_named_with_its_flag() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let error = bind(taken.local_addr().unwrap(), 2, "--mesh").unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains("--mesh"), "{error}");
    }

    #[test]
    fn another_agents_shared_port_is_taken_too() {
        let first = bind("127.0.0.1:0".parse().unwrap(), 2, "--mesh").unwrap();
        assert!(matches!(bind(first.address, 1, "--mesh"), Err(ListenError::InUse { .. })));
    }
}
