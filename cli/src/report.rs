//! Findings about policy files, as reports with the lines they are about.

use std::fmt;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, Severity, SourceCode, SourceSpan};
use outrider_proto::v1::{self, Manifest, diagnostic::Severity as Grade};
use serde::Serialize;

use crate::output::{Look, printable};

/// A finding, in the shape that programs read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// `error` or `warning`.
    pub(crate) severity: &'static str,
    /// The file, or `<stdin>`.
    pub(crate) source: String,
    /// 1-based; 0 when unknown.
    pub(crate) line: u32,
    /// 1-based, in characters; 0 when unknown.
    pub(crate) column: u32,
    pub(crate) message: String,
    /// What to do about it; may be empty.
    pub(crate) help: String,
}

impl From<v1::Diagnostic> for Finding {
    fn from(wire: v1::Diagnostic) -> Self {
        // What is not known to be harmless is an error.
        let severity = if wire.severity() == Grade::Warning { "warning" } else { "error" };
        Self { severity, source: wire.source, line: wire.line, column: wire.column, message: wire.message, help: wire.help }
    }
}

impl From<outrider_policy::Diagnostic> for Finding {
    fn from(found: outrider_policy::Diagnostic) -> Self {
        let severity = if found.severity == outrider_policy::Severity::Warning { "warning" } else { "error" };
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            severity,
            source: found.source,
            line: number(found.line),
            column: number(found.column),
            message: found.message,
            help: found.help.unwrap_or_default(),
        }
    }
}

impl Finding {
    /// A mistake that was found here.
    pub(crate) fn error(source: &str, at: outrider_policy::manifest::Position, message: String) -> Self {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (line, column) = (number(at.line), number(at.column));
        Self { severity: "error", source: source.to_owned(), line, column, message, help: String::new() }
    }

    /// Whether it keeps the files from being stored.
    pub(crate) fn is_error(&self) -> bool {
        self.severity == "error"
    }
}

/// The findings as text for people, each with the line of its file.
pub(crate) fn render(findings: &[Finding], manifests: &[Manifest], look: Look) -> String {
    let theme = if look.colours { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme).with_links(false).with_width(110).without_primary_span_start();
    let mut text = String::new();
    for (index, finding) in findings.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        let report = Report::new(finding, manifests);
        if handler.render_report(&mut text, &report).is_err() {
            text.push_str(&format!("{report}\n"));
        }
    }
    text
}

/// `1 error, 2 warnings`.
pub(crate) fn count(findings: &[Finding]) -> String {
    let errors = findings.iter().filter(|one| one.is_error()).count();
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    match (errors, findings.len() - errors) {
        (errors, 0) => plural(errors, "error"),
        (0, warnings) => plural(warnings, "warning"),
        (errors, warnings) => format!("{}, {}", plural(errors, "error"), plural(warnings, "warning")),
    }
}

#[derive(Debug)]
struct Report {
    title: String,
    help: Option<String>,
    severity: Severity,
    place: Option<(NamedSource<String>, SourceSpan)>,
}

impl Report {
    fn new(finding: &Finding, manifests: &[Manifest]) -> Self {
        let place = manifests.iter().find(|one| one.source == finding.source).and_then(|one| {
            let (text, span) = excerpt(&one.yaml, finding.line, finding.column)?;
            Some((NamedSource::new(format!("{}:{}:{}", printable(&one.source), finding.line, finding.column), text), span))
        });
        // Without a snippet the report would not say which file it is about.
        let message = printable(&finding.message);
        let title = match (&place, finding.source.as_str()) {
            (Some(_), _) | (None, "") => message,
            (None, source) if finding.line > 0 => format!("{}:{}:{}: {message}", printable(source), finding.line, finding.column),
            (None, source) => format!("{}: {message}", printable(source)),
        };
        Self {
            title,
            help: (!finding.help.is_empty()).then(|| printable(&finding.help)),
            severity: if finding.is_error() { Severity::Error } else { Severity::Warning },
            place,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.title)
    }
}

impl std::error::Error for Report {}

impl Diagnostic for Report {
    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.place.as_ref().map(|(source, _)| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let (_, span) = self.place.as_ref()?;
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(None, *span))))
    }
}

/// Most characters of a line that are shown: a file can be one line of megabytes.
const WIDTH: usize = 120;
/// Those of them before the place that is meant.
const BEFORE: usize = 40;

