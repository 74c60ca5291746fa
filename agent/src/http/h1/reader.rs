//! The reading half of an HTTP/1.1 connection, and bodies that read from it.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::{
    body::{Decoded, Decoder, Framing},
    head::find_end,
};
use crate::{
    alarm::within,
    http::{
        Limits, Meter,
        io::SharedIo,
        message::{BodyError, Frame},
    },
    refusal::{Reason, Refusal},
    upstream::Lease,
};

/// Bytes asked for at a time; a body of this size passes in one piece.
const READ: usize = 16 << 10;
/// The same of a body of which more than [`READ`] is still to come.
const READ_BODY: usize = 64 << 10;
/// Bytes of a refused request that are read and dropped.
const DISCARD: usize = 1 << 20;
/// Bytes of further requests taken while one is answered.
const READ_AHEAD: usize = 64 << 10;

/// Reads heads and bodies from one connection.
#[derive(Debug)]
pub struct Reader {
    io: SharedIo,
    buf: BytesMut,
    body: Decoder,
    /// Somebody wants the body under way: a caller that waits for 100 has to hear of it.
    asked: bool,
    waiting: Option<Waker>,
    /// Counts bodies: tells a body's own reader from one that an earlier message left behind.
    message: u64,
}

impl Reader {
    /// A reader over `io`, with what has been read from it already.
    pub fn new(io: SharedIo, already: BytesMut) -> Self {
        Self { io, buf: already, body: Decoder::new(Framing::Length(0)), asked: false, waiting: None, message: 0 }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // A stack buffer, not the connection's own: an idle connection then holds no read buffer at all.
        let mut space = [std::mem::MaybeUninit::<u8>::uninit(); READ];
        let mut space = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut space))?;
        self.buf.extend_from_slice(space.filled());
        Poll::Ready(Ok(space.filled().len()))
    }

    /// The same within a body. Much that is still to come is read where it stays: a large body is not copied here.
    fn poll_fill_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let large = self.body.next_data().filter(|left| *left > READ as u64);
        let Some(left) = large else { return self.poll_fill(cx) };
        self.buf.reserve(usize::try_from(left).unwrap_or(READ_BODY).min(READ_BODY));
        let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.buf);
        if read.is_pending() {
            // Who waits holds no buffer.
            self.release();
        }
        read
    }

    /// Takes all bytes that were read and not used: what follows a head that switched protocols.
    pub(crate) fn take_rest(&mut self) -> BytesMut {
        std::mem::take(&mut self.buf)
    }

    /// An idle connection holds no buffer.
    pub(super) fn release(&mut self) {
        if self.buf.is_empty() {
            self.buf = BytesMut::new();
        }
    }

    /// Whether the current body has been read to its end.
    pub(super) fn body_is_end(&self) -> bool {
        self.body.is_end()
    }

    /// Starts the body that follows the head just read.
    pub(super) fn begin_body(&mut self, framing: Framing) {
        self.body = Decoder::new(framing);
        (self.asked, self.waiting) = (false, None);
        self.message += 1;
    }

    /// Nothing buffered and nothing to read: an idle connection is healthy only then.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.buf.is_empty() && self.poll_fill(&mut cx).is_pending()
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, BodyError>> {
        self.asked = true;
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
        loop {
            match self.body.decode(&mut self.buf)? {
                Decoded::Data(data) => return Poll::Ready(Ok(Some(Frame::Data(data)))),
                Decoded::Trailers(fields) => return Poll::Ready(Ok(Some(Frame::Trailers(fields)))),
                Decoded::End => return Poll::Ready(Ok(None)),
                Decoded::NeedMore => match ready!(self.poll_fill_body(cx)) {
                    Ok(0) => self.body.end_of_input()?,
                    Ok(_) => {}
                    Err(error) => return Poll::Ready(Err(BodyError::Broken(error.to_string()))),
                },
            }
        }
    }
}

