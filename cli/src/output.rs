//! What goes to the terminal: results on standard output, remarks on standard error, colours only where they help.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
};

use serde::Serialize;

use crate::{
    failure::{Exit, Failure},
    table::{self, Row},
};

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people; may change between versions
    #[default]
    Table,
    /// One JSON value
    Json,
    /// The same value as YAML
    Yaml,
}

/// How text looks on one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// Escape sequences are welcome.
    pub(crate) colours: bool,
    /// Lines are fitted to a terminal's width.
    pub(crate) terminal: bool,
}

/// What a piece of text means, and so its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing special.
    Plain,
    /// As it should be.
    Good,
    /// To be looked at.
    Warn,
    /// Wrong.
    Bad,
    /// Of little interest.
    Quiet,
}

/// The streams of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    format: Format,
    out: Look,
    err: Look,
}

impl Console {
    /// Looks at what the streams are. `NO_COLOR` (no-color.org) and `TERM=dumb` turn colours off.
    pub(crate) fn new(format: Format) -> Self {
        let wanted =
            env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && env::var_os("TERM").is_none_or(|term| term != "dumb");
        let look = |terminal| Look { colours: terminal && wanted, terminal };
        Self { format, out: look(io::stdout().is_terminal()), err: look(io::stderr().is_terminal()) }
    }

    /// Whether a person reads.
    pub(crate) fn is_for_people(&self) -> bool {
        self.format == Format::Table
    }

    /// Whether a program reads JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Look of standard error.
    pub(crate) fn remarks(&self) -> Look {
        self.err
    }

    /// Writes to standard output as it is. Who closed it has seen enough (`outrider get decisions | head`): what a verb does, and
    /// how it ends, is the same as if it had been read.
    pub(crate) fn write(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Writes a line to standard output.
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        self.write(&format!("{text}\n"))
    }

    /// Writes a remark to standard error. One that cannot be written is lost: there is nobody left to tell.
    pub(crate) fn remark(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Paints text for standard output.
    pub(crate) fn paint(&self, tone: Tone, text: &str) -> String {
        paint(self.out, tone, text)
    }

    /// Writes a value as JSON or YAML.
    pub(crate) fn value<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        self.write(&encode(self.format, value)?)
    }

    /// Writes values as documents of one YAML file, which other verbs read.
    pub(crate) fn documents<T: Serialize>(&self, values: &[T]) -> Result<(), Failure> {
        let documents = values.iter().map(|value| encode(Format::Yaml, value)).collect::<Result<Vec<_>, _>>()?;
        self.write(&documents.join("---\n"))
    }

    /// Writes rows in the format the user chose. `none` is what people read when there are no rows.
    pub(crate) fn rows<R: Row>(&self, rows: &[R], none: &str) -> Result<(), Failure> {
        if !self.is_for_people() {
            return self.value(&rows);
        }
        if rows.is_empty() {
            self.remark(none);
            return Ok(());
        }
        self.table(rows)
    }

    /// Writes rows as a table, whatever the format.
    pub(crate) fn table<R: Row>(&self, rows: &[R]) -> Result<(), Failure> {
        self.write(&table::render(rows, jiff::Timestamp::now(), self.out))
    }

    /// Says why a verb failed, on standard error.
    pub(crate) fn failed(&self, failure: &Failure) -> Exit {
        self.remark(&format!("{} {}", paint(self.err, Tone::Bad, "error:"), printable(&failure.to_string())));
        if let Some(help) = failure.help() {
            self.remark(&format!("{} {}", paint(self.err, Tone::Quiet, " help:"), printable(&help)));
        }
        failure.exit()
    }
}

/// Paints text where colours are welcome.
pub(crate) fn paint(look: Look, tone: Tone, text: &str) -> String {
    let code = match tone {
        Tone::Plain => return text.to_owned(),
        Tone::Good => 32,
        Tone::Warn => 33,
        Tone::Bad => 31,
        Tone::Quiet => 2,
    };
    if look.colours { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// Text with control characters escaped: paths, hosts and reasons come from strangers and must not drive the terminal.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        // Direction overrides are not control characters, and reorder the rest of the line all the same.
        if character.is_control() || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

fn encode<T: Serialize>(format: Format, value: &T) -> Result<String, Failure> {
    let text = match format {
        Format::Json | Format::Table => {
            serde_json::to_string_pretty(value).map_err(|error| Failure::Render(error.to_string()))?
        }
        Format::Yaml => serde_saphyr::to_string(value).map_err(|error| Failure::Render(error.to_string()))?,
    };
    Ok(if text.ends_with('\n') { text } else { text + "\n" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_strangers_cannot_drive_the_terminal() {
        assert_eq!(printable("/a\u{1b}[31m\nb\u{202e}c"), "/a\\u{1b}[31m\\nb\\u{202e}c");
        assert_eq!(printable("/größe"), "/größe");
    }

    #[test]
    fn colours_appear_only_where_they_are_welcome() {
        assert_eq!(paint(Look::default(), Tone::Bad, "x"), "x");
        assert_eq!(paint(Look { colours: true, terminal: true }, Tone::Bad, "x"), "\u{1b}[31mx\u{1b}[0m");
    }

    #[test]
    fn yaml_and_json_say_the_same() {
        let value = serde_json::json!([{ "name": "shop/orders", "inForce": 2, "note": "yes" }]);
        let yaml = encode(Format::Yaml, &value).unwrap();
        assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&yaml).unwrap(), value, "{yaml}");
        assert!(yaml.ends_with('\n') && !yaml.ends_with("\n\n"), "{yaml:?}");
    }
}
