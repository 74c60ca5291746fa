//! Issuing CAs that a trust anchor is known to have signed. Verifying that signature costs more than all the rest of a handshake,
//! and the few issuing CAs of a mesh come with every one of them.
//!
//! What is remembered is only that the anchor vouched for these very bytes. The leaf's signature and everything else about the
//! leaf is verified each time, and so is the issuing CA's time; what an issuing CA may do is in the bytes. The memory belongs to
//! the anchor and goes with it when it leaves the bundle. Whatever is not accepted by it goes the whole way.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore,
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, UnixTime},
};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Most issuing CAs that are remembered of an anchor: a mesh has one for each replica of its control plane, and their successors.
const MOST: usize = 16;

/// What a leaf is used for, which its issuing CA must allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// To call.
    Client,
    /// To be called.
    Server,
}

/// An issuing CA that the anchor has signed.
#[derive(Debug)]
struct Issuer {
    der: CertificateDer<'static>,
    of: Use,
    /// Seconds since 1970, both inclusive.
    valid: (u64, u64),
    roots: RootCertStore,
}

/// The issuing CAs that are known of an anchor.
pub(super) struct Issuers {
    known: ArcSwap<Vec<Arc<Issuer>>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl std::fmt::Debug for Issuers {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_tuple("Issuers").field(&self.known).finish()
    }
}

impl Issuers {
    pub(super) fn new(algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { known: ArcSwap::default(), algorithms }
    }

    /// Whether the chain is good by what is known. `false` says nothing about it.
    pub(super) fn vouch(&self, of: Use, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>], now: UnixTime) -> bool {
        let [der] = intermediates else { return false };
        let known = self.known.load();
        let Some(issuer) = known.iter().find(|issuer| issuer.of == of && issuer.der == *der) else { return false };
        let (from, until) = issuer.valid;
        (from..=until).contains(&now.as_secs()) && self.leads_through(&issuer.roots, of, leaf, &[], now)
    }

    /// Remembers the issuing CA of a chain that was verified just now against `anchor`, if the chain leads through it.
    pub(super) fn learn(
        &self,
        anchor: &RootCertStore,
        of: Use,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) {
        let [der] = intermediates else { return };
        // A leaf of the anchor itself may come along with a certificate that nobody has verified.
        if !self.leads_through(anchor, of, leaf, intermediates, now) {
            return;
        }
        let Some(issuer) = Issuer::read(of, der).map(Arc::new) else { return };
        self.known.rcu(|known| {
            let others = known.iter().filter(|known| known.of != of || known.der != issuer.der).cloned();
            let mut others: Vec<_> = others.collect();
            // The oldest makes room: an issuing CA is replaced after days.
            others.drain(..(others.len() + 1).saturating_sub(MOST));
            others.push(issuer.clone());
            others
        });
    }

    /// Whether the leaf is good by these anchors with exactly these certificates in between, and no anchor bounds names.
    fn leads_through(
        &self,
        anchors: &RootCertStore,
        of: Use,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> bool {
        let usage = match of {
            Use::Client => KeyUsage::client_auth(),
            Use::Server => KeyUsage::server_auth(),
        };
        let Ok(leaf) = EndEntityCert::try_from(leaf) else { return false };
        leaf.verify_for_usage(self.algorithms.all, &anchors.roots, between, now, usage, None, None).is_ok_and(|path| {
            path.anchor().name_constraints.is_none()
                && path.intermediate_certificates().map(|certificate| certificate.der()).eq(between.iter().cloned())
        })
    }
}

impl Issuer {
    fn read(of: Use, der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let validity = certificate.validity();
        let valid = (validity.not_before.timestamp().try_into().ok()?, validity.not_after.timestamp().try_into().ok()?);
        let mut roots = RootCertStore::empty();
        roots.add(der.clone().into_owned()).ok()?;
        Some(Self { der: der.clone().into_owned(), of, valid, roots })
    }
}

