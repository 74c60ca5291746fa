//! Listening sockets: one for each worker on the same port, and an accept loop that survives whatever accept says.

mod crowd;

use std::{net::SocketAddr, sync::Arc, time::Duration};

pub use crowd::{Callers, Crowd, Place};

use outrider_runtime::{Drain, drain::Hold};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// Pending connections of a socket.
const BACKLOG: i32 = 4096;
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
    Ok(Bound { address, sockets })
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
    }
    while sockets.len() < workers {
        let socket = open(address, true)?;
        socket.listen(BACKLOG)?;
        sockets.push(socket.into());
    }
    Ok(Bound { address, sockets })
}

impl Bound {
    /// The sockets that are still here.
    pub fn sockets(&self) -> &[std::net::TcpListener] {
        &self.sockets
    }

    /// Takes one worker's socket.
    pub fn take(&mut self) -> Option<std::net::TcpListener> {
        self.sockets.pop()
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
}

/// Kept by a connection as long as it lives.
#[derive(Debug)]
pub struct Held {
    _hold: Hold,
    _place: Place,
}

impl Accepted {
    /// The stream, and what must live as long as it is served.
    pub fn split(self) -> (TcpStream, SocketAddr, Held) {
        (self.stream, self.address, Held { _hold: self._hold, _place: self._place })
    }
}

/// Accepts until drain and hands every connection to `serve`. Those that the crowd has no
/// place for are closed at once; `turned_away` hears of them.
///
/// # Errors
/// When the socket cannot be used at all.
pub async fn accept(
    socket: std::net::TcpListener,
    (crowd, callers): (Arc<Crowd>, Callers),
    drain: Drain,
    serve: impl Fn(Accepted),
    turned_away: impl Fn(SocketAddr),
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(socket)?;
    let mut pause = Duration::from_millis(5);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.stopping() => return Ok(()),
        };
        match accepted {
            Ok((stream, address)) => {
                pause = Duration::from_millis(5);
                let Some(place) = crowd.enter(address.ip(), callers) else {
                    turned_away(address);
                    continue;
                };
                let _ = stream.set_nodelay(true);
                serve(Accepted { stream, address, _hold: drain.hold(), _place: place });
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
    use super::*;

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