/// Ends when the peer has ended the connection, or it broke, after the message under way. What arrives meanwhile is kept, up
/// to a bound: it may be the next request.
///
/// While the message's body is still to come, its reader notices the end, so nothing is read here.
pub(super) async fn gone(reader: &RefCell<Reader>) {
    std::future::poll_fn(|cx| {
        loop {
            let reader = &mut *reader.borrow_mut();
            if !reader.body_is_end() || reader.buf.len() >= READ_AHEAD {
                return Poll::Pending;
            }
            match ready!(reader.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
    })
    .await;
}

/// Ends when somebody wants the body under way.
pub(super) async fn asked(reader: &RefCell<Reader>) {
    std::future::poll_fn(|cx| {
        let reader = &mut *reader.borrow_mut();
        if reader.asked {
            return Poll::Ready(());
        }
        reader.waiting = Some(cx.waker().clone());
        Poll::Pending
    })
    .await;
}

/// Reads and drops what still comes, to the end of the connection or up to a bound.
pub(super) async fn discard(reader: &RefCell<Reader>) {
    let mut left = DISCARD;
    while left > 0 {
        let read = std::future::poll_fn(|cx| {
            let reader = &mut *reader.borrow_mut();
            reader.buf.clear();
            reader.poll_fill(cx)
        });
        match read.await {
            Ok(0) | Err(_) => return,
            Ok(count) => left = left.saturating_sub(count),
        }
    }
}

/// Waits until something has arrived. `false` when the peer ended the connection in between messages.
pub(super) async fn wait_for_bytes(reader: &RefCell<Reader>) -> io::Result<bool> {
    if !reader.borrow().buf.is_empty() {
        return Ok(true);
    }
    Ok(std::future::poll_fn(|cx| reader.borrow_mut().poll_fill(cx)).await? > 0)
}

/// Reads up to the end of the next head, and takes what `read` makes of it.
///
/// # Errors
/// When it is malformed or too large, or the connection ends within it, or `read` refuses it.
pub(super) async fn read_head<T>(
    reader: &RefCell<Reader>,
    limits: &Limits,
    mut read: impl FnMut(&[u8]) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let mut searched = 0;
    loop {
        if let Some(head) = take_head(&mut reader.borrow_mut().buf, &mut searched, limits, &mut read)? {
            return Ok(head);
        }
        match std::future::poll_fn(|cx| reader.borrow_mut().poll_fill(cx)).await {
            Ok(0) => return Err(Refusal::new(Reason::Malformed, "the connection ended within a head")),
            Ok(_) => {}
            Err(error) => return Err(Refusal::caused(Reason::Malformed, &error)),
        }
    }
}

/// Takes the next head out of what has arrived, and returns what `read` makes of it; `searched` bytes of it are known to be no end.
pub(super) fn take_head<T>(
    buf: &mut BytesMut,
    searched: &mut usize,
    limits: &Limits,
    read: impl FnOnce(&[u8]) -> Result<T, Refusal>,
) -> Result<Option<T>, Refusal> {
    // Empty lines before a request line are a leftover of a client that ends bodies with one (RFC 9112, 2.2): none or all of them,
    // or it would depend on how they arrive.
    while *searched == 0 && buf.starts_with(b"\r\n") {
        buf.advance(2);
    }
    let end = find_end(buf, *searched)?;
    if end.unwrap_or(buf.len()) > limits.head_bytes {
        return Err(Refusal::new(Reason::HeadTooLarge, "head too large"));
    }
    // The last bytes may be the first part of the end.
    *searched = buf.len().saturating_sub(3);
    let Some(end) = end else { return Ok(None) };
    let head = read(buf.get(..end).unwrap_or_default());
    buf.advance(end);
    head.map(Some)
}

/// A body that is read from a connection.
#[derive(Debug)]
pub struct BodyReader {
    reader: Rc<RefCell<Reader>>,
    /// The message that this is the body of.
    message: u64,
    length: Option<u64>,
    /// The upstream connection, given back when the body has ended.
    lease: Option<Lease>,
    /// Bounds a request's body.
    meter: Option<Meter>,
}

impl BodyReader {
    pub(super) fn new(reader: Rc<RefCell<Reader>>, lease: Option<Lease>) -> Self {
        let (length, message) = (reader.borrow().body.remaining(), reader.borrow().message);
        Self { reader, message, length, lease, meter: None }
    }

    /// The same, bounded.
    pub(super) fn metered(self, meter: Meter) -> Self {
        Self { meter: Some(meter), ..self }
    }

    /// Length if the head named it.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// Whether nothing is left to read.
    pub fn is_end(&self) -> bool {
        let reader = self.reader.borrow();
        // The next message is begun only after the end of this one.
        reader.message != self.message || reader.body_is_end()
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// When the framing is wrong or the connection ends early.
    pub async fn frame(&mut self) -> Result<Option<Frame>, BodyError> {
        if self.is_end() {
            return Ok(None);
        }
        let next = std::future::poll_fn(|cx| self.reader.borrow_mut().poll_frame(cx));
        let frame = match &self.meter {
            Some(meter) => within(meter.stall(), next).await.unwrap_or(Err(BodyError::TooSlow("the body stopped arriving"))),
            None => next.await,
        };
        let frame = match (frame, &mut self.meter) {
            (Ok(Some(Frame::Data(data))), Some(meter)) => meter.take(data.len()).map(|()| Some(Frame::Data(data))),
            (frame, _) => frame,
        };
        match &frame {
            Ok(_) if self.is_end() => {
                if let Some(lease) = self.lease.take() {
                    lease.give_back();
                }
            }
            Ok(_) => {}
            Err(_) => self.lease = None,
        }
        frame
    }
}
