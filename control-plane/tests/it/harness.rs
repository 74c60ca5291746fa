//! A control plane in this process, and clients that speak its wire over real TLS.

use std::{path::Path, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use outrider_control_plane::{Config, ControlPlane, Environment, Raw, Running, StartError};
use outrider_proto::v1::{
    self, admin_client::AdminClient, config_client::ConfigClient, identity_client::IdentityClient, subscribe_request,
    subscribe_response, telemetry_client::TelemetryClient,
};
use outrider_runtime::{Drain, Tasks};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tempfile::TempDir;
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

/// Nothing here takes this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A control plane in this process.
pub(crate) struct Plane {
    pub(crate) running: Running,
    pub(crate) tasks: Tasks,
    pub(crate) drain: Drain,
    dir: Arc<TempDir>,
}

/// Settings on free ports in a directory of the test's own.
pub(crate) fn settings(dir: &Path) -> Raw {
    Raw {
        state_dir: Some(dir.join("state")),
        listen: Some("127.0.0.1:0".into()),
        health_listen: Some("127.0.0.1:0".into()),
        ..Raw::default()
    }
}

/// Starts a control plane with these settings.
pub(crate) async fn start(raw: Raw) -> Result<(Running, Tasks, Drain), StartError> {
    let config: Config = raw.resolve(&Environment::default()).unwrap();
    let (tasks, drain) = (Tasks::new(), Drain::new());
    let running = ControlPlane::start(config, &tasks, &drain).await?;
    Ok((running, tasks, drain))
}

impl Plane {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(tweak: impl FnOnce(&mut Raw)) -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), tweak).await
    }

    async fn start_in(dir: Arc<TempDir>, tweak: impl FnOnce(&mut Raw)) -> Self {
        let mut raw = settings(dir.path());
        tweak(&mut raw);
        let (running, tasks, drain) = start(raw).await.unwrap();
        Self { running, tasks, drain, dir }
    }

    /// Stops in good order and starts again on the same state directory.
    pub(crate) async fn restart_with(self, tweak: impl FnOnce(&mut Raw)) -> Self {
        let dir = self.stop().await;
        Self::start_in(dir, tweak).await
    }

    pub(crate) async fn stop(self) -> Arc<TempDir> {
        self.drain.drain(PATIENCE).await;
        assert_eq!(self.tasks.finish(PATIENCE).await, 0, "tasks outlived the drain");
        self.dir
    }

    pub(crate) fn state_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) async fn admin(&self) -> AdminClient<Channel> {
        let path = self.running.admin_socket.clone();
        let connect = tower::service_fn(move |_| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        });
        AdminClient::new(Endpoint::from_static("http://admin").connect_with_connector(connect).await.unwrap())
    }

    pub(crate) async fn token(&self, identity: &str, services: &[&str]) -> String {
        let request = v1::CreateTokenRequest {
            identity: identity.into(),
            services: services.iter().map(ToString::to_string).collect(),
            ttl_seconds: 0,
            caller_only: false,
        };
        self.admin().await.create_token(request).await.unwrap().into_inner().token
    }

    /// A connection to the agents' door, with or without certificate.
    pub(crate) async fn connect(&self, svid: Option<&Svid>) -> Result<Channel, tonic::transport::Error> {
        connect(self.running.address, svid.map(|svid| (svid.chain.clone(), svid.key.clone_key()))).await
    }

    pub(crate) async fn issue(&self, svid: Option<&Svid>, request: v1::IssueRequest) -> Result<v1::IssueResponse, Status> {
        let channel = self.connect(svid).await.unwrap();
        IdentityClient::new(channel).issue(request).await.map(tonic::Response::into_inner)
    }

    /// Joins with a fresh token.
    pub(crate) async fn join(&self, identity: &str, services: &[&str]) -> Svid {
        let token = self.token(identity, services).await;
        let key = KeyPair::generate().unwrap();
        let response = self.issue(None, by_token(&token, csr(&key, |_| {}))).await.unwrap();
        Svid::new(&key, response)
    }

    pub(crate) async fn apply(&self, yaml: &str) -> v1::ApplyResponse {
        let manifests = vec![v1::Manifest { source: "test.yaml".into(), yaml: yaml.into() }];
        self.admin()
            .await
            .apply(v1::ApplyRequest { manifests, allow_unknown_services: true, ..v1::ApplyRequest::default() })
            .await
            .unwrap()
            .into_inner()
    }

    pub(crate) async fn subscribe(&self, svid: &Svid) -> Agent {
        let (send, receive) = mpsc::channel(16);
        let channel = self.connect(Some(svid)).await.unwrap();
        let inbound = ConfigClient::new(channel).subscribe(ReceiverStream::new(receive)).await.unwrap().into_inner();
        Agent { send, inbound }
    }

    pub(crate) async fn telemetry(&self, svid: &Svid) -> TelemetryClient<Channel> {
        TelemetryClient::new(self.connect(Some(svid)).await.unwrap())
    }
}

