//! Heads of HTTP/1.1 messages: found, parsed, checked once, and rid of hop-by-hop fields.

use std::sync::LazyLock;

use memchr::memmem::Finder;
use outrider_policy::reserved;

use super::{
    Framing,
    line::{self, Line, Lines, malformed},
};
use crate::{
    http::{
        Fields, MOST_TRAILERS,
        message::{Version, names_length},
        normalize::{Host, RequestParts, forbidden_in_trailers, hop_by_hop, is_identity_claim},
    },
    refusal::{Reason, Refusal},
};

/// A request's head as read, and how its body is framed.
#[derive(Debug)]
pub(crate) struct ParsedRequest {
    pub(crate) parts: RequestParts,
    pub(crate) framing: Framing,
    /// What `content-length` says, if it is there.
    pub(crate) length: Option<u64>,
    pub(crate) keep_alive: bool,
    pub(crate) expects_continue: bool,
    /// Protocol to switch to, if the other end agrees.
    pub(crate) upgrade: Option<Box<str>>,
}

/// A response's head as read.
#[derive(Debug)]
pub(crate) struct ParsedResponse {
    pub(crate) status: u16,
    pub(crate) fields: Fields,
    pub(crate) framing: Framing,
    pub(crate) keep_alive: bool,
    /// The upstream switches to the protocol that was asked for.
    pub(crate) switches: bool,
}

/// Where the head ends in `buf`, searching from `from`. Every line must end in CR LF: a bare LF or CR is refused, since
/// others read it as a line end, or do not.
pub(super) fn head_end(buf: &[u8], from: usize) -> Result<Option<usize>, Refusal> {
    // Never between the two bytes of a line end.
    let at_feed = from > 0 && buf.get(from - 1..=from) == Some(b"\r\n");
    let mut at = if at_feed { from - 1 } else { from };
    while let Some(found) = buf.get(at..).and_then(|rest| memchr::memchr2(b'\r', b'\n', rest)) {
        let position = at + found;
        match (buf.get(position), buf.get(position + 1)) {
            (Some(b'\r'), None) => return Ok(None),
            (Some(b'\r'), Some(b'\n')) => {
                if buf.get(position + 2..position + 4) == Some(b"\r\n") {
                    return Ok(Some(position + 4));
                }
                at = position + 2;
            }
            _ => return Err(malformed("bare CR or LF in the head")),
        }
    }
    Ok(None)
}

/// The same for a head that is parsed next, which refuses bare CR and LF in it: only one that is not whole yet is searched for them.
pub(super) fn find_end(buf: &[u8], from: usize) -> Result<Option<usize>, Refusal> {
    static END: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));
    match buf.get(from..).and_then(|rest| END.find(rest)) {
        Some(at) => Ok(Some(from + at + 4)),
        None => head_end(buf, from),
    }
}

/// Parses a whole request head of at most so many fields.
pub(crate) fn request(head: &[u8], most: usize) -> Result<ParsedRequest, Refusal> {
    let mut lines = Lines::of(head);
    let (method, target, minor) = line::request(lines.next()?.unwrap_or_default())?;
    let version = if minor == 1 { Version::Http11 } else { Version::Http10 };

    let mut seen = Seen::default();
    let mut fields = Fields::with_capacity(head.len());
    let mut host = None;
    let mut left = most;
    while let Some(line) = lines.next()? {
        let line = counted(line, &mut left)?;
        if line.has_underscore {
            return Err(malformed(format!(
                "field name `{}` has an underscore, which applications read as a hyphen",
                String::from_utf8_lossy(line.name)
            )));
        }
        if line.name.eq_ignore_ascii_case(b"host") {
            if host.replace(line.value).is_some() {
                return Err(Refusal::new(Reason::BadHost, "more than one host field"));
            }
        } else if !seen.take(line.name, line.value)? && !is_identity_claim(line.name) {
            fields.push_line(&line);
        }
    }
    seen.drop_nominated(&mut fields)?;
    if version == Version::Http10 && seen.chunked {
        return Err(malformed("transfer-encoding in HTTP/1.0"));
    }
    let framing = seen.framing()?.unwrap_or(Framing::Length(0));
    let host = Host::field(host);
    let parts = RequestParts::new(method, target, host, fields, version)?;
    let upgrade = seen.upgrade.take().filter(|_| seen.upgrades && version == Version::Http11 && framing == Framing::Length(0));
    let keep_alive = seen.keeps_alive(version);
    Ok(ParsedRequest { parts, framing, length: seen.length, keep_alive, expects_continue: seen.expects_continue, upgrade })
}

