//! The CA keys in use, and what is signed with them.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use outrider_policy::identity::{SpiffeId, TrustDomain};
use rcgen::CertificateParams;
use rustls::{RootCertStore, crypto::aws_lc_rs, server::WebPkiClientVerifier, server::danger::ClientCertVerifier};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use super::{
    SigningRequest,
    certificate::{self, hex},
    external::{CaFiles, External},
    handover::Handover,
    schedule::{Lifetimes, OPERATOR_TTL, Validity},
    signer::{CaInfo, Signer},
};
use crate::store::{CaRow, Kek, RootMark, Store, StoreError};

/// The CA did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    /// No randomness.
    #[error("the system gave no random bytes")]
    Random,
    /// The clock is off the calendar.
    #[error("the clock says {0} s, which no certificate can express")]
    Clock(i64),
    /// Signing failed.
    #[error("signing failed")]
    Sign(#[from] rcgen::Error),
    /// A stored CA is not what it should be.
    #[error("the {role} CA in the store is not usable: {reason} (restore the store from a backup)")]
    Stored {
        /// Which.
        role: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The issuing CA has ended; a renewal is due.
    #[error("the issuing CA has expired")]
    Expired,
    /// Nobody could be verified by these roots.
    #[error("the roots are not usable: {0}")]
    Roots(String),
    /// The files of a mounted CA.
    #[error("the mounted CA is not usable: {0}")]
    Mounted(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A root, by the SHA-256 of its subject public key info.
pub(crate) type Anchor = [u8; 32];

/// A signed leaf.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    /// Leaf, then issuing CA.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Lower-case hex.
    pub(crate) serial: String,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// Common name of the CA that signed it.
    pub(crate) issuer: String,
    /// Id of the root that it chains to.
    pub(crate) root: String,
}

/// Roots and issuing CAs of this control plane.
pub(crate) struct Authority {
    trust_domain: TrustDomain,
    lifetimes: Lifetimes,
    pub(super) keys: ArcSwap<Keys>,
    /// The roots that are trusted, by the SHA-256 of their keys: connections of others end.
    trusted: watch::Sender<Vec<Anchor>>,
    /// One looks at a time: nobody makes an issuing CA that somebody else is about to make.
    pub(super) looking: tokio::sync::Mutex<()>,
    /// Every root there ever was.
    known: Mutex<Vec<String>>,
    /// Somebody else's CA takes the place of our own.
    pub(super) external: Option<External>,
    /// The change from one of somebody else's CAs to the next.
    pub(super) handover: Mutex<Handover>,
    pub(super) store: Store,
    kek: Kek,
}

/// The CAs at a moment.
pub(super) struct Keys {
    marks: Vec<RootMark>,
    /// Those that are trusted, the one that signs first.
    pub(super) roots: Vec<Root>,
    /// Believes whoever chains to one of them.
    clients: Arc<dyn ClientCertVerifier>,
}

#[derive(Clone)]
pub(super) struct Root {
    pub(super) info: CaInfo,
    pub(super) der: CertificateDer<'static>,
    /// None of a root that somebody else holds.
    pub(super) signer: Option<Arc<Signer>>,
    pub(super) issuing: Option<Arc<Signer>>,
    /// What a leaf is sent with: from the CA that signed it to the one below the root.
    pub(super) via: Vec<CertificateDer<'static>>,
    /// Another replica found it in its files.
    pub(super) elsewhere: bool,
}

impl Root {
    fn own(signer: Signer) -> Self {
        Self {
            info: signer.info.clone(),
            der: signer.der.clone(),
            signer: Some(Arc::new(signer)),
            issuing: None,
            via: Vec::new(),
            elsewhere: false,
        }
    }

    /// A root that somebody else holds.
    pub(super) fn of_others(info: CaInfo, der: CertificateDer<'static>) -> Self {
        Self { info, der, signer: None, issuing: None, via: Vec::new(), elsewhere: false }
    }
}

/// What a look at the CAs changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refreshed {
    /// Other roots are trusted, or another one signs.
    pub(crate) roots: bool,
    /// An issuing CA was made.
    pub(crate) issuing: bool,
}

/// A root, and the issuing CA below it, by which our own leaves are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) root: [u8; 32],
    /// Common name.
    pub(super) issuing: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Authority({})", self.trust_domain)
    }
}

