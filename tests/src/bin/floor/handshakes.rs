//! Full mutual TLS handshakes, each followed by one request, straight at a callee's proxy; or connections that are kept open.

use std::{
    cell::{Cell, RefCell},
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use outrider_agent::{
    config::ControlPlane,
    identity::{JoinToken, SigningRequest, Svids},
    tls::{MeshConnector, MeshProtocol, Trust},
};
use outrider_proto::v1::{IssueRequest, JoinToken as WireToken, identity_client::IdentityClient, issue_request::Evidence};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    task::LocalSet,
};

use crate::tls;

/// Where, and as whom.
#[derive(Debug, clap::Args)]
pub(crate) struct Load {
    /// The callee's proxy
    #[arg(long)]
    address: SocketAddr,
    /// Handshakes at a time
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// How long
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Open so many connections, say so, and hold them until standard input ends
    #[arg(long)]
    hold: Option<usize>,
    /// Directory of certificates
    #[arg(long)]
    certificates: Option<PathBuf>,
    /// Control plane to get a certificate from, instead of `--certificates`
    #[arg(long)]
    join: Option<String>,
    /// Its token
    #[arg(long, requires = "join")]
    token: Option<String>,
    /// Service, port and identity of the callee in the mesh
    #[arg(long, num_args = 3, requires = "join")]
    service: Vec<String>,
}

trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// How connections are made.
enum Dial {
    Plain(tokio_rustls::TlsConnector),
    Mesh(MeshConnector, Vec<String>),
}

impl Load {
    /// Runs it and prints one line of JSON.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let dial = Rc::new(self.dial().await?);
        match self.hold {
            Some(count) => hold(&dial, self.address, count).await,
            None => self.churn(dial).await,
        }
    }

    async fn dial(&self) -> anyhow::Result<Dial> {
        if let Some(directory) = &self.certificates {
            return Ok(Dial::Plain(tls::client(directory, &["http/1.1"])?));
        }
        let (svids, trust): (Arc<Svids>, Arc<Trust>) = Default::default();
        let control_plane = self.join.clone().context("neither `--certificates` nor `--join`")?;
        let token: JoinToken = self.token.as_deref().unwrap_or_default().parse().map_err(anyhow::Error::msg)?;
        let addresses = Arc::new(control_plane.parse().map_err(anyhow::Error::msg)?);
        let channel = ControlPlane::new(addresses, trust.clone(), svids.clone()).join(&token).await?;
        let request = SigningRequest::new()?;
        let evidence = Some(Evidence::JoinToken(WireToken { token: token.as_str().to_owned() }));
        let call = IssueRequest { csr: request.csr.clone(), evidence, expected_identity: String::new() };
        let issued = IdentityClient::new(channel).issue(call).await?.into_inner();
        trust.replace(&issued.bundle.unwrap_or_default())?;
        svids.replace(Arc::new(request.certified(issued.chain)?));
        ensure!(self.service.len() == 3, "`--service` wants a service, a port and an identity");
        Ok(Dial::Mesh(MeshConnector::new(svids, trust)?, self.service.clone()))
    }

    async fn churn(self, dial: Rc<Dial>) -> anyhow::Result<()> {
        let (done, failed) = (Rc::new(Cell::new(0_u64)), Rc::new(RefCell::new((0_u64, String::new()))));
        let until = Instant::now() + Duration::from_secs_f64(self.seconds);
        let local = LocalSet::new();
        for _ in 0..self.connections {
            let (dial, done, failed) = (dial.clone(), done.clone(), failed.clone());
            local.spawn_local(async move {
                while Instant::now() < until {
                    match one(&dial, self.address, "connection: close\r\n").await {
                        Ok(_) => done.set(done.get() + 1),
                        Err(error) => {
                            failed.replace_with(|(count, _)| (*count + 1, format!("{error:#}")));
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
            });
        }
        local.await;
        let (errors, last) = failed.borrow().clone();
        ensure!(done.get() > 0, "no handshake succeeded: {last}");
        let line = serde_json::json!({ "requests": done.get(), "errors": errors, "seconds": self.seconds, "p50_us": 0.0, "p99_us": 0.0 });
        Ok(writeln!(std::io::stdout(), "{line}")?)
    }
}

/// One handshake and one request.
async fn one(dial: &Dial, address: SocketAddr, fields: &str) -> anyhow::Result<Box<dyn Io>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut io: Box<dyn Io> = match dial {
        Dial::Plain(connector) => Box::new(connector.connect(tls::NAME.try_into()?, stream).await?),
        Dial::Mesh(connector, service) => {
            let [service, port, identity] = service.as_slice() else { anyhow::bail!("`--service` wants three words") };
            let (service, identity) = (service.parse()?, identity.parse()?);
            let secured = connector.connect(stream, address, &service, port.parse()?, MeshProtocol::Http1, &identity).await;
            Box::new(secured?.io)
        }
    };
    let host = if matches!(dial, Dial::Plain(_)) { tls::NAME } else { "files.bench" };
    io.write_all(format!("GET /1k HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n").as_bytes()).await?;
    io.flush().await?;
    let (mut answer, mut end) = (Vec::with_capacity(2048), None);
    while end.is_none_or(|end| answer.len() < end) {
        ensure!(io.read_buf(&mut answer).await? > 0, "the connection was closed instead of answered");
        if end.is_none() {
            end = answer.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4 + 1024);
        }
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(answer.get(..32).unwrap_or_default()));
    Ok(io)
}

async fn hold(dial: &Dial, address: SocketAddr, count: usize) -> anyhow::Result<()> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        held.push(one(dial, address, "").await?);
    }
    writeln!(std::io::stdout(), "{}", serde_json::json!({ "held": held.len() }))?;
    std::io::stdout().flush()?;
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    Ok(())
}
