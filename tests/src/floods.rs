//! Floods, row by row: frames that cost an agent much and their sender nothing, over HTTP/2 and by the mesh protocol. Short in
//! `tests/tests/floods.rs`, for long in `cargo xtask soak floods`.

use outrider_agent::mesh::frame::{Kind, put};

use crate::{h2_block, h2_frame as frame, h2_opening as opening};

/// How often a flood sends what it sends.
pub const TIMES: usize = 1500;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Most bytes of a frame.
const MOST: usize = 16 << 10;

fn pseudo(method: &str) -> Vec<u8> {
    h2_block(&[(":method", method), (":scheme", "http"), (":authority", "orders.shop"), (":path", "/slow")])
}

/// What must become of a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The agent ends the connection.
    Closed,
    /// It may go on: each frame is answered, refused, or costs nothing.
    Bounded,
}

/// A flood: its name, what opens it, its frames one by one, and its end.
pub struct Flood {
    /// What it is.
    pub name: &'static str,
    before: Vec<u8>,
    each: Box<dyn Fn(usize) -> Vec<u8>>,
    /// What must become of it.
    pub end: End,
}

impl Flood {
    /// What opens it.
    pub fn opening(&self) -> &[u8] {
        &self.before
    }

    /// What it sends the time `at`.
    pub fn next(&self, at: usize) -> Vec<u8> {
        (self.each)(at)
    }
}

fn flood(name: &'static str, end: End, before: Vec<u8>, each: impl Fn(usize) -> Vec<u8> + 'static) -> Flood {
    Flood { name, before, each: Box::new(each), end }
}

/// The rows of what was done to others over HTTP/2.
pub fn over_http2() -> Vec<Flood> {
    let post = || [opening(), frame(HEADERS, END_HEADERS, 1, &pseudo("POST"))].concat();
    let id = |number: usize| 2 * number + 1;
    // An entry of 4000 bytes in the table, and how often it is named: one byte each.
    let entry = [pseudo("GET"), vec![0x40, 1, b'a', 0x7f, 0xa1, 0x1e], vec![b'v'; 4000]].concat();
    let bomb = [pseudo("GET"), vec![0x80 | 62; 1000]].concat();
    // Nine times it is larger than a head may be, and has fewer fields.
    let too_large = [pseudo("GET"), vec![0x80 | 62; 9]].concat();
    let crumbs = [pseudo("GET"), h2_block(&[("cookie", "a")]).repeat(700)].concat();
    let tiny = [pseudo("GET"), h2_block(&[("a", "b")]).repeat(900)].concat();
    let mut rows = vec![
        flood("rapid reset", End::Closed, opening(), move |number| {
            let head = frame(HEADERS, END_HEADERS | END_STREAM, id(number), &pseudo("GET"));
            [head, frame(RST_STREAM, 0, id(number), &[0, 0, 0, 8])].concat()
        }),
        flood("resets that the agent is made to send", End::Closed, opening(), move |number| {
            let head = frame(HEADERS, END_HEADERS, id(number), &pseudo("POST"));
            [head, frame(WINDOW_UPDATE, 0, id(number), &[0; 4])].concat()
        }),
        flood("CONTINUATION without end", End::Closed, [opening(), frame(HEADERS, 0, 1, &pseudo("GET"))].concat(), |_| {
            frame(CONTINUATION, 0, 1, &h2_block(&[("x-a", "b")]))
        }),
        flood("empty CONTINUATION", End::Closed, [opening(), frame(HEADERS, 0, 1, &pseudo("GET"))].concat(), |_| {
            frame(CONTINUATION, 0, 1, &[])
        }),
        flood(
            "a small head that becomes a large one",
            End::Closed,
            [opening(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &entry)].concat(),
            move |number| frame(HEADERS, END_HEADERS | END_STREAM, id(number + 1), &bomb),
        ),
        flood(
            "small heads that become too large",
            End::Closed,
            [opening(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &entry)].concat(),
            move |number| frame(HEADERS, END_HEADERS | END_STREAM, id(number + 1), &too_large),
        ),
        flood("crumbs of cookies", End::Closed, opening(), move |number| {
            frame(HEADERS, END_HEADERS | END_STREAM, id(number), &crumbs)
        }),
        flood("many tiny fields", End::Closed, opening(), move |number| {
            frame(HEADERS, END_HEADERS | END_STREAM, id(number), &tiny)
        }),
        flood("empty DATA", End::Closed, post(), |_| frame(DATA, 0, 1, &[])),
        flood("DATA of nothing but padding", End::Bounded, post(), |_| frame(DATA, 8, 1, &[200; 201])),
        flood("a byte of DATA at a time", End::Bounded, post(), |_| frame(DATA, 0, 1, b"x")),
        flood("PING", End::Closed, opening(), |_| frame(PING, 0, 0, b"12345678")),
        flood("SETTINGS", End::Closed, opening(), |_| frame(SETTINGS, 0, 0, &[])),
        flood("SETTINGS that change the windows of all streams", End::Closed, post(), |number| {
            frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 1, u8::from(number % 2 == 0)])
        }),
        flood("PRIORITY", End::Closed, opening(), |_| frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1])),
        flood("WINDOW_UPDATE of one", End::Closed, opening(), |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        flood("WINDOW_UPDATE of nothing", End::Closed, opening(), |_| frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        flood("frames that nobody knows", End::Closed, opening(), |_| frame(0xfa, 0, 0, b"what?")),
        flood("GOAWAY", End::Closed, opening(), |_| frame(GOAWAY, 0, 0, &[0; 8])),
        flood("PUSH_PROMISE", End::Closed, opening(), |_| frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])),
        flood("RST_STREAM of one stream", End::Closed, post(), |_| frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])),
        flood("more streams than there may be", End::Bounded, opening(), move |number| {
            frame(HEADERS, END_HEADERS, id(number), &pseudo("POST"))
        }),
    ];
    rows.extend(trailers_over_http2());
    rows.extend(large_heads_over_http2());
    rows
}

