//! HTTP/2 by hand: frames that no library would send, and what comes back for them. One request a connection, on stream 1.

use std::{io, time::Duration};

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Whether a frame ends its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// More follows.
    No,
    /// It is the last.
    Yes,
}

/// The first thing that came back for stream 1, or for the whole connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum H2Answer {
    /// A response's head.
    Status(u16),
    /// RST_STREAM with this error code.
    Reset(u32),
    /// GOAWAY with this error code.
    GoAway(u32),
    /// The connection ended without a word.
    Closed,
}

/// A frame of HTTP/2 (RFC 9113 section 4.1).
///
/// # Panics
/// When the payload or the number of the stream is too large for one.
pub fn h2_frame(kind: u8, flags: u8, stream: usize, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    let stream = u32::try_from(stream).expect("a stream").to_be_bytes();
    [&length[..], &[kind, flags], &stream, payload].concat()
}

fn end_stream(ends: Ends) -> u8 {
    if ends == Ends::Yes { END_STREAM } else { 0 }
}

/// What a client says first: the preface and empty SETTINGS.
pub fn h2_opening() -> Vec<u8> {
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()
}

/// Fields to the letter, in HPACK without compression (RFC 7541 section 6.2.2).
pub fn h2_block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // An integer with a prefix of seven bits (section 5.1); no Huffman code.
            match text.len().checked_sub(127) {
                None => block.extend(text.len().to_be_bytes().last()),
                Some(mut rest) => {
                    block.push(127);
                    while rest >= 128 {
                        block.extend(((rest & 127) | 128).to_be_bytes().last());
                        rest >>= 7;
                    }
                    block.extend(rest.to_be_bytes().last());
                }
            }
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A HEADERS frame with this block.
pub fn h2_head(block: &[u8], ends: Ends) -> Vec<u8> {
    h2_frame(HEADERS, END_HEADERS | end_stream(ends), 1, block)
}

/// A HEADERS frame with these fields to the letter.
pub fn h2_headers(fields: &[(&str, &str)], ends: Ends) -> Vec<u8> {
    h2_head(&h2_block(fields), ends)
}

/// A DATA frame.
pub fn h2_data(data: &str, ends: Ends) -> Vec<u8> {
    h2_frame(DATA, end_stream(ends), 1, data.as_bytes())
}

/// All that a client says to make a request without body.
pub fn h2_request(pseudo: &[(&str, &str)], fields: &[(&str, &str)]) -> Vec<u8> {
    [h2_opening(), h2_headers(&[pseudo, fields].concat(), Ends::Yes)].concat()
}

/// Reads what comes back.
///
/// # Errors
/// When nothing does in time, or what comes is not understood.
pub async fn h2_answer(io: &mut (impl AsyncRead + Unpin)) -> io::Result<H2Answer> {
    tokio::time::timeout(PATIENCE, answer(io)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Reads a body to the end of its stream, and returns its length.
///
/// # Errors
/// When the connection ends before.
pub async fn h2_body(io: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
    let mut length = 0;
    while let Some(frame) = next(io).await? {
        if frame.kind == DATA {
            length += frame.payload.len();
            if frame.flags & END_STREAM != 0 {
                return Ok(length);
            }
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u8,
    payload: Vec<u8>,
}

/// The next frame; `None` when the connection has ended.
async fn next(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0; 9];
    if io.read_exact(&mut head).await.is_err() {
        return Ok(None);
    }
    let [high, middle, low, kind, flags, _, _, _, stream] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
    io.read_exact(&mut payload).await?;
    Ok(Some(Frame { kind, flags, stream, payload }))
}

async fn answer(io: &mut (impl AsyncRead + Unpin)) -> io::Result<H2Answer> {
    loop {
        let Some(Frame { kind, stream, payload, .. }) = next(io).await? else { return Ok(H2Answer::Closed) };
        let code = |at: usize| payload.get(at..at + 4).and_then(|code| code.try_into().ok()).map(u32::from_be_bytes);
        let found = match (kind, stream) {
            (HEADERS, 1) => status(&payload).map(H2Answer::Status),
            (RST_STREAM, 1) => code(0).map(H2Answer::Reset),
            (GOAWAY, _) => code(4).map(H2Answer::GoAway),
            _ => continue,
        };
        return found.ok_or_else(|| io::ErrorKind::InvalidData.into());
    }
}

/// The status at the beginning of the first header block of a connection (RFC 7541 section 6 and appendices A and B).
fn status(block: &[u8]) -> Option<u16> {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match *block {
        [index @ 0x88..=0x8e, ..] => INDEXED.get(usize::from(index - 0x88)).copied(),
        [0x48 | 0x08 | 0x18, length, ref rest @ ..] => {
            let text = rest.get(..usize::from(length & 0x7f))?;
            if length & 0x80 == 0 { std::str::from_utf8(text).ok()?.parse().ok() } else { digits(text) }
        }
        _ => None,
    }
}

/// Three digits in Huffman code: 0, 1 and 2 have the five bits of their number, the others six.
fn digits(text: &[u8]) -> Option<u16> {
    let mut bits = text.iter().flat_map(|byte| (0..8).rev().map(move |at| u16::from(byte >> at & 1)));
    let mut number = 0;
    for _ in 0..3 {
        let mut code = 0;
        for _ in 0..5 {
            code = code << 1 | bits.next()?;
        }
        let digit = if code <= 2 { code } else { (code << 1 | bits.next()?).checked_sub(0b01_0110)? };
        number = number * 10 + digit;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_in_every_form() {
        assert_eq!(status(&[0x88]), Some(200));
        assert_eq!(status(&[0x8c, 1, 2]), Some(400));
        assert_eq!(status(b"\x08\x03403"), Some(403));
        // RFC 7541 appendix C.6: 302 and 307.
        assert_eq!(status(&[0x48, 0x82, 0x64, 0x02]), Some(302));
        assert_eq!(status(&[0x48, 0x83, 0x64, 0x0e, 0xff]), Some(307));
        assert_eq!(status(&[]), None);
    }

    #[test]
    fn long_texts_have_their_length_in_more_than_one_byte() {
        for (length, bytes) in [(126, &[126][..]), (127, &[127, 0]), (1337 + 96, &[127, 154, 10])] {
            let block = h2_block(&[("a", &"x".repeat(length))]);
            assert_eq!(block, [&[0, 1, b'a'], bytes, "x".repeat(length).as_bytes()].concat(), "{length}");
        }
    }
}
