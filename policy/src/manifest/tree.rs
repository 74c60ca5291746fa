//! YAML as a tree that knows where each node stands, read within fixed bounds.
//!
//! The bounds are checked while reading, so that a hostile text costs what it takes to reach the first of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Number, Value};
use serde_saphyr::granit_parser::{Event, Marker, Parser, ScalarStyle, options};

use super::diagnostic::{Finding, Position};

/// Longest text in bytes.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Most documents in a text.
pub const MAX_DOCUMENTS: usize = 1000;
/// Deepest nesting of lists and mappings.
pub const MAX_DEPTH: usize = 24;
/// Most nodes in a text, those that aliases repeat included.
pub const MAX_NODES: usize = 600_000;
/// Most entries of one list or mapping.
pub const MAX_ENTRIES: usize = crate::resource::MAX_RULES;

/// A node and where it begins.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) content: Content,
    /// How many nodes it is made of.
    nodes: usize,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Null,
    Flag(bool),
    Number(Number),
    Text(Box<str>),
    List(Vec<Arc<Node>>),
    Map(Vec<Entry>),
}

/// A field of a mapping.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: Box<str>,
    pub(crate) at: Position,
    pub(crate) value: Arc<Node>,
}

impl Node {
    /// The value of the field `key` of a mapping.
    pub(crate) fn field(&self, key: &str) -> Option<&Arc<Self>> {
        match &self.content {
            Content::Map(entries) => entries.iter().find(|entry| &*entry.key == key).map(|entry| &entry.value),
            _ => None,
        }
    }

    /// The element `index` of a list.
    pub(crate) fn element(&self, index: usize) -> Option<&Arc<Self>> {
        match &self.content {
            Content::List(elements) => elements.get(index),
            _ => None,
        }
    }

    /// The node without its positions.
    pub(crate) fn value(&self) -> Value {
        match &self.content {
            Content::Null => Value::Null,
            Content::Flag(flag) => Value::Bool(*flag),
            Content::Number(number) => Value::Number(number.clone()),
            Content::Text(text) => Value::String(text.to_string()),
            Content::List(elements) => Value::Array(elements.iter().map(|element| element.value()).collect()),
            Content::Map(entries) => {
                Value::Object(entries.iter().map(|entry| (entry.key.to_string(), entry.value.value())).collect())
            }
        }
    }

    /// What it is, for messages.
    pub(crate) fn what(&self) -> &'static str {
        match &self.content {
            Content::Null => "nothing",
            Content::Flag(_) => "a boolean",
            Content::Number(_) => "a number",
            Content::Text(_) => "a text",
            Content::List(_) => "a list",
            Content::Map(_) => "a mapping",
        }
    }
}

/// Reads all documents of a text. What stands before a mistake is returned with it.
pub(crate) fn read(yaml: &str) -> (Vec<Node>, Option<Finding>) {
    let mut reader = Reader::default();
    let failed = reader.read(yaml).err();
    (reader.documents, failed)
}

#[derive(Default)]
struct Reader {
    documents: Vec<Node>,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Arc<Node>>,
    nodes: usize,
}

/// A list or mapping whose end has not come yet.
struct Open {
    at: Position,
    anchor: usize,
    nodes: usize,
    children: Children,
}

enum Children {
    List(Vec<Arc<Node>>),
    Map(Vec<Entry>, Option<(Box<str>, Position)>),
}

impl Reader {
    fn read(&mut self, yaml: &str) -> Result<(), Finding> {
        if yaml.len() > MAX_BYTES {
            return Err(Finding::new(
                Position { line: 1, column: 1 },
                format!("the file has {} bytes, at most {MAX_BYTES} are read", yaml.len()),
            ));
        }
        let options = options! { emit_comments: false, flow_nesting_limit: MAX_DEPTH, block_nesting_limit: MAX_DEPTH };
        for event in Parser::new_from_str_with_options(yaml, options) {
            let (event, span) = event.map_err(|error| syntax(yaml, error.marker(), error.info()))?;
            self.event(event, position(&span.start))?;
        }
        Ok(())
    }

