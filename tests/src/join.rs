//! A certificate without an agent: got with a join token over the wire, as any program could.

use std::{net::SocketAddr, sync::Arc};

use hyper_util::rt::TokioIo;
use outrider_proto::v1::{IssueRequest, JoinToken, identity_client::IdentityClient, issue_request::Evidence};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::{Identity, careless_client};

/// Redeems a token at the control plane that listens there.
///
/// # Errors
/// When the control plane does not issue.
///
/// # Panics
/// When there is nobody.
pub async fn join(control_plane: SocketAddr, token: &str) -> Result<Identity, tonic::Status> {
    join_over(to_control_plane(control_plane).await, token).await
}

/// A connection to the control plane that listens there, of somebody without a certificate.
///
/// # Panics
/// When there is nobody.
pub async fn to_control_plane(address: SocketAddr) -> Channel {
    let mut config = careless_client(None);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsConnector::from(Arc::new(config));
    let connect = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let name = ServerName::try_from("control-plane.invalid").map_err(std::io::Error::other)?;
            tls.connect(name, TcpStream::connect(address).await?).await.map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://control-plane").connect_with_connector(connect).await.expect("a control plane")
}

/// Redeems a token over a connection.
///
/// # Errors
/// When the control plane does not issue.
///
/// # Panics
/// When no request can be made.
pub async fn join_over(channel: Channel, token: &str) -> Result<Identity, tonic::Status> {
    let key = KeyPair::generate().expect("a key");
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    let csr = parameters.serialize_request(&key).expect("a request").der().to_vec();
    let evidence = Some(Evidence::JoinToken(JoinToken { token: token.to_owned() }));
    let request = IssueRequest { csr, evidence, expected_identity: String::new() };
    let answer = IdentityClient::new(channel).issue(request).await?.into_inner();
    Ok(Identity { chain: answer.chain, key: key.serialize_der() })
}
