//! The lines of a head or of trailers, read strictly and once (RFC 9112 sections 3 to 5). Nothing is copied.

use crate::{
    refusal::{Reason, Refusal},
    scan,
};

/// What a byte of a field's name is (RFC 9110 section 5.6.2).
const NAME: [u8; 256] = name_bytes();
const TOKEN: u8 = 1;
const UPPER: u8 = 2;
const UNDERSCORE: u8 = 4;

#[expect(clippy::indexing_slicing, reason = "at compile time: a byte out of range would not compile")]
const fn name_bytes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'A'..=b'Z' => TOKEN | UPPER,
            b'_' => TOKEN | UNDERSCORE,
            b'a'..=b'z' | b'0'..=b'9' => TOKEN,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'`' | b'|' | b'~' => TOKEN,
            _ => 0,
        };
        byte += 1;
    }
    table
}

fn class(byte: u8) -> u8 {
    NAME.get(usize::from(byte)).copied().unwrap_or_default()
}

pub(super) fn malformed(detail: impl Into<String>) -> Refusal {
    Refusal::new(Reason::Malformed, detail)
}

/// The lines of a whole head or block of trailers, each without its end, up to the empty one. There are no control characters in them
/// but tabs.
#[derive(Debug)]
pub(crate) struct Lines<'a>(&'a [u8]);

impl<'a> Lines<'a> {
    /// Of text that ends with an empty line.
    pub(crate) fn of(text: &'a [u8]) -> Self {
        Self(text)
    }

    /// The next line; `None` after the empty one, which is the last.
    ///
    /// # Errors
    /// When a line does not end in CR LF or has another control character than a tab, or something follows the empty one.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<&'a [u8]>, Refusal> {
        let (line, rest) = self.0.split_at_checked(text_length(self.0)).unwrap_or_default();
        let Some(rest) = rest.strip_prefix(b"\r\n") else {
            return Err(malformed(if rest.is_empty() {
                "incomplete head"
            } else {
                "control character, or a bare CR or LF, in a line"
            }));
        };
        self.0 = rest;
        match (line.is_empty(), rest.is_empty()) {
            (false, _) => Ok(Some(line)),
            (true, true) => Ok(None),
            (true, false) => Err(malformed("something follows the head")),
        }
    }
}

/// How many bytes there are before the first control character that is no tab (RFC 9110 section 5.5). Eight at a time: what borrows
/// in a subtraction is above the first byte that is found, and only that one counts.
fn text_length(bytes: &[u8]) -> usize {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = EACH << 7;
    let is_control = |byte: u8| (byte < b' ' && byte != b'\t') || byte == 0x7f;
    let (eights, rest) = bytes.as_chunks::<8>();
    for (at, eight) in eights.iter().enumerate() {
        let value = u64::from_le_bytes(*eight);
        let delete = value ^ (EACH * 0x7f);
        let found = (value.wrapping_sub(EACH * 0x20) & !value | delete.wrapping_sub(EACH) & !delete) & HIGH;
        // With a tab among them, one by one.
        if found != 0
            && let Some(first) = eight.iter().position(|byte| is_control(*byte))
        {
            return at * 8 + first;
        }
    }
    bytes.len() - rest.len() + rest.iter().position(|byte| is_control(*byte)).unwrap_or(rest.len())
}

/// A field: a name that is a token, and a value without control characters and without white space around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
    /// There are capital letters in the name.
    pub(crate) has_capitals: bool,
    /// There is an underscore in the name.
    pub(super) has_underscore: bool,
    /// The line as [`crate::http::Fields`] writes lines, but for capitals.
    pub(crate) plain: Option<&'a [u8]>,
}

impl<'a> Line<'a> {
    /// Reads a line, one of [`Lines`].
    ///
    /// # Errors
    /// When the name is not a token with its colon right behind it.
    #[inline]
    pub(crate) fn read(line: &'a [u8]) -> Result<Self, Refusal> {
        let (mut seen, mut colon) = (0, 0);
        for byte in line {
            let class = class(*byte);
            if class == 0 {
                break;
            }
            (seen, colon) = (seen | class, colon + 1);
        }
        let (name, rest) = line.split_at(colon);
        let Some(raw) = rest.strip_prefix(b":").filter(|_| !name.is_empty()) else {
            return Err(malformed("a field's name is not a token followed by a colon"));
        };
        let value = raw.trim_ascii();
        let plain = (raw.first() == Some(&b' ') && raw.len() == value.len() + 1 && !value.is_empty()).then_some(line);
        Ok(Self { name, value, has_capitals: seen & UPPER != 0, has_underscore: seen & UNDERSCORE != 0, plain })
    }
}

