//! Conditions on headers, and how header values are read.
//!
//! A header may come in several lines and a line may be a list. What the application makes of that is not known here, so a
//! deny looks at every line and at every element, and holds if one of them is meant; an allow holds only if the header can be
//! read no other way: every line, taken whole or element by element, is meant. Values are bytes; they need not be UTF-8.

use std::ops::ControlFlow;

use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use crate::reserved::{Reserved, reserved};

/// Longest regular expression in characters.
pub const MAX_REGEX_CHARS: usize = 1024;
/// Largest compiled regular expression in bytes.
const MAX_REGEX_BYTES: usize = 256 * 1024;

/// The headers of a request.
pub trait Headers {
    /// Calls `each` with the value of every line of the header `name` (in lower case), until it breaks.
    fn visit(&self, name: &str, each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>);
}

/// Headers as a list of names and values, for tests and described calls.
impl<N: AsRef<str>, V: AsRef<[u8]>> Headers for [(N, V)] {
    fn visit(&self, name: &str, each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) {
        for (_, value) in self.iter().filter(|(own, _)| own.as_ref().eq_ignore_ascii_case(name)) {
            if each(value.as_ref()).is_break() {
                return;
            }
        }
    }
}
impl<N: AsRef<str>, V: AsRef<[u8]>> Headers for Vec<(N, V)> {
    fn visit(&self, name: &str, each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) {
        self.as_slice().visit(name, each);
    }
}

/// No headers at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHeaders;

impl Headers for NoHeaders {
    fn visit(&self, _: &str, _: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) {}
}

/// A condition on one header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct HeaderMatch {
    name: Box<str>,
    value: ValueMatch,
}

/// What a value must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueMatch {
    /// There is one.
    Present,
    /// There is none.
    Absent,
    /// This value.
    Exact(Box<str>),
    /// One of these values.
    OneOf(Box<[Box<str>]>),
    /// A value that begins so.
    Prefix(Box<str>),
    /// A value that ends so.
    Suffix(Box<str>),
    /// A value that holds this text.
    Contains(Box<str>),
    /// A value that, as a whole, is matched by this regular expression.
    Regex(HeaderRegex),
}

/// A regular expression over the bytes of a whole value.
#[derive(Debug, Clone)]
pub struct HeaderRegex {
    text: Box<str>,
    regex: Regex,
}

impl PartialEq for HeaderRegex {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}
impl Eq for HeaderRegex {}

/// Why a condition on a header cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderProblem {
    /// Not an HTTP field name.
    #[error("`{0}` is not a header name")]
    Name(String),
    /// A pseudo-header, which has a matcher of its own.
    #[error("`{0}` is no header: use `methods`, `paths` or `hosts`")]
    Pseudo(String),
    /// `host` as a header.
    #[error("use `hosts` for the header `host`: it is compared in its canonical form")]
    Host,
    /// A field that is gone when a request is decided.
    #[error("no rule ever sees `{0}`: {way_out}", way_out = .1.way_out())]
    Reserved(String, Reserved),
    /// A name that no request may carry.
    #[error("`{0}` can never match: requests with `_` in a field name are refused, since applications read it as `-`")]
    Underscore(String),
    /// Several ways to compare at once.
    #[error("write one of exact, oneOf, prefix, suffix, contains, regex and present")]
    Several,
    /// A text that no value can be, as values carry no spaces at their ends.
    #[error("`{0}` can never match: values are compared without the spaces around them")]
    Spaces(String),
    /// An empty text, which says nothing.
    #[error("an empty text says nothing: use `present`")]
    Empty,
    /// Too long.
    #[error("a text to compare with has at most {MAX_REGEX_CHARS} characters")]
    TooLong,
    /// Not a regular expression, or one that costs too much.
    #[error("the regular expression is refused: {0}")]
    Regex(String),
}

/// The condition as it is written.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exact: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    one_of: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    suffix: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    contains: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    regex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    present: Option<bool>,
}

impl TryFrom<Written> for HeaderMatch {
    type Error = HeaderProblem;

