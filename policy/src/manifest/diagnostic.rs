//! What is wrong with a file, where, and the way out.

use std::fmt;

use serde::Serialize;

/// How much a diagnostic matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The resource is refused.
    Error,
    /// The resource works, but perhaps not as meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One finding in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Whether the resource is refused.
    pub severity: Severity,
    /// The name of the file, as the caller gave it.
    pub source: String,
    /// The line, counted from 1; 0 where there is no position.
    pub line: usize,
    /// The column in characters, counted from 1; 0 where there is no position.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// The way out, if there is one to name.
    pub help: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { severity, source, line, column, message, help } = self;
        write!(f, "{source}:{line}:{column}: {severity}: {message}")?;
        match help {
            Some(help) => write!(f, " (help: {help})"),
            None => Ok(()),
        }
    }
}

/// A place in a text, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column in characters.
    pub column: usize,
}

/// A finding before it is known in which file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) at: Position,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl Finding {
    pub(crate) fn new(at: Position, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), help: None }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn diagnostic(self, severity: Severity, source: &str) -> Diagnostic {
        let Position { line, column } = self.at;
        Diagnostic { severity, source: source.to_owned(), line, column, message: self.message, help: self.help }
    }
}
