//! Frames of the mesh protocol: eight bytes of head, then a payload (docs/mesh-protocol.md).

use std::ops::Deref;

use bytes::{Buf as _, Bytes, BytesMut};

use super::violation::Violation;

/// Bytes of a frame's head: stream (4), length (3), kind with the end bit (1), all big-endian.
pub const HEAD: usize = 8;
/// Most bytes of a DATA frame's payload.
pub const DATA_MOST: usize = 64 << 10;
/// Most bytes of a TRAILERS frame's payload.
pub const TRAILERS_MOST: usize = crate::http::TRAILER_BYTES;
/// Most bytes of a HEAD frame's payload; [`crate::http::Limits::head_bytes`] may be less.
pub const HEAD_MOST: usize = 64 << 10;
/// Nothing of the sender follows on this stream.
const END: u8 = 0x80;
/// A payload of at least this size is taken out of the read buffer; smaller ones are copied, so that the buffer stays ours.
const SPLIT: usize = 4 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A request's or response's head: opens the stream, or answers on it.
    Head = 1,
    /// A piece of a body.
    Data = 2,
    /// Trailers; always the end.
    Trailers = 3,
    /// The sender gives the stream up.
    Reset = 4,
    /// The receiver may send more.
    Window = 5,
    /// Answer, please.
    Ping = 6,
    /// The answer.
    Pong = 7,
    /// No more streams.
    Goaway = 8,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Kind; 8] =
            [Kind::Head, Kind::Data, Kind::Trailers, Kind::Reset, Kind::Window, Kind::Ping, Kind::Pong, Kind::Goaway];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Whether the payload may have this length.
    fn takes(self, length: usize) -> bool {
        match self {
            Self::Head => (1..=HEAD_MOST).contains(&length),
            Self::Data => length <= DATA_MOST,
            Self::Trailers => length <= TRAILERS_MOST,
            Self::Reset | Self::Window => length == 4,
            Self::Ping | Self::Pong | Self::Goaway => length == 8,
        }
    }

    /// Whether it concerns one stream, the connection, or either.
    fn fits(self, stream: u32) -> bool {
        match self {
            Self::Head | Self::Data | Self::Trailers | Self::Reset => stream != 0,
            Self::Ping | Self::Pong | Self::Goaway => stream == 0,
            Self::Window => true,
        }
    }

    /// Whether the end bit may, or must, be set.
    fn ends(self, end: bool) -> bool {
        match self {
            Self::Head | Self::Data => true,
            Self::Trailers => end,
            _ => !end,
        }
    }
}

/// Why a stream or connection is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// No fault.
    Done = 0,
    /// The sender broke the protocol.
    Protocol = 1,
    /// The other side of the sender broke off.
    Broken = 2,
    /// Nobody wants the rest.
    Cancelled = 3,
    /// Nothing was done for the stream: it may be tried again.
    Refused = 4,
}

impl Code {
    /// The code of this number; of an unknown one [`Code::Broken`].
    pub fn from_number(number: u32) -> Self {
        [Self::Done, Self::Protocol, Self::Broken, Self::Cancelled, Self::Refused]
            .into_iter()
            .find(|code| *code as u32 == number)
            .unwrap_or(Self::Broken)
    }

    /// The word for logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Protocol => "protocol",
            Self::Broken => "broken",
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
        }
    }
}

/// A whole frame, its payload still in the buffer that it arrived in.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The stream; 0 is the connection.
    pub stream: u32,
    /// What it is.
    pub kind: Kind,
    /// Nothing of the sender follows on this stream.
    pub end: bool,
    /// What it carries.
    pub payload: Payload<'a>,
}

/// What a frame carries: the first bytes of a buffer, which are gone from it when this is dropped.
#[derive(Debug)]
pub struct Payload<'a> {
    buf: &'a mut BytesMut,
    length: usize,
}

impl Payload<'_> {
    /// Takes it out.
    pub fn take(mut self) -> Bytes {
        let length = std::mem::take(&mut self.length);
        if length >= SPLIT {
            return self.buf.split_to(length).freeze();
        }
        let copy = Bytes::copy_from_slice(self.buf.get(..length).unwrap_or_default());
        self.buf.advance(length);
        copy
    }

    /// The first four bytes as a number; the length was checked by [`take`].
    pub fn number(&self) -> u32 {
        self.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)).unwrap_or_default()
    }
}

impl Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buf.get(..self.length).unwrap_or_default()
    }
}

impl Drop for Payload<'_> {
    fn drop(&mut self) {
        self.buf.advance(self.length);
    }
}

/// Appends a frame's head.
pub(super) fn put_head(out: &mut Vec<u8>, stream: u32, length: usize, kind: Kind, end: bool) {
    out.extend_from_slice(&stream.to_be_bytes());
    let [_, high, middle, low] = (length as u32).to_be_bytes();
    out.extend_from_slice(&[high, middle, low, kind as u8 | if end { END } else { 0 }]);
}

/// Appends a whole frame. The payload must be as long as its kind allows.
pub fn put(out: &mut Vec<u8>, stream: u32, kind: Kind, end: bool, payload: &[u8]) {
    out.reserve(HEAD + payload.len());
    put_head(out, stream, payload.len(), kind, end);
    out.extend_from_slice(payload);
}

/// Appends a frame whose payload `write` appends, and returns its length.
pub fn put_with(out: &mut Vec<u8>, stream: u32, kind: Kind, end: bool, write: impl FnOnce(&mut Vec<u8>)) -> usize {
    let at = out.len();
    put_head(out, stream, 0, kind, end);
    write(out);
    let length = out.len() - at - HEAD;
    let [_, high, middle, low] = (length as u32).to_be_bytes();
    if let Some(place) = out.get_mut(at + 4..at + 7) {
        place.copy_from_slice(&[high, middle, low]);
    }
    length
}

