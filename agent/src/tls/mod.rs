//! Mutual TLS inside the mesh: TLS 1.3 only, both sides proved, no tickets, no resumption, no early data.

mod anchor;
mod control;
mod issuers;
mod leaf;
mod revoked;
mod tenure;
mod trust;

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

pub use anchor::AnchorId;
pub use control::{ControlPlaneTrust, control_plane_config};
pub use leaf::{Leaf, LeafError, check_chain};
pub use tenure::Tenure;
pub use trust::{Standing, Trust, TrustError};

use outrider_policy::{ServiceName, SpiffeId};
use rustls::{
    CertificateError, ClientConfig, ServerConfig, crypto::CryptoProvider, pki_types::ServerName, server::NoServerSessionStorage,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{
    config::PlaintextPort,
    http::{SharedIo, Transport, preface},
    identity::{Peer, Svids},
    refusal::{Reason, Refusal},
};

/// What two agents speak over a mesh connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MeshProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Opaque bytes.
    Tcp,
    /// Requests of any HTTP, by the mesh protocol: what two agents of ours prefer.
    Mesh,
}

impl MeshProtocol {
    /// Its ALPN name.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
            Self::Tcp => b"outrider-tcp/1",
            Self::Mesh => crate::mesh::ALPN,
        }
    }

    fn from_alpn(name: &[u8]) -> Option<Self> {
        [Self::Mesh, Self::Http1, Self::Http2, Self::Tcp].into_iter().find(|protocol| protocol.alpn() == name)
    }
}

/// A connection whose peer has proved who it is, or came in plaintext to a port that may allow it.
#[derive(Debug)]
pub struct Secured {
    /// The stream.
    pub io: SharedIo,
    /// Who is at the other end.
    pub peer: Rc<Peer>,
    /// What is spoken.
    pub protocol: MeshProtocol,
    /// Service and port that the caller named.
    pub destination: Option<(ServiceName, u16)>,
}

/// Name in the TLS handshake of a service's port: `8080.files.shop.mesh.internal`.
pub fn server_name(service: &ServiceName, port: u16) -> String {
    format!("{port}.{}.{}.mesh.internal", service.name(), service.namespace())
}

/// Reads what [`server_name`] writes.
pub fn destination(server_name: &str) -> Option<(ServiceName, u16)> {
    let rest = server_name.strip_suffix(".mesh.internal")?;
    let (port, host) = rest.split_once('.')?;
    let plain = !port.starts_with('0') && port.bytes().all(|byte| byte.is_ascii_digit());
    Some((ServiceName::from_host(host)?, port.parse().ok().filter(|_| plain)?))
}

/// What went wrong in a handshake, in words: the other side's certificate, or anything else.
fn problem(error: &std::io::Error) -> (Reason, String) {
    let Some(rustls::Error::InvalidCertificate(certificate)) = error.get_ref().and_then(|inner| inner.downcast_ref()) else {
        return (Reason::ConnectFailed, error.to_string());
    };
    let mut reason = Reason::PeerIdentity;
    let text = match certificate {
        CertificateError::Other(rustls::OtherError(rule))
            if matches!(rule.downcast_ref::<LeafError>(), Some(LeafError::Revoked(_))) =>
        {
            reason = Reason::PeerRevoked;
            rule.to_string()
        }
        CertificateError::UnknownIssuer => "the certificate is signed by nobody in the trust bundle".to_owned(),
        CertificateError::Other(rustls::OtherError(rule)) => format!("the certificate is not acceptable: {rule}"),
        other => other.to_string(),
    };
    (reason, text)
}

/// The one TLS provider.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Accepts mesh connections.
#[derive(Clone)]
pub struct MeshAcceptor {
    acceptor: TlsAcceptor,
    trust: Arc<Trust>,
}

impl std::fmt::Debug for MeshAcceptor {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("MeshAcceptor")
    }
}

impl MeshAcceptor {
    /// Presents the current certificate of `svids` and verifies callers against `trust`, both as they are at each handshake.
    ///
    /// # Errors
    /// When the provider lacks TLS 1.3.
    pub fn new(svids: Arc<Svids>, trust: Arc<Trust>) -> Result<Self, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(trust.clone())
            .with_cert_resolver(svids);
        config.alpn_protocols =
            // In the order of preference.
            [MeshProtocol::Mesh, MeshProtocol::Http1, MeshProtocol::Http2, MeshProtocol::Tcp].map(|each| each.alpn().to_vec()).into();
        // A resumed handshake would skip the verification of the caller's certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), trust })
    }

    /// Takes a handshake.
    ///
    /// # Errors
    /// `peer_identity` with the TLS error: nobody but the log learns which check failed.
    pub async fn accept(&self, stream: TcpStream, address: SocketAddr, within: Duration) -> Result<Secured, Refusal> {
        let failed = |detail: String| Refusal::new(Reason::PeerIdentity, detail);
        let stream = tokio::time::timeout(within, self.acceptor.accept(stream))
            .await
            .map_err(|_| failed("TLS handshake timed out".to_owned()))?
            .map_err(|error| match problem(&error) {
                (Reason::PeerRevoked, text) => Refusal::new(Reason::PeerRevoked, text),
                (_, text) => failed(format!("TLS handshake: {text}")),
            })?;
        let session = stream.get_ref().1;
        let peer = Peer::of(session, address, &self.trust).map_err(|error| failed(error.to_string()))?;
        let protocol = session
            .alpn_protocol()
            .and_then(MeshProtocol::from_alpn)
            .ok_or_else(|| failed("no protocol agreed on".to_owned()))?;
        let destination = session.server_name().and_then(destination);
        Ok(Secured { io: SharedIo::new(Transport::Accepted(Box::new(stream))), peer: Rc::new(peer), protocol, destination })
    }
}