/// The lines around a position, behind as many empty ones as stand before them, and the word there in bytes. `None` when
/// the file has no such line.
fn excerpt(text: &str, line: u32, column: u32) -> Option<(String, SourceSpan)> {
    let index = (line as usize).checked_sub(1)?;
    let mut lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).skip(index.saturating_sub(1));
    let mut shown = "\n".repeat(index.saturating_sub(1));
    if index > 0 {
        shown.push_str(&window(lines.next()?, 0));
        shown.push('\n');
    }
    let meant = lines.next()?;
    if meant.is_empty() && lines.clone().next().is_none() {
        // what follows the last line break is no line
        return None;
    }
    let column = (column as usize).saturating_sub(1).min(meant.trim_end().chars().count());
    let skipped = if meant.chars().nth(WIDTH).is_some() { column.saturating_sub(BEFORE) } else { 0 };
    let cut = window(meant, skipped);
    let place = column - skipped + usize::from(skipped > 0);
    let offset = cut.char_indices().nth(place).map_or(cut.trim_end().len(), |(offset, _)| offset);
    let rest = cut.get(offset..).unwrap_or_default();
    let ends = |letter: char| letter.is_whitespace() || matches!(letter, ':' | ',' | ']' | '}' | '…');
    let span = (shown.len() + offset, rest.find(ends).unwrap_or(rest.len())).into();
    shown.push_str(&cut);
    if let Some(after) = lines.next() {
        shown.push('\n');
        shown.push_str(&window(after, 0));
    }
    Some((shown, span))
}

/// What is shown of a line from a character on, without characters that drive a terminal.
fn window(line: &str, skipped: usize) -> String {
    let mut rest = line.chars().skip(skipped);
    let mut shown = if skipped > 0 { "…".to_owned() } else { String::new() };
    shown.extend(rest.by_ref().take(WIDTH).map(|letter| if letter.is_control() && letter != '\t' { ' ' } else { letter }));
    if rest.next().is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(line: u32, column: u32) -> Finding {
        Finding {
            severity: "error",
            source: "p.yaml".into(),
            line,
            column,
            message: "unknown field `pathes`".into(),
            help: "did you mean `paths`?".into(),
        }
    }

    fn manifests() -> Vec<Manifest> {
        vec![Manifest { source: "p.yaml".into(), yaml: "kind: ServicePolicy\n# größe\nto: [{ pathes: [/a] }]\n".into() }]
    }

    #[test]
    fn a_report_shows_file_line_column_source_and_help() {
        let text = render(&[finding(3, 8)], &manifests(), Look::default());
        for part in
            ["unknown field `pathes`", "p.yaml:3:8", "to: [{ pathes: [/a] }]", "help: did you mean `paths`?", "       ──────\n"]
        {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
    }

    #[test]
    fn a_position_outside_of_the_file_still_names_it() {
        let text = render(&[finding(99, 1)], &manifests(), Look::default());
        assert!(text.contains("p.yaml:99:1: unknown field"), "{text}");
        assert!(render(&[finding(0, 0)], &manifests(), Look::default()).contains("p.yaml: unknown field"));
        assert!(render(&[finding(1, 500)], &manifests(), Look::default()).contains("kind: ServicePolicy"));
    }

    #[test]
    fn of_a_line_of_megabytes_the_place_that_is_meant_is_shown() {
        let yaml =
            format!("kind: ServicePolicy\n# {}\nto: [{}{{ pathes: [/a] }}]\n", "-".repeat(2_000_000), " {},".repeat(500_000));
        let manifests = vec![Manifest { source: "p.yaml".into(), yaml }];
        let text = render(&[finding(3, 6 + 4 * 500_000 + 2)], &manifests, Look::default());
        assert!(text.len() < 2000, "{} bytes", text.len());
        for part in ["p.yaml:3:2000008", "…}, {}, {},", "{ pathes: [/a] }]", " ──────\n", "# ---"] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
    }

    #[test]
    fn counts_read_like_language() {
        let warning = Finding { severity: "warning", ..finding(1, 1) };
        assert_eq!(count(&[finding(1, 1)]), "1 error");
        assert_eq!(count(&[warning.clone(), warning.clone()]), "2 warnings");
        assert_eq!(count(&[finding(1, 1), warning]), "1 error, 1 warning");
    }
}