/// Heads that are nearly as large as heads may be, on streams that stay.
fn large_heads_over_http2() -> Vec<Flood> {
    let id = |number: usize| 2 * number + 1;
    let open = move |number: usize, fields: &[u8]| {
        let block = [pseudo("POST"), fields.to_vec()].concat();
        let (first, rest) = block.split_at(MOST);
        [frame(HEADERS, 0, id(number), first), frame(CONTINUATION, END_HEADERS, id(number), rest)].concat()
    };
    let entry = [pseudo("POST"), vec![0x40, 1, b'a', 0x7f, 0xa1, 0x1e], vec![b'v'; 4000]].concat();
    let table = [opening(), frame(HEADERS, END_HEADERS, 1, &entry)].concat();
    let named = [pseudo("POST"), vec![0x80 | 62; 7]].concat();
    let many = h2_block(&[("x-a", &"v".repeat(280))]).repeat(90);
    let few = h2_block(&[("x-a", &"v".repeat(9 << 10))]).repeat(3);
    vec![
        flood("heads of many fields on streams that stay", End::Bounded, opening(), move |number| open(number, &many)),
        flood("heads of large fields on streams that stay", End::Bounded, opening(), move |number| open(number, &few)),
        // An entry of 4000 bytes in the table, named seven times in each.
        flood("small heads that become large ones on streams that stay", End::Bounded, table, move |number| {
            frame(HEADERS, END_HEADERS, id(number + 1), &named)
        }),
    ]
}

