//! One stream: what has arrived on it and was not taken yet, what may still be sent, and who waits for either.

use std::{cell::RefCell, collections::VecDeque, task::Waker};

use bytes::{Bytes, BytesMut};

use super::{LITTLE, STREAM_WINDOW, frame::Code, violation::Violation};
use crate::http::{Fields, h1::ParsedResponse};

/// Pieces below this size are put together when they wait.
const SMALL: usize = 4096;

/// A stream of a connection.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) state: RefCell<State>,
}

/// What a caller's side needs to read the answer's head.
#[derive(Debug)]
pub(super) struct Asked {
    /// The request was HEAD.
    pub(super) to_head: bool,
    /// The protocol that it asked to switch to.
    pub(super) upgrade: Option<Box<str>>,
}

#[derive(Debug)]
pub(super) struct State {
    /// The caller's side: set while the answer's head is still to come.
    pub(super) asked: Option<Asked>,
    /// The answer's head, until it is taken.
    pub(super) head: Option<ParsedResponse>,
    /// What comes first; mostly it is all there is. Empty when nothing waits.
    first: Bytes,
    data: VecDeque<Bytes>,
    /// What follows `data`: small pieces in one, so that they cost what they carry.
    small: BytesMut,
    trailers: Option<Fields>,
    received_end: bool,
    /// Bytes of the body still to come, where the head named its length.
    expected: Option<u64>,
    /// Bytes that the peer may still send.
    allowed: u32,
    /// Bytes taken since the peer was last allowed more.
    owed: u32,
    /// Bytes that may still be sent.
    pub(super) window: u32,
    pub(super) sent_end: bool,
    /// Reset, by either side, or ended with the connection.
    over: Option<Code>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    watcher: Option<Waker>,
}

/// Who waits for a stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Waiter {
    /// For the head, data or trailers.
    Reader,
    /// For a window.
    Writer,
    /// For the end of the stream before its time.
    Watcher,
}

/// A piece that was taken.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    Trailers(Fields),
    End,
}

/// A stream that broke a rule about itself only: it is reset, the connection goes on.
#[derive(Debug)]
pub(super) struct WrongLength;

impl Stream {
    pub(super) fn new(id: u32, asked: Option<Asked>) -> Self {
        let state = State {
            asked,
            head: None,
            first: Bytes::new(),
            data: VecDeque::new(),
            small: BytesMut::new(),
            trailers: None,
            received_end: false,
            expected: None,
            allowed: STREAM_WINDOW,
            owed: 0,
            window: STREAM_WINDOW,
            sent_end: false,
            over: None,
            reader: None,
            writer: None,
            watcher: None,
        };
        Self { id, state: RefCell::new(state) }
    }
}

impl State {
    /// Says how long the body is, if its head did, and whether it has ended with it.
    pub(super) fn begin_body(&mut self, length: Option<u64>, end: bool) -> Result<(), WrongLength> {
        self.expected = length;
        if end { self.ended() } else { Ok(()) }
    }

    fn ended(&mut self) -> Result<(), WrongLength> {
        wake(&mut self.reader);
        if self.expected.is_some_and(|left| left > 0) {
            // What ends too early has not ended: nobody may take it for whole.
            return Err(WrongLength);
        }
        self.received_end = true;
        Ok(())
    }

    /// Whether something may arrive now: after the head, before the end.
    pub(super) fn is_receiving(&self) -> bool {
        self.asked.is_none() && !self.received_end
    }

