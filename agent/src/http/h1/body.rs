//! Framing of HTTP/1.1 bodies, as a state machine over bytes.

use bytes::{Bytes, BytesMut};

use crate::http::{Fields, TRAILER_BYTES, message::BodyError};

/// How a body ends (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After this many bytes.
    Length(u64),
    /// With a chunk of length zero.
    Chunked,
    /// With the connection; responses only.
    UntilClose,
}

/// Most bytes of one chunk-size line, CR LF included. Chunk extensions are refused: nobody needs them and readers differ.
const CHUNK_LINE: usize = 18;

/// Buffers up to this size are not used again.
const SMALL: usize = 16 << 10;

/// Takes a body out of a buffer that holds whatever has been read so far.
#[derive(Debug)]
pub(super) struct Decoder {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    UntilClose,
    End,
}

/// What a decoder found.
#[derive(Debug)]
pub(super) enum Decoded {
    Data(Bytes),
    Trailers(Fields),
    NeedMore,
    End,
}

impl Decoder {
    pub(super) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(0) => State::End,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state }
    }

    pub(super) fn is_end(&self) -> bool {
        self.state == State::End
    }

    /// Bytes of data that come next without anything else between them, if known.
    pub(super) fn next_data(&self) -> Option<u64> {
        match self.state {
            State::Length(left) | State::ChunkData(left) => Some(left),
            _ => None,
        }
    }

    /// Bytes still to come, if known.
    pub(super) fn remaining(&self) -> Option<u64> {
        match self.state {
            State::End => Some(0),
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// The peer ended the connection.
    pub(super) fn end_of_input(&mut self) -> Result<(), BodyError> {
        if self.state == State::UntilClose {
            self.state = State::End;
        }
        if self.is_end() { Ok(()) } else { Err(BodyError::Broken("the connection ended".to_owned())) }
    }

    /// Takes the next piece out of `buf`.
    pub(super) fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, BodyError> {
        loop {
            match self.state {
                State::End => return Ok(Decoded::End),
                State::UntilClose | State::Length(_) | State::ChunkData(_) if buf.is_empty() => return Ok(Decoded::NeedMore),
                State::UntilClose => return Ok(Decoded::Data(buf.split().freeze())),
                State::Length(left) => {
                    let (data, left) = take(buf, left);
                    self.state = if left == 0 { State::End } else { State::Length(left) };
                    return Ok(Decoded::Data(data));
                }
                State::ChunkData(left) => {
                    let (data, left) = take(buf, left);
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                    return Ok(Decoded::Data(data));
                }
                State::ChunkEnd => match buf.get(..2) {
                    None => return Ok(Decoded::NeedMore),
                    Some(b"\r\n") => {
                        let _ = buf.split_to(2);
                        self.state = State::ChunkSize;
                    }
                    Some(_) => return Err(BodyError::Malformed("chunk does not end in CR LF")),
                },
                State::ChunkSize => match chunk_size(buf)? {
                    None => return Ok(Decoded::NeedMore),
                    Some(0) => self.state = State::Trailers,
                    Some(size) => self.state = State::ChunkData(size),
                },
                State::Trailers => match trailers(buf)? {
                    None => return Ok(Decoded::NeedMore),
                    Some(fields) => {
                        self.state = State::End;
                        return Ok(if fields.is_empty() { Decoded::End } else { Decoded::Trailers(fields) });
                    }
                },
            }
        }
    }
}

fn take(buf: &mut BytesMut, left: u64) -> (Bytes, u64) {
    let count = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
    // The rest of a small buffer goes with it: to share a buffer costs an allocation.
    let data = if count == buf.len() && count <= SMALL { std::mem::take(buf) } else { buf.split_to(count) };
    (data.freeze(), left - count as u64)
}

fn chunk_size(buf: &mut BytesMut) -> Result<Option<u64>, BodyError> {
    let Some(end) = memchr::memchr(b'\n', buf) else {
        return if buf.len() > CHUNK_LINE { Err(BodyError::Malformed("chunk size line too long")) } else { Ok(None) };
    };
    let line = buf.split_to(end + 1);
    let digits = line.strip_suffix(b"\r\n").ok_or(BodyError::Malformed("bare LF after a chunk size"))?;
    let plain = (1..=15).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    let size = std::str::from_utf8(digits).ok().filter(|_| plain).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    size.map(Some).ok_or(BodyError::Malformed("chunk size is not a plain hexadecimal number"))
}

/// Reads the trailer section. Trailers never become header fields; fields that mean something in a head are refused.
fn trailers(buf: &mut BytesMut) -> Result<Option<Fields>, BodyError> {
    if buf.get(..2) == Some(b"\r\n") {
        let _ = buf.split_to(2);
        return Ok(Some(Fields::default()));
    }
    let end = super::head::find_end(buf, 0).map_err(|_| BodyError::Malformed("bare CR or LF in trailers"))?;
    // Also when they come all at once.
    if end.unwrap_or(buf.len()) > TRAILER_BYTES {
        return Err(BodyError::Malformed("trailers too long"));
    }
    let Some(end) = end else { return Ok(None) };
    let text = buf.split_to(end);
    super::head::trailers(&text).map(Some).map_err(BodyError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_are_bounded_however_they_arrive() {
        let text = |bytes: usize| format!("0\r\nx-a: {}\r\n\r\n", "v".repeat(bytes));
        for step in [7, 1 << 20] {
            assert!(read(Framing::Chunked, text(1000).as_bytes(), step).is_ok());
            assert!(read(Framing::Chunked, text(TRAILER_BYTES).as_bytes(), step).is_err(), "{step}");
        }
    }

    /// Feeds `text` in pieces of `step` bytes; returns the body, or the error, and what was left over.
    fn read(framing: Framing, text: &[u8], step: usize) -> Result<(Vec<u8>, usize, Vec<u8>), BodyError> {
        let (mut decoder, mut buf, mut body, mut trailers) = (Decoder::new(framing), BytesMut::new(), Vec::new(), 0);
        let mut pieces = text.chunks(step);
        loop {
            match decoder.decode(&mut buf)? {
                Decoded::Data(data) => body.extend_from_slice(&data),
                Decoded::Trailers(fields) => trailers = fields.len(),
                Decoded::End => break,
                Decoded::NeedMore => match pieces.next() {
                    Some(piece) => buf.extend_from_slice(piece),
                    None => {
                        decoder.end_of_input()?;
                        break;
                    }
                },
            }
        }
        let rest = buf.iter().copied().chain(pieces.flatten().copied()).collect();
        Ok((body, trailers, rest))
    }

    #[test]
    fn every_split_of_the_bytes_reads_the_same() {
        let text = b"4\r\nWiki\r\n5\r\npedia\r\n0\r\nX-Sum: 1\r\n\r\nGET /";
        for step in 1..text.len() {
            assert_eq!(read(Framing::Chunked, text, step).unwrap(), (b"Wikipedia".to_vec(), 1, b"GET /".to_vec()), "{step}");
        }
        assert_eq!(read(Framing::Length(3), b"abcdef", 2).unwrap(), (b"abc".to_vec(), 0, b"def".to_vec()));
        assert_eq!(read(Framing::UntilClose, b"abcdef", 2).unwrap().0, b"abcdef");
    }

    #[test]
    fn doubtful_chunks_are_refused() {
        for text in [
            "4;ext=1\r\nWiki\r\n0\r\n\r\n",
            "+4\r\nWiki\r\n0\r\n\r\n",
            "0x4\r\nWiki\r\n0\r\n\r\n",
            " 4\r\nWiki\r\n0\r\n\r\n",
            "4 \r\nWiki\r\n0\r\n\r\n",
            "4\nWiki\r\n0\r\n\r\n",
            "4\r\nWikiX\r\n0\r\n\r\n",
            "4\r\nWiki\n0\r\n\r\n",
            "\r\nWiki\r\n0\r\n\r\n",
            "10000000000000000\r\nWiki",
            "fffffffffffffffff\r\nWiki",
            "-1\r\nWiki",
            "0\r\nContent-Length: 3\r\n\r\n",
            "0\r\nAuthorization: x\r\n\r\n",
            "0\r\nHost: x\r\n\r\n",
            "0\r\nX: a\nY: b\r\n\r\n",
            "4\r\nWi",
        ] {
            assert!(read(Framing::Chunked, text.as_bytes(), 64).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_short_body_is_an_error() {
        assert!(read(Framing::Length(10), b"abc", 1).is_err());
    }
}
