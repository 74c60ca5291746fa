//! What a document may look like, as data, and the check that reports every deviation with its position.

use super::diagnostic::Finding;
use super::tree::{Content, Entry, Node};

/// What a node must be.
pub(crate) enum Shape {
    /// A mapping with these fields and no other.
    Object(&'static [Field]),
    /// A list of such nodes.
    List { of: &'static Shape, least: usize, most: usize },
    /// A text that this function accepts.
    Text(fn(&str) -> Result<(), String>),
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// A number within these bounds.
    Number { least: u64, most: u64 },
    /// `true` or `false`.
    Flag,
    /// A mapping of free keys to such nodes.
    Map { key: fn(&str) -> Result<(), String>, value: &'static Shape, least: usize },
    /// Anything; the type that it becomes says more.
    Any,
    /// Of this shape, and accepted as a whole by this function.
    Whole(&'static Shape, fn(&Node) -> Result<(), String>),
}

/// A field of an object.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) shape: &'static Shape,
    pub(crate) needed: Needed,
}

/// Whether a field may be left out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needed {
    Yes,
    No,
}

impl Shape {
    /// Adds what is wrong with `node` to `findings`, until there are [`MAX_FINDINGS`].
    pub(crate) fn check(&self, node: &Node, findings: &mut Vec<Finding>) {
        if findings.len() >= MAX_FINDINGS {
            return;
        }
        match (self, &node.content) {
            (Self::Object(fields), Content::Map(entries)) => check_object(fields, node, entries, findings),
            (Self::List { of, least, most }, Content::List(elements)) => {
                if elements.len() < *least {
                    findings.push(
                        Finding::new(node.at, "an empty list matches nothing").help("leave the field out to match everything"),
                    );
                }
                if elements.len() > *most {
                    findings.push(Finding::new(node.at, format!("{} entries, at most {most} are allowed", elements.len())));
                    return;
                }
                elements.iter().for_each(|element| of.check(element, findings));
            }
            (Self::Text(accept), Content::Text(text)) => {
                findings.extend(accept(text).err().map(|message| Finding::new(node.at, message)))
            }
            (Self::Choice(choices), Content::Text(text)) if choices.contains(&&**text) => {}
            (Self::Choice(choices), Content::Text(text)) => findings.push(unknown(node, text, choices)),
            (Self::Number { least, most }, Content::Number(number)) => {
                if !number.as_u64().is_some_and(|number| (*least..=*most).contains(&number)) {
                    findings.push(Finding::new(node.at, format!("`{number}` is not a whole number from {least} to {most}")));
                }
            }
            (Self::Flag, Content::Flag(_)) | (Self::Any, _) => {}
            (Self::Map { key, value, least }, Content::Map(entries)) => {
                if entries.len() < *least {
                    findings.push(
                        Finding::new(node.at, "an empty mapping matches nothing").help("leave the field out to match everything"),
                    );
                }
                for entry in entries {
                    findings.extend(key(&entry.key).err().map(|message| Finding::new(entry.at, message)));
                    value.check(&entry.value, findings);
                }
            }
            (Self::Whole(shape, accept), _) => {
                let before = findings.len();
                shape.check(node, findings);
                if findings.len() == before {
                    findings.extend(accept(node).err().map(|message| Finding::new(node.at, message)));
                }
            }
            _ => findings.push(self.mismatch(node)),
        }
    }

    fn mismatch(&self, node: &Node) -> Finding {
        let finding = Finding::new(node.at, format!("expected {}, found {}", self.what(), node.what()));
        match (self, &node.content) {
            (Self::Text(_) | Self::Choice(_), Content::Flag(_) | Content::Number(_) | Content::Null) => {
                finding.help("write a text like this in quotes")
            }
            (Self::List { .. }, Content::Text(_) | Content::Number(_) | Content::Map(_)) => {
                finding.help("write `[…]` around a single value")
            }
            (Self::Object(_) | Self::Map { .. } | Self::List { .. }, Content::Null) => {
                finding.help("leave the field out, or give it a value")
            }
            _ => finding,
        }
    }

    fn what(&self) -> &'static str {
        match self {
            Self::Object(_) | Self::Map { .. } => "a mapping",
            Self::List { .. } => "a list",
            Self::Text(_) | Self::Choice(_) => "a text",
            Self::Number { .. } => "a number",
            Self::Flag => "`true` or `false`",
            Self::Any => "anything",
            Self::Whole(shape, _) => shape.what(),
        }
    }
}

/// Most findings that are collected of a document.
pub(crate) const MAX_FINDINGS: usize = 100;

fn check_object(fields: &[Field], node: &Node, entries: &[Entry], findings: &mut Vec<Finding>) {
    for entry in entries {
        match fields.iter().find(|field| field.name == &*entry.key) {
            Some(field) => field.shape.check(&entry.value, findings),
            None => findings.push(unknown_field(fields, entry)),
        }
    }
    for field in fields.iter().filter(|field| field.needed == Needed::Yes && node.field(field.name).is_none()) {
        findings.push(Finding::new(node.at, format!("the field `{}` is missing", field.name)));
    }
}

fn unknown_field(fields: &[Field], entry: &Entry) -> Finding {
    let key: String = entry.key.chars().take(60).collect();
    let finding = Finding::new(entry.at, format!("unknown field `{key}`"));
    let names: Vec<&str> = fields.iter().map(|field| field.name).collect();
    match nearest(&key, &names) {
        Some(name) => finding.help(format!("did you mean `{name}`?")),
        None => finding.help(format!("the fields here are {}", listed(&names))),
    }
}

fn unknown(node: &Node, text: &str, choices: &[&str]) -> Finding {
    let text: String = text.chars().take(60).collect();
    let finding = Finding::new(
        node.at,
        format!("`{text}` is not {}", if choices.len() == 1 { listed(choices) } else { format!("one of {}", listed(choices)) }),
    );
    match nearest(&text, choices) {
        Some(name) => finding.help(format!("did you mean `{name}`?")),
        None => finding,
    }
}

pub(crate) fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The name that `text` was probably meant to be: the same but for case and a plural, or a few letters away.
pub(crate) fn nearest<'n>(text: &str, names: &[&'n str]) -> Option<&'n str> {
    let distances = names.iter().map(|name| (distance(&text.to_lowercase(), &name.to_lowercase()), *name));
    let (distance, name) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + name.len() / 4 && distance < name.len()).then_some(name)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(&b) {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = *cell;
            left = substituted.min(*cell + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}
