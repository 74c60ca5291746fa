//! The checks of `fuzz/` on a stable compiler: over a corpus, and over random variations of it.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]

#[path = "../fuzz/src/checks.rs"]
#[expect(unreachable_pub, reason = "the fuzz targets name these checks from outside")]
mod checks;

use outrider_agent::http::h1::digest as digest_http1;
use outrider_agent::mesh::{
    digest,
    frame::{Kind, put},
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// Kind, flags, stream and payload of a frame of HTTP/2.
type H2Frame = (u8, u8, u8, &'static [u8]);
/// A check, and bytes for it.
type Seed = (fn(&[u8]), Vec<u8>);
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

/// Connections of HTTP/1.1, of callers and of programs.
const HTTP1: [(bool, &[u8]); 9] = [
    (true, b"GET http://orders.shop?c HTTP/1.1\r\nhost: orders.shop\r\n\r\n"),
    (true, b"GET /a/%62?c HTTP/1.1\r\nHost: orders.shop\r\nx-a: b\r\n\r\nPOST /b HTTP/1.1\r\nhost: orders.shop:80\r\ncontent-length: 3\r\n\r\nabcGET / HTTP/1.0\r\nhost: a\r\n\r\n"),
    (true, b"\r\n\r\nPOST http://orders.shop/c HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\n4\r\nWiki\r\nc\r\npedia in all\r\n0\r\nx-sum: 1\r\n\r\n"),
    (true, b"GET /ws HTTP/1.1\r\nhost: [::1]:8080\r\nconnection: Upgrade, close\r\nupgrade: websocket\r\n\r\n\x81\x00"),
    (true, b"OPTIONS * HTTP/1.1\r\nhost: a\r\nconnection: x-b\r\nx-b: c\r\nte: trailers\r\nexpect: 100-continue\r\n\r\n"),
    (true, b"CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\ncookie: a=b; c\r\n\r\n"),
    (false, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 204 \r\n\r\nHTTP/1.1 100 \r\n\r\nHTTP/1.0 500 x\r\n\r\nto the end"),
    (false, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\nHTTP/1.1 304 \r\ncontent-length: 9\r\n\r\n"),
    (false, b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\x81"),
];

/// Frames of HTTP/2 without their lengths.
const HTTP2: [&[H2Frame]; 4] = [
    &[(4, 0, 0, &[]), (1, 4, 1, &[0x82, 0x86, 0x84, 0x41, 1, b'a']), (0, 0, 1, b"body"), (1, 5, 1, b"\x40\x01a\x01b")],
    &[(1, 0x28, 1, &[2, 0, 0, 0, 0, 9, 0x82, 0x7f, 0x80, 1, 0, 0, 0]), (9, 0, 1, &[0x3f, 0xe1, 0x1f, 0x82]), (9, 4, 1, &[])],
    &[(1, 4, 3, &[0x82; 90]), (1, 4, 5, &[0x82; 150]), (1, 0, 7, &[0x82; 110]), (9, 4, 7, &[0x82; 20]), (3, 0, 3, &[0; 4])],
    &[(6, 0, 0, &[0; 8]), (8, 0, 0, &[0, 0, 0, 1]), (2, 0, 3, &[0; 5]), (0xfa, 0, 0, b"what?"), (7, 0, 0, &[0; 8])],
];

const NAMES: [&[u8]; 4] = [
    b"8080.files.shop.mesh.internal",
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"orj1.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    b"\x30\x82\x01\x0a\x30\x81\xb0\xa0\x03\x02\x01\x02\x02\x01\x01\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02",
];

const CLAIMS: [&[u8]; 3] = [
    br#"{"sub":"spiffe://mesh.internal/ns/shop/sa/web","aud":["orders"],"exp":1800000060,"iat":1799999999}"#,
    br#"{"sub":"spiffe://mesh.internal/ns/shop/sa/web","aud":"orders","exp":1.8e9,"nbf":-1,"own":{"deep":[1,null]}}"#,
    br#"{"aud":"orders","exp":1e999,"sub":"spiffe://evil/ns/shop/sa/web"}"#,
];

const RECORDS: [&[u8]; 2] = [b"\x01\x14outrider handover 1\0", b"\x03\x0dmesh.sock.0\xc3\xa4"];

fn frames(frames: &[H2Frame]) -> Vec<u8> {
    let frame = |(kind, flags, stream, payload): &H2Frame| {
        [&[0, 0, u8::try_from(payload.len()).unwrap(), *kind, *flags, 0, 0, 0, *stream][..], payload].concat()
    };
    frames.iter().flat_map(frame).collect()
}

/// All but those of the mesh, each with the check that it is for.
fn seeds() -> Vec<Seed> {
    let http1 = HTTP1.map(|(requests, bytes)| [&[u8::from(!requests)], bytes].concat());
    let http2 = HTTP2.map(|each| [vec![3], frames(each)].concat());
    let of = |check: fn(&[u8]), bytes: Vec<Vec<u8>>| bytes.into_iter().map(move |bytes| (check, bytes)).collect::<Vec<_>>();
    let plain = |bytes: &[&[u8]]| bytes.iter().map(|bytes| bytes.to_vec()).collect::<Vec<_>>();
    [
        of(checks::http1, http1.to_vec()),
        of(checks::http2, http2.to_vec()),
        of(checks::names, plain(&NAMES)),
        of(checks::token, plain(&CLAIMS)),
        of(checks::handover, plain(&RECORDS)),
    ]
    .concat()
}

type Edits = Vec<(Index, u8, u8)>;

fn edits() -> impl Strategy<Value = Edits> {
    vec((any::<Index>(), 0..4_u8, any::<u8>()), 0..6)
}

fn edited(mut bytes: Vec<u8>, edits: Edits) -> Vec<u8> {
    for (at, edit, byte) in edits {
        let at = at.index(bytes.len().max(1)).min(bytes.len());
        match edit {
            0 => bytes.insert(at, byte),
            1 => drop(bytes.splice(at..bytes.len().min(at + 1), [byte])),
            2 if at > 0 => bytes.truncate(at),
            _ => bytes.extend_from_within(at..),
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_frames_that_hold_to_the_bounds_or_a_violation_however_they_are_cut(
        at in any::<Index>(),
        first in any::<u8>(),
        edits in edits(),
        again in any::<bool>(),
    ) {
        let (callee, frames) = CORPUS[at.index(CORPUS.len())];
        let bytes = written(frames).repeat(if again { 2 } else { 1 });
        let mut bytes = edited(bytes, edits);
        bytes.insert(0, (first & !1) | u8::from(!callee));
        checks::mesh(&bytes);
    }

    #[test]
    fn any_bytes_of_any_other_kind_hold_to_what_is_promised_of_them(at in any::<Index>(), edits in edits(), cut in 0..64_u8) {
        let seeds = seeds();
        let (check, bytes) = seeds[at.index(seeds.len())].clone();
        let mut bytes = edited(bytes, edits);
        check(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = first.wrapping_add(cut * 2);
            check(&bytes);
        }
    }
}

#[test]
fn each_check_has_a_target_and_each_target_a_check() {
    let read = |path: &str| std::fs::read_to_string(format!("{}/fuzz/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (manifest, mut checked) = (read("Cargo.toml"), Vec::new());
    for file in ["checks", "dns"] {
        let text = read(&format!("src/{file}.rs"));
        let names = text.lines().filter_map(|line| line.strip_prefix("pub fn ")?.split_once("(data: &[u8])"));
        for (name, _) in names {
            let target = read(&format!("fuzz_targets/{name}.rs"));
            assert!(target.contains(&format!("../src/{file}.rs")) && target.contains(&format!("{file}::{name}(data)")), "{name}");
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is not in the manifest");
            checked.push(name.to_owned());
        }
    }
    assert_eq!(manifest.matches("[[bin]]").count(), checked.len(), "{checked:?}");
}

#[test]
fn seeds_are_what_they_are_meant_to_be() {
    seeds().iter().for_each(|(check, bytes)| check(bytes));
    let read = |(requests, bytes): (bool, &[u8])| digest_http1(bytes, 7, requests);
    let counts = HTTP1.map(read).map(|seen| (seen.len(), seen.iter().any(|line| line == "refused" || line == "broken")));
    assert_eq!(
        counts,
        [(1, false), (3, false), (1, false), (1, false), (1, false), (1, false), (4, false), (2, false), (1, false)],
        "{:#?}",
        HTTP1.map(read)
    );
}

#[test]
fn the_corpus_passes_unchanged() {
    let counts = CORPUS.map(|(callee, frames)| digest(&written(frames), 7, callee));
    assert_eq!(counts, [Ok(2), Ok(1), Ok(1), Ok(3), Ok(2), Ok(1)]);
}