impl Authority {
    /// Finds the CAs in the store, or makes them.
    ///
    /// # Errors
    /// When a stored one was tampered with or does not belong to its key.
    pub(crate) async fn open(
        store: Store,
        kek: Kek,
        trust_domain: TrustDomain,
        lifetimes: Lifetimes,
        files: Option<CaFiles>,
        now: i64,
    ) -> Result<Self, CaError> {
        if files.is_none() && !store.root_marks().await?.iter().any(|mark| mark.active) {
            // Another replica may be first.
            store.found(&Signer::make_root(&trust_domain, lifetimes.root, now)?, &kek, now).await?;
        }
        let none = Keys { marks: Vec::new(), roots: Vec::new(), clients: WebPkiClientVerifier::no_client_auth() };
        let (keys, trusted) = (ArcSwap::from_pointee(none), watch::Sender::default());
        let authority = Self {
            trust_domain,
            lifetimes,
            keys,
            trusted,
            looking: tokio::sync::Mutex::default(),
            known: Mutex::default(),
            external: files.map(External::new),
            handover: Mutex::default(),
            store,
            kek,
        };
        authority.refresh(now).await?;
        if let Some(reason) = authority.refused_files().filter(|_| authority.roots().is_empty()) {
            return Err(CaError::Mounted(reason));
        }
        Ok(authority)
    }

    /// Looks at the roots in the store, and makes a new issuing CA below each that lacks one, or whose one is past its renewal
    /// point, not valid yet because the clock was moved back, or not of that root.
    pub(crate) async fn refresh(&self, now: i64) -> Result<Refreshed, CaError> {
        let _one = self.looking.lock().await;
        if let Some(external) = &self.external {
            return self.look_at_files(external, now).await;
        }
        let marks = self.store.root_marks().await?;
        let present = self.keys.load_full();
        let mut refreshed = Refreshed { roots: marks != present.marks, issuing: false };
        let mut roots = if refreshed.roots { self.read_roots(&marks, &present).await? } else { present.roots.clone() };
        for root in &mut roots {
            refreshed.issuing |= self.refresh_issuing(root, now).await?;
        }
        if refreshed != Refreshed::default() {
            let clients =
                if refreshed.roots { verifier(roots.iter().map(|root| &root.der))? } else { Arc::clone(&present.clients) };
            *self.known.lock().unwrap_or_else(PoisonError::into_inner) = marks.iter().map(|mark| mark.id.clone()).collect();
            self.use_keys(Keys { marks, roots, clients });
        }
        Ok(refreshed)
    }

    /// The trusted roots. One whose key is not at hand, or does not open, is none of ours.
    async fn read_roots(&self, marks: &[RootMark], present: &Keys) -> Result<Vec<Root>, CaError> {
        let mut roots = Vec::new();
        let trusted = |active: bool| marks.iter().rev().filter(move |mark| mark.trusted && mark.active == active);
        for mark in trusted(true).chain(trusted(false)) {
            if let Some(root) = present.roots.iter().find(|root| root.info.id() == mark.id) {
                roots.push(root.clone());
            } else if let Some(row) = self.store.root(&mark.id, &self.kek).await? {
                roots.push(Root::own(Signer::load(row)?));
            }
        }
        if roots.is_empty() {
            return Err(CaError::Stored { role: "root", reason: "it is not there".to_owned() });
        }
        Ok(roots)
    }