/// Parses a whole response head of at most so many fields, for a request that was HEAD or not, and that asked to switch protocols
/// or not.
pub(crate) fn response(head: &[u8], to_head: bool, upgrade: Option<&str>, most: usize) -> Result<ParsedResponse, Refusal> {
    let bad = |refusal: Refusal| Refusal::new(Reason::UpstreamFailed, format!("upstream response: {}", refusal.detail()));
    let mut lines = Lines::of(head);
    let start = lines.next().map_err(bad)?.unwrap_or_default();
    let (status, minor) = line::status(start).map_err(bad)?;
    let version = if minor == 1 { Version::Http11 } else { Version::Http10 };
    if !(100..600).contains(&status) {
        return Err(Refusal::new(Reason::UpstreamFailed, format!("upstream answered with status {status}")));
    }
    let mut seen = Seen::default();
    let mut fields = Fields::with_capacity(head.len());
    let mut left = most;
    while let Some(line) = lines.next().map_err(bad)? {
        let line = counted(line, &mut left).map_err(bad)?;
        if !seen.take(line.name, line.value).map_err(bad)? {
            fields.push_line(&line);
        }
    }
    seen.drop_nominated(&mut fields).map_err(bad)?;
    let framing = seen.framing().map_err(bad)?;
    let switches = status == 101;
    if switches && !(seen.upgrades && upgrade.is_some() && seen.upgrade.as_deref() == upgrade) {
        return Err(Refusal::new(Reason::UpstreamFailed, "upstream switches protocols though nobody asked for this one"));
    }
    let no_body = to_head || status < 200 || status == 204 || status == 304;
    let framing = match framing {
        _ if no_body => Framing::Length(0),
        Some(framing) => framing,
        None => Framing::UntilClose,
    };
    if names_length(to_head, status)
        && let Some(length) = seen.length
    {
        fields.push(b"content-length", length.to_string().as_bytes());
    }
    let keep_alive = seen.keeps_alive(version) && framing != Framing::UntilClose;
    Ok(ParsedResponse { status, fields, framing, keep_alive, switches })
}

/// One more field, if there may be so many.
fn counted<'a>(line: &'a [u8], left: &mut usize) -> Result<Line<'a>, Refusal> {
    *left = left.checked_sub(1).ok_or_else(|| Refusal::new(Reason::HeadTooLarge, "too many header fields"))?;
    Line::read(line)
}

/// Parses a block of trailers with its empty line. They never become header fields; what means something only in a head is
/// refused, and what agents write themselves is dropped.
pub(crate) fn trailers(text: &[u8]) -> Result<Fields, &'static str> {
    const NOT_FIELDS: &str = "trailers are not header fields";
    let (mut lines, mut fields) = (Lines::of(text), Fields::default());
    while let Some(line) = lines.next().map_err(|_| NOT_FIELDS)? {
        let line = Line::read(line).map_err(|_| NOT_FIELDS)?;
        if fields.len() == MOST_TRAILERS {
            return Err(NOT_FIELDS);
        }
        if forbidden_in_trailers(line.name) {
            return Err("a trailer that only a head may carry");
        }
        if reserved(line.name).is_none() {
            fields.push_line(&line);
        }
    }
    Ok(fields)
}

/// What the fields that belong to the connection said.
#[derive(Debug, Default)]
struct Seen {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    /// `Connection` names `Upgrade`.
    upgrades: bool,
    saw_upgrade: bool,
    upgrade: Option<Box<str>>,
    nominated: Vec<Vec<u8>>,
}

