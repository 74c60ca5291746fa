//! A stream that has left HTTP, as a byte stream of its own.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{link::Place, stream::Piece};
use crate::upstream::StreamLease;

/// Most bytes taken at a time.
const PIECE: usize = 16 << 10;

/// Both directions of a stream after 101.
#[derive(Debug)]
pub struct Duplex {
    place: Rc<Place>,
    /// Arrived, and not read yet.
    rest: Bytes,
    /// Accepted, and not sent yet.
    unsent: Bytes,
    _lease: Option<StreamLease>,
}

impl Duplex {
    pub(super) fn new(place: Rc<Place>, lease: Option<StreamLease>) -> Self {
        Self { place, rest: Bytes::new(), unsent: Bytes::new(), _lease: lease }
    }

    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = ready!(self.place.link.poll_data(cx, &self.place.stream, &mut self.unsent, false));
        Poll::Ready(sent.map_err(|_| io::ErrorKind::BrokenPipe.into()))
    }
}

impl AsyncRead for Duplex {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            match ready!(self.place.take(cx)) {
                Ok(Piece::Data(data)) => self.rest = data,
                Ok(Piece::Trailers(_) | Piece::End) => return Poll::Ready(Ok(())),
                Err(_) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        }
        let count = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_sent(cx))?;
        let count = bytes.len().min(PIECE);
        self.unsent = Bytes::copy_from_slice(bytes.get(..count).unwrap_or_default());
        // What does not go now goes with the next write or flush.
        let _ = self.poll_sent(cx)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sent(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_sent(cx))?;
        let ended = ready!(self.place.link.poll_data(cx, &self.place.stream, &mut Bytes::new(), true));
        Poll::Ready(ended.map_err(|_| io::ErrorKind::BrokenPipe.into()))
    }
}
