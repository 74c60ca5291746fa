//! Somebody to measure: a pair of running proxies, or none.

use std::{net::SocketAddr, time::Duration};

use super::super::process::Process;

/// How handshakes straight at the callee's proxy are made.
#[derive(Clone, Debug)]
pub(super) enum Handshake {
    /// With the certificates that all contenders but ours use.
    Certificates,
    /// As a member of the mesh: these arguments, ready for a token.
    Mesh {
        /// Control plane.
        join: SocketAddr,
        /// Its admin socket.
        socket: String,
    },
}

/// A contender.
#[derive(Debug)]
pub(super) struct Contender {
    pub(super) name: &'static str,
    /// Takes plain HTTP/1.1.
    pub(super) http1: Option<SocketAddr>,
    /// Takes HTTP/2 with prior knowledge, towards an HTTP/2 backend.
    pub(super) http2: Option<SocketAddr>,
    /// Takes HTTP/1.1 over mutual TLS.
    pub(super) tls: Option<(SocketAddr, Handshake)>,
    /// Caller's and callee's proxy; none without proxies.
    pub(super) pair: Option<(Process, Process)>,
}

impl Contender {
    /// The proxies, with their places.
    pub(super) fn processes(&self) -> impl Iterator<Item = (&'static str, &Process)> {
        self.pair.iter().flat_map(|(caller, callee)| [("caller", caller), ("callee", callee)])
    }

    /// CPU time of each so far.
    pub(super) fn cpu(&self) -> anyhow::Result<Vec<Duration>> {
        self.processes().map(|(_, process)| process.cpu()).collect()
    }
}
