//! The trust bundle and the revocations in force, and who is believed because of them.

use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{AcqRel, Acquire, Release},
        },
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use outrider_policy::TrustDomain;
use outrider_proto::v1::{RevocationList, TrustBundle};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use tokio::{sync::watch, time::Instant};

use super::{AnchorId, Leaf, LeafError, anchor::Anchor, provider, revoked::Revoked};
use crate::{
    identity::Peer,
    refusal::{Reason, Refusal},
};

/// Most anchors of a bundle.
const MOST_ANCHORS: usize = 16;
/// Leaves that a worker remembers the anchor of, between a peer's certificate and the end of its handshake. Of those beyond it
/// the anchor is found anew.
const MOST_VERIFIED: usize = 64;
/// How long exchanges may go on with a peer whose trust anchor has left the bundle. Nothing new begins with it.
const LEAVE: Duration = Duration::from_secs(10);

/// Trust anchors of our trust domain, and who is revoked. Without anchors, as at first, nobody is believed.
#[derive(Debug)]
pub struct Trust {
    state: ArcSwap<State>,
    /// The control plane said that our own certificate or identity is revoked.
    disowned: AtomicBool,
    /// Counts the states: moved on after the new one is in place.
    version: AtomicU64,
    changed: Arc<watch::Sender<u64>>,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Clone, Debug, Default)]
struct State {
    bundle: Option<Arc<Bundle>>,
    revoked: Arc<Revoked>,
    /// Anchors that left the bundle not long ago, and when the last exchanges of their peers end.
    left: Vec<(AnchorId, Instant)>,
}

#[derive(Debug)]
struct Bundle {
    domain: TrustDomain,
    ders: Vec<Vec<u8>>,
    anchors: Vec<Anchor>,
}

/// A bundle that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Nobody could ever be verified.
    #[error("the trust bundle holds no certificate")]
    Empty,
    /// More than anybody needs.
    #[error("the trust bundle holds {0} certificates, at most {MOST_ANCHORS} are taken")]
    TooMany(usize),
    /// Not a trust domain.
    #[error("trust domain: {0}")]
    Domain(String),
    /// Not a certificate that can be an anchor.
    #[error("trust anchor: {0}")]
    Anchor(String),
    /// Not a list of revocations.
    #[error("revocations: {0}")]
    Revocations(String),
}

thread_local! {
    /// Leaves of handshakes under way on this thread, and the anchor that each was verified by.
    static VERIFIED: RefCell<VecDeque<(CertificateDer<'static>, AnchorId)>> = const { RefCell::new(VecDeque::new()) };
}

fn remember(leaf: &CertificateDer<'_>, anchor: AnchorId) {
    VERIFIED.with_borrow_mut(|verified| {
        if verified.len() >= MOST_VERIFIED {
            verified.pop_front();
        }
        verified.push_back((leaf.clone().into_owned(), anchor));
    });
}

/// What was remembered of a leaf, once.
fn recall(leaf: &CertificateDer<'_>) -> Option<AnchorId> {
    VERIFIED.with_borrow_mut(|verified| {
        let at = verified.iter().rposition(|(known, _)| known == leaf)?;
        verified.remove(at).map(|(_, anchor)| anchor)
    })
}

/// Whether a peer that was believed still is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is.
    Good,
    /// Its trust anchor has left the bundle: what is under way may go on until then.
    Leaving(Instant),
    /// It was revoked.
    Revoked,
}

impl Default for Trust {
    fn default() -> Self {
        let algorithms = provider().signature_verification_algorithms;
        let (version, disowned) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { state: ArcSwap::default(), disowned, version, changed: Arc::new(watch::Sender::new(0)), algorithms }
    }
}

impl Bundle {
    fn read(bundle: &TrustBundle) -> Result<Self, TrustError> {
        let domain: TrustDomain = bundle.trust_domain.parse().map_err(|error| TrustError::Domain(format!("{error}")))?;
        match bundle.roots.len() {
            0 => return Err(TrustError::Empty),
            1..=MOST_ANCHORS => {}
            many => return Err(TrustError::TooMany(many)),
        }
        let anchors = bundle.roots.iter().map(|der| Anchor::read(der)).collect::<Result<_, _>>()?;
        Ok(Self { domain, ders: bundle.roots.clone(), anchors })
    }

