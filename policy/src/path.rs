//! The one spelling of a request path that policy, router, log and upstream all read.
//!
//! [`canonical`] refuses what two readers could understand differently and normalises the rest, so that a path has one
//! spelling after it. What it does not touch is `;`: parameters such as `/a;x=y/b` are legal and mean something to some
//! servers (Tomcat strips them from every segment) and nothing to others. Rules are therefore matched on the forms that a
//! server behind us could see ([`Forms`]): a deny matches if any form does, an allow only if all of them do.

use std::borrow::Cow;

use smallvec::SmallVec;

/// Why a path is refused, and at which byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at byte {at} of the path")]
pub struct PathProblem {
    /// What is wrong.
    pub kind: PathProblemKind,
    /// Where, counted from 0.
    pub at: usize,
}

/// What makes a path ambiguous or malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathProblemKind {
    /// The first byte is not `/`.
    #[error("no leading slash")]
    NotAbsolute,
    /// A byte that RFC 3986 does not allow in a path.
    #[error("a byte that must be percent-encoded")]
    Byte,
    /// `%` without two hexadecimal digits.
    #[error("an incomplete percent escape")]
    Escape,
    /// `%00`.
    #[error("an encoded NUL")]
    EncodedNul,
    /// `%2f`: one server reads a separator where another reads a letter.
    #[error("an encoded slash")]
    EncodedSlash,
    /// `%5c`: some servers take a backslash for a slash.
    #[error("an encoded backslash")]
    EncodedBackslash,
    /// `%25` before two hexadecimal digits: decodes to another escape.
    #[error("a doubly encoded escape")]
    DoubleEncoding,
    /// A byte in more bytes than UTF-8 takes for it (`%C0%AE` for `.`): some servers decode it all the same.
    #[error("an overlong escape")]
    Overlong,
    /// `.` or `..`, in any encoding, with or without parameters.
    #[error("a dot segment")]
    DotSegment,
    /// `//`: merged by some servers and kept by others.
    #[error("an empty segment")]
    EmptySegment,
}

/// The canonical spelling of the path part of a request target (no query, no fragment).
///
/// Escapes of unreserved characters (RFC 3986 section 2.3) are decoded, all other escapes are written in upper case, and
/// what is ambiguous is refused. Applying it twice is applying it once. Borrows when there is nothing to change.
pub fn canonical(raw: &[u8]) -> Result<Cow<'_, str>, PathProblem> {
    if raw.first() != Some(&b'/') {
        return Err(PathProblem { kind: PathProblemKind::NotAbsolute, at: 0 });
    }
    match std::str::from_utf8(raw) {
        Ok(path) if is_plain(raw) => Ok(Cow::Borrowed(path)),
        _ => rewritten(raw),
    }
}

/// Whether it has only letters, digits, `-`, `_`, `~` and single slashes, as most paths do: then it is canonical.
fn is_plain(raw: &[u8]) -> bool {
    let mut before = b' ';
    raw.iter().all(|&byte| {
        let is_slash_after_slash = byte == b'/' && before == b'/';
        before = byte;
        byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') || (byte == b'/' && !is_slash_after_slash)
    })
}

/// The canonical spelling of any path that begins with `/`.
fn rewritten(raw: &[u8]) -> Result<Cow<'_, str>, PathProblem> {
    let mut rewritten: Option<String> = None;
    let mut at = 0;
    while let Some(&byte) = raw.get(at) {
        if byte == b'%' {
            let value = escape(raw, at)?;
            let spelled = raw.get(at..at + 3).unwrap_or_default();
            let decoded = is_unreserved(value).then_some(value);
            if decoded.is_some() || spelled.iter().any(u8::is_ascii_lowercase) {
                let out = rewritten.get_or_insert_with(|| ascii(raw.get(..at).unwrap_or_default()));
                match decoded {
                    Some(value) => out.push(char::from(value)),
                    None => out.extend(spelled.iter().map(|b| char::from(b.to_ascii_uppercase()))),
                }
            } else if let Some(out) = &mut rewritten {
                out.extend(spelled.iter().copied().map(char::from));
            }
            at += 3;
        } else if is_pchar(byte) || byte == b'/' {
            if let Some(out) = &mut rewritten {
                out.push(char::from(byte));
            }
            at += 1;
        } else {
            return Err(PathProblem { kind: PathProblemKind::Byte, at });
        }
    }
    let path = match rewritten {
        Some(path) => Cow::Owned(path),
        None => {
            Cow::Borrowed(std::str::from_utf8(raw).map_err(|e| PathProblem { kind: PathProblemKind::Byte, at: e.valid_up_to() })?)
        }
    };
    check_segments(&path)?;
    Ok(path)
}

