//! How rules describe a path: `/v1/orders`, `/v1/*`, `*.png`, `*`, or a template such as `/v1/orders/{id}/{rest=**}`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::path;
use crate::pattern::{Pattern, PatternProblem, stored_form, text_form};

/// Most segments that a template may have.
const MAX_SEGMENTS: usize = 64;

/// One pattern over canonical paths.
///
/// A text with `{` is a template: `{name}`, `{name=*}` and `{*}` stand for one segment that is not empty, `{name=**}` and
/// `{**}` for any number of segments, none included, once a template. Everything else is a [`Pattern`] on the whole path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPattern {
    text: Box<str>,
    kind: PathKind,
}

/// What a path pattern is made of, in canonical spelling.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathKind {
    /// The whole path, its beginning, its end, or any path.
    Plain(Pattern),
    /// Segment by segment.
    Template(Box<[Segment]>),
}

/// One segment of a template.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment {
    /// This text.
    Literal(Box<str>),
    /// One segment, not empty.
    One,
    /// Any number of segments.
    Rest,
}

impl PathPattern {
    /// Reads a pattern. Its literal parts are brought into the spelling of [`path::canonical`].
    pub fn new(text: &str) -> Result<Self, PatternProblem> {
        if text.len() > crate::pattern::MAX_PATTERN_BYTES {
            return Err(PatternProblem::TooLong);
        }
        let kind = if text.contains(['{', '}']) { template(text)? } else { plain(text)? };
        Ok(Self { text: text.into(), kind })
    }

    /// What it is made of.
    pub fn kind(&self) -> &PathKind {
        &self.kind
    }

    /// Whether one spelling of a path is like this.
    pub fn matches(&self, path: &str) -> bool {
        match &self.kind {
            PathKind::Plain(pattern) => pattern.matches(path),
            PathKind::Template(segments) => path.strip_prefix('/').is_some_and(|path| template_matches(segments, path)),
        }
    }

    /// Whether every path that `other` matches is matched by this pattern too. May say no where the answer is yes.
    pub fn covers(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (PathKind::Plain(own), PathKind::Plain(theirs)) => own.covers(theirs),
            (PathKind::Plain(Pattern::Any), _) => true,
            (PathKind::Plain(Pattern::Prefix(own)), PathKind::Template(theirs)) => literal_beginning(theirs).starts_with(&**own),
            (PathKind::Template(_), PathKind::Plain(Pattern::Exact(path))) => self.matches(path),
            (PathKind::Template(own), PathKind::Template(theirs)) => own == theirs || template_covers(own, theirs),
            _ => false,
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
text_form!(PathPattern);

fn plain(text: &str) -> Result<PathKind, PatternProblem> {
    let pattern = Pattern::new(text)?;
    let checked = |literal: &str, complete: &str| canonical_literal(text, literal, complete);
    Ok(PathKind::Plain(match pattern {
        Pattern::Any => Pattern::Any,
        Pattern::Exact(path) => Pattern::Exact(checked(&path, &path)?),
        // a prefix may end within a segment: what follows decides whether that is empty or a dot
        Pattern::Prefix(path) => {
            let complete = format!("{path}x");
            let canonical = checked(&path, &complete)?;
            Pattern::Prefix(canonical.strip_suffix('x').unwrap_or(&canonical).into())
        }
        Pattern::Suffix(path) => {
            let head = if path.starts_with('/') { "/x" } else { "/" };
            let canonical = checked(&path, &format!("{head}{path}"))?;
            Pattern::Suffix(canonical.strip_prefix(head).unwrap_or(&canonical).into())
        }
    }))
}

fn canonical_literal(text: &str, literal: &str, complete: &str) -> Result<Box<str>, PatternProblem> {
    if literal.contains(['?', '#']) {
        return Err(PatternProblem::impossible(text, "paths are compared without query and fragment"));
    }
    match path::canonical(&escaped(complete)) {
        Ok(canonical) => Ok(canonical.as_ref().into()),
        Err(problem) => Err(PatternProblem::impossible(text, reason(problem.kind))),
    }
}

/// A pattern may be written with characters that a request has to escape, such as `é` or a space.
fn escaped(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'|') {
            out.push(byte);
        } else {
            out.extend(format!("%{byte:02X}").bytes());
        }
    }
    out
}

