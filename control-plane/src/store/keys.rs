//! CA keys at rest: sealed with AES-256-GCM under a key that lies elsewhere, each bound to its row.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use outrider_policy::identity::TrustDomain;
use zeroize::Zeroizing;

use crate::config::{KeySource, parse_key};

/// Sealed in every store, to tell a wrong key from a damaged row.
const KNOWN: &[u8] = b"outrider key check";

/// Trouble with the key that encrypts CA keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file is not there, though it must have been.
    #[error("key file `{}` is missing, but the store holds CA keys encrypted with it: restore it, or name it with `--key-file` (all replicas on one store use the same key)", .0.display())]
    Missing(PathBuf),
    /// The file cannot be read or made.
    #[error("cannot use key file `{}`: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// The file does not hold a key.
    #[error("key file `{}` does not hold 32 bytes in base64: {way_out}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What to do.
        way_out: &'static str,
    },
    /// Others may read it.
    #[error("key file `{}` is open to others (mode {mode:o}): run `chmod 600` on it, or give the key in OUTRIDER_KEY", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The store was written with another key.
    #[error(
        "the key does not decrypt the store: it is not the key that the store was made with (all replicas on one store use the same key)"
    )]
    Wrong,
    /// The key is right and the row does not open.
    #[error("the {what} in the store does not decrypt: the store was tampered with or damaged (restore it from a backup)")]
    Tampered {
        /// Which row.
        what: String,
    },
    /// The cryptography library failed.
    #[error("sealing failed")]
    Seal,
}

/// The key that encrypts the keys that we sign with. Clones share it.
#[derive(Clone)]
pub(crate) struct Kek(Arc<RandomizedNonceKey>);

impl fmt::Debug for Kek {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Kek")
    }
}

impl Kek {
    /// For a new store: makes the key file, unless there is one already.
    pub(super) fn make(source: &KeySource) -> Result<Self, KeyError> {
        if let KeySource::File(path) = source
            && !path.exists()
        {
            let mut key = Zeroizing::new([0; 32]);
            rand::fill(key.as_mut_slice()).map_err(|_| KeyError::Seal)?;
            write_new(path, &key).map_err(|reason| KeyError::File { path: path.clone(), reason })?;
        }
        Self::read(source, "there is no store yet, so remove it and a new one is made")
    }

    /// For a store that exists.
    pub(super) fn load(source: &KeySource) -> Result<Self, KeyError> {
        Self::read(source, "restore it from a backup, the store's CA keys do not open without it")
    }

    fn read(source: &KeySource, way_out: &'static str) -> Result<Self, KeyError> {
        let key = match source {
            KeySource::Given(key) => key.clone(),
            KeySource::File(path) => {
                let failed = |reason: io::Error| match reason.kind() {
                    io::ErrorKind::NotFound => KeyError::Missing(path.clone()),
                    _ => KeyError::File { path: path.clone(), reason },
                };
                let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(KeyError::Open { path: path.clone(), mode });
                }
                let bytes = std::fs::read(path).map(Zeroizing::new).map_err(failed)?;
                let key = std::str::from_utf8(&bytes).ok().and_then(parse_key);
                key.ok_or_else(|| KeyError::Malformed { path: path.clone(), way_out })?
            }
        };
        Ok(Self(Arc::new(RandomizedNonceKey::new(&AES_256_GCM, key.as_slice()).map_err(|_| KeyError::Seal)?)))
    }

    #[cfg(test)]
    pub(crate) fn from_bytes(key: &[u8; 32]) -> Self {
        Self(Arc::new(RandomizedNonceKey::new(&AES_256_GCM, key).unwrap()))
    }

    /// Encrypts; what comes out opens only under the same `name`.
    pub(super) fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, KeyError> {
        let mut sealed = Zeroizing::new(plain.to_vec());
        let nonce = self.0.seal_in_place_append_tag(Aad::from(name.as_bytes()), &mut *sealed).map_err(|_| KeyError::Seal)?;
        Ok([nonce.as_ref().as_slice(), sealed.as_slice()].concat())
    }

    pub(super) fn open(&self, name: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
        let mut text = Zeroizing::new(text.to_vec());
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let length = self.0.open_in_place(nonce, Aad::from(name.as_bytes()), &mut text).ok()?.len();
        text.truncate(length);
        Some(text)
    }

    pub(super) fn check_value(&self, trust_domain: &TrustDomain) -> Result<Vec<u8>, KeyError> {
        self.seal(&format!("check/{trust_domain}"), KNOWN)
    }

    pub(super) fn prove(&self, trust_domain: &TrustDomain, check: &[u8]) -> Result<(), KeyError> {
        let opened = self.open(&format!("check/{trust_domain}"), check);
        if opened.is_some_and(|text| text.as_slice() == KNOWN) { Ok(()) } else { Err(KeyError::Wrong) }
    }
}

/// Whole or not at all: a start that is cut off leaves no half of a key behind.
fn write_new(path: &Path, key: &[u8; 32]) -> io::Result<()> {
    let text = Zeroizing::new(STANDARD.encode(key) + "\n");
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let _ = std::fs::remove_file(&fresh);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    // The name must last as well: a store whose key is lost is lost.
    File::open(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
}

/// What a CA key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Issuing CAs.
    Root,
    /// Leaves.
    Issuing,
}

impl Role {
    /// The name in the store, in status and in messages.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Issuing => "issuing",
        }
    }
}

/// A CA certificate with its key.
pub(crate) struct CaRow {
    /// SHA-256 of the subject public key info, lower-case hex.
    pub(crate) id: String,
    /// What it signs.
    pub(crate) role: Role,
    /// DER.
    pub(crate) certificate: Vec<u8>,
    /// PKCS#8 DER.
    pub(crate) key: Zeroizing<Vec<u8>>,
}

pub(super) fn seal_name(role: Role, id: &str) -> String {
    format!("ca-key/{}/{id}", role.as_str())
}
