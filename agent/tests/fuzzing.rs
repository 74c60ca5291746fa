//! The checks of `fuzz/` on a stable compiler: over a corpus, and over random variations of it.

#[path = "../fuzz/src/checks.rs"]
#[expect(unreachable_pub, reason = "the fuzz targets name these checks from outside")]
mod checks;

use outrider_agent::mesh::{
    digest,
    frame::{Kind, put},
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

type Written = (u32, Kind, bool, &'static [u8]);

const GET: &[u8] = b"GET /a/%62?c HTTP/1.1\r\nhost: orders.shop\r\nx-a: b\r\n\r\n";
const POST: &[u8] = b"POST /a HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 5\r\n\r\n";
const SWITCH: &[u8] = b"GET /a HTTP/1.1\r\nhost: orders.shop\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 \r\ncontent-length: 5\r\n\r\n";
const OPEN_END: &[u8] = b"HTTP/1.1 200 \r\nx-a: b\r\n\r\n";
const SWITCHED: &[u8] = b"HTTP/1.1 101 \r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
const NUMBER: &[u8] = &[0, 0, 1, 0];
const PING: &[u8] = &[7; 8];

/// What a caller's agent writes, and what a callee's does.
const CORPUS: [(bool, &[Written]); 6] = [
    (
        true,
        &[(1, Kind::Head, true, GET), (2, Kind::Head, false, POST), (2, Kind::Data, false, b"hel"), (2, Kind::Data, true, b"lo")],
    ),
    (
        true,
        &[
            (4, Kind::Head, false, GET),
            (4, Kind::Data, false, b"x"),
            (4, Kind::Trailers, true, b"a: b\r\n"),
            (4, Kind::Reset, false, &[0; 4]),
        ],
    ),
    (
        true,
        &[
            (0, Kind::Ping, false, PING),
            (9, Kind::Head, false, SWITCH),
            (9, Kind::Data, false, b"x"),
            (0, Kind::Goaway, false, PING),
        ],
    ),
    (
        false,
        &[
            (1, Kind::Head, false, OK),
            (1, Kind::Data, true, b"hello"),
            (2, Kind::Head, true, OK),
            (3, Kind::Head, true, OPEN_END),
        ],
    ),
    (
        false,
        &[
            (3, Kind::Head, false, SWITCHED),
            (3, Kind::Data, false, b"x"),
            (1, Kind::Head, false, OPEN_END),
            (1, Kind::Trailers, true, b""),
        ],
    ),
    (
        false,
        &[(2, Kind::Reset, false, NUMBER), (0, Kind::Goaway, false, &[0, 0, 0, 1, 0, 0, 0, 0]), (1, Kind::Head, false, OPEN_END)],
    ),
];

fn written(frames: &[Written]) -> Vec<u8> {
    let mut wire = Vec::new();
    for (stream, kind, end, payload) in frames {
        put(&mut wire, *stream, *kind, *end, payload);
    }
    wire
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_frames_that_hold_to_the_bounds_or_a_violation_however_they_are_cut(
        at in any::<Index>(),
        first in any::<u8>(),
        edits in vec((any::<Index>(), 0..4_u8, any::<u8>()), 0..6),
        again in any::<bool>(),
    ) {
        let (callee, frames) = CORPUS[at.index(CORPUS.len())];
        let mut bytes = written(frames);
        if again {
            bytes = bytes.repeat(2);
        }
        for (at, edit, byte) in edits {
            let at = at.index(bytes.len().max(1)).min(bytes.len());
            match edit {
                0 => bytes.insert(at, byte),
                1 => {
                    let last = bytes.len() - 1;
                    bytes[at.min(last)] = byte;
                }
                2 if at > 0 => bytes.truncate(at),
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes.insert(0, (first & !1) | u8::from(!callee));
        checks::mesh(&bytes);
    }
}

#[test]
fn the_corpus_passes_unchanged() {
    let counts = CORPUS.map(|(callee, frames)| digest(&written(frames), 7, callee));
    assert_eq!(counts, [Ok(2), Ok(1), Ok(1), Ok(3), Ok(2), Ok(1)]);
}
