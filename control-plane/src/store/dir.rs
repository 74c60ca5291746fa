//! The state directory: private, and claimed by one control plane at a time.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// It cannot be made, entered or written.
    #[error("cannot use state directory `{}`: {reason} (choose another with `--state-dir`)", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// Others may look into it.
    #[error("state directory `{}` is open to others (mode {mode:o}): it holds CA keys, run `chmod 700` on it or choose another with `--state-dir`", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Somebody else has it.
    #[error("another control plane is running on state directory `{}`", path.display())]
    Claimed {
        /// The directory.
        path: PathBuf,
    },
}

/// A state directory that nobody else uses while this lives.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    /// The lock ends with the file handle, also under kill -9.
    _lock: File,
}

impl Claim {
    /// Makes the directory if need be, private; proves that it can be written, and locks it. A directory that was there is left
    /// as it is: it may be somebody's home.
    ///
    /// # Errors
    /// When it is unusable, open to others, or claimed.
    pub(crate) fn new(path: &Path) -> Result<Self, DirError> {
        let unusable = |reason| DirError::Unusable { path: path.to_owned(), reason };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unusable)?;
        let mode = std::fs::metadata(path).map_err(unusable)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(DirError::Open { path: path.to_owned(), mode });
        }
        let lock = private(OpenOptions::new().create(true).truncate(false)).open(path.join("lock")).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DirError::Claimed { path: path.to_owned() }),
            Err(TryLockError::Error(reason)) => Err(unusable(reason)),
        }
    }

    /// The file of that name in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a file of mode 0600 if it is not there, so that whoever opens it next does not choose its mode.
    pub(crate) fn touch(&self, name: &str) -> Result<PathBuf, DirError> {
        let file = self.file(name);
        let made = private(OpenOptions::new().create(true).truncate(false)).open(&file);
        let set = made.and_then(|file| file.set_permissions(Permissions::from_mode(0o600)));
        set.map_err(|reason| DirError::Unusable { path: self.path.clone(), reason })?;
        Ok(file)
    }
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options.write(true).mode(0o600)
}