    /// Says whether it made one.
    async fn refresh_issuing(&self, root: &mut Root, now: i64) -> Result<bool, CaError> {
        let Some(signer) = root.signer.clone() else { return Ok(false) };
        let id = root.info.id();
        if root.issuing.is_none()
            && let Some(row) = self.store.issuing(&id, &self.kek).await?
        {
            root.issuing = Some(Arc::new(Signer::load(row)?)).filter(|issuing| issuing.is_signed_by(&signer));
            root.via = root.issuing.iter().map(|issuing| issuing.der.clone()).collect();
        }
        if root.issuing.as_ref().is_some_and(|issuing| issuing.info.is_fresh(now)) {
            return Ok(false);
        }
        if root.issuing.is_some() && root.info.not_before > now {
            // A new one would not be valid either: the clock is wrong, and status says so.
            return Ok(false);
        }
        let (row, issuing) = signer.make_issuing(&self.trust_domain, self.lifetimes.issuing, now)?;
        if !self.store.put_issuing(&row, &id, &self.kek, now).await? {
            // The root went in this moment.
            return Ok(false);
        }
        tracing::info!(issuer = issuing.info.common_name, "issuing CA made");
        root.via = vec![issuing.der.clone()];
        root.issuing = Some(Arc::new(issuing));
        Ok(true)
    }

    /// Trusts these roots, of which the first signs, in the place of those before.
    pub(super) fn use_roots(&self, roots: Vec<Root>) -> Result<(), CaError> {
        let clients = verifier(roots.iter().map(|root| &root.der))?;
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = roots.iter().map(|root| root.info.id()).collect();
        self.use_keys(Keys { marks: Vec::new(), roots, clients });
        Ok(())
    }

    fn use_keys(&self, keys: Keys) {
        let roots: Vec<Anchor> = keys.roots.iter().map(|root| root.info.spki).collect();
        self.keys.store(Arc::new(keys));
        self.trusted.send_if_modified(|before| {
            let is_new = *before != roots;
            *before = roots;
            is_new
        });
    }

    /// The root that this chain, which was verified just now, leads to; `None` when it has left meanwhile.
    pub(crate) fn anchor_of(&self, chain: &[CertificateDer<'_>]) -> Option<Anchor> {
        let keys = self.keys.load();
        let (leaf, via) = chain.split_first()?;
        let now = UnixTime::now();
        let leads = |root: &&Root| verifier([&root.der]).is_ok_and(|one| one.verify_client_cert(leaf, via, now).is_ok());
        // Also where one root is left: it need not be the one that the chain was verified by a moment ago.
        keys.roots.iter().find(leads).map(|root| root.info.spki)
    }

    /// Ends when this root is trusted no more.
    pub(crate) async fn retired(self: Arc<Self>, root: Anchor) {
        let mut trusted = self.trusted.subscribe();
        // The sender is ours.
        let _ = trusted.wait_for(|roots| !roots.contains(&root)).await;
    }

    /// Whether somebody else makes the CA.
    pub(crate) fn is_mounted(&self) -> bool {
        self.external.is_some()
    }

    /// Why the files of a mounted CA are not used as they are now.
    pub(crate) fn refused_files(&self) -> Option<String> {
        self.external.as_ref()?.refused()
    }

    /// A new root, for the store.
    pub(crate) fn make_root(&self, now: i64) -> Result<CaRow, CaError> {
        Signer::make_root(&self.trust_domain, self.lifetimes.root, now)
    }

    /// The key that seals CA keys.
    pub(crate) fn kek(&self) -> &Kek {
        &self.kek
    }

    /// Signs a leaf for an identity that was proved.
    pub(crate) fn sign(&self, request: &SigningRequest, identity: &SpiffeId, now: i64) -> Result<Leaf, CaError> {
        self.sign_key(&request.key, identity, now)
    }

    /// Signs a leaf for an operator that proved who it is.
    pub(crate) fn sign_operator(&self, request: &SigningRequest, identity: &SpiffeId, now: i64) -> Result<Leaf, CaError> {
        let keys = self.keys.load();
        self.sign_below(keys.roots.first(), &request.key, now, OPERATOR_TTL, |validity| certificate::operator(identity, validity))
    }

    /// Signs a leaf for one of our own keys, below the root that signs.
    pub(super) fn sign_key(&self, key: &impl rcgen::PublicKeyData, identity: &SpiffeId, now: i64) -> Result<Leaf, CaError> {
        let keys = self.keys.load();
        let says = |validity| certificate::leaf(identity, validity);
        self.sign_below(keys.roots.first(), key, now, self.lifetimes.leaf, says)
    }

    /// Signs a leaf for one of our own keys, below this root.
    pub(super) fn sign_own(
        &self,
        root: &[u8; 32],
        key: &impl rcgen::PublicKeyData,
        identity: &SpiffeId,
        now: i64,
    ) -> Result<Leaf, CaError> {
        let keys = self.keys.load();
        let root = keys.roots.iter().find(|one| one.info.spki == *root);
        self.sign_below(root, key, now, self.lifetimes.leaf, |validity| certificate::leaf(identity, validity))
    }

    fn sign_below(
        &self,
        root: Option<&Root>,
        key: &impl rcgen::PublicKeyData,
        now: i64,
        ttl: i64,
        says: impl FnOnce(Validity) -> Result<CertificateParams, CaError>,
    ) -> Result<Leaf, CaError> {
        let (root, issuing) = root.and_then(|root| Some((root, root.issuing.as_ref()?))).ok_or(CaError::Expired)?;
        let validity = Validity::starting(now, ttl, issuing.info.not_after);
        if validity.not_after <= now {
            return Err(CaError::Expired);
        }
        let params = says(validity)?;
        let serial = params.serial_number.as_ref().map(|serial| hex(&serial.to_bytes())).unwrap_or_default();
        let leaf = params.signed_by(key, &issuing.issuer)?;
        Ok(Leaf {
            chain: std::iter::once(leaf.der()).chain(&root.via).cloned().collect(),
            serial,
            not_before: validity.not_before,
            not_after: validity.not_after,
            issuer: issuing.info.common_name.clone(),
            root: root.info.id(),
        })
    }

    /// Trust anchors of the mesh, the one that signs first.
    pub(crate) fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.keys.load().roots.iter().map(|root| root.der.clone()).collect()
    }