/// Takes a connection in plaintext to this port of an own service: somebody who proves nothing.
///
/// # Errors
/// `head_timeout` when it does not begin to speak in time, or goes away.
pub async fn plaintext(
    stream: TcpStream,
    address: SocketAddr,
    port: &PlaintextPort,
    within: Duration,
) -> Result<Secured, Refusal> {
    let mut io = SharedIo::new(Transport::Plain(stream));
    let protocol = if port.is_http {
        let preface = tokio::time::timeout(within, preface::is_http2(&mut io)).await.ok().and_then(Result::ok);
        let http2 = preface.ok_or_else(|| Refusal::new(Reason::HeadTimeout, "nothing was said in time"))?;
        if http2 { MeshProtocol::Http2 } else { MeshProtocol::Http1 }
    } else {
        MeshProtocol::Tcp
    };
    let destination = Some((port.service.clone(), port.port));
    Ok(Secured { io, peer: Rc::new(Peer::anonymous(address)), protocol, destination })
}

/// Opens mesh connections.
#[derive(Clone)]
pub struct MeshConnector {
    http1: TlsConnector,
    http2: TlsConnector,
    tcp: TlsConnector,
    mesh: TlsConnector,
    trust: Arc<Trust>,
}

impl std::fmt::Debug for MeshConnector {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("MeshConnector")
    }
}

impl MeshConnector {
    /// Presents the current certificate of `svids` and verifies the other side against `trust`.
    ///
    /// # Errors
    /// When the provider lacks TLS 1.3.
    pub fn new(svids: Arc<Svids>, trust: Arc<Trust>) -> Result<Self, rustls::Error> {
        let build = |protocols: &[MeshProtocol]| -> Result<TlsConnector, rustls::Error> {
            let mut config = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .dangerous() // our verifier checks the chain, and the identity instead of a host name
                .with_custom_certificate_verifier(trust.clone())
                .with_client_cert_resolver(svids.clone());
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.alpn().to_vec()).collect();
            config.resumption = rustls::client::Resumption::disabled();
            config.enable_early_data = false;
            Ok(TlsConnector::from(Arc::new(config)))
        };
        Ok(Self {
            http1: build(&[MeshProtocol::Http1])?,
            http2: build(&[MeshProtocol::Http2])?,
            tcp: build(&[MeshProtocol::Tcp])?,
            // An agent that does not know it speaks HTTP/1.1.
            mesh: build(&[MeshProtocol::Mesh, MeshProtocol::Http1])?,
            trust,
        })
    }

    /// Who is believed.
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// Makes a handshake with an endpoint that must prove `expected`.
    ///
    /// # Errors
    /// `connect_failed`, or `peer_identity` when the other side is somebody else.
    pub async fn connect(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        service: &ServiceName,
        port: u16,
        protocol: MeshProtocol,
        expected: &SpiffeId,
    ) -> Result<Secured, Refusal> {
        let connector = match protocol {
            MeshProtocol::Http1 => &self.http1,
            MeshProtocol::Http2 => &self.http2,
            MeshProtocol::Tcp => &self.tcp,
            MeshProtocol::Mesh => &self.mesh,
        };
        let name =
            ServerName::try_from(server_name(service, port)).map_err(|error| Refusal::caused(Reason::UnknownService, &error))?;
        let stream = connector.connect(name, stream).await.map_err(|error| {
            let (reason, text) = problem(&error);
            Refusal::new(reason, format!("TLS handshake with {address}: {text}"))
        })?;
        let session = stream.get_ref().1;
        let peer =
            Peer::of(session, address, &self.trust).map_err(|error| Refusal::new(Reason::PeerIdentity, error.to_string()))?;
        if peer.id() != Some(expected) {
            return Err(Refusal::new(Reason::PeerIdentity, format!("{address} proved `{}`, expected `{expected}`", peer.name())));
        }
        // TLS agrees on nothing that was not offered.
        let agreed = session.alpn_protocol().and_then(MeshProtocol::from_alpn);
        let protocol =
            agreed.ok_or_else(|| Refusal::new(Reason::ConnectFailed, format!("{address} does not speak what was asked for")))?;
        Ok(Secured {
            io: SharedIo::new(Transport::Connected(Box::new(stream))),
            peer: Rc::new(peer),
            protocol,
            destination: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_names_round_trip() {
        let service: ServiceName = "shop/files".parse().unwrap();
        assert_eq!(destination(&server_name(&service, 8080)), Some((service, 8080)));
        for name in [
            "files.shop",
            "0.files.shop.mesh.internal",
            "080.files.shop.mesh.internal",
            "70000.files.shop.mesh.internal",
            "80.files.mesh.internal",
        ] {
            assert_eq!(destination(name).filter(|(_, port)| *port != 0), None, "{name}");
        }
    }
}
