//! The CA keys in use, and what is signed with them.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1, UnparsedPublicKey};
use outrider_policy::identity::{SpiffeId, TrustDomain};
use rcgen::{CertificateParams, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::parse_x509_certificate;
use zeroize::Zeroizing;

use super::{
    SigningRequest,
    certificate::{self, hex, spki_hash},
    schedule::{ISSUING_TTL, OPERATOR_TTL, ROOT_TTL, Validity, renew_at},
};
use crate::store::{CaRow, Kek, Role, Store, StoreError};

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
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A CA certificate in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CaInfo {
    pub(crate) role: &'static str,
    pub(crate) common_name: String,
    /// Lower-case hex.
    pub(crate) serial: String,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// SHA-256 of the subject public key info.
    pub(crate) spki: [u8; 32],
}

/// A CA that can sign.
struct Signer {
    info: CaInfo,
    /// The key of the root that was seen to have signed it.
    of_root: Option<[u8; 32]>,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

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
}

/// Root and issuing CA of this control plane.
pub(crate) struct Authority {
    trust_domain: TrustDomain,
    leaf_ttl: i64,
    root: Signer,
    issuing: ArcSwap<Signer>,
    store: Store,
    kek: Kek,
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
        leaf_ttl: Duration,
        now: i64,
    ) -> Result<Self, CaError> {
        let root = match store.ca(Role::Root, &kek).await? {
            Some(row) => Signer::load(row)?,
            None => {
                let (row, _) = Signer::make_root(&trust_domain, now)?;
                // Another replica may have been first.
                Signer::load(store.found_ca(row, &kek, now).await?)?
            }
        };
        let issuing = match store.ca(Role::Issuing, &kek).await? {
            Some(row) => {
                let mut issuing = Signer::load(row)?;
                issuing.of_root = issuing.is_signed_by(&root).then_some(root.info.spki);
                issuing
            }
            None => Self::make_issuing(&store, &kek, &root, &trust_domain, now).await?,
        };
        let leaf_ttl = i64::try_from(leaf_ttl.as_secs()).unwrap_or(i64::MAX);
        let authority = Self { trust_domain, leaf_ttl, root, issuing: ArcSwap::from_pointee(issuing), store, kek };
        authority.renew_issuing(now).await?;
        Ok(authority)
    }

    async fn make_issuing(
        store: &Store,
        kek: &Kek,
        root: &Signer,
        trust_domain: &TrustDomain,
        now: i64,
    ) -> Result<Signer, CaError> {
        let (row, signer) = root.make_issuing(trust_domain, now)?;
        store.put_ca(&row, kek, now).await?;
        Ok(signer)
    }

    /// Makes a new issuing CA if the present one is past its renewal point, not valid yet because the clock was moved back, or
    /// not of our root. Says whether it did.
    pub(crate) async fn renew_issuing(&self, now: i64) -> Result<bool, CaError> {
        let present = self.issuing.load_full();
        let info = &present.info;
        let fresh = (info.not_before..renew_at(info.not_before, info.not_after)).contains(&now);
        if fresh && present.of_root == Some(self.root.info.spki) {
            return Ok(false);
        }
        if !fresh && self.root.info.not_before > now {
            // A new one would not be valid either: the clock is wrong, and status says so.
            return Ok(false);
        }
        drop(present);
        let issuing = Self::make_issuing(&self.store, &self.kek, &self.root, &self.trust_domain, now).await?;
        tracing::info!(issuer = issuing.info.common_name, "issuing CA renewed");
        self.issuing.store(Arc::new(issuing));
        Ok(true)
    }

    /// Signs a leaf for an identity that was proved.
    pub(crate) fn sign(&self, request: &SigningRequest, identity: &SpiffeId, now: i64) -> Result<Leaf, CaError> {
        self.sign_key(&request.key, identity, now)
    }

    /// Signs a leaf for one of our own keys.
    pub(super) fn sign_key(&self, key: &impl rcgen::PublicKeyData, identity: &SpiffeId, now: i64) -> Result<Leaf, CaError> {
        self.sign_leaf(key, now, self.leaf_ttl, |validity| certificate::leaf(identity, validity))
    }

    /// Signs a leaf for an operator that proved who it is.
    pub(crate) fn sign_operator(&self, request: &SigningRequest, identity: &SpiffeId, now: i64) -> Result<Leaf, CaError> {
        self.sign_leaf(&request.key, now, OPERATOR_TTL, |validity| certificate::operator(identity, validity))
    }

    fn sign_leaf(
        &self,
        key: &impl rcgen::PublicKeyData,
        now: i64,
        ttl: i64,
        says: impl FnOnce(Validity) -> Result<CertificateParams, CaError>,
    ) -> Result<Leaf, CaError> {
        let issuing = self.issuing.load();
        let validity = Validity::starting(now, ttl, issuing.info.not_after);
        if validity.not_after <= now {
            return Err(CaError::Expired);
        }
        let params = says(validity)?;
        let serial = params.serial_number.as_ref().map(|serial| hex(&serial.to_bytes())).unwrap_or_default();
        let leaf = params.signed_by(key, &issuing.issuer)?;
        Ok(Leaf {
            chain: vec![leaf.der().clone(), issuing.der.clone()],
            serial,
            not_before: validity.not_before,
            not_after: validity.not_after,
            issuer: issuing.info.common_name.clone(),
        })
    }

    /// Trust anchors of the mesh.
    pub(crate) fn roots(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.der.clone()]
    }

    /// SHA-256 of the root's subject public key info: what join tokens pin.
    pub(crate) fn root_pin(&self) -> [u8; 32] {
        self.root.info.spki
    }

    /// The CAs in words, root first.
    pub(crate) fn describe(&self) -> Vec<CaInfo> {
        vec![self.root.info.clone(), self.issuing.load().info.clone()]
    }

    /// Common name of the issuing CA.
    pub(super) fn issuer(&self) -> String {
        self.issuing.load().info.common_name.clone()
    }

    /// The trust domain that it issues for.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Seconds that new leaves live.
    pub(crate) fn leaf_ttl(&self) -> i64 {
        self.leaf_ttl
    }
}

