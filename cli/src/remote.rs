//! The way to a control plane on another machine: mutual TLS with the certificate of a context.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper_util::rt::TokioIo;
use outrider_agent::{
    identity::SigningRequest,
    tls::{ControlPlaneTrust, Trust, control_plane_config},
};
use outrider_proto::v1::{
    LoginResponse, RenewLoginRequest, TrustBundle, admin_client::AdminClient, operator_client::OperatorClient,
};
use rustls::{
    ClientConfig,
    crypto::aws_lc_rs::sign::any_ecdsa_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{
    codegen::http::Uri,
    transport::{Channel, Endpoint},
};

use crate::{
    admin::{Admin, AdminError, LARGEST_ANSWER},
    contexts::{Context, Contexts},
    failure::Failure,
};

/// Time for TCP and TLS.
const CONNECT: Duration = Duration::from_secs(10);

/// Unix seconds.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// TLS to the control plane that shows the root with this key, as nobody.
pub(crate) fn pinned(pin: [u8; 32]) -> Result<ClientConfig, String> {
    let mut config = control_plane_config(ControlPlaneTrust::Pin(pin), None).map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// TLS as the operator of this context.
fn known(context: &Context) -> Result<ClientConfig, String> {
    let decode = |text: &String| STANDARD.decode(text).map_err(|_| "the context is damaged: log in again".to_owned());
    let roots = context.roots.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
    let trust = Arc::new(Trust::default());
    let bundle = TrustBundle { trust_domain: context.trust_domain.clone(), roots };
    trust.replace(&bundle).map_err(|error| error.to_string())?;
    let chain = context.certificate.iter().map(|der| decode(der).map(CertificateDer::from)).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(decode(&context.key)?));
    let key = any_ecdsa_type(&key).map_err(|error| error.to_string())?;
    let mut config = control_plane_config(ControlPlaneTrust::Bundle(trust), None).map_err(|error| error.to_string())?;
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
    Ok(config)
}

/// Connects.
pub(crate) async fn dial(address: &str, config: Result<ClientConfig, String>) -> Result<Channel, AdminError> {
    let failed = |reason: String| AdminError::Remote { address: address.to_owned(), reason };
    let connector = TlsConnector::from(Arc::new(config.map_err(failed)?));
    // The identity in the certificate is what counts; the name is only there because TLS wants one.
    let name = ServerName::try_from("control-plane.outrider-system").map_err(|error| failed(error.to_string()))?;
    let to = address.to_owned();
    let dial = tower::service_fn(move |_: Uri| {
        let (connector, name, to) = (connector.clone(), name.clone(), to.clone());
        async move {
            let stream = TcpStream::connect(to).await?;
            let _ = stream.set_nodelay(true);
            Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    let endpoint = Endpoint::from_static("http://control-plane.invalid").connect_timeout(CONNECT);
    let channel = endpoint.connect_with_connector(dial).await;
    channel.map_err(|error| failed(outrider_runtime::tasks::chain(&error)))
}

/// What a login gave, as a context.
pub(crate) fn context(control_plane: &str, request: &SigningRequest, answer: LoginResponse) -> Context {
    let encode = |der: Vec<u8>| STANDARD.encode(der);
    Context {
        control_plane: control_plane.to_owned(),
        identity: answer.identity,
        role: answer.role,
        trust_domain: answer.trust_domain,
        roots: answer.roots.into_iter().map(encode).collect(),
        certificate: answer.chain.into_iter().map(encode).collect(),
        key: STANDARD.encode(request.key()),
        obtained: now(),
        expires: answer.not_after,
    }
}

/// Connects as the operator of the context of this name. A certificate past half of its life is renewed first.
pub(crate) async fn connect(path: &Path, name: &str) -> Result<Admin, Failure> {
    let contexts = Contexts::read(path)?;
    let mut context = contexts.find(name)?.clone();
    if now() >= context.expires {
        return Err(Failure::Usage(format!(
            "the certificate of context `{name}` has expired: log in again with `outrider login`"
        )));
    }
    let mut channel = dial(&context.control_plane, known(&context)).await?;
    if context.is_due(now())
        && let Some(fresh) = renewed(&context, channel.clone()).await
    {
        // Another process may have written meanwhile: only this one context is replaced.
        let mut contexts = Contexts::read(path)?;
        contexts.contexts.insert(name.to_owned(), fresh.clone());
        contexts.write(path)?;
        channel = dial(&fresh.control_plane, known(&fresh)).await?;
        context = fresh;
    }
    tracing::debug!(identity = context.identity, "connected");
    Ok(AdminClient::new(channel).max_decoding_message_size(LARGEST_ANSWER))
}

/// A new certificate; none when it cannot be had, which is no reason to fail while the present one lasts.
async fn renewed(context: &Context, channel: Channel) -> Option<Context> {
    let request = SigningRequest::new().ok()?;
    let answer = OperatorClient::new(channel).renew_login(RenewLoginRequest { csr: request.csr.clone() }).await;
    match answer {
        Ok(answer) => Some(self::context(&context.control_plane, &request, answer.into_inner())),
        Err(status) => {
            tracing::warn!(reason = status.message(), "the certificate of this context was not renewed");
            None
        }
    }
}
