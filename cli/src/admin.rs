//! The way to the control plane: gRPC over its unix socket. What goes wrong on it is said in the user's terms.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use outrider_proto::v1::admin_client::AdminClient;
use tokio::net::UnixStream;
use tonic::{
    codegen::http::Uri,
    transport::{Channel, Endpoint},
};

/// A connected client.
pub(crate) type Admin = AdminClient<Channel>;

/// A control plane on this machine that has not begun to answer by then hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Lists of a large mesh are larger than tonic's default of 4 MiB.
pub(crate) const LARGEST_ANSWER: usize = 256 << 20;

/// Why the control plane cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    /// Nobody said where the socket is and the environment does not help.
    #[error("cannot tell where the control plane's socket is: neither XDG_STATE_HOME nor HOME is set")]
    NoHome,
    /// There is no socket.
    #[error("no control plane here: `{}` does not exist", path.display())]
    Missing {
        /// The socket.
        path: PathBuf,
    },
    /// The socket belongs to somebody else.
    #[error("permission denied on `{}`", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The socket is a left-over.
    #[error("nobody listens on `{}`: the control plane has stopped", path.display())]
    NobodyListens {
        /// The socket.
        path: PathBuf,
    },
    /// A control plane on another machine.
    #[error("cannot connect to the control plane at `{address}`: {reason}")]
    Remote {
        /// `HOST:PORT`.
        address: String,
        /// The chain of causes.
        reason: String,
    },
    /// Anything else.
    #[error("cannot connect to `{}`: {reason}", path.display())]
    Other {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

impl AdminError {
    /// The way out.
    pub(crate) fn help(&self) -> String {
        match self {
            Self::NoHome => "name it with --admin-socket PATH or OUTRIDER_ADMIN_SOCKET".into(),
            Self::Missing { .. } => {
                "start one with `outrider up` or `outrider-control-plane`, or name its socket with --admin-socket PATH".into()
            }
            Self::Denied { .. } => {
                "run this as the user who runs the control plane: only that user and root may open the socket".into()
            }
            Self::NobodyListens { .. } => "start it again with `outrider up` or `outrider-control-plane`".into(),
            Self::Remote { .. } => {
                "is it started with `--operators`, and does `outrider context list` name its address? `outrider login` logs in anew"
                    .into()
            }
            Self::Other { .. } => "--admin-socket must name the socket of a running control plane".into(),
        }
    }

    fn from_io(path: &Path, error: &io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            io::ErrorKind::PermissionDenied => Self::Denied { path },
            io::ErrorKind::ConnectionRefused => Self::NobodyListens { path },
            _ => Self::Other { path, reason: error.to_string() },
        }
    }
}

/// Connects to the socket at `path`.
///
/// # Errors
/// When there is none, it may not be opened, or nobody listens.
pub(crate) async fn connect(path: &Path) -> Result<Admin, AdminError> {
    // Connected here rather than inside tonic, which would hide the system's answer behind "transport error".
    let stream = UnixStream::connect(path).await.map_err(|error| AdminError::from_io(path, &error))?;
    let other = |error: tonic::transport::Error| AdminError::Other {
        path: path.to_owned(),
        reason: outrider_runtime::tasks::chain(&error),
    };
    let mut first = Some(stream);
    let again = path.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let (first, again) = (first.take(), again.clone());
        async move {
            let stream = match first {
                Some(stream) => stream,
                None => UnixStream::connect(again).await?,
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    // The authority is never used for routing: the socket is the address.
    let endpoint = Endpoint::from_static("http://control-plane.invalid").timeout(ANSWER_WITHIN);
    let channel = endpoint.connect_with_connector(connector).await.map_err(other)?;
    Ok(AdminClient::new(channel).max_decoding_message_size(LARGEST_ANSWER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_way_of_not_reaching_the_control_plane_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("none.sock");
        assert!(matches!(connect(&missing).await, Err(AdminError::Missing { .. })));

        let stale = dir.path().join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        assert!(matches!(connect(&stale).await, Err(AdminError::NobodyListens { .. })));

        let long = dir.path().join("x".repeat(200));
        let error = connect(&long).await.unwrap_err();
        assert!(matches!(&error, AdminError::Other { .. }), "{error}");
        assert!(
            AdminError::from_io(&missing, &io::ErrorKind::PermissionDenied.into()).to_string().starts_with("permission denied")
        );
    }
}
