//! The client's side of an HTTP/2 connection: many exchanges at a time.

use std::{cell::Cell, pin::Pin, rc::Rc, task::Poll, time::Duration};

use bytes::Bytes;
use h2::client::SendRequest;
use outrider_runtime::Tasks;
use tokio::task::JoinHandle;

use super::{BodyReader, USUAL, WINDOW, as_map, gathered::Gathered, server::send_data, websocket};
use crate::{
    alarm::within,
    http::{Body, BodyError, Fields, Frame, Limits, RequestHead, Response, SharedIo, message::names_length},
    refusal::{Reason, Refusal},
    tls::Tenure,
    upstream::StreamLease,
};

/// How often, and after how long, a connection is asked again whether its peer's settings have come.
const FIRST_FRAME_TRIES: u32 = 50;
const FIRST_FRAME_PAUSE: Duration = Duration::from_millis(10);

/// What the library is handed of a body before the peer takes any: a stream is not open before the connection's task has run, and a
/// body that waited for that would need a task of its own.
const AHEAD: usize = 16 << 10;
/// What a piece of a body takes in the library, beside its bytes.
const PIECE: usize = 2 << 10;

/// An HTTP/2 connection to an upstream. Clones are the same connection.
#[derive(Clone, Debug)]
pub struct H2Client {
    send: SendRequest<Bytes>,
    /// When this is over it is not used for another exchange, and what is under way ends.
    pub tenure: Tenure,
    /// Set when the connection has ended, or takes no more streams.
    closed: Rc<Cell<bool>>,
}

/// Sends a request's body. Dropped, it stops, and the stream is reset unless it had ended.
#[derive(Debug)]
pub(super) struct Pump(JoinHandle<Option<Refusal>>);

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What came of an exchange.
#[derive(Debug)]
pub enum Exchange {
    /// The upstream answered.
    Answered(Response),
    /// The upstream has not begun to act on it: another connection may be tried with the whole body.
    Unsent(Body, Refusal),
}

impl H2Client {
    /// Opens HTTP/2 over `io`; the connection is driven by a task of its own.
    ///
    /// # Errors
    /// When the peer does not speak HTTP/2.
    pub async fn open(io: SharedIo, tenure: Tenure, limits: &Limits, tasks: &Tasks) -> Result<Self, Refusal> {
        let io = Gathered::new(io);
        let handshake = h2::client::Builder::new()
            .enable_push(false)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake::<_, Bytes>(io.clone());
        let (send, mut connection) = tokio::time::timeout(limits.handshake, handshake)
            .await
            .map_err(|_| Refusal::new(Reason::ConnectFailed, "HTTP/2 preface timed out"))?
            .map_err(|error| Refusal::caused(Reason::ConnectFailed, &error))?;
        let closed = Rc::new(Cell::new(false));
        let ended = closed.clone();
        tasks.spawn_scoped_local(async move {
            let driven = std::future::poll_fn(|cx| {
                let ended = Pin::new(&mut connection).poll(cx);
                io.send(cx);
                ended
            });
            if let Err(error) = driven.await {
                tracing::debug!(%error, "HTTP/2 connection to an upstream ended");
            }
            ended.set(true);
        });
        Ok(Self { send, tenure, closed })
    }

    /// Whether another exchange may start on it.
    pub fn is_usable(&self) -> bool {
        !self.closed.get() && !self.tenure.is_over()
    }

    /// Whether the peer takes extended CONNECT. It says so with its first frame, which may be under way.
    async fn takes_websockets(&self) -> bool {
        for _ in 0..FIRST_FRAME_TRIES {
            if self.send.is_extended_connect_protocol_enabled() {
                return true;
            }
            tokio::time::sleep(FIRST_FRAME_PAUSE).await;
        }
        false
    }

    /// Waits for room for a stream and opens it. An error means that the connection takes no more of them.
    async fn begin(
        &self,
        request: http::Request<()>,
        ends: bool,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        let begun = async { self.send.clone().ready().await?.send_request(request, ends) }.await;
        if begun.is_err() {
            self.closed.set(true);
        }
        begun
    }
}

