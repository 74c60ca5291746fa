//! The writing half of an HTTP/1.1 connection: what belongs together leaves in one system call, and an idle connection holds no
//! buffer.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Poll, ready},
};

use tokio::io::{AsyncWrite as _, AsyncWriteExt as _};

use crate::{http::io::SharedIo, spare};

/// Pieces from this size on are not copied.
const LARGE: usize = 4 << 10;
/// Bytes that are gathered before they are sent.
const GATHERED: usize = 16 << 10;

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
            self.gathered = spare::take();
        }
        &mut self.gathered
    }

    /// Adds a piece, and sends what there is once it is much.
    pub(super) async fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        if piece.len() < LARGE && self.gathered.len() + piece.len() <= GATHERED {
            self.gather().extend_from_slice(piece);
            return Ok(());
        }
        // Taken before the first byte leaves: whoever is cut off half-way must not send it again from its beginning.
        let gathered = std::mem::take(&mut self.gathered);
        let (mut head, mut rest): (&[u8], &[u8]) = (&gathered, piece);
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
        self.gathered = gathered;
        self.gathered.clear();
        Ok(())
    }

    /// Sends what was gathered, and gives the buffer back.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        let (io, gathered, mut at) = (&mut self.io, std::mem::take(&mut self.gathered), 0);
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
        spare::give(gathered);
        Ok(())
    }

    /// Ends the writing half.
    pub(super) async fn shutdown(&mut self) -> io::Result<()> {
        self.flush().await?;
        self.io.shutdown().await
    }

    /// Has the connection reset at its end, with what the peer has not taken.
    pub(super) fn reset(&self) {
        self.io.reset();
    }

    /// A handle that says how much was taken while somebody writes.
    pub(super) fn watch(&self) -> SharedIo {
        self.io.clone()
    }

    /// The connection itself; nothing must be gathered.
    pub(super) fn into_io(self) -> SharedIo {
        self.io
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncReadExt as _,
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::http::io::Transport;

    /// A writer, and the caller that it writes to and that reads nothing by itself.
    async fn pair() -> (Writer, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (Writer::new(SharedIo::new(Transport::Plain(near.unwrap()))), far.unwrap().0)
    }

    /// Begins what cannot end while nobody reads, gives it up, ends the connection, and returns what the caller got.
    async fn cut_off(
        mut writer: Writer,
        mut caller: TcpStream,
        write: impl AsyncFnOnce(&mut Writer) -> io::Result<()>,
    ) -> Vec<u8> {
        assert!(futures_util::poll!(std::pin::pin!(write(&mut writer))).is_pending(), "more than the system holds");
        let mut got = Vec::new();
        let (ended, read) = tokio::join!(
            async move {
                let ended = writer.shutdown().await;
                drop(writer);
                ended
            },
            caller.read_to_end(&mut got)
        );
        assert!(ended.is_ok() && read.is_ok());
        got
    }

    #[tokio::test]
    async fn nothing_is_sent_twice_when_a_write_is_cut_off() {
        let large: Vec<u8> = (0..32_u32 << 20).map(|at| (at / 251) as u8).collect();
        let whole = [b"head".as_slice(), &large].concat();

        let (mut writer, caller) = pair().await;
        writer.write(b"head").await.unwrap();
        let got = cut_off(writer, caller, async |writer: &mut Writer| writer.write(&large).await).await;
        assert!(got.len() < whole.len() && whole.starts_with(&got), "{} bytes", got.len());

        let (mut writer, caller) = pair().await;
        writer.gather().extend_from_slice(&whole);
        let got = cut_off(writer, caller, async |writer: &mut Writer| writer.flush().await).await;
        assert!(got.len() < whole.len() && whole.starts_with(&got), "{} bytes", got.len());
    }

    #[tokio::test]
    async fn what_was_gathered_is_sent_once_and_in_order() {
        let (mut writer, mut caller) = pair().await;
        let piece = vec![b'x'; GATHERED];
        for part in [b"a".as_slice(), b"b", &piece, b"c"] {
            writer.write(part).await.unwrap();
        }
        writer.shutdown().await.unwrap();
        let mut got = Vec::new();
        caller.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, [b"ab".as_slice(), &piece, b"c"].concat());
    }
}
