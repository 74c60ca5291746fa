//! One TLS connection driven by one task: ciphertext is read in large pieces, plaintext is sealed in bulk and sent with one
//! system call.

use std::{
    cell::RefCell,
    io::{self, BufRead as _, IoSlice, Write as _},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use rustls::Connection;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
    time::Instant,
};

use crate::{
    alarm,
    http::{SharedIo, Transport},
};

/// Bytes of ciphertext read at a time.
const READ: usize = 64 << 10;

thread_local! {
    /// Where ciphertext is read to: one a worker, since nothing stays in it.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
}

/// A TLS connection after its handshake.
#[derive(Debug)]
pub(super) struct Sealed {
    socket: TcpStream,
    session: Box<Connection>,
    /// The peer has ended its side.
    ended: bool,
    /// Since when it takes nothing of what we say.
    stuck: Option<Instant>,
}

impl Sealed {
    /// Takes over a connection that nobody else uses. `None` for one that is not TLS.
    pub(super) fn new(io: SharedIo) -> Option<Self> {
        let (socket, mut session) = match io.into_transport()? {
            Transport::Accepted(stream) => {
                let (socket, session) = stream.into_inner();
                (socket, Connection::from(session))
            }
            Transport::Connected(stream) => {
                let (socket, session) = stream.into_inner();
                (socket, Connection::from(session))
            }
            Transport::Plain(_) | Transport::Stream(_) | Transport::Http2(_) => return None,
        };
        session.set_buffer_limit(None);
        Some(Self { socket, session: Box::new(session), ended: false, stuck: None })
    }

    /// Appends what has arrived to `out`; 0 at the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, out: &mut BytesMut) -> Poll<io::Result<usize>> {
        // The handshake may have brought some of it along.
        let mut count = unsealed(&mut self.session, out)?;
        while count == 0 && !self.ended {
            count = ready!(self.poll_fill(cx, out))?;
        }
        Poll::Ready(Ok(count))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, out: &mut BytesMut) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut space = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut space))?;
            let mut arrived: &[u8] = space.filled();
            self.ended = arrived.is_empty();
            let mut count = 0;
            while !arrived.is_empty() {
                self.session.read_tls(&mut arrived)?;
                let state = self.session.process_new_packets().map_err(io::Error::other)?;
                self.ended |= state.peer_has_closed();
                // Taken at once: the session holds little of it.
                if state.plaintext_bytes_to_read() > 0 {
                    count += unsealed(&mut self.session, out)?;
                }
            }
            Poll::Ready(Ok(count))
        })
    }

    /// Seals `plain`, which is not empty; [`Sealed::poll_flush`] sends it.
    pub(super) fn seal(&mut self, plain: &[IoSlice<'_>]) -> io::Result<()> {
        // There is no limit to what is buffered: all of it is taken.
        let whole: usize = plain.iter().map(|slice| slice.len()).sum();
        match self.session.writer().write_vectored(plain)? {
            taken if taken == whole => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Says goodbye; [`Sealed::poll_flush`] sends it.
    pub(super) fn end(&mut self) {
        self.session.send_close_notify();
    }

    /// Since when the peer takes nothing of what we say.
    pub(super) fn stuck(&self) -> Option<Instant> {
        self.stuck
    }

    /// Has the connection reset at its end, with what the peer has not taken.
    pub(super) fn reset(&self) {
        if let Err(error) = self.socket.set_zero_linger() {
            tracing::debug!(%error, "a connection cannot be reset");
        }
    }

    /// Sends what is sealed.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Socket { socket: &mut self.socket, cx }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => self.stuck = None,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stuck.get_or_insert_with(alarm::instant);
                    return Poll::Pending;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Moves decrypted bytes to `out`.
fn unsealed(session: &mut Connection, out: &mut BytesMut) -> io::Result<usize> {
    let mut count = 0;
    let mut reader = session.reader();
    loop {
        match reader.fill_buf() {
            Ok([]) => return Ok(count),
            Ok(chunk) => {
                let length = chunk.len();
                out.extend_from_slice(chunk);
                reader.consume(length);
                count += length;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
            // An end without a goodbye: the frames say whether something is missing.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(count),
            Err(error) => return Err(error),
        }
    }
}

/// The socket, as rustls writes to it.
struct Socket<'a, 'b> {
    socket: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

impl io::Write for Socket<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match Pin::new(&mut *self.socket).poll_write(self.cx, bytes) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match Pin::new(&mut *self.socket).poll_write_vectored(self.cx, pieces) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