/// Method, target and minor version of a request line, the first of [`Lines`].
///
/// # Errors
/// When it is not those three with one space between each, or another version than 1.0 and 1.1.
pub(super) fn request(line: &[u8]) -> Result<(&[u8], &[u8], u8), Refusal> {
    let space = memchr::memchr(b' ', line).unwrap_or(line.len());
    let (method, rest) = line.split_at(space);
    // The version is as long as it is, so that nothing has to be searched.
    let (target, version) = rest.len().checked_sub(9).and_then(|at| rest.split_at_checked(at)).unwrap_or_default();
    let target = target.strip_prefix(b" ").unwrap_or_default();
    let minor = version.strip_prefix(b" ").and_then(minor);
    let plain = !target.is_empty() && !scan::any(target, |byte| byte <= b' ');
    match minor {
        Some(minor) if plain && !method.is_empty() && method.iter().all(|byte| class(*byte) != 0) => Ok((method, target, minor)),
        _ => Err(malformed("not a request line of HTTP/1.0 or HTTP/1.1")),
    }
}

/// Status and minor version of a status line, the first of [`Lines`].
///
/// # Errors
/// When it is not a version, a space and three digits, with nothing behind them but a space and text.
pub(super) fn status(line: &[u8]) -> Result<(u16, u8), Refusal> {
    let bad = || malformed("not a status line of HTTP/1.0 or HTTP/1.1");
    let (version, rest) = line.split_at_checked(8).ok_or_else(bad)?;
    let minor = minor(version).ok_or_else(bad)?;
    let Some((&[b' ', hundreds, tens, ones], phrase)) = rest.split_first_chunk() else { return Err(bad()) };
    let digits = [hundreds, tens, ones];
    let plain = digits.iter().all(u8::is_ascii_digit) && (phrase.is_empty() || phrase.starts_with(b" "));
    let number = digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit.wrapping_sub(b'0')));
    if plain { Ok((number, minor)) } else { Err(bad()) }
}