/// Sends a request and returns the response.
///
/// # Errors
/// `upstream_failed`, `upstream_timeout`.
pub async fn exchange(
    client: H2Client,
    head: &RequestHead,
    added: &Fields,
    body: Body,
    lease: StreamLease,
    limits: &Limits,
    tasks: &Tasks,
) -> Result<Exchange, Refusal> {
    let failed = |error: &h2::Error| Refusal::caused(Reason::UpstreamFailed, error);
    let without_body = body.is_end();
    let mut request = wire_head(head, added, &body)?;
    let switches = head.upgrade.as_deref() == Some(websocket::PROTOCOL) && without_body && client.takes_websockets().await;
    if switches {
        websocket::extend(&mut request);
    }
    let (response, stream) = match client.begin(request, without_body && !switches).await {
        Ok(begun) => begun,
        Err(error) => return Ok(Exchange::Unsent(body, failed(&error))),
    };
    let (mut sending, mut pump) = (Some(stream), None);
    if !without_body && let Some(stream) = sending.take() {
        // Most bodies are small and come with their head: they need no task.
        let mut work = Box::pin(send_body(body, stream));
        pump = match std::future::poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
            Poll::Ready(Some(refusal)) => return Err(refusal),
            Poll::Ready(None) => None,
            Poll::Pending => Some(Pump(tasks.spawn_scoped_local(work))),
        };
    }
    let mut response = std::pin::pin!(response);
    // The time for an answer begins when the upstream has the whole request.
    let early = match &mut pump {
        None => None,
        Some(Pump(task)) => tokio::select! {
            biased;
            response = &mut response => Some(response),
            refused = task => match refused {
                Ok(Some(refusal)) => return Err(refusal),
                Ok(None) | Err(_) => None,
            },
        },
    };
    let response = match early {
        Some(response) => response,
        None => tokio::select! {
            biased;
            response = within(limits.response_head, response) => {
                response.map_err(|_| Refusal::new(Reason::UpstreamTimeout, "no response in time"))?
            }
            refusal = client.tenure.fallen() => return Err(refusal),
        },
    };
    let response = match response {
        Ok(response) => response,
        Err(error) if without_body && is_unprocessed(&error, &head.method) => {
            return Ok(Exchange::Unsent(Body::Empty, failed(&error)));
        }
        Err(error) => return Err(failed(&error)),
    };
    let tenure = Some(client.tenure.clone());
    let (parts, stream) = response.into_parts();
    let mut fields = Fields::with_capacity(USUAL);
    let mut length = None;
    for (name, value) in &parts.headers {
        if name == http::header::CONTENT_LENGTH {
            length = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
        } else if !super::is_connection_field(name.as_str()) {
            fields.push(name.as_str().as_bytes(), value.as_bytes().trim_ascii());
        }
    }
    let status = parts.status.as_u16();
    let (most, bytes) = (limits.fields, limits.head_bytes);
    if !(200..600).contains(&status) || fields.len() > most || fields.as_wire().len() > bytes {
        let detail = format!(
            "upstream answered with status {status}, {} fields and {} bytes of them",
            fields.len(),
            fields.as_wire().len()
        );
        return Err(Refusal::new(Reason::UpstreamFailed, detail));
    }
    if let Some(sending) = sending.filter(|_| switches && parts.status.is_success()) {
        let switched = Some(Box::new(websocket::switched(&mut fields, &head.fields, (sending, stream), lease)));
        return Ok(Exchange::Answered(Response { status: 101, fields, body: Body::Empty, tenure, switched }));
    }
    if names_length(head.method == http::Method::HEAD, status)
        && let Some(length) = length
    {
        // Of the body that there would be.
        fields.push(b"content-length", length.to_string().as_bytes());
    }
    let body = if stream.is_end_stream() {
        Body::Empty
    } else {
        Body::H2(Box::new(BodyReader::new(stream, length, Some(super::body::Upstream { _lease: lease, _pump: pump }))))
    };
    Ok(Exchange::Answered(Response { status, fields, body, tenure, switched: None }))
}

fn wire_head(head: &RequestHead, added: &Fields, body: &Body) -> Result<http::Request<()>, Refusal> {
    let uri = http::Uri::builder().scheme("http").authority(head.authority()).path_and_query(head.target.as_str()).build();
    let uri = uri.map_err(|error| Refusal::caused(Reason::Malformed, &error))?;
    let mut map = as_map(&[&head.fields, added])?;
    if let Some(length) = body.length().filter(|length| *length > 0) {
        map.insert(http::header::CONTENT_LENGTH, length.into());
    }
    map.insert(http::header::TE, http::HeaderValue::from_static("trailers"));
    let mut request = http::Request::new(());
    (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (head.method.clone(), uri, map);
    Ok(request)
}

/// Whether the peer says that it has not begun to act on the request (RFC 9113 section 8.7).
fn is_unprocessed(error: &h2::Error, method: &http::Method) -> bool {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    // The error does not tell which streams the peer had begun with.
    let leaving = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) && method.is_idempotent();
    error.is_remote() && (refused || leaving)
}

/// Returns why the caller's body may not go on, if it is that.
async fn send_body(mut body: Body, mut stream: h2::SendStream<Bytes>) -> Option<Refusal> {
    let Err(stopped) = pump(&mut body, &mut stream).await else { return None };
    tracing::debug!(reason = %stopped, "request body ended early");
    stream.send_reset(h2::Reason::CANCEL);
    matches!(stopped, BodyError::TooLarge | BodyError::TooSlow(_)).then(|| stopped.refusal())
}

async fn pump(body: &mut Body, stream: &mut h2::SendStream<Bytes>) -> Result<(), BodyError> {
    let broken = |error: &dyn ToString| BodyError::Broken(error.to_string());
    let mut ahead = AHEAD;
    loop {
        match body.frame().await? {
            Some(Frame::Data(data)) if data.len() + PIECE <= ahead => {
                ahead -= data.len() + PIECE;
                let ends = body.is_end();
                if data.is_empty() && !ends {
                    continue;
                }
                stream.send_data(data, ends).map_err(|error| broken(&error))?;
                if ends {
                    return Ok(());
                }
            }
            Some(Frame::Data(data)) => {
                if send_data(stream, data, body.is_end()).await.map_err(|error| broken(&error))? {
                    return Ok(());
                }
            }
            Some(Frame::Trailers(fields)) => {
                let map = as_map(&[&fields]).map_err(|refusal| broken(&refusal))?;
                return stream.send_trailers(map).map_err(|error| broken(&error));
            }
            None => return stream.send_data(Bytes::new(), true).map_err(|error| broken(&error)),
        }
    }
}