fn reason(kind: path::PathProblemKind) -> &'static str {
    use path::PathProblemKind as Kind;
    match kind {
        Kind::NotAbsolute => "a path begins with `/`",
        Kind::Byte => "a path holds the characters of RFC 3986 alone",
        Kind::Escape => "a `%` stands before two hexadecimal digits",
        Kind::EncodedNul | Kind::EncodedSlash | Kind::EncodedBackslash | Kind::DoubleEncoding | Kind::Overlong => {
            "requests with `%00`, `%2F`, `%5C`, a doubly encoded or an overlong escape are refused before any rule"
        }
        Kind::DotSegment => "requests with `.` and `..` segments are refused before any rule",
        Kind::EmptySegment => "requests with empty segments (`//`) are refused before any rule",
    }
}

fn template(text: &str) -> Result<PathKind, PatternProblem> {
    let path = text.strip_prefix('/').ok_or_else(|| PatternProblem::impossible(text, "a path template begins with `/`"))?;
    let parts: Vec<&str> = path.split('/').collect();
    if parts.len() > MAX_SEGMENTS {
        return Err(PatternProblem::impossible(text, "a path template has at most 64 segments"));
    }
    let last = parts.len().saturating_sub(1);
    let mut segments = Vec::with_capacity(parts.len());
    for (at, part) in parts.iter().enumerate() {
        segments.push(match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            Some(variable) => wildcard(variable)
                .ok_or_else(|| PatternProblem::impossible(text, "a variable is `{name}`, `{name=**}`, `{*}` or `{**}`"))?,
            None if part.contains(['{', '}', '*']) => {
                return Err(PatternProblem::impossible(text, "a variable of a template fills a whole segment"));
            }
            None if part.is_empty() && at == last && at > 0 => Segment::Literal("".into()),
            None => {
                // the slash behind it makes an empty segment show
                let canonical = canonical_literal(text, part, &format!("/{part}/"))?;
                let canonical = canonical.strip_suffix('/').unwrap_or(&canonical);
                Segment::Literal(canonical.strip_prefix('/').unwrap_or(canonical).into())
            }
        });
    }
    if segments.iter().filter(|segment| **segment == Segment::Rest).count() > 1 {
        return Err(PatternProblem::impossible(text, "a template has at most one `{**}`"));
    }
    Ok(PathKind::Template(segments.into()))
}

fn wildcard(variable: &str) -> Option<Segment> {
    let (name, kind) = variable.split_once('=').unwrap_or((variable, "*"));
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    match (variable, kind) {
        ("*", _) => Some(Segment::One),
        ("**", _) => Some(Segment::Rest),
        (_, "*") if is_name => Some(Segment::One),
        (_, "**") if is_name => Some(Segment::Rest),
        _ => None,
    }
}

/// `path` comes without its first slash. At most one [`Segment::Rest`] in a template keeps this linear.
fn template_matches(segments: &[Segment], path: &str) -> bool {
    let rest = segments.iter().position(|segment| *segment == Segment::Rest);
    let (head, tail) = match rest {
        Some(at) => (segments.get(..at).unwrap_or_default(), segments.get(at + 1..).unwrap_or_default()),
        None => (segments, <&[Segment]>::default()),
    };
    let mut parts = path.split('/');
    for segment in head {
        if !parts.next().is_some_and(|part| one_matches(segment, part)) {
            return false;
        }
    }
    if rest.is_none() {
        return parts.next().is_none();
    }
    // `/a/{**}` asks for the slash after `a`: with nothing left of the path there is none
    let mut left = parts.clone().count();
    if left == 0 && !head.is_empty() {
        return false;
    }
    for segment in tail.iter().rev() {
        if left == 0 || !parts.next_back().is_some_and(|part| one_matches(segment, part)) {
            return false;
        }
        left -= 1;
    }
    true
}

fn one_matches(segment: &Segment, part: &str) -> bool {
    match segment {
        Segment::Literal(text) => **text == *part,
        Segment::One => !part.is_empty(),
        Segment::Rest => true,
    }
}

fn literal_beginning(segments: &[Segment]) -> String {
    let mut text = String::from("/");
    for (at, segment) in segments.iter().enumerate() {
        match segment {
            Segment::Literal(literal) => {
                text.push_str(literal);
                if at + 1 < segments.len() {
                    text.push('/');
                }
            }
            Segment::One | Segment::Rest => break,
        }
    }
    text
}

