//! The corpus over HTTP/2: pseudo-header fields, field names and values that HTTP/1.1 would read as something else, bodies that do
//! not agree with their length, and frames in an order that nobody should use.

use outrider_tests::{Ends, h2_block, h2_data, h2_head, h2_headers, h2_opening};

use super::raw::Raw;

/// A request that is a whole value, and that nobody may ever see as a request.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nhost: orders.shop\r\n\r\n";

const PSEUDO: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "orders.shop"), (":path", "/h2")];

fn with(name: &str, value: &str) -> Vec<(String, String)> {
    PSEUDO.iter().map(|(each, own)| ((*each).to_owned(), if *each == name { value } else { own }.to_string())).collect()
}

fn head(fields: &[(String, String)], more: &[(&str, &str)], ends: Ends) -> Vec<u8> {
    let own = fields.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    h2_headers(&own.chain(more.iter().copied()).collect::<Vec<_>>(), ends)
}

/// Every one of them.
pub(crate) fn all() -> Vec<Raw> {
    let mut all = Vec::new();
    let mut add = |what: String, frames: Vec<u8>| all.push(Raw { what, bytes: [h2_opening(), frames].concat() });
    let plain = with("", "");
    let post = with(":method", "POST");

    for value in values() {
        for name in ["x-a", "cookie", "host", "content-length", "x-forwarded-client-cert", "te"] {
            add(format!("{name}: {value:?}"), head(&plain, &[(name, &value)], Ends::Yes));
        }
        for name in [":method", ":scheme", ":authority", ":path"] {
            add(format!("{name} {value:?}"), head(&with(name, &value), &[], Ends::Yes));
        }
        add(format!("name {value:?}"), head(&plain, &[(&value, "b")], Ends::Yes));
        add(
            format!("trailer {value:?}"),
            [head(&post, &[], Ends::No), h2_data("body", Ends::No), h2_headers(&[("x-sum", &value)], Ends::Yes)].concat(),
        );
    }
    for path in paths() {
        add(format!("path {path:?}"), head(&with(":path", path), &[], Ends::Yes));
    }
    for name in [
        "connection",
        "transfer-encoding",
        "upgrade",
        "keep-alive",
        "proxy-connection",
        "http2-settings",
        "te",
        "trailer",
        "expect",
        "x_role",
        "X-Upper",
        "x-original-url",
        "x-rewrite-url",
        "l5d-client-id",
        "x-envoy-original-path",
        "x-http-method-override",
    ] {
        for value in ["chunked", "close", "h2c", "trailers", "100-continue", "/hidden", "websocket"] {
            add(format!("{name}: {value}"), head(&plain, &[(name, value)], Ends::Yes));
        }
    }
    for (at, leave) in PSEUDO.iter().enumerate() {
        let without: Vec<_> = plain.iter().filter(|(name, _)| name != leave.0).cloned().collect();
        add(format!("no {}", leave.0), head(&without, &[], Ends::Yes));
        add(format!("no {}, with host", leave.0), head(&without, &[("host", "orders.shop")], Ends::Yes));
        add(format!("two {}", leave.0), head(&plain, &[*leave], Ends::Yes));
        let mut late = without;
        late.insert(at.min(late.len()), ("x-a".to_owned(), "b".to_owned()));
        late.push((leave.0.to_owned(), leave.1.to_owned()));
        add(format!("a late {}", leave.0), head(&late, &[], Ends::Yes));
    }
    for name in [":status", ":protocol", ":target", ":", "::path", ": path", ":Path", ":path "] {
        for value in ["200", "websocket", "/hidden"] {
            add(format!("{name} {value}"), head(&plain, &[(name, value)], Ends::Yes));
        }
    }
    for length in ["0", "3", "4", "5", "44", "04", "+4", "4,4", "4 ", " 4", "-0", "0x4", "18446744073709551620", ""] {
        for body in ["", "body", HIDDEN] {
            let open = head(&post, &[("content-length", length)], Ends::No);
            add(format!("length {length:?} of {}", body.len()), [open.clone(), h2_data(body, Ends::Yes)].concat());
            let both = head(&post, &[("content-length", length), ("content-length", "4")], Ends::No);
            add(format!("lengths {length:?} and 4 of {}", body.len()), [both, h2_data(body, Ends::Yes)].concat());
            let chunked = head(&post, &[("content-length", length), ("transfer-encoding", "chunked")], Ends::No);
            add(
                format!("length {length:?}, chunked"),
                [chunked, h2_data("0\r\n\r\n", Ends::No), h2_data(HIDDEN, Ends::Yes)].concat(),
            );
        }
    }
    for body in ["0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", "\r\n", "\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
        let whole = format!("{body}{HIDDEN}");
        add(format!("a body of {body:?} and more"), [head(&post, &[], Ends::No), h2_data(&whole, Ends::Yes)].concat());
    }
    for protocol in ["websocket", "WebSocket", "h2c", "connect-udp", "", "websocket\r\n"] {
        let connect = with(":method", "CONNECT");
        add(format!("extended CONNECT to {protocol:?}"), head(&connect, &[(":protocol", protocol)], Ends::No));
    }
    // The order of frames.
    let block = h2_block(&PSEUDO);
    add("DATA first".to_owned(), [h2_data(HIDDEN, Ends::Yes), h2_head(&block, Ends::Yes)].concat());
    add("DATA after the end".to_owned(), [h2_head(&block, Ends::Yes), h2_data(HIDDEN, Ends::Yes)].concat());
    add("a head twice".to_owned(), h2_head(&block, Ends::Yes).repeat(2));
    add("a head in a head".to_owned(), h2_head(&[block.clone(), block.clone()].concat(), Ends::Yes));
    add("HTTP/1.1 after the preface".to_owned(), HIDDEN.as_bytes().to_vec());
    add("half a block".to_owned(), h2_head(block.get(..block.len() / 2).unwrap_or_default(), Ends::Yes));
    all
}

/// Values in which HTTP/1.1 would see an end of line, another field, or another request.
fn values() -> Vec<String> {
    let mut values: Vec<String> =
        ["b\r\nx-b: c", "b\nx-b: c", "b\rx-b: c", "b\0", " b", "b ", "b\t", "\u{b}b", "b\u{7f}", "\u{e9}", "a, b", ""]
            .map(str::to_owned)
            .to_vec();
    values.push(format!("b\r\n\r\n{HIDDEN}"));
    values.push(format!("b HTTP/1.1\r\nhost: orders.shop\r\n\r\n{HIDDEN}"));
    values
}

/// Paths that two readers could read differently.
fn paths() -> [&'static str; 26] {
    [
        "/a/../hidden",
        "/./hidden",
        "//hidden",
        "/hidden/..",
        "/%2e%2e/hidden",
        "/a%2fhidden",
        "/a\\hidden",
        "/a;b/hidden",
        "/a%00",
        "/a%0d%0a",
        "/a%",
        "/a%zz",
        "/a?b#c",
        "/a#b",
        "*",
        "",
        "hidden",
        "http://orders.shop/hidden",
        "http://other/hidden",
        "/a b",
        "/a\tb",
        "/%48idden",
        "/a?%0d%0ax: y",
        "/\u{e9}",
        "?a",
        "/a//b",
    ]
}
