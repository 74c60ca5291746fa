//! A byte stream that a connection's reader and writer share on one thread.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// What a connection runs over.
#[derive(Debug)]
pub enum Transport {
    /// Plain TCP, on the loopback side.
    Plain(TcpStream),
    /// Mutual TLS, accepted.
    Accepted(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    /// Mutual TLS, connected.
    Connected(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// A stream of the mesh protocol that has left HTTP.
    Stream(Box<crate::mesh::Duplex>),
    /// A stream of HTTP/2 that carries WebSocket.
    Http2(Box<super::h2::Duplex>),
}

/// A handle to a transport. Clones are handles to the same one: one may read while another writes.
#[derive(Clone, Debug)]
pub struct SharedIo(Rc<RefCell<Shared>>);

#[derive(Debug)]
struct Shared {
    transport: Transport,
    /// Read from the transport and put back.
    unread: BytesMut,
    /// Bytes that the transport has taken so far.
    taken: usize,
}

impl SharedIo {
    /// Takes the transport.
    pub fn new(transport: Transport) -> Self {
        Self(Rc::new(RefCell::new(Shared { transport, unread: BytesMut::new(), taken: 0 })))
    }

    /// The transport itself, when this is the only handle and nothing was put back.
    pub fn into_transport(self) -> Option<Transport> {
        let shared = Rc::try_unwrap(self.0).ok()?.into_inner();
        shared.unread.is_empty().then_some(shared.transport)
    }

    /// Has the connection reset when it is dropped: what the peer has not taken would else be kept for it by the system, for as
    /// long as it answers probes.
    pub fn reset(&self) {
        let Ok(shared) = self.0.try_borrow() else { return };
        let stream = match &shared.transport {
            Transport::Plain(stream) => stream,
            Transport::Accepted(stream) => stream.get_ref().0,
            Transport::Connected(stream) => stream.get_ref().0,
            // Its own end tells the peer.
            Transport::Stream(_) | Transport::Http2(_) => return,
        };
        if let Err(error) = stream.set_zero_linger() {
            tracing::debug!(%error, "a connection cannot be reset");
        }
    }

    /// Bytes that were written so far; wraps around.
    pub(super) fn taken(&self) -> usize {
        self.0.try_borrow().map_or(0, |shared| shared.taken)
    }

    /// Writes, and counts what was taken.
    fn write(&self, poll: impl FnOnce(&mut Transport) -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let Ok(mut shared) = self.0.try_borrow_mut() else { return self.with(poll) };
        let written = poll(&mut shared.transport);
        if let Poll::Ready(Ok(count)) = written {
            shared.taken = shared.taken.wrapping_add(count);
        }
        written
    }

    /// Puts bytes back: the next read gets them first.
    pub fn unread(&self, bytes: BytesMut) {
        self.0.borrow_mut().unread = bytes;
    }

    fn with<T>(&self, poll: impl FnOnce(&mut Transport) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match self.0.try_borrow_mut() {
            Ok(mut shared) => poll(&mut shared.transport),
            // Only reachable if a transport polled itself.
            Err(error) => Poll::Ready(Err(io::Error::other(error))),
        }
    }
}

macro_rules! each {
    ($transport:expr, $io:ident => $call:expr) => {
        match $transport {
            Transport::Plain($io) => $call,
            Transport::Accepted($io) => $call,
            Transport::Connected($io) => $call,
            Transport::Stream($io) => $call,
            Transport::Http2($io) => $call,
        }
    };
}

impl AsyncRead for SharedIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Ok(mut shared) = self.0.try_borrow_mut()
            && !shared.unread.is_empty()
        {
            let count = shared.unread.len().min(buf.remaining());
            buf.put_slice(&shared.unread.split_to(count));
            if shared.unread.is_empty() {
                shared.unread = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        self.with(|transport| each!(transport, io => Pin::new(io).poll_read(cx, buf)))
    }
}

impl AsyncWrite for SharedIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write(|transport| each!(transport, io => Pin::new(io).poll_write(cx, buf)))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|transport| each!(transport, io => Pin::new(io).poll_flush(cx)))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|transport| each!(transport, io => Pin::new(io).poll_shutdown(cx)))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.write(|transport| each!(transport, io => Pin::new(io).poll_write_vectored(cx, bufs)))
    }

    fn is_write_vectored(&self) -> bool {
        false
    }
}