impl Seen {
    /// Takes a field that concerns framing or this connection only. Says whether it did.
    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<bool, Refusal> {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        // Most fields begin with another letter, or have another length.
        match (name.first().map(u8::to_ascii_lowercase), name.len()) {
            (Some(b'c'), 14) if is(b"content-length") => self.content_length(value)?,
            (Some(b't'), 17) if is(b"transfer-encoding") => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(malformed("transfer-encoding other than one `chunked`"));
                }
                self.chunked = true;
            }
            (Some(b'c'), 10) if is(b"connection") => self.connection(value),
            (Some(b'e'), 6) if is(b"expect") => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal::new(Reason::UnknownExpectation, "unknown expectation"));
                }
                self.expects_continue = true;
            }
            // Of a list, or of more than one field, nothing is taken: the request stays what it is.
            (Some(b'u'), 7) if is(b"upgrade") => {
                self.upgrade = if std::mem::replace(&mut self.saw_upgrade, true) { None } else { switchable(value) };
            }
            (Some(b'h' | b'k' | b'p' | b't'), _) => return Ok(hop_by_hop(name)),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        let digits = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
        let length = digits.then(|| value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit.wrapping_sub(b'0'))));
        match length {
            None => Err(malformed("content-length is not a number")),
            Some(_) if self.length.is_some() => Err(malformed("more than one content-length")),
            Some(length) => {
                self.length = Some(length);
                Ok(())
            }
        }
    }

    fn connection(&mut self, value: &[u8]) {
        for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            let is = |known: &[u8]| option.eq_ignore_ascii_case(known);
            if is(b"close") {
                self.close = true;
            } else if is(b"keep-alive") {
                self.keep_alive = true;
            } else if is(b"upgrade") {
                self.upgrades = true;
            } else if !option.is_empty() {
                self.nominated.push(option.to_ascii_lowercase());
            }
        }
    }

    /// Drops what `Connection` names. Names that must reach the other end are refused: dropping them on somebody's word
    /// would change what the request means.
    fn drop_nominated(&self, fields: &mut Fields) -> Result<(), Refusal> {
        const END_TO_END: &[&[u8]] =
            &[b"host", b"content-length", b"transfer-encoding", b"authorization", b"cookie", b"x-request-id", b"content-type"];
        if let Some(name) =
            self.nominated.iter().find(|name| END_TO_END.contains(&name.as_slice()) || name.starts_with(b"x-forwarded"))
        {
            return Err(malformed(format!("connection names the end-to-end field `{}`", String::from_utf8_lossy(name))));
        }
        if !self.nominated.is_empty() {
            fields.retain(|name| !self.nominated.iter().any(|nominated| nominated == name));
        }
        Ok(())
    }

    fn framing(&self) -> Result<Option<Framing>, Refusal> {
        match (self.length, self.chunked) {
            (Some(_), true) => Err(malformed("both content-length and transfer-encoding")),
            (None, true) => Ok(Some(Framing::Chunked)),
            (Some(length), false) => Ok(Some(Framing::Length(length))),
            (None, false) => Ok(None),
        }
    }

    fn keeps_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }
}