/// Takes the next whole frame out of `buf`; `None` when more bytes are needed. Never needs more than a frame's most.
///
/// # Errors
/// When the head cannot be one of version 1: such a connection ends.
pub fn take(buf: &mut BytesMut) -> Result<Option<Frame<'_>>, Violation> {
    let Some(&[a, b, c, d, high, middle, low, kind]) = buf.first_chunk::<HEAD>() else { return Ok(None) };
    let (stream, length) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([0, high, middle, low]) as usize);
    let end = kind & END != 0;
    let kind = Kind::from_byte(kind & !END).ok_or(Violation::UnknownFrame)?;
    if !kind.takes(length) {
        return Err(Violation::FrameLength);
    }
    if !kind.fits(stream) {
        return Err(Violation::WrongStream);
    }
    if !kind.ends(end) {
        return Err(Violation::EndBit);
    }
    if buf.len() < HEAD + length {
        return Ok(None);
    }
    buf.advance(HEAD);
    Ok(Some(Frame { stream, kind, end, payload: Payload { buf, length } }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame as it was read.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Whole {
        stream: u32,
        kind: Kind,
        end: bool,
        payload: Bytes,
    }

    impl From<Frame<'_>> for Whole {
        fn from(frame: Frame<'_>) -> Self {
            let Frame { stream, kind, end, payload } = frame;
            let seen = payload.to_vec();
            // Looked at where it lies, or taken out.
            let payload = if kind == Kind::Data { payload.take() } else { seen.clone().into() };
            assert_eq!(payload, seen);
            Self { stream, kind, end, payload }
        }
    }

    fn any_frame() -> impl Strategy<Value = Whole> {
        let payload = prop::collection::vec(any::<u8>(), 0..200);
        (any::<u32>(), 1..=8_u8, any::<bool>(), payload, any::<bool>()).prop_map(|(stream, kind, end, mut payload, large)| {
            let kind = Kind::from_byte(kind).unwrap();
            if large {
                payload = payload.repeat(60);
            }
            match kind {
                Kind::Reset | Kind::Window => payload.resize(4, 7),
                Kind::Ping | Kind::Pong | Kind::Goaway => payload.resize(8, 7),
                Kind::Trailers => payload.truncate(TRAILERS_MOST),
                Kind::Head if payload.is_empty() => payload.push(1),
                Kind::Head | Kind::Data => {}
            }
            let stream = match kind {
                Kind::Ping | Kind::Pong | Kind::Goaway => 0,
                Kind::Window => stream,
                _ => stream.max(1),
            };
            let end = kind == Kind::Trailers || (end && matches!(kind, Kind::Head | Kind::Data));
            Whole { stream, kind, end, payload: payload.into() }
        })
    }

    proptest! {
        #[test]
        fn frames_are_read_as_they_were_written_however_the_bytes_are_cut(
            frames in prop::collection::vec(any_frame(), 0..8),
            step in 1..400_usize,
        ) {
            let mut wire = Vec::new();
            for frame in &frames {
                put(&mut wire, frame.stream, frame.kind, frame.end, &frame.payload);
            }
            let (mut buf, mut read) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(step) {
                buf.extend_from_slice(piece);
                while let Some(frame) = take(&mut buf).unwrap() {
                    read.push(Whole::from(frame));
                }
            }
            prop_assert!(buf.is_empty());
            prop_assert_eq!(read, frames);
        }

        #[test]
        fn any_bytes_are_frames_or_a_violation_and_never_wait_for_more_than_a_frame(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut buf = BytesMut::from(&*bytes);
            while let Ok(Some(frame)) = take(&mut buf) {
                prop_assert!(frame.payload.len() <= DATA_MOST);
            }
        }
    }

    #[test]
    fn heads_that_version_1_does_not_know_are_refused_at_once() {
        let refused = |bytes: [u8; HEAD]| take(&mut BytesMut::from(&bytes[..])).map(drop).unwrap_err();
        assert_eq!(refused([0, 0, 0, 1, 0, 0, 1, 0]), Violation::UnknownFrame);
        assert_eq!(refused([0, 0, 0, 1, 0, 0, 1, 9]), Violation::UnknownFrame);
        assert_eq!(refused([0, 0, 0, 1, 1, 0, 1, 2]), Violation::FrameLength, "more than 64 KiB of data");
        assert_eq!(refused([0, 0, 0, 1, 0, 0, 0, 1]), Violation::FrameLength, "an empty head");
        assert_eq!(refused([0, 0, 0, 1, 0, 0, 3, 4]), Violation::FrameLength);
        assert_eq!(refused([0, 0, 0, 0, 0, 0, 1, 2]), Violation::WrongStream, "data of the connection");
        assert_eq!(refused([0, 0, 0, 1, 0, 0, 8, 6]), Violation::WrongStream, "a ping of a stream");
        assert_eq!(refused([0, 0, 0, 1, 0, 0, 0, 3]), Violation::EndBit, "trailers that end nothing");
        assert_eq!(refused([0, 0, 0, 1, 0, 0, 4, 0x84]), Violation::EndBit);
    }

    #[test]
    fn a_frame_written_in_place_is_the_same_frame() {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        put(&mut first, 7, Kind::Head, true, b"hello");
        assert_eq!(put_with(&mut second, 7, Kind::Head, true, |out| out.extend_from_slice(b"hello")), 5);
        assert_eq!(first, second);
    }
}