    /// Tries each anchor; the error is that of the one the chain names, where it names one.
    fn verify(&self, leaf: &CertificateDer<'_>, chain: impl Fn(&Anchor) -> Result<(), Error>) -> Result<Leaf, Error> {
        let mut refused = None;
        for anchor in &self.anchors {
            match chain(anchor) {
                Ok(()) => {
                    refused = None;
                    remember(leaf, anchor.id);
                    break;
                }
                Err(error) => {
                    let unknown = Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
                    if refused.is_none() || error != unknown {
                        refused = Some(error);
                    }
                }
            }
        }
        if let Some(error) = refused {
            return Err(error);
        }
        let leaf = Leaf::parse(leaf)?;
        if leaf.id.trust_domain() != self.domain.as_str() {
            return Err(LeafError::TrustDomain(leaf.id.to_string()).into());
        }
        Ok(leaf)
    }
}

impl Trust {
    /// Puts a bundle in force for all handshakes from now on. Peers whose anchor is not in it any more begin nothing new.
    ///
    /// # Errors
    /// When it cannot be used; what was in force before still is.
    pub fn replace(&self, bundle: &TrustBundle) -> Result<(), TrustError> {
        let read = Arc::new(Bundle::read(bundle)?);
        let now = Instant::now();
        self.state.rcu(|state| {
            let holds = |id: &AnchorId| read.anchors.iter().any(|anchor| anchor.id == *id);
            let mut left: Vec<_> = state.left.iter().filter(|(id, until)| *until > now && !holds(id)).copied().collect();
            let before = state.bundle.iter().flat_map(|before| &before.anchors);
            left.extend(before.filter(|anchor| !holds(&anchor.id)).map(|anchor| (anchor.id, now + LEAVE)));
            State { bundle: Some(read.clone()), revoked: state.revoked.clone(), left }
        });
        self.tell();
        Ok(())
    }

    /// Puts a list of revocations in force, for handshakes and for whoever is connected.
    ///
    /// # Errors
    /// When it cannot be read; what was in force before still is.
    pub fn revoke(&self, list: &RevocationList) -> Result<(), TrustError> {
        let read = Arc::new(Revoked::read(list).map_err(TrustError::Revocations)?);
        if self.state.load().revoked != read {
            self.state.rcu(|state| State { revoked: read.clone(), ..State::clone(state) });
            self.tell();
        }
        Ok(())
    }

    /// Notes whether the control plane has revoked our own certificate or identity.
    pub fn disown(&self, is_revoked: bool) {
        if self.disowned.swap(is_revoked, AcqRel) != is_revoked {
            self.tell();
        }
    }

    /// Whether the control plane has revoked our own certificate or identity: nobody should be given it.
    pub fn is_disowned(&self) -> bool {
        self.disowned.load(Acquire)
    }

    /// The bundle in force.
    pub fn bundle(&self) -> Option<TrustBundle> {
        let state = self.state.load();
        let bundle = state.bundle.as_ref()?;
        Some(TrustBundle { trust_domain: bundle.domain.to_string(), roots: bundle.ders.clone() })
    }

    /// SHA-256 of the public key of the bundle's first anchor.
    pub fn pin(&self) -> Option<[u8; 32]> {
        self.state.load().bundle.as_ref().and_then(|bundle| Some(bundle.anchors.first()?.pin))
    }

    /// Told at every change of what is believed, and of policy. Subscribe before looking, so that no change is lost.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What [`Trust::changes`] hears of.
    pub(crate) fn changed(&self) -> Arc<watch::Sender<u64>> {
        self.changed.clone()
    }

