//! The client's side of an HTTP/2 connection: many exchanges at a time.

use bytes::Bytes;
use h2::client::SendRequest;
use outrider_runtime::Tasks;
use tokio::time::Instant;

use super::{BodyReader, WINDOW, as_map, server::send_data};
use crate::{
    http::{Body, Fields, Frame, Limits, RequestHead, Response, SharedIo},
    refusal::{Reason, Refusal},
    upstream::StreamLease,
};

/// An HTTP/2 connection to an upstream. Clones are the same connection.
#[derive(Clone, Debug)]
pub struct H2Client {
    send: SendRequest<Bytes>,
    /// After this it is not used for another exchange.
    pub usable_until: Instant,
}

impl H2Client {
    /// Opens HTTP/2 over `io`; the connection is driven by a task of its own.
    ///
    /// # Errors
    /// When the peer does not speak HTTP/2.
    pub async fn open(io: SharedIo, usable_until: Instant, limits: &Limits, tasks: &Tasks) -> Result<Self, Refusal> {
        let handshake = h2::client::Builder::new()
            .enable_push(false)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake::<_, Bytes>(io);
        let (send, connection) = tokio::time::timeout(limits.handshake, handshake)
            .await
            .map_err(|_| Refusal::new(Reason::ConnectFailed, "HTTP/2 preface timed out"))?
            .map_err(|error| Refusal::caused(Reason::ConnectFailed, &error))?;
        tasks.spawn_scoped_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "HTTP/2 connection to an upstream ended");
            }
        });
        Ok(Self { send, usable_until })
    }
}

impl H2Client {
    /// Whether another exchange may start on it.
    pub fn is_usable(&self) -> bool {
        Instant::now() < self.usable_until
    }
}

/// Sends a request and returns the response. `authority` is what goes into `:authority`.
///
/// # Errors
/// `upstream_failed`, `upstream_timeout`.
pub async fn exchange(
    client: H2Client,
    head: &RequestHead,
    fields: &Fields,
    mut body: Body,
    lease: StreamLease,
    limits: &Limits,
    tasks: &Tasks,
) -> Result<Response, Refusal> {
    let failed = |error: h2::Error| Refusal::caused(Reason::UpstreamFailed, &error);
    let uri = http::Uri::builder().scheme("http").authority(head.authority()).path_and_query(head.target.as_str()).build();
    let uri = uri.map_err(|error| Refusal::caused(Reason::Malformed, &error))?;
    let mut map = as_map(fields)?;
    let length = body.length();
    if let Some(length) = length.filter(|length| *length > 0) {
        map.insert(http::header::CONTENT_LENGTH, length.into());
    }
    map.insert(http::header::TE, http::HeaderValue::from_static("trailers"));
    let mut request = http::Request::new(());
    (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (head.method.clone(), uri, map);
    let mut send = client.send.ready().await.map_err(failed)?;
    let (response, mut stream) = send.send_request(request, body.is_end()).map_err(failed)?;
    let pump = (!body.is_end()).then(|| {
        tasks.spawn_scoped_local(async move {
            if let Err(reason) = pump(&mut body, &mut stream).await {
                tracing::debug!(reason, "request body ended early");
                stream.send_reset(h2::Reason::CANCEL);
            }
        })
    });
    let response = tokio::time::timeout(limits.response_head, response).await;
    let response = response
        .map_err(|_| Refusal::new(Reason::UpstreamTimeout, "no response in time"))
        .and_then(|response| response.map_err(failed));
    let (head, stream) = match response {
        Ok(response) => response.into_parts(),
        Err(refusal) => {
            if let Some(pump) = pump {
                pump.abort();
            }
            return Err(refusal);
        }
    };
    let mut fields = Fields::default();
    let mut length = None;
    for (name, value) in &head.headers {
        if name == http::header::CONTENT_LENGTH {
            length = value.to_str().ok().and_then(|text| text.parse().ok());
        } else if !super::is_connection_field(name.as_str()) {
            fields.push(name.as_str().as_bytes(), value.as_bytes().trim_ascii());
        }
    }
    let body = if stream.is_end_stream() { Body::Empty } else { Body::H2(BodyReader::new(stream, length, Some(lease))) };
    Ok(Response { status: head.status.as_u16(), fields, body })
}

async fn pump(body: &mut Body, stream: &mut h2::SendStream<Bytes>) -> Result<(), String> {
    loop {
        match body.frame().await.map_err(|error| error.to_string())? {
            Some(Frame::Data(data)) => {
                if send_data(stream, data, body.is_end()).await? {
                    return Ok(());
                }
            }
            Some(Frame::Trailers(fields)) => {
                let map = as_map(&fields).map_err(|refusal| refusal.to_string())?;
                return stream.send_trailers(map).map_err(|error| error.to_string());
            }
            None => return stream.send_data(Bytes::new(), true).map_err(|error| error.to_string()),
        }
    }
}