impl Signer {
    fn make_root(trust_domain: &TrustDomain, now: i64) -> Result<(CaRow, Self), CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?;
        let params = certificate::root(trust_domain, &key, Validity::starting(now, ROOT_TTL, i64::MAX))?;
        let der = params.self_signed(&key)?.der().clone();
        Self::made(Role::Root, key, der)
    }

    fn make_issuing(&self, trust_domain: &TrustDomain, now: i64) -> Result<(CaRow, Self), CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let validity = Validity::starting(now, ISSUING_TTL, self.info.not_after);
        if validity.not_after <= now {
            return Err(CaError::Stored { role: "root", reason: "it has expired".to_owned() });
        }
        let der = certificate::issuing(trust_domain, &key, validity)?.signed_by(&key, &self.issuer)?.der().clone();
        let (row, mut issuing) = Self::made(Role::Issuing, key, der)?;
        issuing.of_root = Some(self.info.spki);
        Ok((row, issuing))
    }

    /// Whether a root signed it, by name and by signature.
    fn is_signed_by(&self, root: &Self) -> bool {
        let (Ok((_, own)), Ok((_, of))) = (parse_x509_certificate(&self.der), parse_x509_certificate(&root.der)) else {
            return false;
        };
        let key = UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, &of.public_key().subject_public_key.data);
        own.issuer() == of.subject() && key.verify(own.tbs_certificate.as_ref(), &own.signature_value.data).is_ok()
    }

    fn made(role: Role, key: KeyPair, der: CertificateDer<'static>) -> Result<(CaRow, Self), CaError> {
        let id = hex(&spki_hash(&key));
        let row = CaRow { id, role, certificate: der.to_vec(), key: Zeroizing::new(key.serialize_der()) };
        Ok((row, Self::new(role, key, der)?))
    }

    fn load(row: CaRow) -> Result<Self, CaError> {
        let unusable = |reason: &str| CaError::Stored { role: row.role.as_str(), reason: reason.to_owned() };
        let algorithm = match row.role {
            Role::Root => &PKCS_ECDSA_P384_SHA384,
            Role::Issuing => &PKCS_ECDSA_P256_SHA256,
        };
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(row.key.as_slice()), algorithm)
            .map_err(|_| unusable("its key does not parse"))?;
        let signer = Self::new(row.role, key, CertificateDer::from(row.certificate))?;
        // The certificate is not sealed: that it is the one of the sealed key must be seen.
        if hex(&signer.info.spki) != row.id || spki_hash(signer.issuer.key()) != signer.info.spki {
            return Err(unusable("its certificate is not of its key"));
        }
        Ok(signer)
    }

    fn new(role: Role, key: KeyPair, der: CertificateDer<'static>) -> Result<Self, CaError> {
        let info = describe(role, &der)?;
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self { info, of_root: None, der, issuer })
    }
}

fn describe(role: Role, der: &CertificateDer<'_>) -> Result<CaInfo, CaError> {
    let unusable = |reason: &str| CaError::Stored { role: role.as_str(), reason: reason.to_owned() };
    let (_, certificate) = parse_x509_certificate(der).map_err(|_| unusable("its certificate does not parse"))?;
    let common_name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let mut spki = [0; 32];
    spki.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.public_key().raw).as_ref());
    Ok(CaInfo {
        role: role.as_str(),
        common_name: common_name.ok_or_else(|| unusable("it has no common name"))?.to_owned(),
        serial: hex(certificate.raw_serial()),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        spki,
    })
}