/// A protocol that a connection may switch to, in lower case. Never another HTTP, nor TLS: what follows would be requests that
/// nobody decides.
fn switchable(token: &[u8]) -> Option<Box<str>> {
    let token = std::str::from_utf8(token).ok().filter(|token| (1..=32).contains(&token.len()))?.to_ascii_lowercase();
    let plain = token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'-'));
    let hides_requests = ["h2", "http", "tls"].iter().any(|prefix| token.starts_with(prefix));
    (plain && !hides_requests).then(|| token.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ParsedRequest, Refusal> {
        let end = find_end(text.as_bytes(), 0)?.expect("a whole head");
        request(&text.as_bytes()[..end], 100)
    }

    fn reason(text: &str) -> Reason {
        parse(text).and_then(|parsed| parsed.parts.normalize()).expect_err(text).reason()
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        for fields in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 3",
            "Content-Length: 3\r\nContent-Length: 3",
            "Content-Length: 3, 3",
            "Content-Length: +3",
            "Content-Length: -1",
            "Content-Length: 0x3",
            "Content-Length:",
            "Content-Length: 99999999999999999999",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: , chunked",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding : chunked",
            " Transfer-Encoding: chunked",
            "X: a\r\n b",
            ": x",
            "X\0: a",
            "Connection: content-length\r\nContent-Length: 3",
            "Connection: authorization\r\nAuthorization: x",
            "X_Role: admin",
        ] {
            assert_eq!(reason(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")), Reason::Malformed, "{fields}");
        }
    }

    #[test]
    fn every_split_of_a_head_finds_the_same_end() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\r\nrest";
        for split in 0..text.len() {
            // As the reader does: what was searched before is not searched again, but for the last bytes.
            let (mut end, mut searched) = (None, 0);
            for known in [split, text.len()] {
                end = end.or(find_end(&text[..known], searched).unwrap_or_else(|refusal| panic!("{split}: {refusal}")));
                searched = known.saturating_sub(3);
            }
            assert_eq!(end, Some(text.len() - 4), "{split}");
        }
        assert!(find_end(b"GET / HTTP/1.1\r\nA\n", 15).is_err(), "a bare LF is still found");
    }

    #[test]
    fn bare_line_ends_are_refused() {
        for text in
            ["GET / HTTP/1.1\nHost: a\n\n", "GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\n\r\n"]
        {
            assert!(head_end(text.as_bytes(), 0).is_err(), "{text:?}");
            let read = find_end(text.as_bytes(), 0).and_then(|end| request(&text.as_bytes()[..end.unwrap_or(0)], 100));
            assert_eq!(read.expect_err(text).reason(), Reason::Malformed);
            // With another behind it.
            let two = format!("{text}GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            let read = find_end(two.as_bytes(), 0).and_then(|end| request(&two.as_bytes()[..end.unwrap_or(0)], 100));
            assert_eq!(read.expect_err(text).reason(), Reason::Malformed);
        }
    }

    #[test]
    fn a_host_is_there_exactly_once() {
        assert_eq!(reason("GET / HTTP/1.1\r\n\r\n"), Reason::BadHost);
        assert_eq!(reason("GET / HTTP/1.0\r\nX: y\r\n\r\n"), Reason::BadHost);
        assert_eq!(reason("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"), Reason::BadHost);
        assert_eq!(reason("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"), Reason::BadHost);
        assert_eq!(reason("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"), Reason::BadHost);
    }

    #[test]
    fn identity_claims_and_hop_by_hop_fields_do_not_pass() {
        let parsed = parse(
            "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: URI=spiffe://x\r\nx-FORWARDED-client-cert: y\r\nConnection: x-hop\r\nX-Hop: 1\r\n\
             Upgrade: h2c\r\nHTTP2-Settings: a\r\nTE: trailers\r\nX-Kept: 2 \r\n\r\n",
        )
        .unwrap();
        assert_eq!(parsed.parts.fields().as_wire(), b"x-kept: 2\r\n");
    }

    #[test]
    fn a_switch_of_protocols_is_one_token_that_hides_no_requests() {
        let upgrade = |fields: &str| parse(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).unwrap().upgrade;
        assert_eq!(upgrade("Connection: Upgrade\r\nUpgrade: WebSocket\r\n").as_deref(), Some("websocket"));
        assert_eq!(upgrade("Connection: keep-alive, upgrade\r\nUpgrade: SPDY/3.1\r\n").as_deref(), Some("spdy/3.1"));
        for fields in [
            "Upgrade: websocket\r\n",
            "Connection: upgrade\r\n",
            "Connection: upgrade\r\nUpgrade: h2c\r\n",
            "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
            "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
            "Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\nUpgrade: x\r\n",
            "Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
            "Connection: upgrade\r\nUpgrade: HTTP/2.0\r\n",
            "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n",
        ] {
            assert_eq!(upgrade(fields), None, "{fields}");
        }
    }

    #[test]
    fn answers_without_a_body_name_a_length_only_where_they_may() {
        let length = |status: u16, to_head| {
            let text = format!("HTTP/1.1 {status} \r\nContent-Length: 5\r\n\r\n");
            let parsed = response(text.as_bytes(), to_head, None, 100).unwrap();
            assert_eq!(parsed.framing, Framing::Length(if to_head || status != 200 { 0 } else { 5 }), "{status}");
            parsed.fields.single("content-length").is_some()
        };
        assert!(length(200, true) && length(304, true) && length(304, false), "of what a GET would get");
        assert!(!length(204, true) && !length(204, false) && !length(103, true) && !length(200, false));
    }

    #[test]
    fn what_agents_write_themselves_is_dropped_from_trailers() {
        let fields = trailers(b"x-sum: 1\r\nX-Request-Id: forged-forged\r\ntraceparent: 00\r\n\r\n").unwrap();
        assert_eq!(fields.as_wire(), b"x-sum: 1\r\n");
        assert!(trailers(b"x-envoy-peer: 1\r\n\r\n").is_err() && trailers(b"expect: 100-continue\r\n\r\n").is_err());
    }

    #[test]
    fn trailing_white_space_is_not_part_of_a_value() {
        let parsed = parse("GET / HTTP/1.1\r\nHost: a\r\nX-Role: admin \t\r\n\r\n").unwrap();
        assert_eq!(parsed.parts.fields().single("x-role"), Some(b"admin".as_slice()));
    }
}