/// The canonical target of a request that may ask about the whole server: `*` for `OPTIONS`, else as [`canonical`].
pub fn canonical_target<'a>(method: &str, raw: &'a [u8]) -> Result<Cow<'a, str>, PathProblem> {
    if method == "OPTIONS" && raw == b"*" { Ok(Cow::Borrowed("*")) } else { canonical(raw) }
}

fn ascii(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// The byte that the escape at `at` stands for, unless it is one of the refused ones.
fn escape(raw: &[u8], at: usize) -> Result<u8, PathProblem> {
    let problem = |kind| PathProblem { kind, at };
    let digit = |offset: usize| raw.get(at + offset).and_then(|b| hex(*b));
    let (Some(high), Some(low)) = (digit(1), digit(2)) else { return Err(problem(PathProblemKind::Escape)) };
    match high << 4 | low {
        0 => Err(problem(PathProblemKind::EncodedNul)),
        b'/' => Err(problem(PathProblemKind::EncodedSlash)),
        b'\\' => Err(problem(PathProblemKind::EncodedBackslash)),
        // `%25` may be followed by digits that are themselves escaped (`%25%32%66`): looking at what decodes is not enough
        b'%' if digit_or_escaped_digit(raw, at + 3) => Err(problem(PathProblemKind::DoubleEncoding)),
        value if raw.get(at + 3) == Some(&b'%') && is_overlong(value, digit(4).zip(digit(5))) => {
            Err(problem(PathProblemKind::Overlong))
        }
        value => Ok(value),
    }
}

/// Whether a byte and what the escape after it stands for begin a sequence that is longer than its character needs.
fn is_overlong(first: u8, next: Option<(u8, u8)>) -> bool {
    let Some((high, low)) = next else { return false };
    let most = match first {
        0xC0 | 0xC1 => 0xBF,
        0xE0 => 0x9F,
        0xF0 => 0x8F,
        0xF8 => 0x87,
        0xFC => 0x83,
        _ => return false,
    };
    (0x80..=most).contains(&(high << 4 | low))
}

/// Whether a hexadecimal digit, raw or escaped, stands at `at`, so that `%25` before it could decode to an escape.
fn digit_or_escaped_digit(raw: &[u8], at: usize) -> bool {
    let read = |at: usize| match raw.get(at) {
        Some(b'%') => {
            let high = raw.get(at + 1).and_then(|b| hex(*b))?;
            let low = raw.get(at + 2).and_then(|b| hex(*b))?;
            Some((high << 4 | low, at + 3))
        }
        Some(&byte) => Some((byte, at + 1)),
        None => None,
    };
    let Some((first, next)) = read(at) else { return false };
    let Some((second, _)) = read(next) else { return false };
    hex(first).is_some() && hex(second).is_some()
}

fn check_segments(path: &str) -> Result<(), PathProblem> {
    let mut start = 1;
    let mut segments = path.get(1..).unwrap_or_default().split('/').peekable();
    while let Some(segment) = segments.next() {
        // an escaped `;` is no parameter by the book, but some servers decode first and take segments apart afterwards
        let name = segment.split(';').next().unwrap_or_default().split("%3B").next().unwrap_or_default();
        let last = segments.peek().is_none();
        if name.is_empty() && !(segment.is_empty() && last) {
            return Err(PathProblem { kind: PathProblemKind::EmptySegment, at: start });
        }
        if matches!(name, "." | "..") {
            return Err(PathProblem { kind: PathProblemKind::DotSegment, at: start });
        }
        start += segment.len() + 1;
    }
    Ok(())
}

pub(crate) fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// RFC 3986 section 2.3.
pub(crate) fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 section 3.3, without the escapes.
pub(crate) fn is_pchar(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@')
}

/// The spellings of one canonical path that servers behind us could act on.
///
/// The first is the canonical path. A path with parameters has a second without them, and a path that escapes characters
/// which need no escape in a segment (`%21` for `!`) has these decoded in a third.
#[derive(Debug)]
pub struct Forms<'a> {
    canonical: &'a str,
    others: SmallVec<[SmallVec<[u8; 128]>; 2]>,
}

