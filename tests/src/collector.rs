//! An OpenTelemetry collector that keeps what it gets.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// A span with the name of the service that recorded it.
#[derive(Clone, Debug)]
pub struct CollectedSpan {
    /// `service.name` of its resource.
    pub service: String,
    /// The span.
    pub span: Span,
}

impl CollectedSpan {
    /// The text of an attribute.
    pub fn attribute(&self, key: &str) -> Option<String> {
        text(&self.span.attributes, key)
    }
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The collector, on loopback in plaintext. It ends when it is dropped.
#[derive(Debug)]
pub struct Collector {
    /// Where it listens.
    pub address: SocketAddr,
    spans: Arc<Mutex<Vec<CollectedSpan>>>,
    _server: JoinSet<()>,
}

struct Keeper(Arc<Mutex<Vec<CollectedSpan>>>);

#[tonic::async_trait]
impl TraceService for Keeper {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut kept = self.0.lock().expect("spans");
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let service = text(&attributes, "service.name").unwrap_or_default();
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            kept.extend(spans.map(|span| CollectedSpan { service: service.clone(), span }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts it.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let spans = Arc::<Mutex<Vec<CollectedSpan>>>::default();
        let service = TraceServiceServer::new(Keeper(spans.clone()));
        let mut server = JoinSet::new();
        server.spawn(async move {
            let _ = Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)).await;
        });
        Self { address, spans, _server: server }
    }

    /// The spans of a request, once there are so many.
    ///
    /// # Panics
    /// When there are fewer after 20 s.
    pub async fn of(&self, request_id: &str, count: usize) -> Vec<CollectedSpan> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let all = self.spans.lock().expect("spans").clone();
            let found: Vec<_> =
                all.iter().filter(|span| span.attribute("outrider.request_id").as_deref() == Some(request_id)).cloned().collect();
            if found.len() >= count {
                return found;
            }
            assert!(Instant::now() < deadline, "{} of {count} spans of {request_id}: {all:#?}", found.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