    fn event(&mut self, event: Event<'_>, at: Position) -> Result<(), Finding> {
        match event {
            Event::DocumentStart(..) if self.documents.len() >= MAX_DOCUMENTS => {
                Err(Finding::new(at, format!("more than {MAX_DOCUMENTS} documents in one file")))
            }
            Event::DocumentStart(..) => {
                self.anchors.clear();
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                if let Some(tag) = tag.filter(|tag| tag.core_suffix() != Some("str")) {
                    return Err(Finding::new(at, format!("the tag `{}` is not supported", tag.original())));
                }
                let content = if style == ScalarStyle::Plain { plain(&text) } else { Content::Text(text.into()) };
                self.node(Node { at, content, nodes: 1 }, anchor)
            }
            Event::SequenceStart(.., Some(tag)) | Event::MappingStart(.., Some(tag)) => {
                Err(Finding::new(at, format!("the tag `{}` is not supported", tag.original())))
            }
            Event::SequenceStart(_, anchor, _) => self.open(at, anchor, Children::List(Vec::new())),
            Event::MappingStart(_, anchor, _) => self.open(at, anchor, Children::Map(Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => self.close(at),
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => self.attach(node, at),
                None => Err(Finding::new(at, "an alias stands within the node that it repeats")),
            },
            Event::UnresolvedAlias(name) => Err(Finding::new(at, format!("no anchor `{name}`"))),
            _ => Ok(()),
        }
    }

    fn open(&mut self, at: Position, anchor: usize, children: Children) -> Result<(), Finding> {
        if self.open.len() >= MAX_DEPTH {
            return Err(Finding::new(at, format!("nested deeper than {MAX_DEPTH}")));
        }
        if let Some(Open { children: Children::Map(_, None), .. }) = self.open.last() {
            return Err(Finding::new(at, "a key is a text").help("quote a key that begins with `[` or `{`"));
        }
        self.open.push(Open { at, anchor, nodes: 1, children });
        Ok(())
    }

    fn close(&mut self, at: Position) -> Result<(), Finding> {
        let Some(Open { at, anchor, nodes, children }) = self.open.pop() else {
            return Err(Finding::new(at, "an end without a beginning"));
        };
        let content = match children {
            Children::List(elements) => Content::List(elements),
            Children::Map(entries, _) => Content::Map(entries),
        };
        self.node(Node { at, content, nodes }, anchor)
    }

    fn node(&mut self, node: Node, anchor: usize) -> Result<(), Finding> {
        let at = node.at;
        let node = Arc::new(node);
        if anchor != 0 {
            self.anchors.insert(anchor, Arc::clone(&node));
        }
        self.attach(node, at)
    }

    /// Puts a complete node where it belongs: into the open list or mapping, or among the documents.
    fn attach(&mut self, node: Arc<Node>, at: Position) -> Result<(), Finding> {
        // what a list holds was counted when its elements came, unless an alias repeats it
        self.nodes += if Arc::strong_count(&node) > 1 { node.nodes } else { 1 };
        if self.nodes > MAX_NODES {
            return Err(Finding::new(at, format!("more than {MAX_NODES} values in one file")));
        }
        let Some(open) = self.open.last_mut() else {
            self.documents.push(Arc::unwrap_or_clone(node));
            return Ok(());
        };
        let nodes = node.nodes;
        let entries = match &mut open.children {
            Children::List(elements) => {
                elements.push(node);
                elements.len()
            }
            Children::Map(entries, waiting) => match waiting.take() {
                Some((key, key_at)) => {
                    if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                        return Err(Finding::new(key_at, format!("`{key}` is written twice, first in line {}", first.at.line)));
                    }
                    entries.push(Entry { key, at: key_at, value: node });
                    entries.len()
                }
                None => {
                    *waiting = Some((key(&node, at)?, at));
                    0
                }
            },
        };
        open.nodes = open.nodes.saturating_add(nodes);
        match &open.children {
            Children::Map(..) if entries > MAX_FIELDS => {
                Err(Finding::new(at, format!("a mapping has at most {MAX_FIELDS} fields")))
            }
            _ if entries > MAX_ENTRIES => {
                Err(Finding::new(at, format!("a list has at most {MAX_ENTRIES} entries")).help("split it into several policies"))
            }
            _ => Ok(()),
        }
    }
}

/// Most fields of one mapping: they are searched one by one.
const MAX_FIELDS: usize = 256;

fn key(node: &Node, at: Position) -> Result<Box<str>, Finding> {
    match &node.content {
        Content::Text(text) => Ok(text.clone()),
        // the port numbers of `mtls.ports`
        Content::Number(number) => Ok(number.to_string().into()),
        _ => Err(Finding::new(at, "a key is a text")),
    }
}

fn position(marker: &Marker) -> Position {
    Position { line: marker.line().max(1), column: marker.col() + 1 }
}

fn syntax(yaml: &str, marker: &Marker, info: String) -> Finding {
    let at = position(marker);
    // The parser may say where the mapping begins that the tab is in.
    let finding = |at| Finding::new(at, format!("not YAML: {info}"));
    match tab_in_indentation(yaml, at.line).filter(|_| info.to_ascii_lowercase().contains("tab")) {
        Some(tab) => finding(tab).help("indent with spaces"),
        None => finding(at),
    }
}

/// Where the first tab stands, from this line on, that a line is indented with.
fn tab_in_indentation(yaml: &str, from: usize) -> Option<Position> {
    let lines = (1..).zip(yaml.lines()).skip(from.saturating_sub(1));
    let mut tabs = lines.filter_map(|(line, text)| {
        let indentation = text.len() - text.trim_start_matches([' ', '\t']).len();
        let column = text.get(..indentation)?.find('\t')? + 1;
        Some(Position { line, column })
    });
    tabs.next()
}

/// A scalar without quotes, by the core schema of YAML 1.2.
fn plain(text: &str) -> Content {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Content::Null,
        "true" | "True" | "TRUE" => Content::Flag(true),
        "false" | "False" | "FALSE" => Content::Flag(false),
        _ => number(text).map_or_else(|| Content::Text(text.into()), Content::Number),
    }
}

fn number(text: &str) -> Option<Number> {
    let first = text.strip_prefix(['-', '+']).unwrap_or(text).bytes().next()?;
    if !first.is_ascii_digit() && first != b'.' {
        return None;
    }
    if let Ok(number) = text.parse::<u64>() {
        return Some(number.into());
    }
    if let Ok(number) = text.parse::<i64>() {
        return Some(number.into());
    }
    if !text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E')) {
        return None;
    }
    text.parse::<f64>().ok().and_then(Number::from_f64)
}
