//! What the streams of a connection share: the bytes that wait to be sent, the windows, the table of streams.

use std::{
    cell::RefCell,
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use super::{
    CONNECTION_WINDOW, LITTLE, OUTBOX, RESERVED, SHARE, STREAM_WINDOW, STREAMS,
    budget::Budget,
    frame::{Code, DATA_MOST, Kind},
    outbox::Outbox,
    stream::{Asked, Stream, Waiter},
    violation::Violation,
};
use crate::http::Limits;

/// Highest number of a stream: afterwards a connection is replaced.
pub(super) const LAST_STREAM: u32 = u32::MAX >> 1;

/// Stream numbers are ours or ordered: they need no defence against collisions, only spreading.
#[derive(Debug, Default)]
pub(super) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

pub(super) type Table = HashMap<u32, Rc<Stream>, BuildHasherDefault<Spread>>;

/// The shared state of a connection. One task drives it; streams are used by others of the same thread.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) state: RefCell<State>,
}

#[derive(Debug)]
pub(super) struct State {
    /// Frames that wait to be sent.
    pub(super) out: Outbox,
    /// The task that sends them.
    driver: Option<Waker>,
    /// Streams that wait for room in `out`, for the connection's window or for a place in the table.
    waiting: Vec<Waker>,
    pub(super) streams: Table,
    /// Highest stream number so far.
    pub(super) last: u32,
    /// Bytes of data that may still be sent.
    window: u32,
    /// Bytes of data that the peer may still send.
    allowed: u32,
    /// Bytes taken since the peer was last allowed more.
    owed: u32,
    pub(super) budget: Budget,
    /// No new streams: said by either side.
    pub(super) leaving: bool,
    /// The connection has ended.
    pub(super) closed: bool,
    /// A ping under way: what its answer must say.
    pub(super) pinged: Option<u64>,
}

/// Why nothing can be sent on a stream any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone(pub(super) Code);

impl Link {
    /// A connection that has just begun.
    pub(super) fn new(limits: &Limits) -> Self {
        let state = State {
            out: Outbox::default(),
            driver: None,
            waiting: Vec::new(),
            streams: Table::default(),
            last: 0,
            window: CONNECTION_WINDOW,
            allowed: CONNECTION_WINDOW,
            owed: 0,
            budget: Budget::new(limits),
            leaving: false,
            closed: false,
            pinged: None,
        };
        Self { state: RefCell::new(state) }
    }
}

impl State {
    /// Appends a frame and wakes the driver.
    pub(super) fn put(&mut self, stream: u32, kind: Kind, end: bool, payload: &[u8]) {
        if !self.closed {
            self.out.put(stream, kind, end, payload);
            self.kick();
        }
    }

    /// Appends a piece of a body and wakes the driver.
    fn put_data(&mut self, stream: u32, end: bool, piece: Bytes) {
        if !self.closed {
            self.out.put_data(stream, end, piece);
            self.kick();
        }
    }

