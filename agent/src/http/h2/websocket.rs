//! WebSocket over HTTP/2: extended CONNECT (RFC 8441). Between the edges such a request is the GET with `upgrade` that it would
//! be in HTTP/1.1, so that one policy is for both, and a caller of the one may meet a program of the other.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream, server::SendResponse};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{as_map, server};
use crate::{
    http::{Fields, Limits, Reply, SharedIo, Transport, h1::Switched},
    refusal::{Reason, Refusal},
    upstream::StreamLease,
};

/// The one protocol that extended CONNECT leads to.
pub(super) const PROTOCOL: &str = "websocket";
const KEY: &str = "sec-websocket-key";
const ACCEPT: &str = "sec-websocket-accept";
/// What a key is hashed with (RFC 6455 section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Most bytes sent at a time.
const PIECE: usize = 16 << 10;

/// A caller that asked to switch: its half of the stream, and what the program has to say to the key that we made up for it.
/// HTTP/2 needs no key.
#[derive(Debug)]
pub(super) struct Caller {
    stream: RecvStream,
    accept: String,
}

impl Caller {
    /// Adds to the fields what the same request has in HTTP/1.1.
    pub(super) fn new(stream: RecvStream, fields: &mut Fields) -> Self {
        let key = STANDARD.encode(fastrand::u128(..).to_be_bytes());
        fields.set(KEY, key.as_bytes());
        Self { stream, accept: accept(key.as_bytes()) }
    }

    /// Answers: the stream carries the other protocol if the program has switched. `None` when the caller reset it.
    pub(super) async fn answer(self, reply: Reply, mut respond: SendResponse<Bytes>, limits: &Limits) -> Option<()> {
        let Reply { mut response, permit, mut record, tunnel } = reply;
        let accepted = response.fields.single(ACCEPT) == Some(self.accept.as_bytes());
        let tunnel = match tunnel {
            Some(tunnel) if accepted => tunnel,
            // 2xx would say that it has switched.
            None if !(200..300).contains(&response.status) => {
                let reply = Reply { response, permit, record, tunnel: None };
                return server::send(reply, respond, false, limits).await;
            }
            _ => {
                let refusal = Refusal::new(Reason::UpstreamFailed, "the program does not switch to WebSocket as asked");
                record.status(refusal.status());
                return server::send(crate::http::refused(&refusal, record), respond, false, limits).await;
            }
        };
        response.fields.remove(ACCEPT);
        let mut head = http::Response::new(());
        *head.headers_mut() = as_map(&[&response.fields]).ok()?;
        match respond.send_response(head, false) {
            Ok(send) => {
                record.status(200);
                let near = SharedIo::new(Transport::Http2(Box::new(Duplex::new(send, self.stream, None))));
                tunnel.relay(near, BytesMut::new(), record).await;
            }
            Err(error) => record.broke(Reason::CallerGone, error.to_string()),
        }
        Some(())
    }
}

/// What a server says to a key.
fn accept(key: &[u8]) -> String {
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID.as_bytes()].concat()))
}

/// Makes the head of a switch one of extended CONNECT.
pub(super) fn extend(request: &mut http::Request<()>) {
    *request.method_mut() = http::Method::CONNECT;
    request.headers_mut().remove(KEY);
    request.extensions_mut().insert(h2::ext::Protocol::from_static(PROTOCOL));
}

/// What an upstream's 200 to extended CONNECT is in HTTP/1.1: the fields of a 101, and the connection.
pub(super) fn switched(
    fields: &mut Fields,
    asked: &Fields,
    streams: (SendStream<Bytes>, RecvStream),
    lease: StreamLease,
) -> Switched {
    if let Some(key) = asked.single(KEY) {
        fields.set(ACCEPT, accept(key).as_bytes());
    }
    let io = SharedIo::new(Transport::Http2(Box::new(Duplex::new(streams.0, streams.1, Some(lease)))));
    Switched { io, already: BytesMut::new(), lease: None }
}

/// Both directions of a stream, as one stream of bytes.
#[derive(Debug)]
pub struct Duplex {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Arrived, and not read yet.
    rest: Bytes,
    _lease: Option<StreamLease>,
}

impl Duplex {
    fn new(send: SendStream<Bytes>, receive: RecvStream, lease: Option<StreamLease>) -> Self {
        Self { send, receive, rest: Bytes::new(), _lease: lease }
    }
}

impl AsyncRead for Duplex {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(data)) => self.rest = data,
                Some(Err(error)) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest.split_to(count));
        // The peer may send as much again.
        let released = self.receive.flow_control().release_capacity(count);
        Poll::Ready(released.map_err(io::Error::other))
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(bytes.len().min(PIECE));
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let count = bytes.len().min(self.send.capacity());
        let piece = Bytes::copy_from_slice(bytes.get(..count).unwrap_or_default());
        let sent = self.send.send_data(piece, false);
        Poll::Ready(sent.map(|()| count).map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error)))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task sends what it has.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = self.send.send_data(Bytes::new(), true);
        Poll::Ready(ended.map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error)))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_key_is_accepted_as_the_standard_says() {
        assert_eq!(super::accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "RFC 6455 section 1.3");
    }
}
