//! The writing half of an HTTP/1.1 connection: what belongs together leaves in one system call, and an idle connection holds no
//! buffer.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    task::{Poll, ready},
};

use tokio::io::{AsyncWrite as _, AsyncWriteExt as _};

use crate::http::io::SharedIo;

/// Pieces from this size on are not copied.
const LARGE: usize = 4 << 10;
/// Bytes that are gathered before they are sent.
const GATHERED: usize = 16 << 10;
/// Buffers that a worker keeps for the next who writes.
const SPARE: usize = 64;
/// A larger buffer is not kept.
const KEPT: usize = 32 << 10;

thread_local! {
    static SPARES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A connection's writer.
#[derive(Debug)]
pub(super) struct Writer {
    io: SharedIo,
    gathered: Vec<u8>,
}

impl Writer {
    pub(super) fn new(io: SharedIo) -> Self {
        Self { io, gathered: Vec::new() }
    }

    /// Where to append what is sent next.
    pub(super) fn gather(&mut self) -> &mut Vec<u8> {
        if self.gathered.capacity() == 0 {
            self.gathered = SPARES.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        &mut self.gathered
    }

    /// Adds a piece, and sends what there is once it is much.
    pub(super) async fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        if piece.len() < LARGE && self.gathered.len() + piece.len() <= GATHERED {
            self.gather().extend_from_slice(piece);
            return Ok(());
        }
        let (mut head, mut rest): (&[u8], &[u8]) = (&self.gathered, piece);
        while !head.is_empty() && !rest.is_empty() {
            let slices = [IoSlice::new(head), IoSlice::new(rest)];
            let io = &mut self.io;
            let sent = std::future::poll_fn(|cx| Pin::new(&mut *io).poll_write_vectored(cx, &slices)).await?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let of_rest = sent.saturating_sub(head.len());
            head = head.get(sent.min(head.len())..).unwrap_or_default();
            rest = rest.get(of_rest..).unwrap_or_default();
        }
        self.io.write_all(head).await?;
        self.io.write_all(rest).await?;
        self.gathered.clear();
        Ok(())
    }

    /// Sends what was gathered, and gives the buffer back.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        let (io, gathered, mut at) = (&mut self.io, &self.gathered, 0);
        std::future::poll_fn(|cx| {
            while at < gathered.len() {
                match ready!(Pin::new(&mut *io).poll_write(cx, gathered.get(at..).unwrap_or_default()))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    sent => at += sent,
                }
            }
            Pin::new(&mut *io).poll_flush(cx)
        })
        .await?;
        self.gathered.clear();
        self.release();
        Ok(())
    }

    fn release(&mut self) {
        let buffer = std::mem::take(&mut self.gathered);
        if (1..=KEPT).contains(&buffer.capacity()) {
            SPARES.with_borrow_mut(|spares| {
                if spares.len() < SPARE {
                    spares.push(buffer);
                }
            });
        }
    }

    /// Ends the writing half.
    pub(super) async fn shutdown(&mut self) -> io::Result<()> {
        self.flush().await?;
        self.io.shutdown().await
    }

    /// The connection itself; nothing must be gathered.
    pub(super) fn into_io(self) -> SharedIo {
        self.io
    }
}
