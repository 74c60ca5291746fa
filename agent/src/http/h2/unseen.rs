//! Streams that a caller opens and that the h2 crate answers by itself: it resets what is malformed before anybody here has seen
//! it. What was opened is told from what was read, and what became of it from what is written.

use std::{cell::RefCell, rc::Rc};

use tokio::sync::Notify;

use crate::{
    refusal::{Reason, Refusal},
    turn::TURN,
};

const FRAME_HEAD: usize = 9;
/// Types of frames (RFC 9113 section 6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
/// Streams that are remembered: more than a connection may have at once, and few bytes each.
const MOST: usize = 4096;
/// Room for streams that a connection keeps.
const KEPT: usize = 16;

/// The streams of a connection that nobody has seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Unseen(Rc<Streams>);

#[derive(Debug, Default)]
struct Streams {
    state: RefCell<State>,
    told: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Opened, and neither taken nor answered: nearly always none or one, so that a list is enough.
    open: Vec<u32>,
    /// Answered by the library, and not told yet.
    refused: Vec<(u32, Answer)>,
}

/// What the library said.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// 431 is all that it answers by itself.
    Head,
    Reset(h2::Reason),
}

impl Answer {
    fn refusal(self) -> Refusal {
        match self {
            Self::Head => Refusal::new(Reason::HeadTooLarge, "head too large"),
            Self::Reset(h2::Reason::REFUSED_STREAM) => Refusal::new(Reason::Overloaded, "more streams than there is room for"),
            Self::Reset(reason) => Refusal::new(Reason::Malformed, format!("reset as no request of HTTP/2: {reason}")),
        }
    }
}

impl State {
    /// Whether the stream was open; it is no more.
    fn close(&mut self, stream: u32) -> bool {
        let Some(at) = self.open.iter().rposition(|open| *open == stream) else { return false };
        self.open.swap_remove(at);
        if self.open.is_empty() && self.open.capacity() > KEPT {
            self.open = Vec::new();
        }
        true
    }
}

impl Unseen {
    /// A caller has opened a stream.
    pub(super) fn opened(&self, stream: u32) {
        let open = &mut self.0.state.borrow_mut().open;
        if open.len() >= MOST {
            open.swap_remove(0);
        }
        open.push(stream);
    }

    /// Somebody takes care of the stream, and will record what becomes of it.
    pub(super) fn taken(&self, stream: u32) {
        let state = &mut *self.0.state.borrow_mut();
        state.close(stream);
        state.refused.retain(|(refused, _)| *refused != stream);
    }

    fn answered(&self, stream: u32, answer: Answer) {
        let state = &mut *self.0.state.borrow_mut();
        if state.close(stream) {
            state.refused.push((stream, answer));
            self.0.told.notify_one();
        }
    }

    /// Ends when the library has answered a stream that nobody has taken, and says which refusals that were, a turn of them at a
    /// time. To be asked after streams were taken: the library may answer one and hand it out nevertheless.
    pub(super) async fn refused(&self) -> Vec<Refusal> {
        loop {
            let refused = self.tell(TURN);
            if !refused.is_empty() {
                return refused;
            }
            self.0.told.notified().await;
        }
    }

    /// What has not been told yet.
    pub(super) fn rest(&self) -> Vec<Refusal> {
        self.tell(usize::MAX)
    }

    /// Whether there is a turn of them: then they are told before more is read.
    pub(super) fn has_many(&self) -> bool {
        self.0.state.borrow().refused.len() >= TURN
    }

    fn tell(&self, most: usize) -> Vec<Refusal> {
        let refused = &mut self.0.state.borrow_mut().refused;
        let most = most.min(refused.len());
        refused.drain(..most).map(|(_, answer)| answer.refusal()).collect()
    }
}

/// Reads the heads of the frames that are written.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Bytes of a payload still to pass over.
    skip: usize,
    /// A frame's head, and the code of a reset.
    head: [u8; FRAME_HEAD + 4],
    have: usize,
}

