//! The agent's private directory: its id, the key that seals the rest, its certificate, and its last good view.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::rand;
use zeroize::Zeroizing;

use super::sealed::SealedFile;

/// A state directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It cannot be made or written.
    #[error("state directory `{}`: {reason}: choose one that this user can write with `--state-dir`", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
    /// Others may read it.
    #[error("state directory `{}` is open to others (mode {mode:o}): it holds a private key, run `chmod 700` on it", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Another agent uses it.
    #[error("state directory `{}` is in use by another agent: give each agent its own with `--state-dir`", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The seal key is not one.
    #[error("`{}` is damaged: remove the state directory and join again with a new token", path.display())]
    SealKey {
        /// The key's file.
        path: PathBuf,
    },
}

/// A private directory, held by this process alone.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    seal: Zeroizing<[u8; 32]>,
    agent_id: String,
    lock: File,
}

impl StateDir {
    /// Opens or makes it.
    ///
    /// # Errors
    /// When it is not writable, not private, or in use.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        Self::open_as(path, None)
    }

    /// As [`StateDir::open`], as the successor of the agent that gave us its lock.
    ///
    /// # Errors
    /// As [`StateDir::open`].
    pub fn open_as(path: &Path, inherited: Option<File>) -> Result<Self, StateDirError> {
        let unusable = |reason: std::io::Error| StateDirError::Unusable { path: path.to_owned(), reason };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unusable)?;
        let mode = std::fs::metadata(path).map_err(unusable)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(StateDirError::Open { path: path.to_owned(), mode });
        }
        let fresh = || OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path.join("lock"));
        // The same open file has the same lock: it passes on without a moment in which nobody has it.
        let lock = inherited.map_or_else(fresh, Ok).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(StateDirError::InUse { path: path.to_owned() }),
            Err(std::fs::TryLockError::Error(reason)) => return Err(unusable(reason)),
        }
        let seal = Self::seal_key(&path.join("seal.key"))?;
        let id_path = path.join("agent-id");
        let agent_id = match std::fs::read_to_string(&id_path).ok().filter(|id| uuid::Uuid::parse_str(id.trim()).is_ok()) {
            Some(id) => id.trim().to_owned(),
            None => {
                let id = uuid::Uuid::now_v7().to_string();
                write_private(&id_path, id.as_bytes()).map_err(unusable)?;
                id
            }
        };
        Ok(Self { path: path.to_owned(), seal, agent_id, lock })
    }

    /// Forgets the certificate and the view of a mesh that is no more. The agent's id stays.
    ///
    /// # Errors
    /// As [`StateDir::open`], and when they cannot be removed.
    pub fn forget(path: &Path) -> Result<(), StateDirError> {
        let state = Self::open(path)?;
        for name in ["identity", "snapshot"] {
            match std::fs::remove_file(state.path.join(name)) {
                Err(reason) if reason.kind() != std::io::ErrorKind::NotFound => {
                    return Err(StateDirError::Unusable { path: path.to_owned(), reason });
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn seal_key(path: &Path) -> Result<Zeroizing<[u8; 32]>, StateDirError> {
        let unusable = |reason: std::io::Error| StateDirError::Unusable { path: path.to_owned(), reason };
        match std::fs::read(path) {
            Ok(bytes) => Ok(Zeroizing::new(bytes.try_into().map_err(|_| StateDirError::SealKey { path: path.to_owned() })?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut key = Zeroizing::new([0; 32]);
                rand::fill(&mut *key).map_err(|_| unusable(std::io::Error::other("no randomness")))?;
                write_private(path, &*key).map_err(unusable)?;
                Ok(key)
            }
            Err(reason) => Err(unusable(reason)),
        }
    }

    /// A copy of the lock, for a successor.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn lock(&self) -> std::io::Result<File> {
        self.lock.try_clone()
    }

    /// Stable id of this agent.
    pub fn agent_id(&self) -> &str {
        &self.agent_id
    }

    /// A sealed file in it.
    pub fn sealed(&self, name: &'static str) -> SealedFile {
        SealedFile::new(self.path.join(name), name, self.seal.clone())
    }
}

/// Writes a file of mode 0600 whole or not at all.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_outlives_a_restart_and_two_agents_do_not_share() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let first = StateDir::open(&path).unwrap();
        let id = first.agent_id().to_owned();
        assert!(matches!(StateDir::open(&path), Err(StateDirError::InUse { .. })));
        let second = StateDir::open_as(&path, Some(first.lock().unwrap())).unwrap();
        drop(first);
        assert!(matches!(StateDir::open(&path), Err(StateDirError::InUse { .. })), "the lock has passed on");
        drop(second);
        assert_eq!(StateDir::open(&path).unwrap().agent_id(), id);
    }

    #[test]
    fn a_mesh_that_is_no_more_is_forgotten_but_not_who_we_are_nor_under_a_running_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let running = StateDir::open(&path).unwrap();
        let id = running.agent_id().to_owned();
        running.sealed("identity").write(b"x").unwrap();
        assert!(matches!(StateDir::forget(&path), Err(StateDirError::InUse { .. })));
        drop(running);
        StateDir::forget(&path).unwrap();
        let again = StateDir::open(&path).unwrap();
        assert!(again.sealed("identity").read().unwrap().is_none());
        assert_eq!(again.agent_id(), id);
    }

    #[test]
    fn a_directory_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(StateDir::open(dir.path()), Err(StateDirError::Open { mode: 0o755, .. })));
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = StateDir::open(&file.path().join("agent")).unwrap_err().to_string();
        assert!(error.contains("--state-dir"), "{error}");
    }
}