impl<'a> Forms<'a> {
    /// The forms of `canonical`. Allocates only for a path with parameters or such escapes that is longer than 128 bytes.
    pub fn of(canonical: &'a str) -> Self {
        let mut others = SmallVec::new();
        let bytes = canonical.as_bytes();
        if bytes.iter().any(|b| matches!(b, b';' | b'%')) {
            if bytes.contains(&b';') {
                others.push(without_parameters(bytes));
            }
            let decoded = decoded(bytes);
            if decoded.as_slice() != bytes {
                if decoded.contains(&b';') {
                    others.push(without_parameters(&decoded));
                }
                others.push(decoded);
            }
        }
        Self { canonical, others }
    }

    /// Whether `matches` holds for one of the forms.
    pub fn any(&self, mut matches: impl FnMut(&str) -> bool) -> bool {
        matches(self.canonical) || self.others.iter().any(|form| matches(text(form)))
    }

    /// Whether `matches` holds for every form.
    pub fn all(&self, mut matches: impl FnMut(&str) -> bool) -> bool {
        matches(self.canonical) && self.others.iter().all(|form| matches(text(form)))
    }

    /// The canonical path itself.
    pub fn canonical(&self) -> &'a str {
        self.canonical
    }
}

/// Forms are made of the bytes of a canonical path, which are ASCII.
fn text(form: &[u8]) -> &str {
    std::str::from_utf8(form).unwrap_or_default()
}

fn without_parameters(path: &[u8]) -> SmallVec<[u8; 128]> {
    let mut in_parameter = false;
    path.iter()
        .copied()
        .filter(|byte| {
            in_parameter = match byte {
                b';' => true,
                b'/' => false,
                _ => in_parameter,
            };
            !in_parameter
        })
        .collect()
}

