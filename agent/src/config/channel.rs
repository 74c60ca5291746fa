//! Connections to the control plane.

use std::{sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{
    identity::{JoinToken, Svids},
    tls::{ControlPlaneTrust, Trust, control_plane_config},
};

/// Time for TCP and TLS.
const CONNECT: Duration = Duration::from_secs(5);

/// Server name of every control plane.
const HOST: &str = "control-plane.outrider-system";

/// The control plane cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    /// The address is not one.
    #[error("control plane `{0}` is not HOST:PORT")]
    Address(String),
    /// TLS cannot be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// No connection, or not to a control plane of ours.
    #[error("cannot connect to the control plane at `{address}`: {reason}")]
    Connect {
        /// Its address.
        address: String,
        /// The chain of causes.
        reason: String,
    },
}

/// Where the control plane is and how it is recognised.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    address: String,
    trust: Arc<Trust>,
    svids: Arc<Svids>,
}

impl ControlPlane {
    /// The control plane at `address`, `host:port`.
    pub fn new(address: String, trust: Arc<Trust>, svids: Arc<Svids>) -> Self {
        Self { address, trust, svids }
    }

    /// Told when our certificate is replaced: a connection proves only what its certificate proved.
    pub fn renewals(&self) -> watch::Receiver<u64> {
        self.svids.changes()
    }

    /// Connects as who we are.
    ///
    /// # Errors
    /// When that fails.
    pub async fn connect(&self) -> Result<Channel, ControlPlaneError> {
        let config = control_plane_config(ControlPlaneTrust::Bundle(self.trust.clone()), Some(self.svids.clone()))?;
        self.open(config, self.trust.pin()).await
    }

    /// Connects as nobody, to a control plane that shows the root the token names.
    ///
    /// # Errors
    /// When that fails.
    pub async fn join(&self, token: &JoinToken) -> Result<Channel, ControlPlaneError> {
        self.open(control_plane_config(ControlPlaneTrust::Pin(token.pin()), None)?, Some(token.pin())).await
    }

    /// `believed` is the key of a root that we believe: a control plane that changes its root shows a chain to that one.
    async fn open(&self, config: ClientConfig, believed: Option<[u8; 32]>) -> Result<Channel, ControlPlaneError> {
        let wrong = || ControlPlaneError::Address(self.address.clone());
        let connector = TlsConnector::from(Arc::new(config));
        // The identity in the certificate is what counts; the name is only there because TLS wants one.
        let name = believed.map_or_else(|| HOST.to_owned(), |pin| format!("{}.{HOST}", short(&pin)));
        let name = ServerName::try_from(name).map_err(|_| wrong())?;
        let address = self.address.clone();
        let dial = tower::service_fn(move |_: Uri| {
            let (connector, name, address) = (connector.clone(), name.clone(), address.clone());
            async move {
                let stream = TcpStream::connect(&address).await?;
                let _ = stream.set_nodelay(true);
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        Endpoint::from_shared(format!("http://{}", self.address))
            .map_err(|_| wrong())?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .connect_with_connector(dial)
            .await
            .map_err(|error| ControlPlaneError::Connect {
                address: self.address.clone(),
                reason: outrider_runtime::tasks::chain(&error),
            })
    }
}

/// The first half of a pin in hex: what fits in a label of a server name.
fn short(pin: &[u8; 32]) -> String {
    pin.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
