//! A transport on which the frames of a moment leave in one system call. The h2 crate writes the head and the payload of each frame
//! apart, and asks for a flush when it has no more to say.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::spare;

/// Bytes that are gathered before they are sent.
const GATHERED: usize = 64 << 10;

/// Gathers what is written until it is flushed. An idle one holds no buffer.
#[derive(Debug)]
pub(super) struct Gathered<I> {
    io: I,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were sent.
    sent: usize,
}

impl<I: AsyncWrite + Unpin> Gathered<I> {
    pub(super) fn new(io: I) -> Self {
        Self { io, buffer: Vec::new(), sent: 0 }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.buffer.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        self.sent = 0;
        spare::give(std::mem::take(&mut self.buffer));
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Gathered<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.buffer.len() + bytes.len() > GATHERED && !self.buffer.is_empty() {
            ready!(self.poll_drain(cx))?;
        }
        if self.buffer.capacity() == 0 {
            self.buffer = spare::take();
        }
        let count = bytes.len().min(GATHERED);
        self.buffer.extend_from_slice(bytes.get(..count).unwrap_or_default());
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Gathered<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_is_written_arrives_at_the_flush_whole_and_in_order() {
        let (near, mut far) = tokio::io::duplex(1000);
        let mut gathered = Gathered::new(near);
        gathered.write_all(b"head").await.unwrap();
        let mut got = [0; 8];
        assert!(futures_util::poll!(std::pin::pin!(far.read(&mut got))).is_pending(), "not before");
        let large: Vec<u8> = (0..3 * GATHERED).map(|at| (at / 251) as u8).collect();
        let (sent, got) = tokio::join!(
            async {
                gathered.write_all(&large).await?;
                gathered.shutdown().await?;
                Ok::<_, io::Error>(gathered.buffer.capacity())
            },
            async {
                let mut got = Vec::new();
                far.read_to_end(&mut got).await.map(|_| got)
            }
        );
        assert_eq!(sent.unwrap(), 0, "nothing is held");
        assert!(got.unwrap() == [b"head".as_slice(), &large].concat());
    }
}
