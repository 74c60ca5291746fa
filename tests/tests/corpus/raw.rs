//! Requests as bytes: whatever two readers of HTTP/1.1 were ever known to understand differently, and every byte where it does not
//! belong.

/// A request, or what looks like one.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    /// What it tries.
    pub(crate) what: String,
    /// What is written on a connection of its own.
    pub(crate) bytes: Vec<u8>,
}

/// What follows a request: the next one where it is clear that the body is over, else one that is hidden in what may be a body,
/// and that nobody may ever see as a request.
fn next(fields: &str) -> String {
    let path = if is_doubtful(fields) { "/hidden" } else { "/next" };
    format!("GET {path} HTTP/1.1\r\nhost: orders.shop\r\n\r\n")
}

/// A request that is a whole body.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nhost: orders.shop\r\n\r\n";

/// Whether two readers could find the end of the body in different places.
fn is_doubtful(fields: &str) -> bool {
    const SIGNS: [&str; 26] = [
        ",",
        "identity",
        "gzip",
        "cow",
        "xchunk",
        "chunkedx",
        "chunke\r",
        "\"",
        "'",
        ";",
        "\u{b}",
        "\0",
        "+",
        "-5",
        "0x",
        "five",
        "e0",
        ".0",
        "\n ",
        " :",
        "\t:",
        "_",
        "18446",
        "99999",
        "42949",
        "expect: 200",
    ];
    let framings = fields
        .to_ascii_lowercase()
        .split("\r\n")
        .filter(|line| line.contains("content-length:") || line.contains("transfer-encoding:"))
        .count();
    let bare = fields.replace("\r\n", "").contains(['\r', '\n']);
    framings > 1 || bare || fields.starts_with(' ') || SIGNS.iter().any(|sign| fields.contains(sign))
}

const TARGETS: [&str; 66] = [
    "/",
    "/a",
    "/a/",
    "/a//b",
    "//a",
    "///",
    "/./a",
    "/a/./b",
    "/a/..",
    "/a/../b",
    "/../a",
    "/..",
    "/a/b/../../c",
    "/%2e/a",
    "/%2E%2e/a",
    "/.%2e/a",
    "/a%2fb",
    "/a%2Fb",
    "/a%5cb",
    "/a%5Cb",
    "/a\\b",
    "\\a",
    "/a%00b",
    "/a%0d%0ab",
    "/a%0a",
    "/a%09b",
    "/a%20b",
    "/a%",
    "/a%2",
    "/a%zz",
    "/a%c0%ae",
    "/a%ff",
    "/a%252fb",
    "/a;b",
    "/a;b=c/d",
    "/..;/a",
    "/a/..;x=y/b",
    "/;a/b",
    "/a?",
    "/a?b",
    "/a?b?c",
    "/a?/../b",
    "/a?%00",
    "/a?%zz",
    "/a?b#c",
    "/a#b",
    "/#",
    "/a b",
    "/a\tb",
    "*",
    "a",
    "a/b",
    "",
    "?",
    "http://orders.shop/a",
    "http://orders.shop",
    "http://orders.shop:80/a",
    "HTTP://orders.shop/a",
    "http://other.shop/a",
    "https://orders.shop/a",
    "http://a@orders.shop/a",
    "http:///a",
    "ftp://orders.shop/a",
    "//orders.shop/a",
    "orders.shop:80",
    "/a!$&'()*+,=:@-._~",
];

const HOSTS: [&str; 40] = [
    "host: orders.shop\r\nhost: orders.shop\r\n",
    "host: orders.shop\r\nhost: other\r\n",
    "",
    "host:\r\n",
    "host: \r\n",
    "host: a b\r\n",
    "host: a@b\r\n",
    "host: orders.shop/x\r\n",
    "host: orders.shop?x\r\n",
    "host: orders.shop#x\r\n",
    "host: orders.shop:\r\n",
    "host: orders.shop:0\r\n",
    "host: orders.shop:080\r\n",
    "host: orders.shop:99999\r\n",
    "host: orders.shop:x\r\n",
    "host: orders.shop.\r\n",
    "host: ORDERS.shop\r\n",
    "host: orders.shop, other\r\n",
    "host: [::1]\r\n",
    "host: [::1]:80\r\n",
    "host: [::1\r\n",
    "host: ::1\r\n",
    "host: 127.0.0.1\r\n",
    "host: orders..shop\r\n",
    "host: .orders.shop\r\n",
    "host: -\r\n",
    "host: orders%2eshop\r\n",
    "host: orders\\shop\r\n",
    "host: orders.shop\\\r\n",
    "Host : orders.shop\r\n",
    " host: orders.shop\r\n",
    "host\t: orders.shop\r\n",
    "host: orders.shop\r\n folded\r\n",
    "host: orders.shop\r\n\tfolded: x\r\n",
    "x-a: b\r\n host: orders.shop\r\n",
    "host=orders.shop\r\n",
    "host\r\n",
    ": orders.shop\r\n",
    "host: orders.shop\u{e9}\r\n",
    "host: orders.shop\r\nx-forwarded-host: other\r\n",
];