    pub(super) fn kick(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    /// The driver waits for something to send.
    pub(super) fn drive(&mut self, waker: &Waker) {
        if self.driver.is_none() {
            self.driver = Some(waker.clone());
        }
    }

    /// The driver is at work, and will send what there is.
    pub(super) fn undriven(&mut self) {
        self.driver = None;
    }

    fn wait(&mut self, waker: &Waker) {
        if !self.waiting.iter().any(|known| known.will_wake(waker)) {
            self.waiting.push(waker.clone());
        }
    }

    /// There is room, or a window, or a place: whoever waits tries again, in order.
    pub(super) fn wake_waiting(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }

    /// More may be sent on the connection.
    pub(super) fn widen(&mut self, by: u32) -> Result<(), Violation> {
        let wider = self.window.checked_add(by).filter(|window| *window <= CONNECTION_WINDOW);
        self.window = wider.ok_or(Violation::WindowUpdate)?;
        self.wake_waiting();
        Ok(())
    }

    /// Data arrived, for whatever stream.
    pub(super) fn received(&mut self, bytes: u32) -> Result<(), Violation> {
        self.allowed = self.allowed.checked_sub(bytes).ok_or(Violation::WindowExceeded)?;
        Ok(())
    }

    /// Data was taken, or dropped: the peer may send as much again, said when it is worth a frame.
    pub(super) fn taken(&mut self, bytes: u32) {
        self.owed += bytes;
        // The less is left to the peer, the less is worth it.
        if self.owed >= (self.allowed / SHARE).clamp(1, CONNECTION_WINDOW / 32) {
            let grant = std::mem::take(&mut self.owed);
            self.allowed += grant;
            self.put(0, Kind::Window, false, &grant.to_be_bytes());
        }
    }

    /// Ends every stream, and refuses new ones.
    pub(super) fn close(&mut self) {
        self.closed = true;
        for stream in self.streams.values() {
            stream.state.borrow_mut().give_up(Code::Broken);
        }
        self.wake_waiting();
    }
}

impl Link {
    /// Waits until a stream may be opened. An error means that this connection opens none any more.
    pub(super) fn poll_open(&self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let mut state = self.state.borrow_mut();
        if state.closed || state.leaving || state.last >= LAST_STREAM {
            state.leaving = true;
            return Poll::Ready(Err(Gone(Code::Refused)));
        }
        if state.out.len() >= OUTBOX || state.streams.len() >= STREAMS {
            state.wait(cx.waker());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    /// Opens a stream with a head that `write` writes. Only after [`Link::poll_open`] was ready.
    pub(super) fn open(self: &Rc<Self>, asked: Asked, end: bool, write: impl FnOnce(&mut Vec<u8>)) -> Place {
        let mut state = self.state.borrow_mut();
        state.last += 1;
        let stream = Rc::new(Stream::new(state.last, Some(asked)));
        stream.state.borrow_mut().sent_end = end;
        state.streams.insert(stream.id, stream.clone());
        state.out.put_with(stream.id, Kind::Head, end, write);
        state.kick();
        Place { link: self.clone(), stream }
    }

    /// Sends a head on a stream, as soon as there is room.
    pub(super) fn poll_head(
        &self,
        cx: &mut Context<'_>,
        stream: &Stream,
        end: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Poll<Result<(), Gone>> {
        let (mut link, mut state) = (self.state.borrow_mut(), stream.state.borrow_mut());
        if let Some(code) = state.over() {
            return Poll::Ready(Err(Gone(code)));
        }
        if link.out.len() >= OUTBOX {
            link.wait(cx.waker());
            state.wait(Waiter::Writer, cx.waker());
            return Poll::Pending;
        }
        state.sent_end = end;
        link.out.put_with(stream.id, Kind::Head, end, write);
        link.kick();
        Poll::Ready(Ok(()))
    }

    /// Sends some of `data`, as much as windows and room allow, and waits for more of them until it is all sent.
    pub(super) fn poll_data(&self, cx: &mut Context<'_>, stream: &Stream, data: &mut Bytes, end: bool) -> Poll<Result<(), Gone>> {
        let (mut link, mut state) = (self.state.borrow_mut(), stream.state.borrow_mut());
        loop {
            if let Some(code) = state.over() {
                return Poll::Ready(Err(Gone(code)));
            }
            if state.sent_end || (data.is_empty() && !end) {
                return Poll::Ready(Ok(()));
            }
            let share = (link.window.saturating_sub(RESERVED) / SHARE).max(LITTLE).saturating_sub(STREAM_WINDOW - state.window);
            let share = share.min(link.window);
            let most = data.len().min(DATA_MOST).min(state.window as usize).min(share as usize);
            let is_full = link.out.len() >= OUTBOX;
            if is_full || (most == 0 && !data.is_empty()) {
                if is_full || share == 0 {
                    link.wait(cx.waker());
                }
                state.wait(Waiter::Writer, cx.waker());
                return Poll::Pending;
            }
            let piece = if most == data.len() { std::mem::take(data) } else { data.split_to(most) };
            let last = end && data.is_empty();
            (state.window, link.window) = (state.window - most as u32, link.window - most as u32);
            state.sent_end = last;
            link.budget.sent(most as u32);
            link.put_data(stream.id, last, piece);
            if data.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Sends trailers, which end the stream.
    pub(super) fn poll_trailers(&self, cx: &mut Context<'_>, stream: &Stream, fields: &[u8]) -> Poll<Result<(), Gone>> {
        let (mut link, mut state) = (self.state.borrow_mut(), stream.state.borrow_mut());
        if let Some(code) = state.over() {
            return Poll::Ready(Err(Gone(code)));
        }
        if link.out.len() >= OUTBOX {
            link.wait(cx.waker());
            state.wait(Waiter::Writer, cx.waker());
            return Poll::Pending;
        }
        state.sent_end = true;
        link.put(stream.id, Kind::Trailers, true, fields);
        Poll::Ready(Ok(()))
    }
}

/// A stream in use. Dropped before both sides have ended, it is reset.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) link: Rc<Link>,
    pub(super) stream: Rc<Stream>,
}

impl Place {
    /// A stream that the peer opened.
    pub(super) fn accepted(link: &Rc<Link>, stream: Rc<Stream>) -> Self {
        Self { link: link.clone(), stream }
    }

    /// Gives the stream up for this reason, and says so.
    pub(super) fn fail(&self, code: Code) {
        reset(&mut self.link.state.borrow_mut(), &self.stream, code);
    }
}

/// Gives a stream up, unless it is over already.
pub(super) fn reset(link: &mut State, stream: &Stream, code: Code) {
    let mut state = stream.state.borrow_mut();
    if state.over().is_none() {
        state.give_up(code);
        link.put(stream.id, Kind::Reset, false, &(code as u32).to_be_bytes());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut link = self.link.state.borrow_mut();
        let (complete, sent_end, dropped) = {
            let mut state = self.stream.state.borrow_mut();
            (state.is_complete(), state.sent_end, state.discard())
        };
        if !complete {
            // A callee that has answered needs no more of the request.
            reset(&mut link, &self.stream, if sent_end { Code::Done } else { Code::Cancelled });
        }
        link.taken(dropped);
        link.streams.remove(&self.stream.id);
        if link.streams.len() + 1 == STREAMS {
            link.wake_waiting();
        }
        if link.leaving && link.streams.is_empty() {
            link.kick();
        }
    }
}
