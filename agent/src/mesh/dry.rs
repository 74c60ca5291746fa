//! A connection without sockets: what the fuzz targets and their stable twin feed bytes to.

use std::{rc::Rc, task::Context};

use bytes::BytesMut;

use super::{
    CONNECTION_WINDOW, STREAMS,
    dispatch::{Opened, Role, Serving},
    frame,
    link::{Link, Place},
    stream::Asked,
    violation::Violation,
};
use crate::http::{Heads, HeldHead, Limits};

/// Takes `bytes` as they would arrive in pieces of `step`, as the callee's agent, or as the caller's with a few requests under
/// way. Returns how many requests came or were answered.
///
/// # Errors
/// The violation that ends the connection.
///
/// # Panics
/// When more is held than there may be: that is what it is for.
pub fn digest(bytes: &[u8], step: usize, callee: bool) -> Result<usize, Violation> {
    let limits = Limits::default();
    let link = Rc::new(Link::new(&limits));
    let mut held = Held { places: Vec::new(), heads: Heads::new(limits.heads), kept: Vec::new() };
    if !callee {
        for upgrade in [None, None, Some("websocket".into())] {
            let asked = Asked { to_head: held.places.len() == 1, upgrade };
            held.places.push(link.open(asked, true, |out| out.push(b'x')));
        }
    }
    let mut role = if callee { Role::Callee(&mut held) } else { Role::Caller };
    let mut buf = BytesMut::new();
    for piece in bytes.chunks(step.max(1)) {
        buf.extend_from_slice(piece);
        while let Some(frame) = frame::take(&mut buf)? {
            link.receive(frame, &mut role, &limits)?;
        }
        assert!(buf.len() < frame::HEAD + frame::DATA_MOST + step, "waits for more than a frame");
    }
    let state = link.state.borrow();
    assert!(state.streams.len() <= STREAMS, "more streams than there may be");
    let waiting: usize = state.streams.values().map(|stream| stream.state.borrow().held()).sum();
    assert!(waiting <= CONNECTION_WINDOW as usize, "more data than there may be");
    drop(state);
    let answered = held.places.iter().filter(|place| callee || place.stream.state.borrow().head.is_some()).count();
    drop(held);
    assert!(link.state.borrow().streams.is_empty(), "streams outlive those who use them");
    Ok(answered)
}

/// Streams that were opened and that nobody serves.
struct Held {
    places: Vec<Place>,
    heads: Heads,
    kept: Vec<HeldHead>,
}

impl Serving for Held {
    fn heads(&self) -> &Heads {
        &self.heads
    }

    fn open(&mut self, opened: Opened) {
        // What a stream does first.
        if let Ok(parsed) = opened.parsed {
            drop(parsed.parts.normalize());
        }
        self.places.push(opened.place);
        self.kept.push(opened.held);
    }

    fn run(&mut self, _: &mut Context<'_>) {}
}
