//! Which rules name a path: found in the time that the path's segments take, not the rules.

use super::posting::{NameMap, Posting, Union};
use crate::path_pattern::{PathKind, PathPattern, Segment};
use crate::pattern::Pattern;

/// All path patterns of a set of rules.
#[derive(Debug, Default)]
pub(super) struct PathTrie {
    root: Node,
    suffixes: ByLength,
    any: Posting,
}

/// What is known of the rules after some segments.
#[derive(Debug, Default)]
struct Node {
    children: NameMap<Box<str>, Node>,
    /// After a segment that may be anything.
    one: Option<Box<Node>>,
    /// Rules whose pattern ends here.
    ends: Posting,
    /// Rules whose pattern leaves the rest open.
    rest: Posting,
    /// Rules whose pattern is a beginning that ends within the next segment.
    beginnings: ByLength,
}

/// Texts of which one is looked for at the end or beginning of another.
#[derive(Debug, Default)]
struct ByLength {
    lengths: Vec<usize>,
    texts: NameMap<Box<str>, Posting>,
}

impl ByLength {
    fn add(&mut self, text: &str, rule: u32) {
        if let Err(at) = self.lengths.binary_search(&text.len()) {
            self.lengths.insert(at, text.len());
        }
        self.texts.entry(text.into()).or_default().add(rule);
    }

    fn seal(&mut self, total: usize) {
        self.texts.values_mut().for_each(|posting| posting.seal(total));
    }
}

impl PathTrie {
    pub(super) fn add(&mut self, pattern: &PathPattern, rule: u32) {
        match pattern.kind() {
            PathKind::Plain(Pattern::Any) => self.any.add(rule),
            PathKind::Plain(Pattern::Suffix(end)) => self.suffixes.add(end, rule),
            PathKind::Plain(Pattern::Exact(path)) => {
                let node = segments(path).fold(&mut self.root, Node::child);
                node.ends.add(rule);
            }
            PathKind::Plain(Pattern::Prefix(beginning)) => {
                match beginning.strip_prefix('/').unwrap_or(beginning).rsplit_once('/') {
                    Some((head, partial)) => head.split('/').fold(&mut self.root, Node::child).beginnings.add(partial, rule),
                    None => self.root.beginnings.add(beginning.strip_prefix('/').unwrap_or_default(), rule),
                }
            }
            PathKind::Template(template) => {
                let mut node = &mut self.root;
                for segment in template {
                    match segment {
                        Segment::Literal(text) => node = node.child(text),
                        Segment::One => node = node.one.get_or_insert_default(),
                        // what follows is left to the rule itself
                        Segment::Rest => return node.rest.add(rule),
                    }
                }
                node.ends.add(rule);
            }
        }
    }

    pub(super) fn seal(&mut self, total: usize) {
        self.root.seal(total);
        self.suffixes.seal(total);
        self.any.seal(total);
    }

    /// Adds the rules of which a pattern may match `path`.
    pub(super) fn find<'t>(&'t self, path: &str, found: &mut Union<'t>) {
        found.add(&self.any);
        for length in self.suffixes.lengths.iter().take_while(|length| **length <= path.len()) {
            if let Some(posting) = path.get(path.len() - length..).and_then(|end| self.suffixes.texts.get(end)) {
                found.add(posting);
            }
        }
        if let Some(path) = path.strip_prefix('/') {
            self.root.find(Some(path), found);
        }
    }
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('/').unwrap_or(path).split('/')
}

impl Node {
    fn child(&mut self, segment: &str) -> &mut Self {
        self.children.entry(segment.into()).or_default()
    }

    fn seal(&mut self, total: usize) {
        self.ends.seal(total);
        self.rest.seal(total);
        self.beginnings.seal(total);
        self.children.values_mut().for_each(|child| child.seal(total));
        self.one.iter_mut().for_each(|child| child.seal(total));
    }

    /// `left` is what follows the slash behind this node; nothing if the path ends here.
    fn find<'t>(&'t self, left: Option<&str>, found: &mut Union<'t>) {
        let Some(left) = left else { return found.add(&self.ends) };
        found.add(&self.rest);
        let (segment, next) = match left.split_once('/') {
            Some((segment, next)) => (segment, Some(next)),
            None => (left, None),
        };
        for length in self.beginnings.lengths.iter().take_while(|length| **length <= segment.len()) {
            if let Some(posting) = segment.get(..*length).and_then(|beginning| self.beginnings.texts.get(beginning)) {
                found.add(posting);
            }
        }
        if let Some(child) = self.children.get(segment) {
            child.find(next, found);
        }
        if let Some(child) = self.one.as_deref().filter(|_| !segment.is_empty()) {
            child.find(next, found);
        }
    }
}
