//! Clients that say exactly the bytes a test wants said: on plain TCP, or as a member of the mesh.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use outrider_agent::{
    config::ControlPlane,
    http::SharedIo,
    identity::{JoinToken, SigningRequest, Svids},
    tls::{MeshConnector, MeshProtocol, Trust},
};
use outrider_proto::v1::{IssueRequest, JoinToken as WireToken, identity_client::IdentityClient, issue_request::Evidence};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::Mesh;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// A response as read.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Fields, names in lower case.
    pub fields: Vec<(String, String)>,
    /// Body without framing.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(each, _)| each == name).map(|(_, value)| value.as_str())
    }

    /// Body as text.
    pub fn body_text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Reads one response.
///
/// # Errors
/// When the connection ends first, or nothing comes in time.
pub async fn read_answer(io: &mut (impl AsyncRead + Unpin), buf: &mut Vec<u8>) -> io::Result<Answer> {
    tokio::time::timeout(PATIENCE, read(io, buf)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn fill(io: &mut (impl AsyncRead + Unpin), buf: &mut Vec<u8>) -> io::Result<()> {
    if io.read_buf(buf).await? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

async fn read(io: &mut (impl AsyncRead + Unpin), buf: &mut Vec<u8>) -> io::Result<Answer> {
    let (status, fields) = loop {
        let end = loop {
            if let Some(at) = buf.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            fill(io, buf).await?;
        };
        let head: Vec<u8> = buf.drain(..end).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        let status: u16 = head.get(9..12).and_then(|code| code.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        let fields: Vec<_> = head
            .split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        if status >= 200 {
            break (status, fields);
        }
    };
    let value = |name: &str| fields.iter().find(|(each, _)| each == name).map(|(_, value)| value.as_str());
    let mut body = Vec::new();
    if value("transfer-encoding").is_some() {
        loop {
            let end = loop {
                if let Some(at) = buf.windows(2).position(|window| window == b"\r\n") {
                    break at;
                }
                fill(io, buf).await?;
            };
            let size = usize::from_str_radix(&String::from_utf8_lossy(&buf[..end]), 16).map_err(io::Error::other)?;
            while buf.len() < end + size + 4 {
                fill(io, buf).await?;
            }
            body.extend_from_slice(&buf[end + 2..end + 2 + size]);
            buf.drain(..end + size + 4);
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = value("content-length").and_then(|length| length.parse::<usize>().ok()) {
        while buf.len() < length {
            fill(io, buf).await?;
        }
        body = buf.drain(..length).collect();
    }
    Ok(Answer { status, fields, body })
}

/// Writes `bytes` and reads one response.
///
/// # Errors
/// When the connection breaks.
pub async fn exchange(io: &mut (impl AsyncRead + AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<Answer> {
    io.write_all(bytes).await?;
    io.flush().await?;
    read_answer(io, &mut Vec::new()).await
}

/// A GET on a connection of its own.
///
/// # Errors
/// When it gets no response.
pub async fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    exchange(&mut stream, format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes()).await
}

/// A request through an agent's proxy, as a program with `HTTP_PROXY` makes it.
///
/// # Errors
/// When it gets no response.
pub async fn through_proxy(proxy: SocketAddr, method: &str, url: &str, fields: &str) -> io::Result<Answer> {
    let host = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
    let mut stream = TcpStream::connect(proxy).await?;
    exchange(&mut stream, format!("{method} {url} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{fields}\r\n").as_bytes())
        .await
}

/// A member of the mesh that obeys no agent: it holds a certificate and says what it likes.
#[derive(Clone, Debug)]
pub struct MeshPeer {
    /// Its certificate.
    pub svids: Arc<Svids>,
    /// Whom it believes.
    pub trust: Arc<Trust>,
    connector: MeshConnector,
}

impl MeshPeer {
    /// Joins with this identity.
    ///
    /// # Panics
    /// When it is not let in.
    pub async fn join(mesh: &Mesh, identity: &str) -> Self {
        let (svids, trust): (Arc<Svids>, Arc<Trust>) = Default::default();
        let token: JoinToken = mesh.token(identity, &[]).await.parse().expect("a token");
        let control_plane =
            ControlPlane::new(Arc::new(mesh.address.to_string().parse().expect("an address")), trust.clone(), svids.clone());
        let channel = control_plane.join(&token).await.expect("a connection");
        let request = SigningRequest::new().expect("a key");
        let evidence = Some(Evidence::JoinToken(WireToken { token: token.as_str().to_owned() }));
        let call = IssueRequest { csr: request.csr.clone(), evidence, expected_identity: String::new() };
        let issued = IdentityClient::new(channel).issue(call).await.expect("a certificate").into_inner();
        trust.replace(&issued.bundle.unwrap_or_default()).expect("a bundle");
        svids.replace(Arc::new(request.certified(issued.chain).expect("an SVID")));
        let connector = MeshConnector::new(svids.clone(), trust.clone()).expect("TLS");
        Self { svids, trust, connector }
    }

    /// Opens a mesh connection to a port of a service at `address`, which must prove `expected`.
    ///
    /// # Errors
    /// When the other side does not take it.
    pub async fn connect(
        &self,
        address: SocketAddr,
        service: &str,
        port: u16,
        protocol: MeshProtocol,
        expected: &str,
    ) -> Result<SharedIo, outrider_agent::refusal::Refusal> {
        let stream = TcpStream::connect(address).await.expect("a connection");
        // the first request would wait for the acknowledgement of the handshake's last message
        stream.set_nodelay(true).expect("a socket");
        let expected = expected.parse().expect("a SPIFFE ID");
        let secured =
            self.connector.connect(stream, address, &service.parse().expect("a service"), port, protocol, &expected).await?;
        Ok(secured.io)
    }
}
