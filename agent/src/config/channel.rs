//! Connections to the control plane.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::Addresses;
use crate::{
    identity::{JoinToken, Svids},
    tls::{ControlPlaneTrust, Trust, control_plane_config},
};

/// A connection that says nothing is asked whether it lives after this time, and given up when it does not answer for as long.
const ALIVE: Duration = Duration::from_secs(6);
/// Time for TCP and TLS.
const CONNECT: Duration = Duration::from_secs(5);

/// How long reports wait for the connection of the configuration. An agent whose stream is refused reports nevertheless.
const SHARED: Duration = Duration::from_secs(30);

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
#[derive(Debug)]
pub struct ControlPlane {
    addresses: Arc<Addresses>,
    /// The replica of the last connection that this one made.
    last: ArcSwap<String>,
    trust: Arc<Trust>,
    svids: Arc<Svids>,
    /// The connection that the stream of the configuration is on, and which certificate of ours it proves.
    shared: watch::Sender<Option<(u64, Channel)>>,
}

impl Clone for ControlPlane {
    fn clone(&self) -> Self {
        let shared = self.shared.clone();
        Self { shared, ..Self::new(Arc::clone(&self.addresses), Arc::clone(&self.trust), Arc::clone(&self.svids)) }
    }
}

impl ControlPlane {
    /// The control plane at these addresses.
    pub fn new(addresses: Arc<Addresses>, trust: Arc<Trust>, svids: Arc<Svids>) -> Self {
        Self { addresses, last: ArcSwap::default(), trust, svids, shared: watch::Sender::new(None) }
    }

    /// Takes note that the last connection did not do: the next one goes to another replica, if there is one.
    pub fn turn_away(&self) {
        self.addresses.failed(&self.last.load(), Instant::now());
    }

    /// How many replicas there are to ask.
    pub(crate) fn replicas(&self) -> usize {
        self.addresses.count()
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

    /// Connects as who we are, and lets others use the connection too; until the next one, or [`ControlPlane::unshare`].
    ///
    /// # Errors
    /// When that fails.
    pub(crate) async fn connect_and_share(&self) -> Result<Channel, ControlPlaneError> {
        let generation = self.svids.generation();
        let channel = self.connect().await?;
        self.shared.send_replace(Some((generation, channel.clone())));
        Ok(channel)
    }

    /// The shared connection is not to be used any more.
    pub(crate) fn unshare(&self) {
        self.shared.send_replace(None);
    }

    /// The shared connection that proves our present certificate: a second one would cost the control plane as much as an agent
    /// does. One of our own when there is none in time.
    ///
    /// # Errors
    /// When that fails.
    pub(crate) async fn shared(&self) -> Result<Channel, ControlPlaneError> {
        let wanted = self.svids.generation();
        let mut shared = self.shared.subscribe();
        let found = shared.wait_for(|shared| shared.as_ref().is_some_and(|(generation, _)| *generation >= wanted));
        if let Ok(Ok(found)) = tokio::time::timeout(SHARED, found).await
            && let Some((_, channel)) = &*found
        {
            return Ok(channel.clone());
        }
        self.connect().await
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
        let config = Arc::new(config);
        let name = believed.map_or_else(|| HOST.to_owned(), |pin| format!("{}.{HOST}", short(&pin)));
        let mut failure = None;
        for address in self.addresses.order(fastrand::usize(..), Instant::now()) {
            match reach(&address, &name, &config).await {
                Ok(channel) => {
                    self.last.store(Arc::new(address));
                    return Ok(channel);
                }
                Err(error) => {
                    self.addresses.failed(&address, Instant::now());
                    failure = Some(error);
                }
            }
        }
        Err(failure.unwrap_or_else(|| ControlPlaneError::Address(self.addresses.to_string())))
    }
}

async fn reach(address: &str, name: &str, config: &Arc<ClientConfig>) -> Result<Channel, ControlPlaneError> {
    let wrong = || ControlPlaneError::Address(address.to_owned());
    let connector = TlsConnector::from(Arc::clone(config));
    // The identity in the certificate is what counts; the name is only there because TLS wants one.
    let name = ServerName::try_from(name.to_owned()).map_err(|_| wrong())?;
    let host = address.to_owned();
    let dial = tower::service_fn(move |_: Uri| {
        let (connector, name, host) = (connector.clone(), name.clone(), host.clone());
        async move {
            let stream = TcpStream::connect(&host).await?;
            let _ = stream.set_nodelay(true);
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| wrong())?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(ALIVE)
        .keep_alive_timeout(ALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(dial)
        .await
        .map_err(|error| ControlPlaneError::Connect {
            address: address.to_owned(),
            reason: outrider_runtime::tasks::chain(&error),
        })
}

/// The first half of a pin in hex: what fits in a label of a server name.
fn short(pin: &[u8; 32]) -> String {
    pin.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
