//! Where an agent gets its sockets: from the one before it, or new ones; and what it keeps for the next.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use crate::listener::{self, Bound, ListenError};

/// Sockets by name. A name is the flag that asks for a socket and the address as the settings give it.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    inherited: Vec<(String, OwnedFd)>,
    kept: Vec<(String, OwnedFd)>,
}

impl Sockets {
    /// Those of the agent before.
    pub(super) fn of(inherited: Vec<(String, OwnedFd)>) -> Self {
        Self { inherited, kept: Vec::new() }
    }

    /// A TCP socket for each worker.
    ///
    /// # Errors
    /// When it cannot be opened, or the agent before had more workers: a socket that nobody serves would swallow connections.
    pub(crate) fn bind(&mut self, address: SocketAddr, workers: usize, flag: &'static str) -> Result<Bound, ListenError> {
        let failed = |reason| ListenError::Failed { address, flag, reason };
        let name = format!("tcp {flag} {address}");
        let inherited: Vec<TcpListener> = self.take(&name).into_iter().map(TcpListener::from).collect();
        if inherited.len() > workers {
            let why = format!("the running agent has {} workers here, and this one fewer", inherited.len());
            return Err(failed(io::Error::other(why)));
        }
        let bound = if inherited.is_empty() {
            listener::bind(address, workers, flag)?
        } else {
            listener::adopt(inherited, workers).map_err(failed)?
        };
        for socket in bound.sockets() {
            self.keep(&name, socket).map_err(failed)?;
        }
        Ok(bound)
    }

    /// A UDP socket.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) fn bind_udp(&mut self, address: SocketAddr, flag: &'static str) -> Result<UdpSocket, ListenError> {
        let failed = |reason| ListenError::Failed { address, flag, reason };
        let name = format!("udp {flag} {address}");
        let socket = match self.take(&name).pop() {
            Some(socket) => UdpSocket::from(socket),
            None => UdpSocket::bind(address).map_err(failed)?,
        };
        self.keep(&name, &socket).map_err(failed)?;
        Ok(socket)
    }

    /// The unix socket that the agent before listened on at this path.
    pub(crate) fn inherited_unix(&mut self, path: &Path) -> Option<tokio::net::UnixListener> {
        let listener = std::os::unix::net::UnixListener::from(self.take(&unix(path)).pop()?);
        listener.set_nonblocking(true).ok()?;
        tokio::net::UnixListener::from_std(listener).ok()
    }

    /// Keeps a unix socket for the next agent. One that cannot be kept is opened anew by it.
    pub(crate) fn keep_unix(&mut self, path: &Path, listener: &tokio::net::UnixListener) {
        if let Err(error) = self.keep(&unix(path), listener) {
            tracing::warn!(%error, path = %path.display(), "a successor will not get this socket");
        }
    }

    fn take(&mut self, name: &str) -> Vec<OwnedFd> {
        let (taken, left) = std::mem::take(&mut self.inherited).into_iter().partition(|(each, _)| each == name);
        self.inherited = left;
        let taken: Vec<(String, OwnedFd)> = taken;
        taken.into_iter().map(|(_, socket)| socket).collect()
    }

    fn keep(&mut self, name: &str, socket: &impl AsFd) -> io::Result<()> {
        self.kept.push((name.to_owned(), socket.as_fd().try_clone_to_owned()?));
        Ok(())
    }

    /// Copies for the next agent. What was inherited and not asked for is closed.
    pub(super) fn into_kept(self) -> Vec<(String, OwnedFd)> {
        self.kept
    }
}

fn unix(path: &Path) -> String {
    format!("unix {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_inherited_by_what_it_is_for() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut first = Sockets::default();
        let (mesh, health) = (first.bind(any, 2, "--mesh").unwrap(), first.bind(any, 1, "--health").unwrap());
        let udp = first.bind_udp(any, "--capture-dns-port").unwrap();
        let copies = |sockets: &Sockets| {
            let kept = sockets.kept.iter().map(|(name, socket)| (name.clone(), socket.try_clone().unwrap()));
            Sockets::of(kept.collect())
        };
        let mut second = copies(&first);
        assert_eq!(second.bind(any, 1, "--health").unwrap().address, health.address);
        assert_eq!(second.bind_udp(any, "--capture-dns-port").unwrap().local_addr().unwrap(), udp.local_addr().unwrap());
        let more = second.bind(any, 3, "--mesh").unwrap();
        assert_eq!((more.address, more.sockets().len()), (mesh.address, 3), "one more worker");
        assert_ne!(second.bind(any, 1, "--outbound").unwrap().address, mesh.address, "nobody had that");
        let error = copies(&first).bind(any, 1, "--mesh").unwrap_err().to_string();
        assert!(error.contains("2 workers"), "{error}");
    }
}
