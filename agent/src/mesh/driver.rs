//! The task of a connection: takes what arrives, sends what waits, in one system call each wherever that is possible.

use std::{
    io,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;

use super::{
    OUTBOX,
    dispatch::Role,
    frame::{self, Code, Kind},
    link::Link,
    outbox::Outbox,
    transport::Sealed,
    violation::Violation,
};
use crate::{
    http::Limits,
    turn::{Pause, wake_after_others},
};

/// Reads in a row before others of the worker get their turn.
const TURNS: usize = 2;

/// Drives one connection.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) link: Rc<Link>,
    pub(super) sealed: Sealed,
    inbound: BytesMut,
    /// Taken from the link, to be sealed.
    outbound: Outbox,
    /// Others had their turn to add to what is sent, and sockets were looked at.
    gathered: bool,
    /// After some reads in a row.
    pause: Pause,
    /// Reads that brought something.
    heard: u64,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The peer, or the network, ended it.
    Gone,
    /// The peer broke a rule.
    Broke(Violation),
}

impl Driver {
    pub(super) fn new(link: Rc<Link>, sealed: Sealed) -> Self {
        Self {
            link,
            sealed,
            inbound: BytesMut::new(),
            outbound: Outbox::default(),
            gathered: false,
            pause: Pause::default(),
            heard: 0,
        }
    }

    /// Changes whenever something has arrived.
    pub(super) fn heard(&self) -> u64 {
        self.heard
    }

    /// Takes and sends until the connection ends.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, role: &mut Role<'_>, limits: &Limits) -> Poll<Ended> {
        match self.poll_receive(cx, role, limits) {
            Poll::Ready(ended) => return Poll::Ready(ended),
            Poll::Pending => {}
        }
        if let Role::Callee(serving) = role {
            // What they have to say is sent by this very turn, or the next: they need wake nobody for it.
            self.link.state.borrow_mut().undriven();
            serving.run(cx);
        }
        match self.poll_send(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(Ended::Gone),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>, role: &mut Role<'_>, limits: &Limits) -> Poll<Ended> {
        if self.pause.lasts(cx) {
            return Poll::Pending;
        }
        for _ in 0..TURNS {
            match self.sealed.poll_read(cx, &mut self.inbound) {
                Poll::Pending => {
                    self.give_back();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Ended::Gone),
                Poll::Ready(Ok(_)) => self.heard += 1,
            }
            loop {
                match frame::take(&mut self.inbound) {
                    Ok(None) => break,
                    Ok(Some(frame)) => {
                        if let Err(violation) = self.link.receive(frame, role, limits) {
                            return Poll::Ready(Ended::Broke(violation));
                        }
                    }
                    Err(violation) => return Poll::Ready(Ended::Broke(violation)),
                }
            }
        }
        self.pause.begin(cx);
        Poll::Pending
    }

    /// An idle connection holds no buffers.
    fn give_back(&mut self) {
        if self.inbound.is_empty() && self.link.state.borrow().streams.is_empty() {
            self.inbound = BytesMut::new();
            self.outbound.release();
            self.link.state.borrow_mut().out.release();
        }
    }

    /// Sends all that waits. Ready when nothing does.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.sealed.poll_flush(cx))?;
            let mut link = self.link.state.borrow_mut();
            if link.out.is_empty() {
                self.gathered = false;
                link.drive(cx.waker());
                return Poll::Ready(Ok(()));
            }
            // Whoever is ready by now gets its frames into the same record and system call, where there are others at all.
            if !std::mem::replace(&mut self.gathered, true) && link.streams.len() > 1 && link.out.len() < OUTBOX / 2 {
                wake_after_others(cx);
                return Poll::Pending;
            }
            self.gathered = false;
            std::mem::swap(&mut link.out, &mut self.outbound);
            link.wake_waiting();
            drop(link);
            self.sealed.seal(&self.outbound.slices())?;
            self.outbound.clear();
        }
    }

    /// Says that no more streams are taken, or that the connection ends for a violation.
    pub(super) fn leave(&mut self, code: Code) {
        let mut link = self.link.state.borrow_mut();
        link.leaving = true;
        let mut said = [0; 8];
        said[..4].copy_from_slice(&link.last.to_be_bytes());
        said[4..].copy_from_slice(&(code as u32).to_be_bytes());
        link.put(0, Kind::Goaway, false, &said);
    }

    /// Sends what waits, and the goodbye.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.gathered = true;
        if let Poll::Ready(Ok(())) = ready_unit(self.poll_send(cx)) {
            self.sealed.end();
            return self.sealed.poll_flush(cx).map(drop);
        }
        Poll::Pending
    }
}

fn ready_unit(poll: Poll<io::Result<()>>) -> Poll<Result<(), ()>> {
    // An error ends it just as well.
    poll.map(|_| Ok(()))
}