/// Those with trailers, which come once and end their stream.
fn trailers_over_http2() -> Vec<Flood> {
    let head = |stream, method, flags| frame(HEADERS, END_HEADERS | flags, stream, &pseudo(method));
    let post = move || [opening(), head(1, "POST", 0)].concat();
    let field = || h2_block(&[("x-a", "b")]);
    let id = |number: usize| 2 * number + 1;
    let many = (0..200).flat_map(move |number| head(id(number), "POST", 0));
    vec![
        flood("trailers that do not end the stream", End::Closed, post(), move |_| frame(HEADERS, END_HEADERS, 1, &field())),
        flood("the same on 200 streams in turn", End::Closed, [opening(), many.collect()].concat(), move |number| {
            frame(HEADERS, END_HEADERS, id(number % 200), &field())
        }),
        flood("the same on a new stream each time", End::Closed, opening(), move |number| {
            [head(id(number), "POST", 0), frame(HEADERS, END_HEADERS, id(number), &field())].concat()
        }),
        flood("trailers after the end", End::Closed, [opening(), head(1, "GET", END_STREAM)].concat(), move |_| {
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &field())
        }),
        flood("CONTINUATION after the end of a head", End::Closed, post(), move |_| {
            frame(CONTINUATION, END_HEADERS, 1, &field())
        }),
        flood("trailers that go on in CONTINUATION", End::Closed, [post(), frame(HEADERS, 0, 1, &field())].concat(), move |_| {
            frame(CONTINUATION, 0, 1, &field())
        }),
        flood("trailers of many fields", End::Closed, opening(), move |number| {
            let trailers = frame(HEADERS, END_HEADERS | END_STREAM, id(number), &field().repeat(800));
            [head(id(number), "POST", 0), trailers].concat()
        }),
    ]
}

/// The same by the mesh protocol.
pub fn over_mesh() -> Vec<Flood> {
    let wire = |stream: u32, kind, end, payload: &[u8]| {
        let mut wire = Vec::new();
        put(&mut wire, stream, kind, end, payload);
        wire
    };
    let number = |number: usize| u32::try_from(number).expect("a stream") + 1;
    let post = wire(1, Kind::Head, false, b"POST /slow HTTP/1.1\r\nhost: orders.shop\r\n\r\n");
    let get = b"GET /slow HTTP/1.1\r\nhost: orders.shop\r\n\r\n";
    let tiny = [&b"GET /slow HTTP/1.1\r\nhost: orders.shop\r\n"[..], &b"a: b\r\n".repeat(2000), b"\r\n"].concat();
    let trailers = wire(1, Kind::Trailers, true, b"x-a: b\r\n");
    let large = |fields: &str| ["POST /slow HTTP/1.1\r\nhost: orders.shop\r\n", fields, "\r\n"].concat();
    let many = large(&format!("x-a: {}\r\n", "v".repeat(280)).repeat(90));
    let few = large(&format!("x-a: {}\r\n", "v".repeat(9 << 10)).repeat(3));
    vec![
        flood("heads of many fields on streams that stay", End::Bounded, Vec::new(), move |at| {
            wire(number(at), Kind::Head, false, many.as_bytes())
        }),
        flood("heads of large fields on streams that stay", End::Bounded, Vec::new(), move |at| {
            wire(number(at), Kind::Head, false, few.as_bytes())
        }),
        flood("rapid reset", End::Closed, Vec::new(), move |at| {
            [wire(number(at), Kind::Head, true, get), wire(number(at), Kind::Reset, false, &[0; 4])].concat()
        }),
        flood("PING", End::Closed, Vec::new(), move |_| wire(0, Kind::Ping, false, &[7; 8])),
        flood("empty DATA", End::Closed, post.clone(), move |_| wire(1, Kind::Data, false, b"")),
        flood("a byte of DATA at a time", End::Bounded, post.clone(), move |_| wire(1, Kind::Data, false, b"x")),
        flood("WINDOW of one", End::Closed, post.clone(), move |_| wire(0, Kind::Window, false, &[0, 0, 0, 1])),
        flood("RESET of one stream", End::Closed, post.clone(), move |_| wire(1, Kind::Reset, false, &[0; 4])),
        flood("GOAWAY", End::Bounded, Vec::new(), move |_| wire(0, Kind::Goaway, false, &[0; 8])),
        flood("many tiny fields", End::Closed, Vec::new(), move |at| wire(number(at), Kind::Head, true, &tiny)),
        flood("trailers after the end", End::Closed, post.clone(), move |_| trailers.clone()),
        flood("trailers after the end of the stream", End::Closed, wire(1, Kind::Head, true, get), move |_| {
            wire(1, Kind::Trailers, true, b"x-a: b\r\n")
        }),
        flood("more streams than there may be", End::Bounded, Vec::new(), move |at| {
            wire(number(at), Kind::Head, false, b"POST /slow HTTP/1.1\r\nhost: orders.shop\r\n\r\n")
        }),
    ]
}
