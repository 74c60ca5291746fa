//! What the expressions of a file cost to read, bounded before any of them is compiled.
//!
//! One expression is bounded by itself, but a file has room for thousands, and an alias repeats one in a few bytes.

use super::diagnostic::Finding;
use super::tree::{Content, Node};
use crate::header::MAX_REGEX_CHARS;
use crate::when::MAX_EXPRESSION_BYTES;

/// Most that all expressions of a file may cost together.
pub const MAX_EXPRESSION_COST: usize = 64 * 1024;

/// A regular expression with more states is given up on the way there.
const MAX_STATES: usize = 8 * 1024;

/// Adds what the expressions of a document cost to `spent`.
///
/// # Errors
/// The place of the expression that is too much.
pub(crate) fn add(node: &Node, spent: &mut usize) -> Result<(), Finding> {
    match &node.content {
        Content::List(elements) => elements.iter().try_for_each(|element| add(element, spent)),
        Content::Map(entries) => entries.iter().try_for_each(|entry| match (&*entry.key, &entry.value.content) {
            // a condition of a route
            ("value" | "service" | "method", Content::Text(text)) if is_regex(node) && text.len() <= MAX_REGEX_CHARS => {
                spend(&entry.value, states(text).min(MAX_STATES), spent)
            }
            ("regex", Content::Text(text)) if text.len() <= MAX_REGEX_CHARS => {
                spend(&entry.value, states(text).min(MAX_STATES), spent)
            }
            ("when", Content::Text(text)) if text.len() <= MAX_EXPRESSION_BYTES => spend(&entry.value, text.len(), spent),
            // what is too long is refused without a look inside
            _ => add(&entry.value, spent),
        }),
        _ => Ok(()),
    }
}

fn is_regex(condition: &Node) -> bool {
    let kind = condition.field("type").map(|kind| &kind.content);
    matches!(kind, Some(Content::Text(kind)) if &**kind == "RegularExpression")
}

fn spend(node: &Node, cost: usize, spent: &mut usize) -> Result<(), Finding> {
    *spent = spent.saturating_add(cost);
    if *spent <= MAX_EXPRESSION_COST {
        return Ok(());
    }
    let message = format!(
        "the expressions of the file up to here cost more than {MAX_EXPRESSION_COST}: a byte of CEL costs 1, a regular expression as much as it is long with its repetitions written out"
    );
    Err(Finding::new(node.at, message).help("use patterns and lists of values, or split the file"))
}

/// About how many states a regular expression has: its length, with `{n}` written out. Whether it is one is not looked at.
fn states(text: &str) -> usize {
    // of each open group: all before the last atom, and the last atom
    let mut groups = vec![(0usize, 0usize)];
    let mut bytes = text.bytes().enumerate().peekable();
    while let Some((at, byte)) = bytes.next() {
        let repeated = if byte == b'{' { repetition(text.get(at + 1..).unwrap_or_default()) } else { None };
        let closed = if byte == b')' && groups.len() > 1 { groups.pop() } else { None };
        let Some((before, last)) = groups.last_mut() else { break };
        match (byte, repeated, closed) {
            (b'(', ..) => groups.push((0, 0)),
            (_, Some((times, length)), _) => {
                *last = last.saturating_mul(times.max(1));
                bytes.by_ref().take(length).for_each(drop);
            }
            (_, _, Some((inside, atom))) => {
                *before = before.saturating_add(*last);
                *last = inside.saturating_add(atom).max(1);
            }
            _ => {
                if byte == b'\\' {
                    bytes.next();
                }
                *before = before.saturating_add(*last);
                *last = 1;
            }
        }
    }
    groups.iter().fold(0usize, |sum, (before, last)| sum.saturating_add(*before).saturating_add(*last))
}

/// The greater number of `n}`, `n,}` or `n,m}`, and how long that is.
fn repetition(text: &str) -> Option<(usize, usize)> {
    let (inside, _) = text.split_once('}')?;
    let numbers: Vec<&str> = inside.split(',').collect();
    let valid = (1..=2).contains(&numbers.len())
        && numbers.iter().all(|number| number.bytes().all(|b| b.is_ascii_digit()))
        && numbers.first().is_some_and(|number| !number.is_empty());
    let times = numbers.iter().map(|number| if number.is_empty() { 1 } else { number.parse().unwrap_or(usize::MAX) }).max()?;
    valid.then_some((times, inside.len() + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_count_as_often_as_they_repeat() {
        for (text, cost) in [
            ("", 0),
            ("abc", 3),
            ("a{3}", 3),
            ("a{2,5}b", 6),
            ("a{3,}", 3),
            ("(ab){10}", 20),
            ("((a{10}b){10}){10}", 1100),
            ("[0-9a-f]{32}", 39),
            ("\\{3}", 3),
            ("a{x}", 4),
            ("(", 0),
            (")", 1),
            ("{9}", 0),
            ("(a{1000}){1000}", 1_000_000),
            ("a{99999999999999999999999}", usize::MAX),
        ] {
            assert_eq!(states(text), cost, "{text}");
        }
    }
}