    fn try_from(written: Written) -> Result<Self, HeaderProblem> {
        let Written { name, exact, one_of, prefix, suffix, contains, regex, present } = written;
        let name = header_name(&name)?;
        let mut ways = Vec::new();
        ways.extend(exact.map(|text| literal(&text).map(ValueMatch::Exact)));
        ways.extend(one_of.map(|texts| one_of_texts(&texts)));
        ways.extend(prefix.map(|text| literal(&text).map(ValueMatch::Prefix)));
        ways.extend(suffix.map(|text| literal(&text).map(ValueMatch::Suffix)));
        ways.extend(contains.map(|text| part(&text).map(ValueMatch::Contains)));
        ways.extend(regex.map(|text| HeaderRegex::new(&text).map(ValueMatch::Regex)));
        ways.extend(present.map(|present| Ok(if present { ValueMatch::Present } else { ValueMatch::Absent })));
        if ways.len() > 1 {
            return Err(HeaderProblem::Several);
        }
        let value = ways.pop().unwrap_or(Ok(ValueMatch::Present))?;
        Ok(Self { name, value })
    }
}

impl From<HeaderMatch> for Written {
    fn from(header: HeaderMatch) -> Self {
        let mut written = Self {
            name: header.name.into(),
            exact: None,
            one_of: None,
            prefix: None,
            suffix: None,
            contains: None,
            regex: None,
            present: None,
        };
        match header.value {
            ValueMatch::Present => written.present = Some(true),
            ValueMatch::Absent => written.present = Some(false),
            ValueMatch::Exact(text) => written.exact = Some(text.into()),
            ValueMatch::OneOf(texts) => written.one_of = Some(texts.into_iter().map(String::from).collect()),
            ValueMatch::Prefix(text) => written.prefix = Some(text.into()),
            ValueMatch::Suffix(text) => written.suffix = Some(text.into()),
            ValueMatch::Contains(text) => written.contains = Some(text.into()),
            ValueMatch::Regex(regex) => written.regex = Some(regex.text.into()),
        }
        written
    }
}

/// Whether a rule can ever see a header of this name.
pub(crate) fn is_seen(name: &str) -> Result<(), HeaderProblem> {
    if let Some(why) = reserved(name.as_bytes()) {
        return Err(HeaderProblem::Reserved(name.to_ascii_lowercase(), why));
    }
    if name.contains('_') {
        return Err(HeaderProblem::Underscore(name.to_ascii_lowercase()));
    }
    Ok(())
}

/// The name in lower case.
pub(crate) fn header_name(name: &str) -> Result<Box<str>, HeaderProblem> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.starts_with(':') {
        return Err(HeaderProblem::Pseudo(name.chars().take(80).collect()));
    }
    if name.is_empty() || name.len() > 256 || !name.bytes().all(token) {
        return Err(HeaderProblem::Name(name.chars().take(80).collect()));
    }
    if name.eq_ignore_ascii_case("host") {
        return Err(HeaderProblem::Host);
    }
    Ok(name.to_ascii_lowercase().into())
}

fn part(text: &str) -> Result<Box<str>, HeaderProblem> {
    match text {
        "" => Err(HeaderProblem::Empty),
        _ if text.len() > MAX_REGEX_CHARS => Err(HeaderProblem::TooLong),
        _ => Ok(text.into()),
    }
}

fn literal(text: &str) -> Result<Box<str>, HeaderProblem> {
    if trim(text.as_bytes()).len() != text.len() {
        return Err(HeaderProblem::Spaces(text.chars().take(80).collect()));
    }
    part(text)
}

fn one_of_texts(texts: &[String]) -> Result<ValueMatch, HeaderProblem> {
    if texts.is_empty() {
        return Err(HeaderProblem::Empty);
    }
    texts.iter().map(|text| literal(text)).collect::<Result<Vec<_>, _>>().map(|texts| ValueMatch::OneOf(texts.into()))
}

impl HeaderRegex {
    /// Reads a bounded regular expression.
    pub fn new(text: &str) -> Result<Self, HeaderProblem> {
        if text.len() > MAX_REGEX_CHARS {
            return Err(HeaderProblem::TooLong);
        }
        // alone first: `a)|(b` must not be able to close the group that anchors it
        build(text)?;
        let regex = build(&format!("^(?:{text})$"))?;
        Ok(Self { text: text.into(), regex })
    }

