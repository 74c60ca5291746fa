//! What waits to be sent on a connection: frames in order, large payloads as they came, so that they are copied once only, when
//! they are sealed.

use std::io::IoSlice;

use bytes::Bytes;
use smallvec::SmallVec;

use super::frame::{self, Kind};
use crate::spare;

/// Payloads from this size on are not put together with others.
const LARGE: usize = 8 << 10;
/// A larger buffer is not kept.
const KEPT: usize = 256 << 10;

/// Pieces to be sealed one after another.
pub(super) type Slices<'a> = SmallVec<[IoSlice<'a>; 8]>;

/// Frames that wait.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// Payloads, and where in `bytes` each belongs.
    large: Vec<(usize, Bytes)>,
    /// Bytes of them.
    large_bytes: usize,
}

impl Outbox {
    /// Bytes in all.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.large_bytes
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        // A payload is never without its head.
        self.bytes.is_empty()
    }

    fn bytes(&mut self) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes = spare::take();
        }
        &mut self.bytes
    }

    /// Appends a frame.
    pub(super) fn put(&mut self, stream: u32, kind: Kind, end: bool, payload: &[u8]) {
        frame::put(self.bytes(), stream, kind, end, payload);
    }

    /// Appends a frame whose payload `write` appends.
    pub(super) fn put_with(&mut self, stream: u32, kind: Kind, end: bool, write: impl FnOnce(&mut Vec<u8>)) {
        frame::put_with(self.bytes(), stream, kind, end, write);
    }

    /// Appends a DATA frame.
    pub(super) fn put_data(&mut self, stream: u32, end: bool, piece: Bytes) {
        if piece.len() < LARGE {
            return self.put(stream, Kind::Data, end, &piece);
        }
        frame::put_head(self.bytes(), stream, piece.len(), Kind::Data, end);
        self.large_bytes += piece.len();
        self.large.push((self.bytes.len(), piece));
    }

    /// All of it, in order.
    pub(super) fn slices(&self) -> Slices<'_> {
        let mut slices = Slices::new();
        let mut from = 0;
        for (at, piece) in &self.large {
            slices.push(IoSlice::new(self.bytes.get(from..*at).unwrap_or_default()));
            slices.push(IoSlice::new(piece));
            from = *at;
        }
        slices.push(IoSlice::new(self.bytes.get(from..).unwrap_or_default()));
        slices
    }

    /// Drops what has been sealed, and keeps the buffer.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.large.clear();
        self.large_bytes = 0;
        if self.bytes.capacity() > KEPT {
            self.bytes = Vec::new();
        }
    }

    /// Who has nothing to send holds no buffer.
    pub(super) fn release(&mut self) {
        if self.is_empty() {
            spare::give(std::mem::take(&mut self.bytes));
            self.large = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_leave_in_the_order_in_which_they_came() {
        let (mut outbox, mut expected) = (Outbox::default(), Vec::new());
        for (stream, length) in [(1, 3), (3, LARGE), (5, LARGE + 1), (7, 0), (9, 2 * LARGE)] {
            let payload = vec![stream as u8; length];
            outbox.put_data(stream, stream == 9, payload.clone().into());
            frame::put(&mut expected, stream, Kind::Data, stream == 9, &payload);
        }
        outbox.put(11, Kind::Reset, false, &[0; 4]);
        frame::put(&mut expected, 11, Kind::Reset, false, &[0; 4]);
        assert_eq!(outbox.len(), expected.len());
        let slices = outbox.slices();
        assert!(slices.len() > 4);
        assert_eq!(slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<_>>(), expected);
        drop(slices);
        outbox.clear();
        assert!(outbox.is_empty() && outbox.slices().iter().all(|slice| slice.is_empty()));
    }
}
