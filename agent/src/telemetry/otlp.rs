//! Sends spans to an OpenTelemetry collector: OTLP over gRPC, in batches, away from the request path.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{self as wire, ResourceSpans, ScopeSpans, Status, span::SpanKind, status::StatusCode},
};
use outrider_runtime::Drain;
use prometheus_client::metrics::counter::Counter;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::{
    Side,
    span::{Span, SpanReceiver},
};
use crate::refusal::Blame;

/// Spans of one export.
const BATCH: usize = 512;
/// How long a span waits for others.
const LINGER: Duration = Duration::from_millis(500);
/// Time for a connection, and for an export.
const PATIENCE: Duration = Duration::from_secs(5);
/// Times that a batch is tried.
const ATTEMPTS: u32 = 2;

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpTarget {
    /// `host:port`.
    pub address: String,
    /// Root certificates, PEM, that the collector's certificate must chain to. None for plaintext, on loopback only.
    pub roots: Option<PathBuf>,
}

/// The collector cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// The address is not one.
    #[error("`--otlp` is `{0}`: use HOST:PORT")]
    Address(String),
    /// The root certificates.
    #[error("`--otlp-ca` `{path}`: {reason}")]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Sends spans until drain is over.
#[derive(Debug)]
pub struct Exporter {
    client: TraceServiceClient<Channel>,
    resource: Resource,
    exported: Counter,
    dropped: Arc<Counter>,
}

impl Exporter {
    /// An exporter to `target`; it connects when there is something to send. `service` and `instance` say who we are.
    ///
    /// # Errors
    /// When the address is not one, or the root certificates cannot be read.
    pub fn new(
        target: &OtlpTarget,
        service: &str,
        instance: &str,
        exported: Counter,
        dropped: Arc<Counter>,
    ) -> Result<Self, OtlpError> {
        let attributes = vec![text("service.name", service), text("service.instance.id", instance)];
        let resource = Resource { attributes, ..Resource::default() };
        Ok(Self { client: TraceServiceClient::new(channel(target)?), resource, exported, dropped })
    }

    /// Sends what comes.
    ///
    /// # Errors
    /// None: a collector that is away costs spans, and nothing else.
    pub async fn run(mut self, mut spans: SpanReceiver, drain: Drain) -> std::io::Result<()> {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let more = tokio::select! {
                count = spans.recv_many(&mut batch, BATCH) => count > 0,
                () = drain.forced() => false,
            };
            if !more {
                return Ok(());
            }
            let fill = async { while batch.len() < BATCH && spans.recv_many(&mut batch, BATCH).await > 0 {} };
            tokio::select! {
                _ = tokio::time::timeout(LINGER, fill) => {}
                () = drain.forced() => {}
            }
            let count = batch.len() as u64;
            if self.send(batch.drain(..)).await {
                self.exported.inc_by(count)
            } else {
                self.dropped.inc_by(count)
            };
        }
    }

    async fn send(&mut self, spans: impl Iterator<Item = Span>) -> bool {
        let scope = InstrumentationScope {
            name: "outrider".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let scope_spans =
            vec![ScopeSpans { scope: Some(scope), spans: spans.map(on_the_wire).collect(), ..ScopeSpans::default() }];
        let resource_spans =
            vec![ResourceSpans { resource: Some(self.resource.clone()), scope_spans, ..ResourceSpans::default() }];
        let request = ExportTraceServiceRequest { resource_spans };
        for attempt in 1..=ATTEMPTS {
            match tokio::time::timeout(PATIENCE, self.client.export(request.clone())).await {
                Ok(Ok(_)) => return true,
                Ok(Err(status)) => tracing::debug!(%status, attempt, "spans are not taken"),
                Err(_) => tracing::debug!(attempt, "the collector does not answer"),
            }
        }
        false
    }
}

fn channel(target: &OtlpTarget) -> Result<Channel, OtlpError> {
    let wrong = || OtlpError::Address(target.address.clone());
    let endpoint = Endpoint::from_shared(format!("http://{}", target.address)).map_err(|_| wrong())?.connect_timeout(PATIENCE);
    let Some(path) = &target.roots else { return Ok(endpoint.connect_lazy()) };
    let unusable = |reason: String| OtlpError::Roots { path: path.clone(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))? {
        let added =
            certificate.map_err(|error| error.to_string()).and_then(|der| roots.add(der).map_err(|error| error.to_string()));
        added.map_err(unusable)?;
    }
    if roots.is_empty() {
        return Err(unusable("no certificate in it".to_owned()));
    }
    let mut config = ClientConfig::builder_with_provider(crate::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let host = target.address.rsplit_once(':').map_or(target.address.as_str(), |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(|_| wrong())?;
    let address = target.address.clone();
    let dial = tower::service_fn(move |_: Uri| {
        let (connector, name, address) = (connector.clone(), name.clone(), address.clone());
        async move {
            let stream = TcpStream::connect(&address).await?;
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    Ok(endpoint.connect_with_connector_lazy(dial))
}

fn on_the_wire(span: Span) -> wire::Span {
    let nanos =
        |time: SystemTime| u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX);
    let attributes = attributes(&span);
    wire::Span {
        trace_id: span.trace.to_be_bytes().to_vec(),
        span_id: span.id.to_be_bytes().to_vec(),
        parent_span_id: span.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
        name: if span.method.is_empty() { "connection".to_owned() } else { span.method },
        kind: match span.side {
            Side::Inbound => SpanKind::Server,
            Side::Outbound => SpanKind::Client,
        }
        .into(),
        start_time_unix_nano: nanos(span.began),
        end_time_unix_nano: nanos(span.began + span.took),
        attributes,
        status: Some(Status {
            message: span.reason.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
            // A caller's own mistake is an error of its call, and none of the program that refuses it.
            code: match span.reason {
                Some(reason) if span.side == Side::Outbound || reason.blame() != Blame::Caller => StatusCode::Error,
                None if span.status >= 500 => StatusCode::Error,
                _ => StatusCode::Unset,
            }
            .into(),
        }),
        ..wire::Span::default()
    }
}

fn attributes(span: &Span) -> Vec<KeyValue> {
    let mut attributes = vec![text("outrider.side", span.side.as_str())];
    let destination = span.destination.as_ref();
    for (key, value) in [
        ("http.request.method", span.method.as_str()),
        ("server.address", &span.host),
        ("url.path", &span.path),
        ("outrider.service", destination.map(|(service, _)| service.as_str()).unwrap_or_default()),
        ("outrider.peer", &span.peer),
        ("outrider.rule", &span.rule),
        ("outrider.request_id", &span.request_id),
        ("outrider.reason", span.reason.map(|reason| reason.as_str()).unwrap_or_default()),
        ("outrider.stage", span.reason.map(|reason| reason.stage().as_str()).unwrap_or_default()),
    ] {
        if !value.is_empty() {
            attributes.push(text(key, value));
        }
    }
    if let Some((_, port)) = destination {
        attributes.push(number("server.port", i64::from(*port)));
    }
    if span.status != 0 && !span.method.is_empty() {
        attributes.push(number("http.response.status_code", i64::from(span.status)));
    }
    attributes
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}