    /// Reads a bounded regular expression that may match anywhere in a value.
    pub(crate) fn searching(text: &str) -> Result<Self, HeaderProblem> {
        if text.len() > MAX_REGEX_CHARS {
            return Err(HeaderProblem::TooLong);
        }
        Ok(Self { text: text.into(), regex: build(text)? })
    }

    pub(crate) fn is_match(&self, value: &[u8]) -> bool {
        self.regex.is_match(value)
    }

    /// The expression as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn build(text: &str) -> Result<Regex, HeaderProblem> {
    RegexBuilder::new(text)
        // `.` must match any byte: a value that is not UTF-8 must not slip past a deny
        .unicode(false)
        .dot_matches_new_line(true)
        .size_limit(MAX_REGEX_BYTES)
        .dfa_size_limit(MAX_REGEX_BYTES)
        .nest_limit(32)
        .build()
        .map_err(|error| HeaderProblem::Regex(one_line(&error)))
}

fn one_line(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => format!("it compiles to more than {} KiB", MAX_REGEX_BYTES / 1024),
        other => other.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    }
}

impl HeaderMatch {
    /// A condition on the header `name`.
    pub fn new(name: &str, value: ValueMatch) -> Result<Self, HeaderProblem> {
        let header = Self { name: header_name(name)?, value };
        header.check()?;
        Ok(header)
    }

    /// Whether it is about a header that a rule can see. What is stored already may be about another: that is read all the same, or
    /// a newer version could not begin with what an older one took.
    pub fn check(&self) -> Result<(), HeaderProblem> {
        is_seen(&self.name)
    }

    /// The header's name in lower case.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its value must be.
    pub fn value(&self) -> &ValueMatch {
        &self.value
    }