const FRAMINGS: [&str; 74] = [
    "content-length: 5\r\ncontent-length: 5\r\n",
    "content-length: 5\r\ncontent-length: 6\r\n",
    "content-length: 5, 5\r\n",
    "content-length: 5,6\r\n",
    "content-length: +5\r\n",
    "content-length: -5\r\n",
    "content-length: 0x5\r\n",
    "content-length: 5 \r\n",
    "content-length: \t5\r\n",
    "content-length: 05\r\n",
    "content-length: 5.0\r\n",
    "content-length: 5e0\r\n",
    "content-length: \r\n",
    "content-length:\r\n",
    "content-length: 18446744073709551621\r\n",
    "content-length: 99999999999999999999999\r\n",
    "content-length: 4294967301\r\n",
    "content-length: five\r\n",
    "content-length: 5\r\ntransfer-encoding: chunked\r\n",
    "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
    "content-length : 5\r\n",
    " content-length: 5\r\n",
    "content-length\t: 5\r\n",
    "content_length: 5\r\n",
    "content-length: 5\r\n 0\r\n",
    "Content-Length: 0\r\n",
    "content-length: 0\r\ncontent-length: 40\r\n",
    "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
    "transfer-encoding: chunked, chunked\r\n",
    "transfer-encoding: gzip, chunked\r\n",
    "transfer-encoding: chunked, gzip\r\n",
    "transfer-encoding: identity\r\n",
    "transfer-encoding: identity, chunked\r\n",
    "transfer-encoding: chunked, identity\r\n",
    "transfer-encoding: Chunked\r\n",
    "transfer-encoding: CHUNKED\r\n",
    "transfer-encoding: xchunked\r\n",
    "transfer-encoding: chunkedx\r\n",
    "transfer-encoding: chunke\r\n",
    "transfer-encoding: \"chunked\"\r\n",
    "transfer-encoding: 'chunked'\r\n",
    "transfer-encoding: chunked;q=1\r\n",
    "transfer-encoding: ,chunked\r\n",
    "transfer-encoding: chunked,\r\n",
    "transfer-encoding: , chunked\r\n",
    "transfer-encoding:\r\n",
    "transfer-encoding: \r\n",
    "transfer-encoding:chunked\r\n",
    "transfer-encoding:  chunked\r\n",
    "transfer-encoding: chunked \r\n",
    "transfer-encoding:\tchunked\r\n",
    "transfer-encoding: \u{b}chunked\r\n",
    "transfer-encoding: chunked\u{b}\r\n",
    "transfer-encoding : chunked\r\n",
    " transfer-encoding: chunked\r\n",
    "transfer-encoding\t: chunked\r\n",
    "transfer_encoding: chunked\r\n",
    "transfer-encoding: \r\n chunked\r\n",
    "transfer-encoding: chunked\r\n x\r\n",
    "x: y\r\n transfer-encoding: chunked\r\n",
    "x: y\ntransfer-encoding: chunked\r\n",
    "x: y\rtransfer-encoding: chunked\r\n",
    "transfer-encoding: chunked\nx: y\r\n",
    "transfer-encoding: chu\u{0}nked\r\n",
    "te: chunked\r\n",
    "TE: trailers\r\ntransfer-encoding: chunked\r\n",
    "connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n",
    "connection: content-length\r\ncontent-length: 5\r\n",
    "transfer-encoding: cow\r\n",
    "transfer-encoding: chunked\r\ntransfer-encoding: cow\r\n",
    "transfer-encoding: cow\r\ntransfer-encoding: chunked\r\n",
    "content-encoding: chunked\r\ncontent-length: 5\r\n",
    "expect: 100-continue\r\ncontent-length: 5\r\n",
    "expect: 200-maybe\r\ncontent-length: 5\r\n",
];

