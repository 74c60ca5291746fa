//! Files that only this agent wrote: encrypted and authenticated under the state directory's key, replaced whole.

use std::path::PathBuf;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use zeroize::Zeroizing;

use super::state_dir::write_private;

const MAGIC: &[u8] = b"OUTRIDR1";

/// A sealed file that cannot be used. It is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It cannot be read or written.
    #[error("`{}`: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
    /// It is truncated, was changed, or is of another agent.
    #[error("`{}` is truncated or was changed: it is not used, and left for inspection", path.display())]
    Tampered {
        /// The file.
        path: PathBuf,
    },
}

/// A file in the state directory.
#[derive(Clone, Debug)]
pub struct SealedFile {
    path: PathBuf,
    name: &'static str,
    key: Zeroizing<[u8; 32]>,
}

impl SealedFile {
    pub(super) fn new(path: PathBuf, name: &'static str, key: Zeroizing<[u8; 32]>) -> Self {
        Self { path, name, key }
    }

    fn cipher(&self) -> Result<RandomizedNonceKey, SealError> {
        RandomizedNonceKey::new(&AES_256_GCM, &*self.key).map_err(|_| SealError::Tampered { path: self.path.clone() })
    }

    /// Reads it; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is not what was written.
    pub fn read(&self) -> Result<Option<Zeroizing<Vec<u8>>>, SealError> {
        let tampered = || SealError::Tampered { path: self.path.clone() };
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(reason) => return Err(SealError::Io { path: self.path.clone(), reason }),
        };
        let sealed = bytes.strip_prefix(MAGIC).ok_or_else(tampered)?;
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or_else(tampered)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| tampered())?;
        let mut text = Zeroizing::new(sealed.to_vec());
        let length = self.cipher()?.open_in_place(nonce, Aad::from(self.name), &mut text).map_err(|_| tampered())?.len();
        text.truncate(length);
        Ok(Some(text))
    }

    /// Replaces it.
    ///
    /// # Errors
    /// When it cannot be written; then the old one is still there.
    pub fn write(&self, text: &[u8]) -> Result<(), SealError> {
        let mut sealed = text.to_vec();
        let nonce = self
            .cipher()?
            .seal_in_place_append_tag(Aad::from(self.name), &mut sealed)
            .map_err(|_| SealError::Tampered { path: self.path.clone() })?;
        let bytes = [MAGIC, nonce.as_ref(), &sealed].concat();
        write_private(&self.path, &bytes).map_err(|reason| SealError::Io { path: self.path.clone(), reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StateDir;

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("agent")).unwrap();
        let file = state.sealed("snapshot");
        assert!(file.read().unwrap().is_none());
        file.write(b"policy").unwrap();
        assert_eq!(file.read().unwrap().unwrap().as_slice(), b"policy");
        let path = dir.path().join("agent/snapshot");
        let good = std::fs::read(&path).unwrap();
        assert!(!good.windows(6).any(|window| window == b"policy"));
        for at in 0..good.len() {
            let mut changed = good.clone();
            changed[at] ^= 1;
            std::fs::write(&path, &changed).unwrap();
            assert!(matches!(file.read(), Err(SealError::Tampered { .. })), "byte {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(matches!(file.read(), Err(SealError::Tampered { .. })), "cut at {at}");
        }
        std::fs::write(&path, &good).unwrap();
        std::fs::copy(&path, dir.path().join("agent/identity")).unwrap();
        assert!(state.sealed("identity").read().is_err(), "one file is not another");
    }
}
