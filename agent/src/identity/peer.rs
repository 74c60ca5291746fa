//! The other end of a mesh connection.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use outrider_policy::SpiffeId;
use rustls::CommonState;
use tokio::time::Instant;

use crate::tls::{Leaf, LeafError};

/// Who is at the other end, as its certificate proved.
#[derive(Clone, Debug)]
pub struct Peer {
    id: SpiffeId,
    address: SocketAddr,
    deadline: Instant,
    tls: Arc<str>,
}

impl Peer {
    /// Reads a finished handshake, whose verifier has accepted the certificate.
    ///
    /// # Errors
    /// When there is no certificate, or it is not a workload's.
    pub fn of(session: &CommonState, address: SocketAddr) -> Result<Self, LeafError> {
        let leaf = session.peer_certificates().and_then(<[_]>::first).ok_or(LeafError::Encoding)?;
        let Leaf { id, not_after, .. } = Leaf::parse(leaf)?;
        let suite = session.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite())).unwrap_or_default();
        let group = session.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name())).unwrap_or_default();
        let left = not_after.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
        Ok(Self { id, address, deadline: Instant::now() + left, tls: format!("{suite} {group}").into() })
    }

    /// Its SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Where it connects from, or listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cipher suite and key exchange.
    pub fn tls(&self) -> &str {
        &self.tls
    }

    /// When its certificate ends; the connection ends with it.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}
