//! Tells HTTP/2 with prior knowledge from HTTP/1.1 by the bytes a client must send first (RFC 9113 section 3.4).

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;

use super::SharedIo;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether the client speaks HTTP/2. What was read is put back.
///
/// # Errors
/// When the connection ends before it has said enough.
pub async fn is_http2(io: &mut SharedIo) -> std::io::Result<bool> {
    let mut seen = BytesMut::with_capacity(1 << 10);
    loop {
        if io.read_buf(&mut seen).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let known = seen.len().min(PREFACE.len());
        let same = seen.get(..known) == PREFACE.get(..known);
        if !same || known == PREFACE.len() {
            io.unread(seen);
            return Ok(same);
        }
    }
}
