//! The health port: `/livez`, `/readyz` and `/metrics`, plain HTTP, read-only, for few callers at a time. Metrics come in the
//! OpenMetrics format to whoever asks for it, with exemplars, else in the older text format.

use std::{convert::Infallible, fmt, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, CONTENT_TYPE},
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
/// Media type of the older text format of Prometheus.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Media type of everything else.
const TEXT: &str = "text/plain; charset=utf-8";
/// Connections at a time; over that, new ones are closed at once.
const CONNECTIONS: usize = 64;
/// Time for the head of a request, also of the next one on an idle connection.
const HEAD: Duration = Duration::from_secs(10);
/// Pause when the system has no connection to give.
const PAUSE: Duration = Duration::from_millis(100);

/// What `/metrics` tells.
pub trait Exposition: Send + Sync + 'static {
    /// Writes all of it in the OpenMetrics text format, its end included.
    ///
    /// # Errors
    /// None but those of `out`.
    fn openmetrics(&self, out: &mut String) -> fmt::Result;
}

impl Exposition for Registry {
    fn openmetrics(&self, out: &mut String) -> fmt::Result {
        prometheus_client::encoding::text::encode(out, self)
    }
}

/// What is told.
struct Health {
    readiness: Readiness,
    metrics: Arc<dyn Exposition>,
    drain: Drain,
}

/// Serves until drain is over, or a successor has taken over. `/readyz` answers 503 and names the closed gates until all are open, and again while draining.
///
/// # Errors
/// None: a connection that cannot be accepted is not the last one.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Arc<dyn Exposition>,
    drain: Drain,
) -> std::io::Result<()> {
    let health = Arc::new(Health { readiness, metrics, drain: drain.clone() });
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Dropped at the end, and all connections with it.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = drain.forced() => return Ok(()),
            // Who asks now wants to know about the successor, which has the same socket.
            () = drain.succeeded() => return Ok(()),
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
        let openmetrics = asks_for_openmetrics(&request);
        let response = health.answer(request.method(), request.uri().path(), openmetrics);
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
    fn answer(&self, method: &Method, path: &str, openmetrics: bool) -> Response<Full<Bytes>> {
        let (status, kind, text) = match path {
            _ if ![Method::GET, Method::HEAD].contains(method) => {
                (StatusCode::METHOD_NOT_ALLOWED, TEXT, "read-only\n".to_owned())
            }
            "/livez" => (StatusCode::OK, TEXT, "live\n".to_owned()),
            "/readyz" => self.ready(),
            "/metrics" => self.encode(openmetrics),
            _ => (StatusCode::NOT_FOUND, TEXT, "here are /livez, /readyz and /metrics\n".to_owned()),
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
        response
    }

    fn ready(&self) -> (StatusCode, &'static str, String) {
        let missing = self.readiness.waiting();
        if self.drain.is_stopping() {
            (StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n".to_owned())
        } else if missing.is_empty() {
            (StatusCode::OK, TEXT, "ready\n".to_owned())
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("waiting for {}\n", missing.join(", ")))
        }
    }

    fn encode(&self, openmetrics: bool) -> (StatusCode, &'static str, String) {
        let mut text = String::new();
        match self.metrics.openmetrics(&mut text) {
            Ok(()) if openmetrics => (StatusCode::OK, OPENMETRICS, text),
            Ok(()) => (StatusCode::OK, PROMETHEUS, older_format(&text)),
            Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, String::new()),
        }
    }
}

/// Whether the caller takes OpenMetrics, and does not rank it at 0.
fn asks_for_openmetrics<B>(request: &Request<B>) -> bool {
    let accepts = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepts.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let named = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/openmetrics-text"));
        named && !parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

/// OpenMetrics text in the format 0.0.4: no exemplars, units and end; counters described under the name of their samples.
fn older_format(text: &str) -> String {
    let counters: std::collections::HashSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .filter_map(|(name, kind)| (kind == "counter").then_some(name))
        .collect();
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("UNIT" | "EOF"), ..) => continue,
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                out.extend(["# ", what, " ", name, "_total ", rest]);
            }
            _ => out.push_str(without_exemplar(line)),
        }
        out.push('\n');
    }
    out
}

/// A sample without what follows its value. A `#` between quotes is part of a label.
fn without_exemplar(line: &str) -> &str {
    if line.starts_with('#') {
        return line;
    }
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'#' if !quoted => return line.get(..at).unwrap_or(line).trim_end(),
            _ => {}
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn start() -> (std::net::SocketAddr, Drain, crate::Tasks) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, drain, tasks) = (listener.local_addr().unwrap(), Drain::new(), crate::Tasks::new());
        tasks.spawn("health", serve(listener, Readiness::new(), Arc::new(Registry::default()), drain.clone()));
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
        assert!(ask(address, &of("GET", "/metrics")).await.contains("text/plain; version=0.0.4"));
        let openmetrics = "GET /metrics HTTP/1.1\r\nhost: x\r\naccept: text/plain;q=0.1, application/openmetrics-text;version=1.0.0\r\n\
                           connection: close\r\n\r\n";
        let answer = ask(address, openmetrics).await;
        assert!(answer.contains("openmetrics-text") && answer.ends_with("# EOF\n"), "{answer}");
        assert!(ask(address, &of("POST", "/readyz")).await.starts_with("HTTP/1.1 405"));
        assert!(ask(address, &of("GET", "/")).await.starts_with("HTTP/1.1 404"));
        drain.stop();
        assert!(ask(address, &of("GET", "/readyz")).await.starts_with("HTTP/1.1 503"), "draining");
        drain.drain(Duration::ZERO).await;
        assert_eq!(tasks.finish(Duration::from_secs(5)).await, 0);
    }

    #[test]
    fn the_older_format_has_neither_exemplars_nor_an_end() {
        let text = "# HELP a Some help.\n# TYPE a counter\na_total{x=\"1 # {\\\" # 2\"} 3 # {trace_id=\"b\"} 0.1 17.0\n\
                    # TYPE b_seconds histogram\n# UNIT b_seconds seconds\nb_seconds_bucket{le=\"+Inf\"} 1\n# EOF\n";
        let older = "# HELP a_total Some help.\n# TYPE a_total counter\na_total{x=\"1 # {\\\" # 2\"} 3\n\
                     # TYPE b_seconds histogram\nb_seconds_bucket{le=\"+Inf\"} 1\n";
        assert_eq!(older_format(text), older);
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
