//! The health port: `/livez`, `/readyz` and `/metrics`, plain HTTP, read-only, for few callers at a time.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};

use crate::{Drain, Readiness};

/// Media type of the OpenMetrics text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Media type of everything else.
const TEXT: &str = "text/plain; charset=utf-8";
/// Connections at a time; over that, new ones are closed at once.
const CONNECTIONS: usize = 64;
/// Time for the head of a request, also of the next one on an idle connection.
const HEAD: Duration = Duration::from_secs(10);
/// Pause when the system has no connection to give.
const PAUSE: Duration = Duration::from_millis(100);

/// What is told.
struct Health {
    readiness: Readiness,
    metrics: Arc<Registry>,
    drain: Drain,
}

/// Serves until drain is over. `/readyz` answers 503 and names the closed gates until all are open, and again while draining.
///
/// # Errors
/// None: a connection that cannot be accepted is not the last one.
pub async fn serve(listener: TcpListener, readiness: Readiness, metrics: Arc<Registry>, drain: Drain) -> std::io::Result<()> {
    let health = Arc::new(Health { readiness, metrics, drain: drain.clone() });
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Dropped at the end, and all connections with it.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = drain.forced() => return Ok(()),
        };
        match (accepted, Arc::clone(&places).try_acquire_owned()) {
            (Ok((stream, _)), Ok(place)) => {
                connections.spawn(connection(stream, place, Arc::clone(&health)));
            }
            (Ok(_), Err(_)) => tracing::debug!(most = CONNECTIONS, "too many connections to the health port"),
            (Err(error), _) => {
                tracing::warn!(%error, "health port: accept failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, _place: OwnedSemaphorePermit, health: Arc<Health>) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let response = health.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "health port");
    }
}

impl Health {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let (status, kind, text) = match path {
            _ if ![Method::GET, Method::HEAD].contains(method) => {
                (StatusCode::METHOD_NOT_ALLOWED, TEXT, "read-only\n".to_owned())
            }
            "/livez" => (StatusCode::OK, TEXT, "live\n".to_owned()),
            "/readyz" => self.ready(),
            "/metrics" => self.encode(),
            _ => (StatusCode::NOT_FOUND, TEXT, "here are /livez, /readyz and /metrics\n".to_owned()),
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
        response
    }

    fn ready(&self) -> (StatusCode, &'static str, String) {
        let missing = self.readiness.missing();
        if self.drain.is_stopping() {
            (StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n".to_owned())
        } else if missing.is_empty() {
            (StatusCode::OK, TEXT, "ready\n".to_owned())
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("waiting for {}\n", missing.join(", ")))
        }
    }

    fn encode(&self) -> (StatusCode, &'static str, String) {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.metrics) {
            Ok(()) => (StatusCode::OK, OPENMETRICS, text),
            Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn start() -> (std::net::SocketAddr, Drain, crate::Tasks) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, drain, tasks) = (listener.local_addr().unwrap(), Drain::new(), crate::Tasks::new());
        tasks.spawn("health", serve(listener, Readiness::new(), Arc::default(), drain.clone()));
        (address, drain, tasks)
    }

    async fn ask(address: std::net::SocketAddr, head: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(head.as_bytes()).await;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn it_tells_what_it_knows_and_takes_nothing_also_while_draining() {
        let (address, drain, tasks) = start().await;
        let of = |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(ask(address, &of("GET", "/readyz")).await.starts_with("HTTP/1.1 200"));
        assert!(ask(address, &of("GET", "/metrics")).await.contains("openmetrics-text"));
        assert!(ask(address, &of("POST", "/readyz")).await.starts_with("HTTP/1.1 405"));
        assert!(ask(address, &of("GET", "/")).await.starts_with("HTTP/1.1 404"));
        drain.stop();
        assert!(ask(address, &of("GET", "/readyz")).await.starts_with("HTTP/1.1 503"), "draining");
        drain.drain(Duration::ZERO).await;
        assert_eq!(tasks.finish(Duration::from_secs(5)).await, 0);
    }

    #[tokio::test]
    async fn callers_that_say_nothing_are_few_and_do_not_stay() {
        let (address, _drain, _tasks) = start().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /live").await.unwrap();
            silent.push(stream);
        }
        // One too many: closed without a word.
        assert_eq!(ask(address, "").await, "");
        tokio::time::pause();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(HEAD * 2, silent[0].read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "half a head was waited for for ever");
    }
}
