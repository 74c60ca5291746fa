//! Tables for people: one row a thing, aligned columns, no frame.

use comfy_table::{Attribute, Cell as Styled, Color, ColumnConstraint, ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use crate::output::{Look, Tone, printable};

/// Something that is shown as a row of a table, and as an object to programs.
pub(crate) trait Row: Serialize {
    /// Headings.
    const COLUMNS: &'static [&'static str];

    /// One cell for each heading. `now` is for ages.
    fn cells(&self, now: Timestamp) -> Vec<Cell>;
}

/// Text with a meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

/// Longest text of others (a path, a host) that a table shows: one long request must not make every row long.
const LONGEST: usize = 60;

impl Cell {
    /// Text that somebody else chose, cut where it is too long for a table; `-o json` has all of it.
    pub(crate) fn cut(text: &str) -> Self {
        match text.char_indices().nth(LONGEST) {
            Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()).into(),
            None => text.into(),
        }
    }

    /// Text with a tone.
    pub(crate) fn new(tone: Tone, text: impl Into<String>) -> Self {
        Self { text: text.into(), tone }
    }

    /// Names separated by commas; `-` when there are none.
    pub(crate) fn list<T: AsRef<str>>(names: &[T]) -> Self {
        names.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ").into()
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(Tone::Plain, text)
    }
}

/// The table as text, each line ended.
pub(crate) fn render<R: Row>(rows: &[R], now: Timestamp, look: Look) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if look.terminal {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    } else {
        table.force_no_tty();
    }
    table.set_header(R::COLUMNS.iter().map(Styled::new));
    for row in rows {
        table.add_row(row.cells(now).into_iter().map(|cell| styled(&cell, look)));
    }
    let last = R::COLUMNS.len().saturating_sub(1);
    for (number, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        // What is copied into the next command stays in one piece; a narrow terminal wraps the last column, or the line.
        if number < last {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn styled(cell: &Cell, look: Look) -> Styled {
    // An empty cell would be taken for a missing one by people, and by `awk` too.
    let shown = Styled::new(if cell.text.is_empty() { "-".to_owned() } else { printable(&cell.text) });
    if !look.colours {
        return shown;
    }
    match cell.tone {
        Tone::Plain => shown,
        Tone::Good => shown.fg(Color::Green),
        Tone::Warn => shown.fg(Color::Yellow),
        Tone::Bad => shown.fg(Color::Red),
        Tone::Quiet => shown.add_attribute(Attribute::Dim),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize)]
    struct Pair(&'static str, &'static str);

    impl Row for Pair {
        const COLUMNS: &'static [&'static str] = &["LEFT", "RIGHT"];

        fn cells(&self, _: Timestamp) -> Vec<Cell> {
            vec![self.0.into(), Cell::new(Tone::Bad, self.1)]
        }
    }

    #[test]
    fn what_others_chose_is_cut_to_fit_a_table() {
        assert_eq!(Cell::cut("GET /short"), "GET /short".into());
        let long = format!("GET /{}", "a".repeat(1024));
        assert_eq!(Cell::cut(&long).text, format!("{}…", &long[..LONGEST]));
        assert_eq!(Cell::cut(&"é".repeat(LONGEST)).text.chars().count(), LONGEST);
    }

    #[test]
    fn columns_align_and_nothing_hangs_over() {
        let text = render(&[Pair("a", "b"), Pair("longer than its heading", "")], Timestamp::UNIX_EPOCH, Look::default());
        assert_eq!(text, "LEFT                     RIGHT\na                        b\nlonger than its heading  -\n");
    }
}
