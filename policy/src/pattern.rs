//! How rules describe a text: exactly, by its beginning, by its end, or by its presence.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::method;

/// Longest pattern in bytes.
pub const MAX_PATTERN_BYTES: usize = 2048;

/// Why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternProblem {
    /// Nothing to compare with.
    #[error("an empty pattern matches nothing")]
    Empty,
    /// Too many bytes.
    #[error("a pattern has at most {MAX_PATTERN_BYTES} bytes")]
    TooLong,
    /// A `*` that is neither first nor last, or two of them.
    #[error("`{0}` has a `*` in the middle: it may stand at the beginning or at the end, once")]
    Star(String),
    /// The pattern can match no value of its kind.
    #[error("`{pattern}` can never match: {why}")]
    Impossible {
        /// The pattern.
        pattern: String,
        /// Why no value is like this, and what to write.
        why: &'static str,
    },
}

impl PatternProblem {
    pub(crate) fn impossible(pattern: &str, why: &'static str) -> Self {
        Self::Impossible { pattern: pattern.chars().take(120).collect(), why }
    }
}

/// `abc`, `abc*`, `*abc` or `*`. All other characters stand for themselves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pattern {
    /// Any value, as long as there is one.
    Any,
    /// This value.
    Exact(Box<str>),
    /// Values that begin so.
    Prefix(Box<str>),
    /// Values that end so.
    Suffix(Box<str>),
}

impl Pattern {
    /// Reads a pattern.
    pub fn new(text: &str) -> Result<Self, PatternProblem> {
        if text.is_empty() {
            return Err(PatternProblem::Empty);
        }
        if text.len() > MAX_PATTERN_BYTES {
            return Err(PatternProblem::TooLong);
        }
        let (kind, rest): (fn(Box<str>) -> Self, &str) = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => return Ok(Self::Any),
            (Some(end), _) => (Self::Suffix, end),
            (None, Some(beginning)) => (Self::Prefix, beginning),
            (None, None) => (Self::Exact, text),
        };
        if rest.contains('*') { Err(PatternProblem::Star(text.chars().take(120).collect())) } else { Ok(kind(rest.into())) }
    }

    /// Whether `text` is like this.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => **exact == *text,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
        }
    }

    /// The literal part.
    pub fn literal(&self) -> &str {
        match self {
            Self::Any => "",
            Self::Exact(text) | Self::Prefix(text) | Self::Suffix(text) => text,
        }
    }

    /// Whether every text that `other` matches is matched by this pattern too.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::Exact(own), Self::Exact(theirs)) => own == theirs,
            (Self::Prefix(own), Self::Exact(theirs) | Self::Prefix(theirs)) => theirs.starts_with(&**own),
            (Self::Suffix(own), Self::Exact(theirs) | Self::Suffix(theirs)) => theirs.ends_with(&**own),
            _ => false,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
        }
    }
}

/// Conversions through the text, for a type with `new(&str)` and `Display`.
macro_rules! text_form {
    ($type:ty) => {
        impl FromStr for $type {
            type Err = PatternProblem;
            fn from_str(text: &str) -> Result<Self, PatternProblem> {
                Self::new(text)
            }
        }
        stored_form!($type);
    };
}
/// Those of them that read and write what is stored.
macro_rules! stored_form {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = PatternProblem;
            fn try_from(text: String) -> Result<Self, PatternProblem> {
                Self::new(&text)
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    };
}
text_form!(Pattern);
pub(crate) use {stored_form, text_form};

