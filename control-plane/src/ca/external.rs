//! A CA that somebody else makes, mounted as files: `tls.crt`, `tls.key` and `ca.crt` of cert-manager, or what a Vault agent
//! writes. The files are read again and again. What is not whole, or does not fit together, is refused, and what was in use
//! before still is.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest::{Context, SHA256};
use outrider_policy::{SpiffeId, TrustDomain};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _};
use zeroize::Zeroizing;

use super::{
    authority::verifier,
    certificate,
    schedule::Validity,
    signer::{CaInfo, Signer, describe},
};
use crate::store::Role;

/// Most bytes of a file.
const MOST_BYTES: u64 = 1 << 20;
/// Most roots of the bundle: agents take one more, that of the CA in use while another one takes its place.
const MOST_ROOTS: usize = 15;

/// Where the files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaFiles {
    /// PEM: the CA that signs leaves first, then what it chains to, without the root.
    pub certificate: PathBuf,
    /// PEM: its key.
    pub key: PathBuf,
    /// PEM: every root that members of the mesh shall believe.
    pub bundle: PathBuf,
}

/// What the files hold.
pub(super) struct Mounted {
    pub(super) signer: Signer,
    /// From the CA that signs to the one below the root.
    pub(super) via: Vec<CertificateDer<'static>>,
    /// The root that it chains to first.
    pub(super) roots: Vec<(CaInfo, CertificateDer<'static>)>,
}

impl Mounted {
    /// Id of the root that the CA chains to.
    pub(super) fn root(&self) -> String {
        self.roots.first().map(|(info, _)| info.id()).unwrap_or_default()
    }
}

/// The files, and what became of the last look at them.
#[derive(Debug)]
pub(super) struct External {
    files: CaFiles,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Hash of the files' contents.
    contents: Vec<u8>,
    refused: Option<String>,
}

impl External {
    pub(super) fn new(files: CaFiles) -> Self {
        Self { files, seen: Mutex::default() }
    }

    /// Why the files are not used as they are now.
    pub(super) fn refused(&self) -> Option<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).refused.clone()
    }

    /// Reads the files if they changed. `None` when they did not, or are refused.
    pub(super) fn look(&self, trust_domain: &TrustDomain, now: i64) -> Option<Mounted> {
        let read = Contents::read(&self.files);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (hash, mounted) = match read {
            Ok(contents) => {
                let hash = contents.hash();
                if hash == seen.contents {
                    return None;
                }
                (hash, contents.mount(trust_domain, now))
            }
            // Files that come in the next moment are looked at again.
            Err(reason) => (Vec::new(), Err(reason)),
        };
        match mounted {
            Ok(mounted) => {
                *seen = Seen { contents: hash, refused: None };
                Some(mounted)
            }
            Err(reason) => {
                if seen.refused.as_ref() != Some(&reason) {
                    tracing::error!(reason, "the mounted CA is refused: what was in use before still is");
                }
                // A certificate that is not valid yet may become it: refused ones are looked at every time.
                seen.refused = Some(reason);
                None
            }
        }
    }
}

struct Contents {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    bundle: Vec<u8>,
}

impl Contents {
    fn read(files: &CaFiles) -> Result<Self, String> {
        let read = |path: &Path| {
            let wrong = |reason: String| format!("`{}`: {reason}", path.display());
            let size = fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
            if size > MOST_BYTES {
                return Err(wrong(format!("{size} bytes, at most {MOST_BYTES} are read")));
            }
            fs::read(path).map_err(|error| wrong(error.to_string()))
        };
        Ok(Self { certificate: read(&files.certificate)?, key: Zeroizing::new(read(&files.key)?), bundle: read(&files.bundle)? })
    }

    fn hash(&self) -> Vec<u8> {
        let mut context = Context::new(&SHA256);
        for part in [&self.certificate, &*self.key, &self.bundle] {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
        context.finish().as_ref().to_vec()
    }

    fn mount(&self, trust_domain: &TrustDomain, now: i64) -> Result<Mounted, String> {
        let mut via = certificates(&self.certificate, "certificate")?;
        let der = via.first().cloned().ok_or("the certificate's file holds none")?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| format!("the key does not parse: {error}"))?;
        let key = KeyPair::try_from(&key).map_err(|error| format!("the key is not usable: {error}"))?;
        let signer = Signer::new(Role::Issuing, key, der).map_err(|error| error.to_string())?;
        if certificate::spki_hash(signer.issuer.key()) != signer.info.spki {
            return Err("the key is not that of the certificate".to_owned());
        }
        if !(signer.info.not_before..signer.info.not_after).contains(&now) {
            return Err(format!("`{}` is not valid now", signer.info.common_name));
        }
        let roots = certificates(&self.bundle, "bundle")?;
        if roots.is_empty() || roots.len() > MOST_ROOTS {
            return Err(format!("the bundle holds {} certificates, 1 to {MOST_ROOTS} are taken", roots.len()));
        }
        let described = |der: CertificateDer<'static>| describe(Role::Root, &der).map(|info| (info, der));
        let mut roots = roots.into_iter().map(described).collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
        let of = roots.iter().position(|(_, root)| proves(&signer, &via, root, trust_domain, now));
        let of = of.ok_or("a leaf that it signs does not verify against any root of the bundle")?;
        roots.swap(0, of);
        // A root that signs itself is in the bundle already.
        via.retain(|der| !roots.iter().any(|(_, root)| root == der));
        Ok(Mounted { signer, via, roots })
    }
}