fn template_covers(own: &[Segment], theirs: &[Segment]) -> bool {
    let mut theirs = theirs.iter();
    for (at, segment) in own.iter().enumerate() {
        match (segment, theirs.next()) {
            (Segment::Rest, Some(_)) => return at + 1 == own.len(),
            (Segment::One, Some(Segment::One)) => {}
            (Segment::One, Some(Segment::Literal(text))) if !text.is_empty() => {}
            (Segment::Literal(own), Some(Segment::Literal(theirs))) if own == theirs => {}
            _ => return false,
        }
    }
    theirs.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_segment_by_segment() {
        for (pattern, yes, no) in [
            (
                "/v1/orders/{id}",
                &["/v1/orders/7", "/v1/orders/a*b"][..],
                &["/v1/orders", "/v1/orders/", "/v1/orders/7/x", "/v1/order/7"][..],
            ),
            ("/api/{**}", &["/api/", "/api/a", "/api/a/b", "/api/a*b", "/api/a/"], &["/api", "/apix", "/"]),
            ("/api/{rest=**}", &["/api/", "/api/a/b"], &["/api"]),
            ("/a/{**}/z", &["/a/z", "/a/b/z", "/a/b/c/z"], &["/a", "/z", "/a/zz", "/a/z/"]),
            ("/{**}", &["/", "/a", "/a/b"], &[]),
            ("/{*}/b", &["/a/b"], &["//b", "/b", "/a/b/"]),
            ("/{a}/x/{b=*}/", &["/1/x/2/"], &["/1/x/2", "/1/x//"]),
        ] {
            let pattern = PathPattern::new(pattern).unwrap();
            yes.iter().for_each(|path| assert!(pattern.matches(path), "{pattern} should match {path}"));
            no.iter().for_each(|path| assert!(!pattern.matches(path), "{pattern} should not match {path}"));
        }
    }

    #[test]
    fn every_character_that_a_path_may_hold_is_matched_by_a_variable() {
        let (one, rest) = (PathPattern::new("/api/{id}").unwrap(), PathPattern::new("/api/{**}").unwrap());
        for byte in (0u8..128).filter(|b| path::is_pchar(*b)) {
            let path = format!("/api/a{}b", char::from(byte));
            assert!(one.matches(&path) && rest.matches(&path), "{path}");
        }
    }

    #[test]
    fn patterns_are_brought_into_the_spelling_of_requests() {
        assert!(PathPattern::new("/caf%c3%a9").unwrap().matches("/caf%C3%A9"));
        assert!(PathPattern::new("/café/{x}").unwrap().matches("/caf%C3%A9/1"));
        assert!(PathPattern::new("/%61*").unwrap().matches("/ab"));
        assert!(PathPattern::new("*.%70ng").unwrap().matches("/a/b.png"));
        assert!(PathPattern::new("/a/*").unwrap().matches("/a/"));
        assert!(PathPattern::new("*/b").unwrap().matches("/a/b"));
    }

    #[test]
    fn patterns_that_no_canonical_path_can_match_are_refused() {
        for bad in [
            "",
            "a",
            "a*",
            "/a//b",
            "/a/../b",
            "/a/./b",
            "/a%2fb",
            "/a%00",
            "/a?x",
            "/a#b",
            "/a*b",
            "/a/{",
            "/a/x{id}",
            "/{a}/{**}/{**}",
            "{id}",
            "/{a b}",
            "/{}",
            "/{x=y}",
            "/a/{id}*",
            "//{x}",
            "/{a}//b",
            "*a*",
            "/..",
        ] {
            assert!(PathPattern::new(bad).is_err(), "`{bad}` was accepted");
        }
    }

    #[test]
    fn covers_is_never_wider_than_matches() {
        let patterns = ["*", "/a", "/a/*", "*/b", "/a/{x}", "/a/{**}", "/{x}/b", "/{**}", "/a/b", "/a/{x}/c", "/a/{**}/c"]
            .map(|p| PathPattern::new(p).unwrap());
        for wide in &patterns {
            for narrow in &patterns {
                if wide.covers(narrow) {
                    for path in ["/", "/a", "/a/", "/a/b", "/b/b", "/a/b/c", "/a/c", "/a/b/b", "/c"] {
                        assert!(!narrow.matches(path) || wide.matches(path), "{wide} {narrow} {path}");
                    }
                }
            }
        }
    }
}
