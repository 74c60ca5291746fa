//! A transport on which the frames of a moment leave in one system call. The h2 crate writes the head and the payload of each frame
//! apart, and asks for a flush after each payload that it does not copy.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::spare;

/// Bytes that are gathered before they are sent.
const GATHERED: usize = 32 << 10;

/// Gathers what is written. An idle one holds no buffer. Clones are the same transport: one is the library's, and whoever drives its
/// connection sends by the other when the library has no more to say; until it does so once, a flush sends.
#[derive(Debug)]
pub(super) struct Gathered<I>(Rc<RefCell<Transport<I>>>);

#[derive(Debug)]
struct Transport<I> {
    io: I,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were sent.
    sent: usize,
    /// Whether the transport may hold bytes that it took: TLS does.
    held: bool,
    /// Whether the one who drives the connection sends.
    driven: bool,
    /// Why sending failed, which the library has not heard.
    failed: Option<io::Error>,
}

impl<I> Clone for Gathered<I> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<I: AsyncWrite + Unpin> Gathered<I> {
    pub(super) fn new(io: I) -> Self {
        Self(Rc::new(RefCell::new(Transport { io, buffer: Vec::new(), sent: 0, held: false, driven: false, failed: None })))
    }

    /// Sends what was gathered, as far as the transport takes it now; the task is woken when it takes more, and when sending
    /// failed, which the library then hears.
    pub(super) fn send(&self, cx: &mut Context<'_>) {
        let mut transport = self.0.borrow_mut();
        transport.driven = true;
        if let Poll::Ready(Err(error)) = transport.poll_send(cx) {
            transport.failed = Some(error);
            cx.waker().wake_by_ref();
        }
    }
}

impl<I: AsyncWrite + Unpin> Transport<I> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        while let Some(rest) = self.buffer.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
            self.held = true;
        }
        self.sent = 0;
        spare::give(std::mem::take(&mut self.buffer));
        Poll::Ready(Ok(()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        if self.held {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.held = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Gathered<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut transport = self.0.borrow_mut();
        if transport.failed.is_some() || (transport.buffer.len() + bytes.len() > GATHERED && !transport.buffer.is_empty()) {
            ready!(transport.poll_drain(cx))?;
        }
        if transport.buffer.capacity() == 0 {
            transport.buffer = spare::take();
        }
        let count = bytes.len().min(GATHERED);
        let room = (transport.buffer.len() + count).next_power_of_two().saturating_sub(transport.buffer.len());
        transport.buffer.reserve_exact(room);
        transport.buffer.extend_from_slice(bytes.get(..count).unwrap_or_default());
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut transport = self.0.borrow_mut();
        if transport.driven && transport.failed.is_none() {
            return Poll::Ready(Ok(()));
        }
        transport.poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut transport = self.0.borrow_mut();
        ready!(transport.poll_drain(cx))?;
        Pin::new(&mut transport.io).poll_shutdown(cx)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Gathered<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn send(driver: &Gathered<impl AsyncWrite + Unpin>) {
        std::future::poll_fn(|cx| {
            driver.send(cx);
            Poll::Ready(())
        })
        .await;
    }

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
                Ok::<_, io::Error>(gathered.0.borrow().buffer.capacity())
            },
            async {
                let mut got = Vec::new();
                far.read_to_end(&mut got).await.map(|_| got)
            }
        );
        assert_eq!(sent.unwrap(), 0, "nothing is held");
        assert!(got.unwrap() == [b"head".as_slice(), &large].concat());
    }

    #[tokio::test]
    async fn what_the_transport_took_and_holds_leaves_when_there_is_nothing_more_to_say() {
        let ((near, mut far), mut got) = (tokio::io::duplex(10), [0; 50]);
        let mut gathered = Gathered::new(tokio::io::BufWriter::new(near));
        let driver = gathered.clone();
        send(&driver).await;
        gathered.write_all(&[b'x'; 50]).await.unwrap();
        let driving = std::future::poll_fn(|cx| {
            driver.send(cx);
            Poll::<()>::Pending
        });
        tokio::select! {
            read = tokio::time::timeout(std::time::Duration::from_secs(10), far.read_exact(&mut got)) => {
                read.expect("the last bytes stay").unwrap();
            }
            () = driving => {}
        }
    }

    #[tokio::test]
    async fn frames_of_a_moment_leave_together_when_their_connection_is_driven() {
        let (near, mut far) = tokio::io::duplex(100);
        let (mut gathered, mut got) = (Gathered::new(near), [0; 100]);
        let driver = gathered.clone();
        gathered.write_all(b"preface").await.unwrap();
        gathered.flush().await.unwrap();
        assert_eq!(far.read(&mut got).await.unwrap(), 7, "nobody drives it yet");
        send(&driver).await;
        for frame in ["one", "two"] {
            gathered.write_all(frame.as_bytes()).await.unwrap();
            gathered.flush().await.unwrap();
        }
        assert!(futures_util::poll!(std::pin::pin!(far.read(&mut got))).is_pending(), "there may be more");
        send(&driver).await;
        assert_eq!(far.read(&mut got).await.unwrap(), 6);
        // What the transport does not take at once it takes when it can.
        gathered.write_all(&[b'x'; 150]).await.unwrap();
        let reading = async {
            let (mut read, mut piece) = (0, [0; 100]);
            while read < 150 {
                read += far.read(&mut piece).await.unwrap();
            }
        };
        let all_sent = std::future::poll_fn(|cx| {
            driver.send(cx);
            if driver.0.borrow().buffer.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::join!(reading, all_sent);
        // The library hears that nobody reads any more.
        drop(far);
        gathered.write_all(b"late").await.unwrap();
        send(&driver).await;
        assert!(gathered.flush().await.is_err());
    }
}