const CHUNKS: [&str; 46] = [
    "5\r\nhello\r\n0\r\n\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "5\r\nhello0\r\n\r\n",
    "5\r\nhell\r\n0\r\n\r\n",
    "6\r\nhello\r\n0\r\n\r\n",
    "05\r\nhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "-5\r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    "5\t\r\nhello\r\n0\r\n\r\n",
    "5;\r\nhello\r\n0\r\n\r\n",
    "5;a\r\nhello\r\n0\r\n\r\n",
    "5;a=b\r\nhello\r\n0\r\n\r\n",
    "5;a=\"b\r\nhello\r\n0\r\n\r\n",
    "5;a=\"b\"\r\nhello\r\n0\r\n\r\n",
    "5;a\nhello\r\n0\r\n\r\n",
    "5;a\rb\r\nhello\r\n0\r\n\r\n",
    "5;\u{0}\r\nhello\r\n0\r\n\r\n",
    "g\r\nhello\r\n0\r\n\r\n",
    "\r\nhello\r\n0\r\n\r\n",
    "5\r\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\n",
    "5\r\nhello\r\n0\n\n",
    "5\r\nhello\r\n0\r\n\n",
    "5\r\nhello\r\n00\r\n\r\n",
    "5\r\nhello\r\n0;x\r\n\r\n",
    "5\r\nhello\r\n0\r\nx: y\r\n\r\n",
    "5\r\nhello\r\n0\r\ncontent-length: 9\r\n\r\n",
    "5\r\nhello\r\n0\r\ntransfer-encoding: chunked\r\n\r\n",
    "5\r\nhello\r\n0\r\nhost: other\r\n\r\n",
    "5\r\nhello\r\n0\r\nx-forwarded-client-cert: URI=x\r\n\r\n",
    "5\r\nhello\r\n0\r\n x: y\r\n\r\n",
    "5\r\nhello\r\n0\r\nx : y\r\n\r\n",
    "5\r\nhello\r\n0\r\nx\r\n\r\n",
    "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "000000000000000000000005\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n-0\r\n\r\n",
    "5\r\nhello\r\n",
    "5_0\r\nhello\r\n0\r\n\r\n",
    "0\r\n\r\n",
    "5\u{b}\r\nhello\r\n0\r\n\r\n",
    "5,5\r\nhello\r\n0\r\n\r\n",
];

const STARTS: [&str; 52] = [
    "GET /a HTTP/1.0",
    "GET /a HTTP/1.2",
    "GET /a HTTP/2.0",
    "GET /a HTTP/0.9",
    "GET /a HTTP/1.10",
    "GET /a HTTP/01.1",
    "GET /a HTTP/1.",
    "GET /a HTTP/",
    "GET /a HTTP",
    "GET /a http/1.1",
    "GET /a HTTP/1.1 ",
    "GET /a  HTTP/1.1",
    "GET  /a HTTP/1.1",
    " GET /a HTTP/1.1",
    "GET\t/a\tHTTP/1.1",
    "GET /a\tHTTP/1.1",
    "GET /a HTTP/1.1\u{0}",
    "GET /a",
    "GET",
    "",
    "get /a HTTP/1.1",
    "GeT /a HTTP/1.1",
    "GET/a HTTP/1.1",
    "G\u{0}T /a HTTP/1.1",
    "G(T /a HTTP/1.1",
    "G,T /a HTTP/1.1",
    "HEAD /a HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "OPTIONS /a HTTP/1.1",
    "GET * HTTP/1.1",
    "TRACE /a HTTP/1.1",
    "CONNECT /a HTTP/1.1",
    "CONNECT orders.shop HTTP/1.1",
    "CONNECT orders.shop:80 HTTP/1.1",
    "CONNECT * HTTP/1.1",
    "CONNECT http://orders.shop/ HTTP/1.1",
    "PRI * HTTP/2.0",
    "DELETE /a HTTP/1.1",
    "PATCH /a HTTP/1.1",
    "PUT /a HTTP/1.1",
    "FOO /a HTTP/1.1",
    "GET /a HTTP/1.1 GET /b HTTP/1.1",
    "GET /a HTTP/1.1\rGET /b HTTP/1.1",
    "GET /a HTTP/1.1\nx: y",
    "\r\nGET /a HTTP/1.1",
    "\nGET /a HTTP/1.1",
    "\r\n\r\nGET /a HTTP/1.1",
    "HTTP/1.1 200 OK",
    "GET /a HTTPS/1.1",
    "GET /a ICY/1.1",
    "GET /a XTTP/1.1",
    "POST /a HTTP/1.1",
];