fn minor(version: &[u8]) -> Option<u8> {
    match version {
        b"HTTP/1.1" => Some(1),
        b"HTTP/1.0" => Some(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Text that is nearly a head: what decides is at the edges.
    fn nearly_a_head() -> impl Strategy<Value = Vec<u8>> {
        let start = prop::sample::select(vec![
            "GET / HTTP/1.1",
            "POST /a?b HTTP/1.0",
            "GET  / HTTP/1.1",
            "GET /a b HTTP/1.1",
            "GET / HTTP/1.2",
            "GET /",
            "get /\u{e9} HTTP/1.1",
            " GET / HTTP/1.1",
            "GET / HTTP/1.1 ",
            "GET /\t HTTP/1.1",
            "G@T / HTTP/1.1",
            "HTTP/1.1 200 OK",
            "HTTP/1.0 204",
            "HTTP/1.1 200 ",
            "HTTP/1.1 20 OK",
            "HTTP/1.1 2000 OK",
            "HTTP/1.1  200 OK",
            "HTTP/2 200",
            "HTTP/1.1 200\tOK",
            "HTTP/1.1 200 \u{1}",
            "HTTP/1.1 200 \u{e9}",
            "",
        ]);
        let name = prop::sample::select(vec![
            "a",
            "X-B",
            "x_c",
            "",
            "d ",
            "\te",
            "f:",
            "g\u{0}",
            "content-length",
            "h\u{e9}",
            "!#$%&'*+-.^`|~",
        ]);
        let colon = prop::sample::select(vec![":", ": ", ":  ", " :", ":\t", ""]);
        let value = prop::collection::vec(prop::sample::select(b" \tabc:\x00\x7f\x80\xff\n\x0b\"".to_vec()), 0..6);
        let end = prop::sample::select(vec!["\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\r\n", "\r\n "]);
        let line = (name, colon, value, end.clone())
            .prop_map(|(name, colon, value, end)| [name.as_bytes(), colon.as_bytes(), &value, end.as_bytes()].concat());
        (start, end, prop::collection::vec(line, 0..4), prop::sample::select(vec!["\r\n", "\r\n", "\r\n", "", "\n", "\r\nx"]))
            .prop_map(|(start, end, lines, last)| [start.as_bytes(), end.as_bytes(), &lines.concat(), last.as_bytes()].concat())
    }

    type Read = (Vec<u8>, Vec<u8>, u8, Vec<(Vec<u8>, Vec<u8>)>);

    fn fields(mut lines: Lines<'_>) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut fields = Vec::new();
        while let Some(line) = lines.next().ok()? {
            let line = Line::read(line).ok()?;
            if let Some(plain) = line.plain {
                assert_eq!(plain, [line.name, b": ", line.value].concat());
            }
            assert_eq!(line.has_capitals, line.name.iter().any(u8::is_ascii_uppercase));
            assert_eq!(line.has_underscore, line.name.contains(&b'_'));
            fields.push((line.name.to_vec(), line.value.to_vec()));
        }
        Some(fields)
    }

    fn ours(text: &[u8], is_request: bool) -> Option<Read> {
        let mut lines = Lines::of(text);
        let start = lines.next().ok()??;
        let (first, second, minor) = if is_request {
            let (method, target, minor) = request(start).ok()?;
            (method.to_vec(), target.to_vec(), minor)
        } else {
            let (status, minor) = status(start).ok()?;
            (status.to_string().into(), Vec::new(), minor)
        };
        Some((first, second, minor, fields(lines)?))
    }

    /// What httparse reads, where it reads all of it.
    fn theirs(text: &[u8], is_request: bool) -> Option<Read> {
        let mut space = [httparse::EMPTY_HEADER; 8];
        let own = |headers: &[httparse::Header<'_>]| {
            headers.iter().map(|header| (header.name.as_bytes().to_vec(), header.value.trim_ascii().to_vec())).collect()
        };
        if is_request {
            let mut request = httparse::Request::new(&mut space);
            let read = request.parse(text).ok()?;
            let whole = read.is_complete() && read.unwrap() == text.len();
            whole.then(|| {
                (request.method.unwrap().into(), request.path.unwrap().into(), request.version.unwrap(), own(request.headers))
            })
        } else {
            let mut response = httparse::Response::new(&mut space);
            let read = response.parse(text).ok()?;
            let whole = read.is_complete() && read.unwrap() == text.len();
            whole.then(|| {
                (response.code.unwrap().to_string().into(), Vec::new(), response.version.unwrap(), own(response.headers))
            })
        }
    }

    #[test]
    fn text_ends_at_the_first_control_character() {
        for byte in 0..=u8::MAX {
            let is_control = (byte < b' ' && byte != b'\t') || byte == 0x7f;
            for length in 1..24 {
                for at in 0..length {
                    let mut text = vec![0xff; length];
                    text[at] = byte;
                    assert_eq!(text_length(&text), if is_control { at } else { length }, "{byte} at {at} of {length}");
                    text[length - 1] = b'\r';
                    text[at / 2] = b'\t';
                    let end = text.iter().position(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f);
                    assert_eq!(text_length(&text), end.unwrap_or(length), "{text:?}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        /// Whatever is accepted, another parser accepts and reads the same; what ends its lines as it must and is accepted by the
        /// other, is accepted.
        #[test]
        fn another_parser_reads_the_same(text in nearly_a_head(), is_request: bool) {
            let (ours, theirs) = (ours(&text, is_request), theirs(&text, is_request));
            if ours.is_some() {
                prop_assert_eq!(&ours, &theirs);
            }
            // Ours alone refuses empty lines at the start and bare line feeds; these are found before.
            let strict = super::super::head::head_end(&text, 0).ok().flatten() == Some(text.len()) && !text.starts_with(b"\r\n");
            if strict {
                prop_assert_eq!(ours, theirs);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(text in prop::collection::vec(any::<u8>(), 0..60)) {
            for is_request in [true, false] {
                if let Some(read) = ours(&text, is_request) {
                    prop_assert_eq!(Some(read), theirs(&text, is_request));
                }
            }
        }
    }
}
