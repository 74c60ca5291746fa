//! The ways in: the operators' socket, and the agents' port with and without a certificate.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use outrider_proto::v1::{
    CreateTokenRequest, IssueRequest, IssueResponse, JoinToken, Renewal, admin_client::AdminClient,
    identity_client::IdentityClient, issue_request::Evidence,
};
use outrider_tests::{Identity, careless_client};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// Where the control plane is. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    addresses: Arc<[SocketAddr]>,
    turn: Arc<AtomicUsize>,
    admin: AdminClient<Channel>,
}

impl Door {
    /// Connects to the operators' socket.
    pub(crate) async fn new(addresses: Vec<SocketAddr>, socket: &Path) -> anyhow::Result<Self> {
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://admin.invalid").connect_with_connector_lazy(connector);
        Ok(Self { addresses: addresses.into(), turn: Arc::default(), admin: AdminClient::new(channel) })
    }

    /// A client of the operators' socket.
    pub(crate) fn admin(&self) -> AdminClient<Channel> {
        self.admin.clone()
    }

    /// A connection to one of the addresses, each in its turn.
    pub(crate) async fn connect(&self, identity: Option<Identity>) -> anyhow::Result<Channel> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let address = *self.addresses.get(turn % self.addresses.len()).context("no address")?;
        let mut config = careless_client(identity);
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        let tls = TlsConnector::from(Arc::new(config));
        let connector = tower::service_fn(move |_| {
            let tls = tls.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                tls.connect(ServerName::try_from("control-plane.invalid").map_err(std::io::Error::other)?, stream)
                    .await
                    .map(TokioIo::new)
            }
        });
        Endpoint::from_static("http://control-plane").connect_with_connector(connector).await.context("cannot connect")
    }

    /// A certificate by a join token made for it.
    pub(crate) async fn join(&self, identity: &str, service: &str) -> anyhow::Result<Identity> {
        let request = CreateTokenRequest {
            identity: identity.to_owned(),
            services: vec![service.to_owned()],
            ttl_seconds: 3600,
            ..CreateTokenRequest::default()
        };
        let token = self.admin().create_token(request).await.context("no token")?.into_inner().token;
        let key = KeyPair::generate()?;
        let channel = self.connect(None).await?;
        let request = issue_request(signing_request(&key)?, Evidence::JoinToken(JoinToken { token }));
        let issued = IdentityClient::new(channel).issue(request).await.context("no certificate")?.into_inner();
        Ok(certified(&key, issued))
    }
}

/// A renewal with this signing request.
pub(crate) fn renewal(csr: Vec<u8>) -> IssueRequest {
    issue_request(csr, Evidence::Renewal(Renewal {}))
}

fn issue_request(csr: Vec<u8>, evidence: Evidence) -> IssueRequest {
    IssueRequest { csr, evidence: Some(evidence), expected_identity: String::new() }
}

fn certified(key: &KeyPair, issued: IssueResponse) -> Identity {
    Identity { chain: issued.chain, key: key.serialize_der() }
}

/// A signing request without any name.
pub(crate) fn signing_request(key: &KeyPair) -> anyhow::Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.der().to_vec())
}
