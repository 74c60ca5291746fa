//! A unix socket that this process serves: bound safely, and the kernel says who is at the other end.

use std::{
    fs::Permissions,
    io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};

/// Bytes of `sun_path`, with its closing zero.
const MAX_PATH: usize = 108;

/// What a socket is for, in messages.
#[derive(Clone, Copy, Debug)]
pub struct SocketPurpose {
    /// Its name, for example `admin socket`.
    pub name: &'static str,
    /// The setting that names its path, for example `--admin-socket`.
    pub flag: &'static str,
}

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Unix sockets have short names.
    #[error("{} path `{}` is too long: {length} bytes, at most {} are possible (choose another with `{}`)", purpose.name, path.display(), MAX_PATH - 1, purpose.flag)]
    TooLong {
        /// Which socket.
        purpose: SocketPurpose,
        /// The path.
        path: PathBuf,
        /// Its bytes.
        length: usize,
    },
    /// Somebody listens there.
    #[error("{} `{}` is in use by another process (choose another with `{}`)", purpose.name, path.display(), purpose.flag)]
    InUse {
        /// Which socket.
        purpose: SocketPurpose,
        /// The path.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("`{}` exists and is not a socket: remove it, or choose another path with `{}`", path.display(), purpose.flag)]
    NotASocket {
        /// Which socket.
        purpose: SocketPurpose,
        /// The path.
        path: PathBuf,
    },
    /// The system said no.
    #[error("cannot listen on {} `{}`: {reason} (choose another with `{}`)", purpose.name, path.display(), purpose.flag)]
    Bind {
        /// Which socket.
        purpose: SocketPurpose,
        /// The path.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
}

/// Listens on `path`, whose file gets `mode`. A socket that nobody serves any more is replaced.
///
/// # Errors
/// When the path is too long, in use, or not writable.
pub async fn bind(path: &Path, mode: u32, purpose: SocketPurpose) -> Result<UnixListener, SocketError> {
    let path_of = || path.to_owned();
    let length = path.as_os_str().len();
    if length >= MAX_PATH {
        return Err(SocketError::TooLong { purpose, path: path_of(), length });
    }
    let failed = |reason| SocketError::Bind { purpose, path: path_of(), reason };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket { purpose, path: path_of() }),
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => return Err(SocketError::InUse { purpose, path: path_of() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Between these two lines the file's mode is the umask's: the check of the peer's user holds all the time.
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)?;
    Ok(listener)
}