    /// A piece of the body arrived.
    pub(super) fn receive(&mut self, data: Bytes, end: bool) -> Result<Result<(), WrongLength>, Violation> {
        let length = data.len() as u32;
        self.allowed = self.allowed.checked_sub(length).ok_or(Violation::WindowExceeded)?;
        if let Some(left) = &mut self.expected {
            match left.checked_sub(u64::from(length)) {
                Some(rest) => *left = rest,
                None => return Ok(Err(WrongLength)),
            }
        }
        if !data.is_empty() {
            if self.first.is_empty() {
                self.first = data;
            } else if data.len() < SMALL {
                self.small.extend_from_slice(&data);
            } else {
                if !self.small.is_empty() {
                    self.data.push_back(self.small.split().freeze());
                }
                self.data.push_back(data);
            }
            wake(&mut self.reader);
        }
        Ok(if end { self.ended() } else { Ok(()) })
    }

    pub(super) fn receive_trailers(&mut self, fields: Fields) -> Result<(), WrongLength> {
        if !fields.is_empty() {
            self.trailers = Some(fields);
        }
        self.ended()
    }

    /// Takes what is next, if there is something. Data that was taken is owed to the peer's window.
    pub(super) fn take(&mut self) -> Option<Piece> {
        let data = std::mem::replace(&mut self.first, self.data.pop_front().unwrap_or_default());
        if self.first.is_empty() && !self.small.is_empty() {
            self.first = self.small.split().freeze();
        }
        if !data.is_empty() {
            self.owed += data.len() as u32;
            return Some(Piece::Data(data));
        }
        if let Some(fields) = self.trailers.take() {
            return Some(Piece::Trailers(fields));
        }
        self.received_end.then_some(Piece::End)
    }

    /// What the peer should be allowed now, once it is worth a frame.
    pub(super) fn grant(&mut self) -> Option<u32> {
        // A reader that takes all there is should not wait: the peer may have been allowed little.
        let due = if self.first.is_empty() { LITTLE } else { STREAM_WINDOW / 16 };
        if self.owed < due || self.received_end {
            return None;
        }
        self.allowed += self.owed;
        Some(std::mem::take(&mut self.owed))
    }

    /// Nothing is left to take.
    pub(super) fn is_exhausted(&self) -> bool {
        self.received_end && self.first.is_empty() && self.trailers.is_none()
    }

    /// Drops what nobody took; returns how much it was.
    pub(super) fn discard(&mut self) -> u32 {
        let dropped = self.held();
        self.first.clear();
        self.data.clear();
        self.small.clear();
        dropped as u32
    }

    /// Bytes that arrived and were not taken.
    pub(super) fn held(&self) -> usize {
        self.first.len() + self.data.iter().map(Bytes::len).sum::<usize>() + self.small.len()
    }

    /// Both sides have said all they had to say.
    pub(super) fn is_complete(&self) -> bool {
        self.received_end && self.sent_end
    }

    pub(super) fn over(&self) -> Option<Code> {
        self.over
    }

    /// Ends the stream before its time. What came before it ended may still be taken if it was whole.
    pub(super) fn give_up(&mut self, code: Code) {
        if self.over.is_none() {
            self.over = Some(code);
        }
        for waiter in [&mut self.reader, &mut self.writer, &mut self.watcher] {
            wake(waiter);
        }
    }

    /// More may be sent.
    pub(super) fn widen(&mut self, by: u32) -> Result<(), Violation> {
        self.window = self.window.checked_add(by).filter(|window| *window <= STREAM_WINDOW).ok_or(Violation::WindowUpdate)?;
        wake(&mut self.writer);
        Ok(())
    }

    /// Has `waker` woken when what this waiter waits for may be there.
    pub(super) fn wait(&mut self, waiter: Waiter, waker: &Waker) {
        let place = match waiter {
            Waiter::Reader => &mut self.reader,
            Waiter::Writer => &mut self.writer,
            Waiter::Watcher => &mut self.watcher,
        };
        if place.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            *place = Some(waker.clone());
        }
    }

    /// The answer's head is there.
    pub(super) fn answer(&mut self, head: ParsedResponse) {
        self.head = Some(head);
        wake(&mut self.reader);
    }
}

fn wake(place: &mut Option<Waker>) {
    if let Some(waker) = place.take() {
        waker.wake();
    }
}
