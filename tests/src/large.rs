//! A program with large answers, for callers that take their time.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

/// Bytes of a large answer: more than any buffer holds.
const LARGE: usize = 64 << 20;
/// Bytes written at a time.
const PIECE: usize = 16 << 10;

/// Between two events.
const SILENCE: Duration = Duration::from_secs(5);

/// Answers every GET, those for `/large` with much, those for a number with so many bytes and those for `/events` with two words a while
/// apart, and waits for the whole of a body.
pub async fn large(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        connections.spawn(async move {
            let mut head = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut head).await {
                let head = head.get(..count).unwrap_or_default();
                if !head.starts_with(b"GET") {
                    continue;
                }
                if head.starts_with(b"GET /events") {
                    let first = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nfirst";
                    let _ = stream.write_all(first).await;
                    tokio::time::sleep(SILENCE).await;
                    let _ = stream.write_all(b"second").await;
                    return;
                }
                let mut left = length(head);
                let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {left}\r\n\r\n").as_bytes()).await;
                while left > 0 {
                    let piece = [b'x'; PIECE];
                    let Ok(count) = stream.write(piece.get(..left).unwrap_or(&piece)).await else { return };
                    left -= count;
                }
            }
        });
    }
}

/// Bytes of the answer.
fn length(head: &[u8]) -> usize {
    let path = head.strip_prefix(b"GET /").unwrap_or_default().split(|byte| *byte == b' ').next().unwrap_or_default();
    match std::str::from_utf8(path) {
        Ok("large") => LARGE,
        Ok(number) => number.parse().unwrap_or(2),
        Err(_) => 2,
    }
}
