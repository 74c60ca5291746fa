//! The server's side of an HTTP/2 connection.

use std::{rc::Rc, time::Duration};

use h2::{RecvStream, SendStream, server::SendResponse};

use super::{BodyReader, WINDOW, as_map, is_connection_field};
use crate::{
    http::{
        Body, Fields, Frame, Limits, Reply, Request, Service, SharedIo, Version,
        normalize::{Host, RequestParts, is_identity_claim},
    },
    policy::Permit,
    refusal::{Reason, Refusal},
    telemetry::Record,
};
use bytes::Bytes;
use outrider_runtime::Tasks;

/// How long streams may go on once the connection is closing.
const LINGER: Duration = Duration::from_secs(30);

/// Serves one connection to its end.
pub async fn serve<S: Service + 'static>(io: SharedIo, service: Rc<S>, limits: &Limits, tasks: &Tasks) {
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(20)
        .max_concurrent_reset_streams(50)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake::<_, Bytes>(io);
    let Ok(Ok(mut connection)) = tokio::time::timeout(limits.handshake, handshake).await else { return };
    let mut closing = false;
    let mut deadline = std::pin::pin!(tokio::time::sleep(Duration::from_secs(u64::from(u32::MAX))));
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = connection.accept() => accepted,
            () = service.closing(), if !closing => {
                closing = true;
                deadline.as_mut().reset(tokio::time::Instant::now() + LINGER);
                connection.graceful_shutdown();
                continue;
            }
            () = &mut deadline, if closing => return,
        };
        match accepted {
            Some(Ok((request, respond))) => {
                let service = service.clone();
                let max_fields = limits.fields;
                tasks.spawn_scoped_local(async move { stream(&*service, request, respond, max_fields).await });
            }
            Some(Err(_)) | None => return,
        }
    }
}

async fn stream(service: &impl Service, request: http::Request<RecvStream>, respond: SendResponse<Bytes>, max_fields: usize) {
    let reply = match admit(request, max_fields) {
        Ok(request) => service.call(request).await,
        Err(refusal) => service.refuse(refusal),
    };
    send(reply, respond).await;
}

fn admit(request: http::Request<RecvStream>, max_fields: usize) -> Result<Request, Refusal> {
    let malformed = |detail: &str| Refusal::new(Reason::Malformed, detail);
    let (head, stream) = request.into_parts();
    if head.headers.len() > max_fields {
        return Err(Refusal::new(Reason::HeadTooLarge, "too many header fields"));
    }
    if head.method == http::Method::CONNECT {
        return Err(Refusal::new(Reason::MethodNotServed, "connect over HTTP/2"));
    }
    if !matches!(head.uri.scheme_str(), Some("http" | "https")) {
        return Err(malformed("scheme is neither http nor https"));
    }
    let mut fields = Fields::default();
    let mut length = None;
    let mut host = None;
    for (name, value) in &head.headers {
        let (name, value) = (name.as_str(), value.as_bytes());
        if value.trim_ascii().len() != value.len() {
            return Err(malformed("field value with outer white space"));
        }
        if name.contains('_') {
            return Err(malformed("field name with an underscore"));
        }
        match name {
            "host" if host.replace(value.to_vec()).is_some() => {
                return Err(Refusal::new(Reason::BadHost, "more than one host field"));
            }
            "host" => {}
            "content-length" => {
                let text = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
                let parsed =
                    text.and_then(|text| text.parse::<u64>().ok()).ok_or_else(|| malformed("content-length is not a number"))?;
                if length.replace(parsed).is_some() {
                    return Err(malformed("more than one content-length"));
                }
            }
            "te" if value == b"trailers" => {}
            "expect" => {}
            _ if is_connection_field(name) => return Err(malformed("connection field in HTTP/2")),
            _ if is_identity_claim(name.as_bytes()) => {}
            _ => fields.push(name.as_bytes(), value),
        }
    }
    let target = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let host =
        Host::Authority { pseudo: head.uri.authority().map(|authority| authority.as_str().as_bytes().to_vec()), field: host };
    let parts = RequestParts::new(head.method.as_str(), target.as_bytes(), host, fields, Version::Http2)?;
    let head = Rc::new(parts.normalize()?);
    let body = if stream.is_end_stream() { Body::Empty } else { Body::H2(BodyReader::new(stream, length, None)) };
    Ok(Request { head, body })
}

async fn send(reply: Reply, mut respond: SendResponse<Bytes>) {
    let Reply { response, permit, mut record, .. } = reply;
    let mut body = response.body;
    let (Ok(status), Ok(mut fields)) = (http::StatusCode::from_u16(response.status), as_map(&response.fields)) else {
        record.broke("the response cannot be written in HTTP/2");
        return respond.send_reset(h2::Reason::INTERNAL_ERROR);
    };
    if let Some(length) =
        body.length().filter(|_| !fields.contains_key(http::header::CONTENT_LENGTH) && status != http::StatusCode::NO_CONTENT)
    {
        fields.insert(http::header::CONTENT_LENGTH, length.into());
    }
    let mut head = http::Response::new(());
    *head.status_mut() = status;
    *head.headers_mut() = fields;
    let ends = body.is_end();
    match respond.send_response(head, ends) {
        Ok(_) if ends => {}
        Ok(stream) => copy(&mut body, stream, permit, &mut record).await,
        Err(error) => record.broke(error.to_string()),
    }
}

async fn copy(body: &mut Body, mut stream: SendStream<Bytes>, mut permit: Option<Permit>, record: &mut Record) {
    loop {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            revoked = crate::policy::revoked(permit.as_mut()) => {
                record.refused(&revoked);
                return stream.send_reset(h2::Reason::CANCEL);
            }
        };
        let sent = match frame {
            Ok(Some(Frame::Data(data))) => {
                record.sent(data.len());
                send_data(&mut stream, data, body.is_end()).await
            }
            Ok(Some(Frame::Trailers(fields))) => match as_map(&fields) {
                Ok(fields) => return stream.send_trailers(fields).unwrap_or_else(|error| record.broke(error.to_string())),
                Err(refusal) => Err(refusal.to_string()),
            },
            Ok(None) => return stream.send_data(Bytes::new(), true).unwrap_or_else(|error| record.broke(error.to_string())),
            Err(error) => Err(error.to_string()),
        };
        match sent {
            Ok(false) => {}
            Ok(true) => return,
            Err(error) => {
                record.broke(error);
                return stream.send_reset(h2::Reason::INTERNAL_ERROR);
            }
        }
    }
}

/// Sends within the peer's window. Returns whether the stream has ended.
pub(super) async fn send_data(stream: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<bool, String> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        // A reset wakes this too, with an error or with nothing.
        let capacity = match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(Ok(capacity)) => capacity,
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("the stream is closed".to_owned()),
        };
        let piece = data.split_to(capacity.min(data.len()));
        let last = data.is_empty() && end;
        stream.send_data(piece, last).map_err(|error| error.to_string())?;
    }
    Ok(end)
}