impl Written {
    /// Looks at what was written.
    pub(super) fn look(&mut self, mut bytes: &[u8], unseen: &Unseen) {
        while !bytes.is_empty() {
            let (payload, rest) = bytes.split_at(self.skip.min(bytes.len()));
            self.skip -= payload.len();
            let wanted = (self.wanted() - self.have).min(rest.len());
            let (part, rest) = rest.split_at(wanted);
            if let Some(space) = self.head.get_mut(self.have..self.have + wanted) {
                space.copy_from_slice(part);
            }
            self.have += wanted;
            bytes = rest;
            // The head may have just told that the code of a reset is wanted too.
            if self.have == self.wanted() {
                self.end(unseen);
            }
        }
    }

    fn is_reset(&self) -> bool {
        self.have >= FRAME_HEAD && self.head.starts_with(&[0, 0, 4, RST_STREAM])
    }

    fn wanted(&self) -> usize {
        if self.is_reset() { self.head.len() } else { FRAME_HEAD }
    }

    fn end(&mut self, unseen: &Unseen) {
        let [high, middle, low, kind, _, a, b, c, d, code @ ..] = self.head;
        let stream = u32::from_be_bytes([a, b, c, d]) & (u32::MAX >> 1);
        self.skip = if self.is_reset() { 0 } else { u32::from_be_bytes([0, high, middle, low]) as usize };
        self.have = 0;
        match kind {
            HEADERS => unseen.answered(stream, Answer::Head),
            RST_STREAM => unseen.answered(stream, Answer::Reset(u32::from_be_bytes(code).into())),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[..], &[kind, 0], &stream.to_be_bytes(), payload].concat()
    }

    #[test]
    fn streams_that_the_library_answers_are_told_once_however_its_frames_are_cut() {
        let code = |reason: h2::Reason| u32::from(reason).to_be_bytes();
        let bytes = [
            frame(4, 0, &[0; 12]),
            frame(RST_STREAM, 1, &code(h2::Reason::PROTOCOL_ERROR)),
            frame(RST_STREAM, 1, &code(h2::Reason::PROTOCOL_ERROR)),
            frame(0, 3, &[RST_STREAM; 30]),
            frame(HEADERS, 5, &[1, 2, 3]),
            frame(RST_STREAM, 5, &code(h2::Reason::PROTOCOL_ERROR)),
            frame(RST_STREAM, 7, &code(h2::Reason::REFUSED_STREAM)),
            frame(RST_STREAM, 9, &code(h2::Reason::PROTOCOL_ERROR)),
            frame(RST_STREAM, 11, &code(h2::Reason::CANCEL)),
        ]
        .concat();
        for step in 1..bytes.len() {
            let (unseen, mut written) = (Unseen::default(), Written::default());
            (1..=11).step_by(2).for_each(|stream| unseen.opened(stream));
            unseen.taken(11);
            bytes.chunks(step).for_each(|piece| written.look(piece, &unseen));
            unseen.taken(9);
            let told: Vec<Reason> = unseen.rest().iter().map(Refusal::reason).collect();
            assert_eq!(told, [Reason::Malformed, Reason::HeadTooLarge, Reason::Overloaded], "{step}");
            assert!(unseen.rest().is_empty());
            assert_eq!(unseen.0.state.borrow().open, [3], "{step}");
        }
    }

    #[tokio::test]
    async fn refusals_are_told_a_turn_at_a_time_and_all_of_them() {
        let (unseen, mut written) = (Unseen::default(), Written::default());
        let streams = 0..3 * TURN as u32 + 1;
        streams.clone().for_each(|stream| unseen.opened(stream));
        let code = u32::from(h2::Reason::REFUSED_STREAM).to_be_bytes();
        streams.for_each(|stream| written.look(&frame(RST_STREAM, stream, &code), &unseen));
        for told in [TURN, TURN, TURN, 1] {
            assert_eq!(unseen.refused().await.len(), told);
        }
    }

    #[test]
    fn so_many_streams_are_remembered_and_no_more() {
        let unseen = Unseen::default();
        (0..2 * MOST as u32).for_each(|stream| unseen.opened(stream));
        assert_eq!(unseen.0.state.borrow().open.len(), MOST);
    }
}