    /// Believes client certificates that chain to the roots as they are now.
    pub(crate) fn clients(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.keys.load().clients)
    }

    /// SHA-256 of the subject public key info of the root that signs: what join tokens pin.
    pub(crate) fn root_pin(&self) -> [u8; 32] {
        self.keys.load().roots.first().map(|root| root.info.spki).unwrap_or_default()
    }

    /// Ids of every root there ever was, oldest first.
    pub(crate) fn known_roots(&self) -> Vec<String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The CAs in words, roots first, and of these the one that signs.
    pub(crate) fn describe(&self) -> Vec<CaInfo> {
        let keys = self.keys.load();
        let signing = |place: usize, info: &CaInfo| CaInfo { signs: place == 0, ..info.clone() };
        let roots = keys.roots.iter().enumerate().map(|(place, root)| signing(place, &root.info));
        let issuing = keys.roots.iter().enumerate();
        let issuing = issuing.filter_map(|(place, root)| Some(signing(place, &root.issuing.as_ref()?.info)));
        roots.chain(issuing).collect()
    }

    /// The lines that own leaves can be of, the one that signs first.
    pub(super) fn lines(&self) -> Vec<Line> {
        let keys = self.keys.load();
        let line = |root: &Root| {
            let issuing = root.issuing.as_ref()?.info.common_name.clone();
            Some(Line { root: root.info.spki, issuing })
        };
        keys.roots.iter().filter_map(line).collect()
    }

    /// The trust domain that it issues for.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Seconds that new leaves live.
    pub(crate) fn leaf_ttl(&self) -> i64 {
        self.lifetimes.leaf
    }
}

/// Believes client certificates that chain to these roots.
pub(super) fn verifier<'a>(
    roots: impl IntoIterator<Item = &'a CertificateDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, CaError> {
    let unusable = |error: &dyn fmt::Display| CaError::Roots(error.to_string());
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(|error| unusable(&error))?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).allow_unauthenticated();
    verifier.build().map_err(|error| unusable(&error))
}