/// A pattern over one kind of value, whose literal part is checked to be one that such values can have.
macro_rules! checked_pattern {
    ($(#[$doc:meta])* $type:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Pattern);

        impl $type {
            /// Reads the pattern.
            pub fn new(text: &str) -> Result<Self, PatternProblem> {
                let pattern = Pattern::new(text)?;
                let check: fn(&Pattern) -> Result<(), &'static str> = $check;
                check(&pattern).map_err(|why| PatternProblem::impossible(text, why))?;
                Ok(Self(pattern))
            }

            /// Whether `text` is like this.
            pub fn matches(&self, text: &str) -> bool {
                self.0.matches(text)
            }

            /// The pattern.
            pub fn pattern(&self) -> &Pattern {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        stored_form!($type);
    };
}

/// Patterns of which every one that can be stored can be written.
macro_rules! as_stored {
    ($($type:ident),*) => {$(
        impl FromStr for $type {
            type Err = PatternProblem;
            fn from_str(text: &str) -> Result<Self, PatternProblem> {
                Self::new(text)
            }
        }
    )*};
}
as_stored!(PrincipalPattern, NamespacePattern, AccountPattern, TrustDomainPattern, HostPattern);

checked_pattern! {
    /// SPIFFE IDs, such as `spiffe://mesh.example/ns/shop/sa/web` or `spiffe://mesh.example/*`.
    PrincipalPattern, |pattern| match pattern {
        Pattern::Any => Ok(()),
        Pattern::Exact(id) => crate::SpiffeId::new(id).map(drop).map_err(|_| "a principal is `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`"),
        Pattern::Prefix(text) if !text.starts_with("spiffe://") && !"spiffe://".starts_with(&**text) => Err("a principal begins with `spiffe://`"),
        Pattern::Prefix(text) | Pattern::Suffix(text) => only(text, |b| b.is_ascii_alphanumeric() || b":/._-".contains(&b), "a SPIFFE ID holds letters, digits, `.`, `-`, `_` and `/` alone"),
    }
}
checked_pattern! {
    /// Names of namespaces, such as `shop` or `team-a-*`.
    NamespacePattern, |pattern| only(pattern.literal(), |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-', "a namespace holds `a-z`, `0-9` and `-` alone")
}
checked_pattern! {
    /// Service accounts, such as `shop/web` or `shop/*`.
    AccountPattern, |pattern| match pattern {
        Pattern::Exact(account) => account.parse::<crate::ServiceAccount>().map(drop).map_err(|_| "a service account is `NAMESPACE/NAME`"),
        other => only(other.literal(), |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-./".contains(&b), "a service account is `NAMESPACE/NAME`"),
    }
}
checked_pattern! {
    /// Trust domains, such as `mesh.example`.
    TrustDomainPattern, |pattern| only(pattern.literal(), |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b), "a trust domain holds `a-z`, `0-9`, `.`, `-` and `_` alone")
}
checked_pattern! {
    /// Host names without port, in lower case, such as `files.shop` or `*.example.com`.
    HostPattern, |pattern| match pattern.literal() {
        literal if literal.bytes().any(|b| b.is_ascii_uppercase()) => Err("hosts are compared in lower case: write it so"),
        literal if literal.starts_with('[') || (matches!(pattern, Pattern::Exact(_)) && literal.contains(':')) => {
            let canonical = crate::host::canonical(literal.as_bytes()).is_ok_and(|host| host.port.is_none() && host.name == literal);
            if canonical { Ok(()) } else { Err("a host is written without its port, which has a field of its own, `ports`") }
        }
        literal if matches!(pattern, Pattern::Exact(_) | Pattern::Suffix(_)) && literal.ends_with('.') => Err("a host is written without the last dot"),
        literal => only(literal, |b| b.is_ascii_alphanumeric() || b"-._".contains(&b), "a host holds letters, digits, `-`, `.` and `_` alone, and no port, which has a field of its own, `ports`"),
    }
}
checked_pattern! {
    /// HTTP methods, such as `GET`. Compared with their case, as HTTP does.
    MethodPattern, |pattern| only(pattern.literal(), |b| b.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&b), "a method is one token, such as `GET`")
}

impl MethodPattern {
    /// Whether a request may have such a method. What is stored already may ask for another.
    pub fn check(&self) -> Result<(), PatternProblem> {
        let literal = self.0.literal().as_bytes();
        let is_possible = match &self.0 {
            // What a method begins with is a short method.
            Pattern::Exact(_) | Pattern::Prefix(_) => method::is_method(literal),
            Pattern::Any | Pattern::Suffix(_) => method::is_part(literal),
        };
        let why = "requests with a method in small letters are refused: write capitals, such as `GET`";
        if is_possible { Ok(()) } else { Err(PatternProblem::impossible(&self.to_string(), why)) }
    }
}

/// As somebody writes it.
impl FromStr for MethodPattern {
    type Err = PatternProblem;
    fn from_str(text: &str) -> Result<Self, PatternProblem> {
        let pattern = Self::new(text)?;
        pattern.check()?;
        Ok(pattern)
    }
}

fn only(text: &str, allowed: fn(u8) -> bool, why: &'static str) -> Result<(), &'static str> {
    if text.bytes().all(allowed) { Ok(()) } else { Err(why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_means_something_only_at_one_end() {
        assert_eq!(Pattern::new("*"), Ok(Pattern::Any));
        assert_eq!(Pattern::new("a*"), Ok(Pattern::Prefix("a".into())));
        assert_eq!(Pattern::new("*a"), Ok(Pattern::Suffix("a".into())));
        assert_eq!(Pattern::new("a.b"), Ok(Pattern::Exact("a.b".into())));
        for bad in ["", "a*b", "*a*", "**", "a**"] {
            assert!(Pattern::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_dot_in_a_pattern_is_a_dot() {
        let account = AccountPattern::new("shop/a.b").unwrap();
        assert!(account.matches("shop/a.b"));
        assert!(!account.matches("shop/axb"));
    }

    #[test]
    fn patterns_that_no_value_can_match_are_refused() {
        for (kind, bad) in [
            ("principal", "shop/web"),
            ("principal", "spiffe://TD/a"),
            ("principal", "cluster.local/ns/*"),
            ("namespace", "Shop"),
            ("namespace", "a_b"),
            ("account", "web"),
            ("domain", "Mesh"),
            ("host", "Files.shop"),
            ("host", "files.shop:80"),
            ("host", "files.shop."),
            ("host", "a/b"),
            ("method", "G ET"),
            ("method", "get"),
            ("method", "Ge*"),
            ("method", "*et"),
            ("method", "1*"),
            ("host", "[::1]:80"),
            ("host", "*.shop:80"),
        ] {
            let ok = match kind {
                "principal" => PrincipalPattern::new(bad).is_ok(),
                "namespace" => NamespacePattern::new(bad).is_ok(),
                "account" => AccountPattern::new(bad).is_ok(),
                "domain" => TrustDomainPattern::new(bad).is_ok(),
                "host" => HostPattern::new(bad).is_ok(),
                _ => bad.parse::<MethodPattern>().is_ok(),
            };
            assert!(!ok, "{kind} `{bad}` was accepted");
        }
        assert!(HostPattern::new("[::1]").is_ok());
        assert!(PrincipalPattern::new("*/sa/web").is_ok());
        assert!(["GET", "P*", "*-1", "*", "VERSION-CONTROL"].iter().all(|method| method.parse::<MethodPattern>().is_ok()));
        assert!(serde_json::from_str::<MethodPattern>("\"get\"").is_ok(), "what was stored by an older version is read");
    }

    #[test]
    fn covers_is_never_wider_than_matches() {
        let patterns = ["*", "a", "ab", "a*", "ab*", "*b", "*ab", "b*"].map(|text| Pattern::new(text).unwrap());
        for wide in &patterns {
            for narrow in &patterns {
                if wide.covers(narrow) {
                    for text in ["a", "ab", "abb", "b", "ba", "aab", "bab", "c"] {
                        assert!(!narrow.matches(text) || wide.matches(text), "{wide} {narrow} {text}");
                    }
                }
            }
        }
    }
}
