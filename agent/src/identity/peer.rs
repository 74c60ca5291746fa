//! The other end of a mesh connection.

use std::{
    cell::{Cell, OnceCell},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use outrider_policy::{SpiffeId, svid::SvidProblem};
use rustls::CommonState;
use tokio::time::Instant;

use crate::tls::{AnchorId, Leaf, LeafError, Standing, Trust};

/// Who is at the other end, as its certificate proved.
#[derive(Clone, Debug)]
pub struct Peer {
    id: Option<SpiffeId>,
    address: SocketAddr,
    deadline: Instant,
    tls: Arc<str>,
    proof: Option<Proof>,
    /// Whether it is believed, as found at a version of what is believed.
    standing: Cell<Option<(u64, Standing)>>,
    /// What every record says of it.
    shown: OnceCell<Box<[u8]>>,
}

/// What a certificate proved beside the identity.
#[derive(Clone, Debug)]
struct Proof {
    serial: Arc<str>,
    anchor: AnchorId,
}

impl Peer {
    /// Reads a finished handshake, whose verifier has accepted the certificate.
    ///
    /// # Errors
    /// When there is no certificate, it is not a workload's, or its trust anchor has left the bundle meanwhile.
    pub fn of(session: &CommonState, address: SocketAddr, trust: &Trust) -> Result<Self, LeafError> {
        let chain = session.peer_certificates().unwrap_or_default();
        let leaf = chain.first().ok_or(LeafError::Svid(SvidProblem::Encoding))?;
        let Leaf { id, serial, not_after, .. } = Leaf::parse(leaf)?;
        let proof = Some(Proof { serial: serial.into(), anchor: trust.anchor_of(chain).ok_or(LeafError::Anchor)? });
        let suite = session.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite())).unwrap_or_default();
        let group = session.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name())).unwrap_or_default();
        let left = not_after.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
        Ok(Self {
            id: Some(id),
            address,
            deadline: Instant::now() + left,
            tls: format!("{suite} {group}").into(),
            proof,
            standing: Cell::default(),
            shown: OnceCell::new(),
        })
    }

    /// Somebody who came in plaintext and proved nothing.
    pub fn anonymous(address: SocketAddr) -> Self {
        // There is no certificate to end; the policy ends such a connection.
        let deadline = Instant::now() + Duration::from_secs(365 * 86_400);
        Self { id: None, address, deadline, tls: "".into(), proof: None, standing: Cell::default(), shown: OnceCell::new() }
    }

    /// Its SPIFFE ID; none for a caller in plaintext.
    pub fn id(&self) -> Option<&SpiffeId> {
        self.id.as_ref()
    }

    /// Its SPIFFE ID as text; empty for a caller in plaintext.
    pub fn name(&self) -> &str {
        self.id.as_ref().map(SpiffeId::as_str).unwrap_or_default()
    }

    /// Serial number of its certificate, lower-case hex.
    pub fn serial(&self) -> Option<&str> {
        self.proof.as_ref().map(|proof| &*proof.serial)
    }

    /// The trust anchor that its certificate chains to.
    pub fn anchor(&self) -> Option<&AnchorId> {
        self.proof.as_ref().map(|proof| &proof.anchor)
    }

    /// Whether it is believed at this version; only what is not known yet is found out.
    pub(crate) fn standing(&self, version: u64, find: impl FnOnce() -> Standing) -> Standing {
        match self.standing.get() {
            Some((known, standing)) if known == version => standing,
            _ => {
                let standing = find();
                self.standing.set(Some((version, standing)));
                standing
            }
        }
    }

    /// What every record says of it, written by the first one.
    pub(crate) fn shown(&self, write: impl FnOnce(&Self) -> Box<[u8]>) -> &[u8] {
        self.shown.get_or_init(|| write(self))
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
