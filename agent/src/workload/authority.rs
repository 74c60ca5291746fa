//! Clients built on gRPC's C core (Python, C++, Ruby) put the socket's path, percent-encoded, where HTTP/2 has the host: no URI
//! library takes that for one, and the call ends before anybody sees it. Here a `%` in `:authority` becomes a `-`, in place: no
//! length changes, and HPACK's tables on both sides stay the same size. Nothing reads the authority of this socket.

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

/// Length of the client's first words.
const PREFACE: usize = 24;
/// Length of a frame's head.
const HEAD: usize = 9;
/// Type of the frame that begins a call.
const HEADERS: u8 = 1;
/// Longest frame that a client may send before it is told otherwise (RFC 9113, section 4.2). Others pass as they are.
const MAX_FRAME: usize = 16 * 1024;

/// What a client says over HTTP/2, with a readable authority.
#[derive(Debug)]
pub(super) struct Frames {
    /// Not looked at yet: less than a frame that must be whole.
    raw: BytesMut,
    /// To be handed on.
    ready: BytesMut,
    /// What comes next passes as it is, so many bytes.
    pass: usize,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self { raw: BytesMut::new(), ready: BytesMut::new(), pass: PREFACE }
    }

    /// Reads on behalf of who reads us.
    pub(super) fn poll_read(
        &mut self,
        mut stream: impl AsyncRead + Unpin,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.ready.is_empty() {
            let mut chunk = [0; 4096];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut stream).poll_read(context, &mut chunk))?;
            if chunk.filled().is_empty() {
                // The end: half a frame is for the other side to judge.
                self.ready.unsplit(self.raw.split());
                break;
            }
            self.raw.extend_from_slice(chunk.filled());
            self.advance();
        }
        let length = self.ready.len().min(buffer.remaining());
        buffer.put_slice(self.ready.get(..length).unwrap_or_default());
        self.ready.advance(length);
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self) {
        loop {
            let pass = self.pass.min(self.raw.len());
            self.ready.unsplit(self.raw.split_to(pass));
            self.pass -= pass;
            let Some(&[a, b, c, kind, flags, ..]) = self.raw.get(..HEAD).filter(|_| self.pass == 0) else { return };
            let length = HEAD + usize::from(a) * 65_536 + usize::from(b) * 256 + usize::from(c);
            if kind == HEADERS && length <= HEAD + MAX_FRAME {
                let Some(payload) = self.raw.get_mut(HEAD..length) else { return };
                readable(payload, flags);
            }
            self.pass = length;
        }
    }
}

/// Makes the authority in a HEADERS frame readable, if it is written out there.
fn readable(payload: &mut [u8], flags: u8) {
    let padding = if flags & 0x08 == 0 { 0 } else { 1 };
    let priority = if flags & 0x20 == 0 { 0 } else { 5 };
    if let Some(value) = payload.get_mut(padding + priority..)
        && let Some(value) = find(value).and_then(|at| value.get_mut(at))
    {
        value.iter_mut().filter(|byte| **byte == b'%').for_each(|byte| *byte = b'-');
    }
}

/// Where in a header block (RFC 7541, section 6) the value of `:authority` stands in plain bytes.
fn find(block: &[u8]) -> Option<Range<usize>> {
    let mut at = 0;
    loop {
        let first = *block.get(at)?;
        if first & 0x80 != 0 {
            at = integer(block, at, 7)?.1;
            continue;
        }
        if first & 0xe0 == 0x20 {
            at = integer(block, at, 5)?.1;
            continue;
        }
        let (index, next) = integer(block, at, if first & 0x40 == 0 { 4 } else { 6 })?;
        at = next;
        let mut is_authority = index == 1;
        if index == 0 {
            let (name, _) = text(block, at)?;
            at = name.end;
            is_authority = block.get(name)? == b":authority";
        }
        let (value, is_plain) = text(block, at)?;
        if is_authority {
            return is_plain.then_some(value);
        }
        at = value.end;
    }
}

/// An integer with a prefix of so many bits, and where it ends (RFC 7541, section 5.1).
fn integer(block: &[u8], mut at: usize, bits: u32) -> Option<(usize, usize)> {
    let most = (1 << bits) - 1;
    let mut value = usize::from(*block.get(at)?) & most;
    at += 1;
    if value < most {
        return Some((value, at));
    }
    for shift in [0, 7, 14] {
        let byte = *block.get(at)?;
        at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

/// Where a string lies, and whether it is in plain bytes (RFC 7541, section 5.2).
fn text(block: &[u8], at: usize) -> Option<(Range<usize>, bool)> {
    let is_plain = *block.get(at)? & 0x80 == 0;
    let (length, start) = integer(block, at, 7)?;
    Some((start..start.checked_add(length)?, is_plain))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// A stream that comes in these pieces.
    struct Pieces(std::collections::VecDeque<Vec<u8>>);

    impl AsyncRead for Pieces {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            buffer.put_slice(&self.0.pop_front().unwrap_or_default());
            Poll::Ready(Ok(()))
        }
    }

    struct Reader(Frames, Pieces);

    impl AsyncRead for Reader {
        fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let Self(frames, pieces) = self.get_mut();
            frames.poll_read(pieces, context, buffer)
        }
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    #[tokio::test]
    async fn an_authority_in_percent_signs_is_made_readable_wherever_the_bytes_are_cut_and_nothing_else_changes() {
        let block = |authority: &str| {
            let length = u8::try_from(authority.len()).unwrap();
            let length: Vec<u8> = if length < 127 { vec![length] } else { vec![127, length - 127] };
            [&b"\x83\x40\x05:path\x04/%2F\x40\x0a:authority"[..], &length, authority.as_bytes(), b"\x00\x01x\x03%%%"].concat()
        };
        for authority in ["tmp%2Fa.sock".to_owned(), format!("{}%2Fb", "y".repeat(140))] {
            let said = |authority: &str| {
                let plain = block(authority);
                let padded = [&[2][..], &plain, &[0, 0]].concat();
                let weighted = [&[0; 5][..], &plain].concat();
                [
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
                    frame(4, 0, &[]),
                    frame(1, 4, &plain),
                    frame(0, 1, b"\x40\x0a:authority\x03%2F"),
                    frame(1, 4 | 8, &padded),
                    frame(1, 4 | 0x20, &weighted),
                    b"\0\0\x09".to_vec(),
                ]
                .concat()
            };
            let (before, after) = (said(&authority), said(&authority.replace('%', "-")));
            for size in [1, 2, 7, 24, 100, before.len()] {
                let pieces = before.chunks(size).map(<[u8]>::to_vec).collect();
                let mut heard = Vec::new();
                Reader(Frames::new(), Pieces(pieces)).read_to_end(&mut heard).await.unwrap();
                assert_eq!(heard, after, "in pieces of {size}");
            }
        }
    }

    #[test]
    fn blocks_that_are_cut_off_or_nonsense_are_left_alone() {
        let mut block = b"\x40\x0a:authority\x7f\xff\xff\xff\xff\x01%%".to_vec();
        let before = block.clone();
        for end in 0..=block.len() {
            readable(&mut block[..end], 0x28);
            readable(&mut block[..end], 0);
        }
        assert_eq!(block, before);
    }
}
