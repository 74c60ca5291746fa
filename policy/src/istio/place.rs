//! A place in a document of Istio's: what stands there, what it is called, and what is wrong with it.

use crate::manifest::{Content, Diagnostic, Finding, Node, Position, Severity, nearest};

/// Most findings that are collected of a file.
const MAX_FINDINGS: usize = 100;

/// What is wrong with a file, and what should be known about it.
#[derive(Debug)]
pub(super) struct Report<'a> {
    source: &'a str,
    findings: Vec<(Severity, Finding)>,
}

impl<'a> Report<'a> {
    pub(super) fn new(source: &'a str) -> Self {
        Self { source, findings: Vec::new() }
    }

    /// Something keeps the translation from coming about.
    pub(super) fn refuse(&mut self, finding: Finding) {
        self.add(Severity::Error, finding);
    }

    /// Something should be known about it.
    pub(super) fn note(&mut self, finding: Finding) {
        self.add(Severity::Warning, finding);
    }

    /// The same about the file as a whole.
    pub(super) fn note_file(&mut self, message: &str, help: &str) {
        self.note(Finding::new(Position::default(), message).help(help));
    }

    fn add(&mut self, severity: Severity, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS && !self.findings.contains(&(severity, finding.clone())) {
            self.findings.push((severity, finding));
        }
    }

    pub(super) fn diagnostics(self) -> impl Iterator<Item = Diagnostic> {
        let source = self.source;
        let mut findings = self.findings;
        findings.sort_by_key(|(severity, finding)| (*severity, finding.at));
        findings.into_iter().map(move |(severity, finding)| finding.diagnostic(severity, source))
    }
}

/// A node with the path that leads to it, such as `spec.rules[0].from[1].source.principals`.
#[derive(Debug, Clone)]
pub(super) struct Place<'n> {
    node: &'n Node,
    /// Where it begins; for a field, where its name does.
    at: Position,
    path: String,
}

impl<'n> Place<'n> {
    /// A document.
    pub(super) fn document(node: &'n Node) -> Self {
        Self { node, at: node.at, path: String::new() }
    }

    pub(super) fn at(&self) -> Position {
        self.at
    }

    /// The field has a meaning that our policies do not have.
    pub(super) fn not_kept(&self, why: &str) -> Finding {
        Finding::new(self.at(), format!("`{}` cannot be kept: {why}", self.path))
    }

    /// Istio itself would refuse the field.
    pub(super) fn invalid(&self, why: &str) -> Finding {
        Finding::new(self.at(), format!("`{}` is not valid in Istio: {why}", self.path))
    }

    /// A remark about the field.
    pub(super) fn remark(&self, what: &str) -> Finding {
        Finding::new(self.at(), format!("`{}`: {what}", self.path))
    }

    /// The field of this name, unless it is absent or null, which mean the same.
    pub(super) fn field(&self, name: &str) -> Option<Self> {
        let Content::Map(entries) = &self.node.content else { return None };
        let entry = entries.iter().find(|entry| &*entry.key == name && !matches!(entry.value.content, Content::Null))?;
        let dot = if self.path.is_empty() { "" } else { "." };
        Some(Self { node: &entry.value, at: entry.at, path: format!("{}{dot}{name}", self.path) })
    }

    /// Refuses what is no mapping, and fields that are not among `known`.
    pub(super) fn expect_fields(&self, known: &[&str], report: &mut Report<'_>) {
        let Content::Map(entries) = &self.node.content else {
            return report.refuse(self.invalid(&format!("expected a mapping, found {}", self.node.what())));
        };
        for entry in entries.iter().filter(|entry| !known.contains(&&*entry.key)) {
            let dot = if self.path.is_empty() { "" } else { "." };
            let key: String = entry.key.chars().take(80).collect();
            let finding = Finding::new(entry.at, format!("`{}{dot}{key}` cannot be kept: it is not known", self.path));
            report.refuse(match nearest(&key, known) {
                Some(name) => finding.help(format!("did you mean `{name}`?")),
                None => finding,
            });
        }
    }

    /// The elements of a list; refuses what is none.
    pub(super) fn elements(&self, report: &mut Report<'_>) -> Vec<Self> {
        let Content::List(elements) = &self.node.content else {
            report.refuse(self.invalid(&format!("expected a list, found {}", self.node.what())));
            return Vec::new();
        };
        let path = |index: usize| format!("{}[{index}]", self.path);
        elements.iter().enumerate().map(|(index, node)| Self { node, at: node.at, path: path(index) }).collect()
    }

    /// The entries of a mapping; refuses what is none.
    pub(super) fn entries(&self, report: &mut Report<'_>) -> Vec<(&'n str, Self)> {
        let Content::Map(entries) = &self.node.content else {
            report.refuse(self.invalid(&format!("expected a mapping, found {}", self.node.what())));
            return Vec::new();
        };
        let path = |key: &str| format!("{}[{key}]", self.path);
        entries.iter().map(|entry| (&*entry.key, Self { node: &entry.value, at: entry.at, path: path(&entry.key) })).collect()
    }

    /// The text; refuses what is none, and an empty one.
    pub(super) fn text(&self, report: &mut Report<'_>) -> Option<&'n str> {
        match &self.node.content {
            Content::Text(text) if !text.is_empty() => return Some(text),
            Content::Text(_) => report.refuse(self.invalid("an empty text")),
            _ => report.refuse(self.invalid(&format!("expected a text, found {}", self.node.what()))),
        }
        None
    }

    /// The texts of a list.
    pub(super) fn texts(&self, report: &mut Report<'_>) -> Vec<(Self, &'n str)> {
        let elements = self.elements(report);
        elements.into_iter().filter_map(|element| element.text(report).map(|text| (element, text))).collect()
    }

    /// The text, where it may be anything else: what does not tell documents apart is not looked into.
    pub(super) fn text_or_none(&self) -> Option<&'n str> {
        match &self.node.content {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }
}
