//! A header block on its way through HEADERS and CONTINUATION frames (RFC 9113 section 6.2), without padding and priority.

use super::field_count::FieldCount;
use crate::http::{MOST_TRAILERS, TRAILER_BYTES};

/// Flags of HEADERS.
pub(super) const PADDED: u8 = 8;
pub(super) const PRIORITY: u8 = 0x20;

/// A header block, and where in it we are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Block {
    count: FieldCount,
    /// Fields and bytes of it so far.
    fields: u32,
    bytes: usize,
    is_trailers: bool,
    /// The next byte says how much of the payload's end is padding.
    padded: bool,
    /// Bytes of a priority still to come.
    priority: usize,
    /// Bytes of fields still to come in this frame.
    left: usize,
}

impl Block {
    pub(super) fn new(is_trailers: bool) -> Self {
        Self { is_trailers, ..Self::default() }
    }

    /// Whether it is trailers, and longer than those may be.
    pub(super) fn is_long(&self) -> bool {
        self.is_trailers && self.bytes > TRAILER_BYTES
    }

    /// A frame of it begins.
    pub(super) fn begin(&mut self, flags: u8, length: usize) {
        self.padded = flags & PADDED != 0;
        self.priority = if flags & PRIORITY == 0 { 0 } else { 5 };
        self.left = length.saturating_sub(self.priority + usize::from(self.padded));
    }

    /// Takes bytes of a frame's payload. Returns how many fields of them are more than a head may have, or trailers.
    pub(super) fn take(&mut self, mut bytes: &[u8], most: u32) -> u32 {
        let most = if self.is_trailers { u32::try_from(MOST_TRAILERS).unwrap_or(u32::MAX) } else { most };
        if self.padded
            && let Some((length, rest)) = bytes.split_first()
        {
            (self.padded, bytes) = (false, rest);
            self.left = self.left.saturating_sub(usize::from(*length));
        }
        let priority = self.priority.min(bytes.len());
        self.priority -= priority;
        bytes = bytes.get(priority..).unwrap_or_default();
        let block = bytes.get(..self.left).unwrap_or(bytes);
        self.left -= block.len();
        self.bytes = self.bytes.saturating_add(block.len());
        let before = self.fields.max(most);
        self.fields = self.fields.saturating_add(self.count.pass(block));
        self.fields.saturating_sub(before)
    }
}