const SWITCHES: [&str; 18] = [
    "connection: upgrade\r\nupgrade: websocket\r\n",
    "connection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
    "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
    "upgrade: h2c\r\n",
    "upgrade: websocket\r\n",
    "connection: upgrade\r\n",
    "connection: upgrade\r\nupgrade: foo\r\n",
    "connection: upgrade\r\nupgrade: websocket, h2c\r\n",
    "connection: upgrade\r\nupgrade: websocket\r\nupgrade: h2c\r\n",
    "connection: upgrade\r\nupgrade: \r\n",
    "connection: close, upgrade\r\nupgrade: websocket\r\n",
    "connection: keep-alive, x-request-id\r\n",
    "connection: host\r\n",
    "connection: x-forwarded-client-cert, authorization\r\n",
    "connection: close\r\n",
    "proxy-connection: keep-alive\r\n",
    "keep-alive: timeout=1\r\n",
    "connection: close\r\nconnection: keep-alive\r\n",
];

/// All of them.
pub(crate) fn all() -> Vec<Raw> {
    let mut all = Vec::new();
    let mut add = |what: String, bytes: Vec<u8>| all.push(Raw { what, bytes });
    let request = |start: &str, fields: &str| format!("{start}\r\nhost: orders.shop\r\n{fields}\r\n");
    for target in TARGETS {
        add(format!("target {target:?}"), request(&format!("GET {target} HTTP/1.1"), "").into_bytes());
    }
    for fields in HOSTS {
        add(format!("host {fields:?}"), format!("GET /a HTTP/1.1\r\n{fields}\r\n").into_bytes());
    }
    for fields in FRAMINGS {
        let head = request("POST /a HTTP/1.1", fields);
        // For who reads the length, the body; for who reads chunks, a body; for who reads neither, a request.
        add(format!("framing {fields:?}, chunked"), format!("{head}0\r\n\r\n{}", next(fields)).into_bytes());
        add(format!("framing {fields:?}, by length"), format!("{head}hello{}", next(fields)).into_bytes());
    }
    for chunks in CHUNKS {
        let head = request("POST /a HTTP/1.1", "transfer-encoding: chunked\r\n");
        add(format!("chunks {chunks:?}"), format!("{head}{chunks}").into_bytes());
        add(format!("chunks {chunks:?} in 1.0"), format!("{}{chunks}", head.replace("HTTP/1.1", "HTTP/1.0")).into_bytes());
    }
    for start in STARTS {
        add(format!("start {start:?}"), request(start, "").into_bytes());
    }
    for fields in SWITCHES {
        add(
            format!("switch {fields:?}"),
            format!("{}{HIDDEN}", request("GET /a HTTP/1.1", &format!("{fields}content-length: {}\r\n", HIDDEN.len())))
                .into_bytes(),
        );
        add(format!("switch {fields:?} without body"), request("GET /a HTTP/1.1", fields).into_bytes());
    }
    for (what, ending) in [("LF", "\n"), ("CR", "\r"), ("LF CR", "\n\r"), ("CR CR LF", "\r\r\n"), ("NUL CR LF", "\0\r\n")] {
        let text = request("GET /a HTTP/1.1", "x: y\r\n");
        add(format!("lines end in {what}"), text.replace("\r\n", ending).into_bytes());
        add(
            format!("the last line ends in {what}"),
            format!("{}{ending}", text.strip_suffix("\r\n").unwrap_or_default()).into_bytes(),
        );
    }
    for byte in (0..=0x20).chain([0x22, 0x28, 0x2c, 0x3a, 0x5c, 0x7f, 0x80, 0xa0, 0xc3, 0xff]) {
        for (what, before, after) in [
            ("in the target", "GET /a", "b HTTP/1.1\r\nhost: orders.shop\r\n\r\n"),
            ("in the method", "G", "T /a HTTP/1.1\r\nhost: orders.shop\r\n\r\n"),
            ("in a name", "GET /a HTTP/1.1\r\nhost: orders.shop\r\nx", "y: z\r\n\r\n"),
            ("in a value", "GET /a HTTP/1.1\r\nhost: orders.shop\r\nx: y", "z\r\n\r\n"),
            ("before a value", "GET /a HTTP/1.1\r\nhost: orders.shop\r\nx:", "z\r\n\r\n"),
        ] {
            add(format!("byte {byte:#04x} {what}"), [before.as_bytes(), &[byte], after.as_bytes()].concat());
        }
    }
    for count in [1, 2, 5, 20] {
        add(format!("{count} requests in one write"), request("GET /a HTTP/1.1", "").repeat(count).into_bytes());
    }
    all
}
