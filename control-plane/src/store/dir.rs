//! The state directory: private, and claimed by one control plane at a time.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::Replica;

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

    /// This replica: under the name `chosen`, or under an id that was made at the first start and is kept.
    ///
    /// # Errors
    /// When the id cannot be read or written.
    pub(crate) fn replica(&self, chosen: Option<&str>) -> Result<Replica, DirError> {
        let own = self.id()?;
        Ok(Replica::starting(chosen.unwrap_or(&own), &own))
    }

    /// Of this directory: made once.
    fn id(&self) -> Result<String, DirError> {
        let file = self.file("replica-id");
        let unusable = |reason| DirError::Unusable { path: file.clone(), reason };
        let kept = match std::fs::read_to_string(&file) {
            Ok(text) => text.trim().to_owned(),
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => String::new(),
            Err(reason) => return Err(unusable(reason)),
        };
        if is_replica_id(&kept) {
            return Ok(kept);
        }
        let made = uuid::Uuid::now_v7().to_string();
        let mut written = private(OpenOptions::new().create(true).truncate(true)).open(&file).map_err(unusable)?;
        io::Write::write_all(&mut written, made.as_bytes()).and_then(|()| written.sync_all()).map_err(unusable)?;
        Ok(made)
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

/// A file that was opened by its name, and must still be there under it.
#[derive(Debug)]
pub(super) struct OpenFile {
    path: PathBuf,
    /// Device and inode.
    id: Option<(u64, u64)>,
}

impl OpenFile {
    pub(super) fn new(path: PathBuf) -> Self {
        let id = Self::identify(&path);
        Self { path, id }
    }

    pub(super) fn is_there(&self) -> bool {
        let now = Self::identify(&self.path);
        now.is_some() && now == self.id
    }

    fn identify(path: &Path) -> Option<(u64, u64)> {
        std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
    }
}

/// Whether a text can be the id of a replica: 1 to 63 letters, digits, `-`, `_` and `.`.
pub(crate) fn is_replica_id(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options.write(true).mode(0o600)
}