/// Decodes the escapes of characters that may also stand in a segment as they are (sub-delims, `:` and `@`).
fn decoded(path: &[u8]) -> SmallVec<[u8; 128]> {
    let mut out = SmallVec::new();
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        let escaped = (byte == b'%').then(|| escape(path, at).ok()).flatten().filter(|value| is_pchar(*value));
        out.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kind(raw: &str) -> PathProblemKind {
        canonical(raw.as_bytes()).expect_err(raw).kind
    }

    proptest! {
        #[test]
        fn a_plain_path_is_canonical_as_it_is(raw in "/[a-zA-Z0-9/_~.;%-]{0,12}") {
            let slow = rewritten(raw.as_bytes());
            if is_plain(raw.as_bytes()) {
                prop_assert!(matches!(&slow, Ok(Cow::Borrowed(path)) if *path == raw));
            }
            prop_assert_eq!(canonical(raw.as_bytes()), slow);
        }
    }

    #[test]
    fn ambiguous_paths_are_refused_with_their_reason() {
        use PathProblemKind::*;
        for (raw, expected) in [
            ("", NotAbsolute),
            ("*", NotAbsolute),
            ("pkg.Svc/Del", NotAbsolute),
            ("http://a/b", NotAbsolute),
            ("\\admin", NotAbsolute),
            ("/a b", Byte),
            ("/\\admin", Byte),
            ("/a#s", Byte),
            ("/a?b", Byte),
            ("/a\"b", Byte),
            ("/é", Byte),
            ("/a\tb", Byte),
            ("/{a}", Byte),
            ("/a|b", Byte),
            ("/a^`", Byte),
            ("/<>", Byte),
            ("/%", Escape),
            ("/%2", Escape),
            ("/%zz", Escape),
            ("/a%2g", Escape),
            ("/%u0041", Escape),
            ("/a%00", EncodedNul),
            ("/x%2f..%2fadmin", EncodedSlash),
            ("/x%2F", EncodedSlash),
            ("/%5cadmin", EncodedBackslash),
            ("/%5Cadmin", EncodedBackslash),
            ("/%252e%252e/a", DoubleEncoding),
            ("/%25%32e", DoubleEncoding),
            ("/%25%32%65", DoubleEncoding),
            ("/%2525", DoubleEncoding),
            ("/%C0%AE%C0%AE/private", Overlong),
            ("/%c0%af", Overlong),
            ("/%C1%9C", Overlong),
            ("/a/%E0%80%AF", Overlong),
            ("/%F0%80%80%AF", Overlong),
            ("/%F8%80%80%80%AF", Overlong),
            ("/%FC%80%80%80%80%AF", Overlong),
            ("/public/../private", DotSegment),
            ("/public/%2e%2e/private", DotSegment),
            ("/public/%2E./x", DotSegment),
            ("/./x", DotSegment),
            ("/x/.", DotSegment),
            ("/x/..", DotSegment),
            ("/user/..;foo=bar/admin", DotSegment),
            ("/user/.;/x", DotSegment),
            ("/user/%2e%2e;x/admin", DotSegment),
            ("/user/..%3bx/admin", DotSegment),
            ("/user/%2e%3B", DotSegment),
            ("/a/%3Bx/b", EmptySegment),
            ("//admin", EmptySegment),
            ("/a//b", EmptySegment),
            ("//", EmptySegment),
            ("/a/;x/b", EmptySegment),
            ("/;x", EmptySegment),
        ] {
            assert_eq!(kind(raw), expected, "{raw}");
        }
        assert_eq!(canonical(b"/a/b%2fc").unwrap_err(), PathProblem { kind: EncodedSlash, at: 4 });
        assert_eq!(canonical(b"/\xff").unwrap_err().kind, Byte);
    }

    #[test]
    fn escapes_have_one_spelling() {
        for (raw, expected) in [
            ("/", "/"),
            ("/a", "/a"),
            ("/a/", "/a/"),
            ("/%61dmin", "/admin"),
            ("/%7euser", "/~user"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/%e2%82%ac/%F0%9f%98%80/%C2%A0", "/%E2%82%AC/%F0%9F%98%80/%C2%A0"),
            ("/%C0/%c0%E9/%E0%A0%80", "/%C0/%C0%E9/%E0%A0%80"),
            ("/a%20b", "/a%20b"),
            ("/a%3Bb", "/a%3Bb"),
            ("/a%3bb", "/a%3Bb"),
            ("/a;x=y/b", "/a;x=y/b"),
            ("/a*b", "/a*b"),
            ("/100%25", "/100%25"),
            ("/...", "/..."),
            ("/a..b", "/a..b"),
        ] {
            assert_eq!(canonical(raw.as_bytes()).unwrap(), expected, "{raw}");
        }
    }

    #[test]
    fn a_server_wide_target_is_for_options_alone() {
        assert_eq!(canonical_target("OPTIONS", b"*").unwrap(), "*");
        assert!(canonical_target("GET", b"*").is_err());
    }

    #[test]
    fn forms_hold_every_reading_of_parameters_and_needless_escapes() {
        let forms = |path: &'static str| {
            let mut all = Vec::new();
            Forms::of(path).all(|form| {
                all.push(form.to_owned());
                true
            });
            all
        };
        assert_eq!(forms("/a/b"), ["/a/b"]);
        assert_eq!(forms("/admin;x=y/a;z"), ["/admin;x=y/a;z", "/admin/a"]);
        assert_eq!(forms("/a%21b"), ["/a%21b", "/a!b"]);
        assert_eq!(forms("/a%3Bx/b"), ["/a%3Bx/b", "/a/b", "/a;x/b"]);
        assert_eq!(forms("/a%20b"), ["/a%20b"]);
    }

    proptest! {
        #[test]
        fn canonical_is_idempotent_and_never_panics(raw in proptest::collection::vec(proptest::sample::select(b"/.%25;aefFE20cC*~ \\\xff".to_vec()), 0..24)) {
            if let Ok(once) = canonical(&raw) {
                let twice = canonical(once.as_bytes()).expect("a canonical path is accepted");
                prop_assert_eq!(&twice, &once);
                prop_assert!(once.starts_with('/') && once.is_ascii() && !once.contains("//"));
                prop_assert!(once.split('/').all(|segment| !matches!(segment.split(';').next(), Some("." | ".."))));
            }
        }

        #[test]
        fn the_case_of_hexadecimal_digits_changes_no_verdict(raw in "/[a-z%0-9A-F;.]{0,16}") {
            let lower = canonical(raw.to_ascii_lowercase().as_bytes()).is_ok();
            let upper = canonical(raw.to_ascii_uppercase().as_bytes()).is_ok();
            prop_assert_eq!(lower, upper);
        }
    }
}