/// A certificate with its key.
pub(crate) struct Svid {
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) response: v1::IssueResponse,
}

impl Svid {
    pub(crate) fn new(key: &KeyPair, response: v1::IssueResponse) -> Self {
        let chain = response.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        Self { key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())), chain, response }
    }
}

/// A signing request.
pub(crate) fn csr(key: &KeyPair, tweak: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    tweak(&mut params);
    params.serialize_request(key).unwrap().der().to_vec()
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub(crate) fn by_token(token: &str, csr: Vec<u8>) -> v1::IssueRequest {
    let evidence = v1::issue_request::Evidence::JoinToken(v1::JoinToken { token: token.into() });
    v1::IssueRequest { csr, evidence: Some(evidence), expected_identity: String::new() }
}

pub(crate) fn by_renewal(csr: Vec<u8>) -> v1::IssueRequest {
    let evidence = v1::issue_request::Evidence::Renewal(v1::Renewal {});
    v1::IssueRequest { csr, evidence: Some(evidence), expected_identity: String::new() }
}

/// An agent's stream.
pub(crate) struct Agent {
    pub(crate) send: mpsc::Sender<v1::SubscribeRequest>,
    pub(crate) inbound: Streaming<v1::SubscribeResponse>,
}

impl Agent {
    pub(crate) async fn say(&self, message: subscribe_request::Message) {
        self.send.send(v1::SubscribeRequest { message: Some(message) }).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Result<Option<subscribe_response::Message>, Status> {
        let message = timeout(PATIENCE, self.inbound.message()).await.expect("nothing came");
        Ok(message?.and_then(|message| message.message))
    }

    pub(crate) async fn update(&mut self) -> v1::Update {
        match self.next().await.unwrap() {
            Some(subscribe_response::Message::Update(update)) => update,
            other => panic!("not an update: {other:?}"),
        }
    }

    pub(crate) async fn ack(&self, update: &v1::Update) {
        self.say(subscribe_request::Message::Ack(v1::Ack { nonce: update.nonce, revision: update.revision })).await;
    }

    pub(crate) async fn nack(&self, update: &v1::Update, reason: &str) {
        let nack = v1::Nack { nonce: update.nonce, revision: update.revision, reason: reason.into() };
        self.say(subscribe_request::Message::Nack(nack)).await;
    }

    /// The status that ends the stream.
    pub(crate) async fn end(mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a status"),
                Err(status) => return status,
            }
        }
    }
}

/// A hello of an agent that backs these services on HTTP port 80.
pub(crate) fn hello(agent_id: &str, services: &[&str], wants: &[&str]) -> subscribe_request::Message {
    let backing = |service: &&str| v1::ServiceBacking {
        service: (*service).to_owned(),
        mesh_address: "127.0.0.1:15108".into(),
        ports: vec![v1::ServicePort { port: 80, protocol: v1::Protocol::Http.into() }],
        ..v1::ServiceBacking::default()
    };
    subscribe_request::Message::Hello(v1::Hello {
        agent_id: agent_id.into(),
        agent_version: "test".into(),
        services: services.iter().map(backing).collect(),
        want: Some(v1::WantServices { services: wants.iter().map(ToString::to_string).collect() }),
        ..v1::Hello::default()
    })
}

/// A policy that lets `shop/web` read.
pub(crate) fn policy(name: &str, service: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: {{ name: {name}, namespace: {namespace} }}\n\
         spec:\n  targetRefs: [{{ kind: Service, name: {service} }}]\n  authorization:\n    rules:\n      - name: reads\n        \
         action: Allow\n        from: [{{ serviceAccounts: [shop/web] }}]\n        to: [{{ methods: [GET] }}]\n"
    )
}

pub(crate) async fn connect(
    address: std::net::SocketAddr,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<Channel, tonic::transport::Error> {
    let tls = TlsConnector::from(Arc::new(client_config(identity)));
    let connect = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("control-plane.invalid").unwrap();
            tls.connect(name, stream).await.map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://control-plane").connect_with_connector(connect).await
}

pub(crate) fn client_config(identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// The tests look at the server's certificate where it matters.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A plain GET: the status and the body.
pub(crate) async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap();
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}