    fn tell(&self) {
        self.version.fetch_add(1, Release);
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// The anchor that this chain, which was verified in this handshake, leads to; none when it has left the bundle meanwhile: a
    /// peer may take its time between its certificate and the end of the handshake, and must not pass for one of the anchor that
    /// is left.
    pub(crate) fn anchor_of(&self, chain: &[CertificateDer<'_>]) -> Option<AnchorId> {
        let state = self.state.load();
        let anchors = &state.bundle.as_ref()?.anchors;
        let (leaf, intermediates) = chain.split_first()?;
        if let Some(id) = recall(leaf).filter(|id| anchors.iter().any(|anchor| anchor.id == *id)) {
            return Some(id);
        }
        let now = UnixTime::now();
        anchors.iter().find(|anchor| anchor.verify_client(leaf, intermediates, now).is_ok()).map(|anchor| anchor.id)
    }

    /// Whether a peer that was believed at its handshake still is. A caller in plaintext proved nothing that could fall.
    pub fn standing(&self, peer: &Peer) -> Standing {
        // Read before the state: what is remembered is of this version or a later one, and never outlives it.
        let version = self.version.load(Acquire);
        peer.standing(version, || self.find_standing(peer))
    }

    fn find_standing(&self, peer: &Peer) -> Standing {
        let (Some(id), Some(serial), Some(anchor)) = (peer.id(), peer.serial(), peer.anchor()) else { return Standing::Good };
        let state = self.state.load();
        if state.revoked.check(id, serial).is_err() {
            return Standing::Revoked;
        }
        let anchors = state.bundle.iter().flat_map(|bundle| &bundle.anchors);
        if anchors.map(|anchor| &anchor.id).any(|id| id == anchor) {
            return Standing::Good;
        }
        let left = state.left.iter().find(|(id, _)| id == anchor);
        Standing::Leaving(left.map_or_else(Instant::now, |(_, until)| *until))
    }

    /// What a peer is told that is no longer believed; `None` while it may go on.
    pub fn refusal(&self, peer: &Peer) -> Option<Refusal> {
        match self.standing(peer) {
            Standing::Good => None,
            Standing::Leaving(until) => (Instant::now() >= until)
                .then(|| Refusal::new(Reason::PolicyRevoked, "the trust anchor of the peer's certificate has left the bundle")),
            Standing::Revoked => {
                let (id, serial) = (peer.id()?, peer.serial()?);
                let detail = self.state.load().revoked.check(id, serial).err();
                Some(Refusal::new(Reason::PeerRevoked, detail.map_or_else(String::new, |error| error.to_string())))
            }
        }
    }

    /// When the peer's certificate, or the belief in it, ends if nothing changes.
    pub fn deadline(&self, peer: &Peer) -> Instant {
        match self.standing(peer) {
            Standing::Good | Standing::Revoked => peer.deadline(),
            Standing::Leaving(until) => until.min(peer.deadline()),
        }
    }

    /// Ends when a peer is no longer believed.
    pub async fn fallen(&self, peer: &Peer) -> Refusal {
        // Subscribed before the first look: a change in between is seen as a change.
        let mut changes = self.changes();
        loop {
            if let Some(refusal) = self.refusal(peer) {
                return refusal;
            }
            let leaving = match self.standing(peer) {
                Standing::Leaving(until) => Some(until),
                Standing::Good | Standing::Revoked => None,
            };
            let left = async {
                match leaving {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return Refusal::new(Reason::Draining, "the agent is going away");
                },
                () = left => {}
            }
        }
    }

    /// Ends when a peer should begin nothing new.
    pub async fn unsettled(&self, peer: &Peer) {
        let mut changes = self.changes();
        while self.standing(peer) == Standing::Good && changes.changed().await.is_ok() {}
    }

    fn verify(&self, leaf: &CertificateDer<'_>, chain: impl Fn(&Anchor) -> Result<(), Error>) -> Result<(), Error> {
        let state = self.state.load_full();
        let bundle = state.bundle.as_ref().ok_or_else(|| Error::General("no trust bundle yet".to_owned()))?;
        let Leaf { id, serial, .. } = bundle.verify(leaf, chain)?;
        Ok(state.revoked.check(&id, &serial)?)
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, |anchor| anchor.verify_server(leaf, intermediates, now, self.algorithms))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Trust {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, |anchor| anchor.verify_client(leaf, intermediates, now))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