#[cfg(test)]
mod tests {
    use outrider_proto::v1::TrustBundle;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer as Signer, KeyPair, KeyUsagePurpose,
    };
    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::tls::{Trust, anchor::Anchor, provider};

    type Authority = (Signer<'static, KeyPair>, CertificateDer<'static>);

    fn parameters(name: &str, hours: i64) -> CertificateParams {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        let now = OffsetDateTime::now_utc();
        (parameters.not_before, parameters.not_after) = (now - Duration::hours(1), now + Duration::hours(hours));
        parameters
    }

    fn authority(name: &str, hours: i64, above: Option<&Authority>) -> Authority {
        let (mut parameters, key) = (parameters(name, hours), KeyPair::generate().unwrap());
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = match above {
            Some((signer, _)) => parameters.signed_by(&key, signer).unwrap(),
            None => parameters.self_signed(&key).unwrap(),
        };
        (Signer::new(parameters, key), certificate.der().clone())
    }

    fn leaf(of: &Authority, purpose: ExtendedKeyUsagePurpose, hours: i64) -> CertificateDer<'static> {
        let mut parameters = parameters("leaf", hours);
        parameters.extended_key_usages = vec![purpose];
        parameters.signed_by(&KeyPair::generate().unwrap(), &of.0).unwrap().der().clone()
    }

    fn later(hours: u64) -> UnixTime {
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(UnixTime::now().as_secs() + hours * 3600))
    }

    fn believes(anchor: &Anchor, leaf: &CertificateDer<'_>, issuing: &Authority, now: UnixTime) -> bool {
        anchor.verify_client(leaf, std::slice::from_ref(&issuing.1), now).is_ok()
    }

    #[test]
    fn an_issuing_ca_is_known_after_its_first_chain_and_each_leaf_is_still_verified() {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        let root = authority("root", 99, None);
        let (issuing, namesake) = (authority("issuing", 99, Some(&root)), authority("issuing", 99, None));
        let anchor = Anchor::read(&root.1).unwrap();
        let vouched = |leaf: &CertificateDer<'_>| {
            anchor.issuers.vouch(Use::Client, leaf, std::slice::from_ref(&issuing.1), UnixTime::now())
        };
        let (first, second) = (leaf(&issuing, ClientAuth, 1), leaf(&issuing, ClientAuth, 1));
        assert!(!vouched(&first) && believes(&anchor, &first, &issuing, UnixTime::now()));
        assert!(vouched(&first) && vouched(&second) && believes(&anchor, &second, &issuing, UnixTime::now()));
        for stranger in [leaf(&namesake, ClientAuth, 1), leaf(&issuing, ServerAuth, 1), leaf(&issuing, ClientAuth, -1)] {
            assert!(!vouched(&stranger) && !believes(&anchor, &stranger, &issuing, UnixTime::now()));
        }
        let algorithms = provider().signature_verification_algorithms;
        let server = leaf(&issuing, ServerAuth, 1);
        anchor.verify_server(&server, std::slice::from_ref(&issuing.1), UnixTime::now(), algorithms).unwrap();
        assert!(!vouched(&server), "known to sign servers too, and still no client");
    }

    #[test]
    fn a_known_issuing_ca_is_believed_to_its_end_and_not_beyond() {
        let root = authority("root", 99, None);
        let issuing = authority("issuing", 2, Some(&root));
        let (anchor, leaf) = (Anchor::read(&root.1).unwrap(), leaf(&issuing, ExtendedKeyUsagePurpose::ClientAuth, 48));
        assert!(believes(&anchor, &leaf, &issuing, UnixTime::now()) && believes(&anchor, &leaf, &issuing, later(1)));
        assert!(!believes(&anchor, &leaf, &issuing, later(3)));
    }

    #[test]
    fn a_certificate_that_merely_came_along_is_not_taken_for_an_issuing_ca() {
        let (root, stranger) = (authority("root", 99, None), authority("stranger", 99, None));
        let anchor = Anchor::read(&root.1).unwrap();
        let direct = leaf(&root, ExtendedKeyUsagePurpose::ClientAuth, 1);
        assert!(believes(&anchor, &direct, &stranger, UnixTime::now()));
        assert!(!believes(&anchor, &leaf(&stranger, ExtendedKeyUsagePurpose::ClientAuth, 1), &stranger, UnixTime::now()));
    }

    #[test]
    fn a_chain_of_an_anchor_that_has_left_is_not_taken_for_one_of_the_anchor_that_is_left() {
        // Even where both have the same name.
        let (old, new) = (authority("root", 99, None), authority("root", 99, None));
        let issuing = authority("issuing", 99, Some(&old));
        let chain = [leaf(&issuing, ExtendedKeyUsagePurpose::ClientAuth, 1), issuing.1.clone()];
        let bundle = |roots: &[&Authority]| TrustBundle {
            trust_domain: "mesh.internal".to_owned(),
            roots: roots.iter().map(|root| root.1.to_vec()).collect(),
        };
        let trust = Trust::default();
        trust.replace(&bundle(&[&old, &new])).unwrap();
        assert_eq!(trust.anchor_of(&chain), Some(Anchor::read(&old.1).unwrap().id));
        trust.replace(&bundle(&[&new])).unwrap();
        assert_eq!(trust.anchor_of(&chain), None);
    }

    #[test]
    fn only_so_many_issuing_cas_are_remembered_and_the_latest_are() {
        let root = authority("root", 99, None);
        let anchor = Anchor::read(&root.1).unwrap();
        let all: Vec<Authority> = (0..MOST + 4).map(|number| authority(&format!("issuing {number}"), 99, Some(&root))).collect();
        for issuing in &all {
            assert!(believes(&anchor, &leaf(issuing, ExtendedKeyUsagePurpose::ClientAuth, 1), issuing, UnixTime::now()));
        }
        let known = anchor.issuers.known.load();
        assert!(known.len() == MOST && known.last().is_some_and(|last| last.der == all.last().unwrap().1));
    }
}
