//! The optional expression of a rule, in CEL.
//!
//! The syntax is read by the `cel` crate. What comes out of it is checked and turned into a small typed tree of our own, so
//! that an expression costs what it says: no loops, no dynamic keys, regular expressions compiled once, bytes instead of
//! UTF-8, and nothing evaluated that is not named. What an expression may use is listed in [`Attribute`] and `docs/policy.md`.

mod attribute;
mod check;
mod evaluate;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use attribute::Attribute;
pub(crate) use evaluate::Destination;

use check::Logic;

use crate::header::is_seen;

/// Longest expression in bytes.
pub const MAX_EXPRESSION_BYTES: usize = 1024;
/// Deepest nesting of an expression.
pub const MAX_EXPRESSION_DEPTH: u16 = 24;

/// A checked CEL expression over the attributes of a call.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct When {
    text: Box<str>,
    logic: Logic,
    attributes: Box<[Attribute]>,
}

/// Why an expression is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhenProblem {
    /// Nothing there.
    #[error("the expression is empty")]
    Empty,
    /// Too many bytes.
    #[error("an expression has at most {MAX_EXPRESSION_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// Not CEL.
    #[error("not a CEL expression: {0}")]
    Syntax(String),
    /// An attribute that calls do not have.
    #[error("unknown attribute `{name}`{}", .nearest.map(|name| format!(": did you mean `{name}`?")).unwrap_or_default())]
    UnknownAttribute {
        /// As written.
        name: String,
        /// One that sounds like it.
        nearest: Option<&'static str>,
    },
    /// An attribute that a later version will know.
    #[error("`{0}` is not available: this version does not read tokens")]
    NotYet(String),
    /// A map that was not asked for one key.
    #[error("name the key of `{0}` in quotes, as in `{0}[\"x-tenant\"]`")]
    Key(&'static str),
    /// Operands that cannot be compared or combined.
    #[error("{0}")]
    Type(String),
    /// Something CEL has and policies do not.
    #[error("`{0}` is not part of policy expressions")]
    Unsupported(String),
    /// A regular expression that is refused.
    #[error("{0}")]
    Regex(#[from] crate::header::HeaderProblem),
}

impl When {
    /// Reads and checks an expression.
    pub fn new(text: &str) -> Result<Self, WhenProblem> {
        if text.trim().is_empty() {
            return Err(WhenProblem::Empty);
        }
        if text.len() > MAX_EXPRESSION_BYTES {
            return Err(WhenProblem::TooLong(text.len()));
        }
        let logic = check::read(text)?;
        let mut attributes = Vec::new();
        logic.attributes(&mut |attribute| attributes.push(attribute.clone()));
        attributes.sort();
        attributes.dedup();
        Ok(Self { text: text.into(), logic, attributes: attributes.into() })
    }

    /// Whether all headers that it reads can be seen by a rule. What is stored already may read others.
    pub fn check(&self) -> Result<(), WhenProblem> {
        Ok(self.headers_read().try_for_each(is_seen)?)
    }

    /// The expression as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The attributes that it reads, sorted.
    pub fn attributes(&self) -> &[Attribute] {
        &self.attributes
    }

    /// Whether it reads an attribute of HTTP.
    pub fn needs_http(&self) -> bool {
        self.attributes.iter().any(Attribute::is_http)
    }

    /// Names of the headers that it reads, in lower case.
    pub fn headers_read(&self) -> impl Iterator<Item = &str> {
        self.attributes.iter().filter_map(Attribute::header)
    }
}

impl PartialEq for When {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}
impl Eq for When {}

impl fmt::Debug for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "When({})", self.text)
    }
}
impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
/// As somebody writes it.
impl FromStr for When {
    type Err = WhenProblem;
    fn from_str(text: &str) -> Result<Self, WhenProblem> {
        let when = Self::new(text)?;
        when.check()?;
        Ok(when)
    }
}
/// As it is stored.
impl TryFrom<String> for When {
    type Error = WhenProblem;
    fn try_from(text: String) -> Result<Self, WhenProblem> {
        Self::new(&text)
    }
}
impl From<When> for String {
    fn from(when: When) -> Self {
        when.text.into()
    }
}

#[cfg(test)]
mod tests;