    /// Whether some reading of the header is meant: the reading of a deny.
    pub fn holds_for_some_reading(&self, headers: &dyn Headers) -> bool {
        if self.value == ValueMatch::Absent {
            return self.is_absent(headers);
        }
        let mut found = false;
        headers.visit(&self.name, &mut |line| {
            found = self.value.matches(trim(line)) || elements(line).any(|element| self.value.matches(element));
            if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        found
    }

    /// Whether every reading of the header is meant: the reading of an allow.
    pub fn holds_for_every_reading(&self, headers: &dyn Headers) -> bool {
        if self.value == ValueMatch::Absent {
            return self.is_absent(headers);
        }
        let (mut lines, mut all) = (false, true);
        headers.visit(&self.name, &mut |line| {
            lines = true;
            all = self.value.matches(trim(line)) || elements(line).all(|element| self.value.matches(element));
            if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        lines && all
    }

    fn is_absent(&self, headers: &dyn Headers) -> bool {
        let mut absent = true;
        headers.visit(&self.name, &mut |_| {
            absent = false;
            ControlFlow::Break(())
        });
        absent
    }
}

impl std::fmt::Display for HeaderMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = &self.name;
        match &self.value {
            ValueMatch::Present => write!(f, "`{name}` is present"),
            ValueMatch::Absent => write!(f, "`{name}` is absent"),
            ValueMatch::Exact(text) => write!(f, "`{name}` is `{text}`"),
            ValueMatch::OneOf(texts) => write!(f, "`{name}` is one of `{}`", texts.join("`, `")),
            ValueMatch::Prefix(text) => write!(f, "`{name}` begins with `{text}`"),
            ValueMatch::Suffix(text) => write!(f, "`{name}` ends with `{text}`"),
            ValueMatch::Contains(text) => write!(f, "`{name}` contains `{text}`"),
            ValueMatch::Regex(regex) => write!(f, "`{name}` matches `{}`", regex.text),
        }
    }
}

impl ValueMatch {
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Present => true,
            Self::Absent => false,
            Self::Exact(text) => text.as_bytes() == value,
            Self::OneOf(texts) => texts.iter().any(|text| text.as_bytes() == value),
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::Suffix(text) => value.ends_with(text.as_bytes()),
            Self::Contains(text) => value.windows(text.len().max(1)).any(|window| window == text.as_bytes()),
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

/// The elements of a list, each without the white space around it (RFC 9110 section 5.6.1).
pub(crate) fn elements(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| *b == b',').map(trim)
}

/// Optional white space, RFC 9110 section 5.6.3, and the line ends that no codec should have let through.
pub(crate) fn trim(value: &[u8]) -> &[u8] {
    let blank = |b: &u8| matches!(b, b' ' | b'\t' | b'\r' | b'\n');
    let start = value.iter().position(|b| !blank(b)).unwrap_or(value.len());
    let end = value.iter().rposition(|b| !blank(b)).map_or(start, |at| at + 1);
    value.get(start..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn header(json: &str) -> HeaderMatch {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_deny_sees_the_value_in_any_line_and_element_and_an_allow_wants_it_in_all() {
        let admin = header(r#"{"name": "X-Role", "exact": "admin"}"#);
        for (lines, some, every) in [
            (&[][..], false, false),
            (&["admin"], true, true),
            (&["admin "], true, true),
            (&["\tadmin\t "], true, true),
            (&["user", "admin"], true, false),
            (&["user,admin"], true, false),
            (&["admin,user"], true, false),
            (&["admin, admin", "admin"], true, true),
            (&["user", "x", "admin"], true, false),
            (&["user"], false, false),
            (&["administrator"], false, false),
        ] {
            let list: Vec<(&str, &str)> = lines.iter().map(|line| ("x-role", *line)).collect();
            assert_eq!(admin.holds_for_some_reading(&list), some, "{lines:?}");
            assert_eq!(admin.holds_for_every_reading(&list), every, "{lines:?}");
        }
    }

    #[test]
    fn a_value_that_is_not_utf8_does_not_slip_past_a_regular_expression() {
        let any = header(r#"{"name": "x", "regex": "a.*"}"#);
        assert!(any.holds_for_some_reading(&vec![("x", &b"a\x80\xff"[..])]));
        assert!(!any.holds_for_some_reading(&vec![("x", &b"\x80a"[..])]));
    }

    #[test]
    fn what_no_rule_sees_is_no_condition_but_is_read_where_it_is_stored() {
        for name in ["Upgrade", "x-envoy-peer", "x_role"] {
            assert!(HeaderMatch::new(name, ValueMatch::Present).is_err(), "{name}");
            let stored = header(&format!(r#"{{"name": "{name}"}}"#));
            assert!(stored.check().is_err() && !stored.holds_for_some_reading(&vec![("x-role", "admin")]), "{name}");
        }
        assert!(HeaderMatch::new("X-Role", ValueMatch::Present).unwrap().check().is_ok());
    }

    #[test]
    fn a_regular_expression_matches_the_whole_value() {
        let regex = header(r#"{"name": "x", "regex": "a|b"}"#);
        assert!(regex.holds_for_every_reading(&vec![("x", "a")]));
        assert!(!regex.holds_for_some_reading(&vec![("x", "ab")]));
    }

    #[test]
    fn costly_and_broken_regular_expressions_are_refused_at_once() {
        let started = Instant::now();
        for bad in [
            "(a{1000}){1000}".to_owned(),
            "a".repeat(1_000_000),
            "(".repeat(1000),
            "a)|(b".to_owned(),
            "[".to_owned(),
            format!("{}a{}", "(".repeat(200), ")".repeat(200)),
            "(?x) a # )".to_owned() + "(",
        ] {
            assert!(HeaderRegex::new(&bad).is_err(), "{}", &bad[..bad.len().min(40)]);
        }
        assert!(started.elapsed() < Duration::from_millis(500), "took {:?}", started.elapsed());
    }

    #[test]
    fn contradictions_and_pseudo_headers_are_refused() {
        for bad in [
            r#"{"name": "x", "exact": "a", "prefix": "b"}"#,
            r#"{"name": ":path"}"#,
            r#"{"name": "Host", "exact": "a"}"#,
            r#"{"name": "a b"}"#,
            r#"{"name": ""}"#,
            r#"{"name": "x", "exact": ""}"#,
            r#"{"name": "x", "exact": " a"}"#,
            r#"{"name": "x", "oneOf": []}"#,
            r#"{"name": "x", "exakt": "a"}"#,
            r#"{"exact": "a"}"#,
        ] {
            assert!(serde_json::from_str::<HeaderMatch>(bad).is_err(), "{bad}");
        }
        assert_eq!(header(r#"{"name": "X-A"}"#), header(r#"{"name": "x-a", "present": true}"#));
    }
}