/// Whether members who believe this root would believe a leaf of the signer: one is made and verified as they do it.
fn proves(
    signer: &Signer,
    via: &[CertificateDer<'_>],
    root: &CertificateDer<'static>,
    trust_domain: &TrustDomain,
    now: i64,
) -> bool {
    let leaf = || {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).ok()?;
        let identity = SpiffeId::workload(trust_domain, "probe", "probe").ok()?;
        let validity = Validity::starting(now, 60, signer.info.not_after);
        certificate::leaf(&identity, validity).ok()?.signed_by(&key, &signer.issuer).ok()
    };
    let (Some(leaf), Ok(verifier), Ok(now)) = (leaf(), verifier([root]), u64::try_from(now)) else { return false };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    verifier.verify_client_cert(leaf.der(), via, now).is_ok()
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| format!("the {what} does not parse: {error}"))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, Issuer};
    use tempfile::TempDir;

    use super::{
        super::tests::{Made, ca},
        *,
    };

    const NOW: i64 = 1_800_000_000;

    fn write(dir: &TempDir, certificate: &str, key: &Made, bundle: &str) -> CaFiles {
        let path = |name: &str| dir.path().join(name);
        let files = CaFiles { certificate: path("tls.crt"), key: path("tls.key"), bundle: path("ca.crt") };
        fs::write(&files.certificate, certificate).unwrap();
        fs::write(&files.key, key.issuer.key().serialize_pem()).unwrap();
        fs::write(&files.bundle, bundle).unwrap();
        files
    }

    #[test]
    fn a_mounted_ca_is_taken_when_it_is_whole_and_again_only_when_it_changed() {
        let (dir, domain) = (tempfile::tempdir().unwrap(), TrustDomain::new("mesh.internal").unwrap());
        let root = ca("their root", None);
        let issuing = ca("their issuer", Some(&root));
        let external = External::new(write(&dir, &issuing.pem, &issuing, &root.pem));
        let mounted = external.look(&domain, NOW).unwrap();
        assert_eq!((mounted.signer.info.common_name.as_str(), mounted.roots.len()), ("their issuer", 1));
        assert!(external.look(&domain, NOW).is_none() && external.refused().is_none());
        let other = ca("another root", None);
        write(&dir, &issuing.pem, &issuing, &format!("{}{}", other.pem, root.pem));
        let mounted = external.look(&domain, NOW).unwrap();
        assert_eq!(
            mounted.roots.iter().map(|(info, _)| info.common_name.as_str()).collect::<Vec<_>>(),
            ["their root", "another root"]
        );
    }

    #[test]
    fn files_that_do_not_fit_together_are_refused_and_say_why() {
        let (dir, domain) = (tempfile::tempdir().unwrap(), TrustDomain::new("mesh.internal").unwrap());
        let root = ca("their root", None);
        let issuing = ca("their issuer", Some(&root));
        let other = ca("another root", None);
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::default().signed_by(&leaf_key, &root.issuer).unwrap().pem();
        let leaf = Made { issuer: Issuer::new(CertificateParams::default(), leaf_key), pem: leaf };
        let table = [
            ("not that of the certificate", issuing.pem.as_str(), &other, root.pem.as_str()),
            ("does not verify", &issuing.pem, &issuing, &other.pem),
            ("holds none", "", &issuing, &root.pem),
            ("the bundle holds 0", &issuing.pem, &issuing, ""),
            ("", &leaf.pem, &leaf, &root.pem),
        ];
        for (why, certificate, key, bundle) in table {
            let external = External::new(write(&dir, certificate, key, bundle));
            assert!(external.look(&domain, NOW).is_none(), "{why}");
            assert!(external.refused().unwrap().contains(why), "{:?}", external.refused());
        }
    }
}
