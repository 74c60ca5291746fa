//! Reads files of resources: several documents, every mistake of every document, each with its position.

mod cost;
mod diagnostic;
mod schema;
mod shape;
mod tree;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use cost::MAX_EXPRESSION_COST;
pub use diagnostic::{Diagnostic, Position, Severity};
pub use tree::{MAX_BYTES, MAX_DEPTH, MAX_DOCUMENTS, MAX_ENTRIES, MAX_NODES};

pub(crate) use diagnostic::Finding;
pub(crate) use schema::METADATA;
pub(crate) use shape::{Field, Needed, Shape, nearest};
pub(crate) use tree::{Content, Node};

use serde::de::DeserializeOwned;

use crate::described::DescribedCall;
use crate::resource::ServicePolicy;
use crate::route::{self, Route};
use crate::testcase::PolicyTest;

/// One policy of a file.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The policy.
    pub policy: Arc<ServicePolicy>,
    /// The name of the file, as the caller gave it.
    pub source: String,
    node: Arc<Node>,
}

/// One step from a document to a place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// Into a field.
    Field(&'a str),
    /// To an element, counted from 0.
    Element(usize),
}

impl Manifest {
    /// Where the document begins.
    pub fn position(&self) -> Position {
        self.node.at
    }

    /// Where the node begins to which `path` leads, or the nearest one on the way to it.
    pub fn position_of(&self, path: &[Step<'_>]) -> Position {
        position_in(&self.node, path)
    }

    /// Where the rule with this index begins.
    pub fn rule_position(&self, index: usize) -> Position {
        self.position_of(&[Step::Field("spec"), Step::Field("authorization"), Step::Field("rules"), Step::Element(index)])
    }
}

fn position_in(node: &Arc<Node>, path: &[Step<'_>]) -> Position {
    let mut node = node;
    for step in path {
        let next = match step {
            Step::Field(name) => node.field(name),
            Step::Element(index) => node.element(*index),
        };
        match next {
            Some(next) => node = next,
            None => break,
        }
    }
    node.at
}

/// One route of a file.
#[derive(Debug, Clone)]
pub struct RouteManifest {
    /// The route.
    pub route: Arc<Route>,
    /// The name of the file, as the caller gave it.
    pub source: String,
    node: Arc<Node>,
}

impl RouteManifest {
    /// Where the document begins.
    pub fn position(&self) -> Position {
        self.node.at
    }

    /// Where the node begins to which `path` leads, or the nearest one on the way to it.
    pub fn position_of(&self, path: &[Step<'_>]) -> Position {
        position_in(&self.node, path)
    }
}

/// What a file holds.
#[derive(Debug, Clone, Default)]
pub struct File {
    /// Its policies.
    pub policies: Vec<Manifest>,
    /// Its routes.
    pub routes: Vec<RouteManifest>,
    /// Its policy tests.
    pub tests: Vec<PolicyTest>,
    /// What is wrong with it.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads all policies of `yaml`, which may also be JSON; `source` names the file in diagnostics.
///
/// Documents with mistakes are left out of the list, so that a caller who wants all or nothing looks for errors first.
/// A policy test is a mistake here, and so is a route.
pub fn parse(source: &str, yaml: &str) -> (Vec<Manifest>, Vec<Diagnostic>) {
    let (documents, failed) = tree::read(yaml);
    let mut reading = Reading { source, file: File::default(), seen: BTreeMap::new() };
    reading.read(documents, failed, |reading, document| reading.policy(document));
    (reading.file.policies, reading.file.diagnostics)
}

/// Reads all policies and routes of `yaml`, as [`parse`] does. A policy test is a mistake here.
pub fn parse_resources(source: &str, yaml: &str) -> File {
    let (documents, failed) = tree::read(yaml);
    let mut reading = Reading { source, file: File::default(), seen: BTreeMap::new() };
    reading.read(documents, failed, |reading, document| match route_shape(&document) {
        Some(shape) => reading.route(shape, document),
        None => reading.policy(document),
    });
    reading.file
}

/// Reads all policies, routes and policy tests of `yaml`.
pub fn parse_file(source: &str, yaml: &str) -> File {
    let (documents, failed) = tree::read(yaml);
    let mut reading = Reading { source, file: File::default(), seen: BTreeMap::new() };
    reading.read(documents, failed, |reading, document| match (kind(&document), route_shape(&document)) {
        (Some("PolicyTest"), _) => reading.test(&document),
        (_, Some(shape)) => reading.route(shape, document),
        _ => reading.policy(document),
    });
    reading.file
}

fn kind(document: &Node) -> Option<&str> {
    match &document.field("kind")?.content {
        Content::Text(kind) => Some(kind),
        _ => None,
    }
}

/// The shape of a route, if the document says it is one.
fn route_shape(document: &Node) -> Option<&'static Shape> {
    match kind(document)? {
        "HTTPRoute" => Some(&route::schema::HTTP_ROUTE),
        "GRPCRoute" => Some(&route::schema::GRPC_ROUTE),
        _ => None,
    }
}

/// So many mistakes of a file, and no more documents are looked at.
const MAX_DIAGNOSTICS: usize = 200;

struct Reading<'a> {
    source: &'a str,
    file: File,
    /// Policies and routes by kind and name, with the line of each.
    seen: BTreeMap<String, usize>,
}

impl Reading<'_> {
    fn read(
        &mut self,
        documents: Vec<Node>,
        failed: Option<Finding>,
        each: impl Fn(&mut Self, Arc<Node>) -> Result<(), Vec<Finding>>,
    ) {
        let mut cost = 0;
        for document in documents.into_iter().filter(|document| !matches!(document.content, Content::Null)) {
            if let Err(finding) = cost::add(&document, &mut cost) {
                self.report([finding]);
                break;
            }
            // a file of mistakes must not be answered with many times its size
            if self.file.diagnostics.len() >= MAX_DIAGNOSTICS {
                break;
            }
            if let Err(findings) = each(self, Arc::new(document)) {
                self.report(findings);
            }
        }
        self.report(failed);
    }

    fn report(&mut self, findings: impl IntoIterator<Item = Finding>) {
        let source = self.source;
        self.file.diagnostics.extend(findings.into_iter().map(|finding| finding.diagnostic(Severity::Error, source)));
    }

    fn policy(&mut self, document: Arc<Node>) -> Result<(), Vec<Finding>> {
        if let Some(kind) = kind(&document).filter(|_| route_shape(&document).is_some()) {
            let message = format!("an `{kind}` is no policy: nothing can be tried with it here");
            return Err(vec![Finding::new(document.at, message).help("apply it by itself, without `--canary`")]);
        }
        if kind(&document) == Some("PolicyTest") {
            return Err(vec![
                Finding::new(document.at, "a `PolicyTest` is run, not applied").help("run it with `outrider test`"),
            ]);
        }
        let policy = policy(&document)?;
        let name = policy.full_name();
        if let Some(line) = self.seen.get(&name) {
            return Err(vec![
                Finding::new(document.at, format!("policy `{name}` is written twice, first in line {line}"))
                    .help("give one of them another name"),
            ]);
        }
        self.seen.insert(name, document.at.line);
        self.file.policies.push(Manifest { policy: Arc::new(policy), source: self.source.to_owned(), node: document });
        Ok(())
    }

    fn route(&mut self, shape: &Shape, document: Arc<Node>) -> Result<(), Vec<Finding>> {
        let route: Route = resource(shape, &document)?;
        let problems = route.problems();
        if !problems.is_empty() {
            let finding = |problem: route::RouteProblem| Finding::new(position_in(&document, &problem.path), problem.message);
            return Err(problems.into_iter().take(shape::MAX_FINDINGS).map(finding).collect());
        }
        let name = format!("{} `{}`", route.kind.as_str(), route.full_name());
        if let Some(line) = self.seen.get(&name) {
            return Err(vec![
                Finding::new(document.at, format!("{name} is written twice, first in line {line}"))
                    .help("give one of them another name"),
            ]);
        }
        self.seen.insert(name, document.at.line);
        self.file.routes.push(RouteManifest { route: Arc::new(route), source: self.source.to_owned(), node: document });
        Ok(())
    }

    fn test(&mut self, document: &Node) -> Result<(), Vec<Finding>> {
        self.file.tests.push(resource(&schema::POLICY_TEST, document)?);
        Ok(())
    }
}

/// The resource of one document, or all that is wrong with it.
fn resource<T: DeserializeOwned>(shape: &shape::Shape, document: &Node) -> Result<T, Vec<Finding>> {
    let mut findings = Vec::new();
    shape.check(document, &mut findings);
    if findings.is_empty() {
        return serde_json::from_value(document.value()).map_err(|error| vec![Finding::new(document.at, error.to_string())]);
    }
    findings.truncate(shape::MAX_FINDINGS);
    Err(findings)
}

fn policy(document: &Node) -> Result<ServicePolicy, Vec<Finding>> {
    let policy = resource(&schema::SERVICE_POLICY, document)?;
    duplicate_names(document, &policy).map_or(Ok(policy), Err)
}

/// All documents of a text of some other kind, and what stands in the way of reading on.
pub(crate) fn documents(yaml: &str) -> (Vec<Node>, Option<Finding>) {
    let (mut documents, failed) = tree::read(yaml);
    documents.retain(|document| !matches!(document.content, Content::Null));
    (documents, failed)
}

/// Reads one described call, in JSON or YAML; `source` names the file in diagnostics.
pub fn parse_call(source: &str, text: &str) -> Result<DescribedCall, Vec<Diagnostic>> {
    let (documents, failed) = tree::read(text);
    let diagnostics =
        |findings: Vec<Finding>| findings.into_iter().map(|finding| finding.diagnostic(Severity::Error, source)).collect();
    match (documents.as_slice(), failed) {
        (_, Some(failed)) => Err(diagnostics(vec![failed])),
        ([document], None) => resource(&schema::CALL, document).map_err(diagnostics),
        (documents, None) => Err(diagnostics(vec![Finding::new(
            Position { line: 1, column: 1 },
            format!("expected one call, found {} documents", documents.len()),
        )])),
    }
}

fn duplicate_names(document: &Node, policy: &ServicePolicy) -> Option<Vec<Finding>> {
    let rules = document.field("spec")?.field("authorization")?.field("rules")?;
    let mut first: BTreeMap<&str, Position> = BTreeMap::new();
    let mut findings = Vec::new();
    for (index, rule) in policy.rules().iter().enumerate() {
        let (Some(name), Some(node)) = (&rule.name, rules.element(index)) else { continue };
        match first.get(name.as_str()) {
            Some(position) => findings.push(
                Finding::new(node.at, format!("two rules of the name `{name}`, the first in line {}", position.line))
                    .help("decisions name the rule: give each its own name"),
            ),
            None => {
                first.insert(name.as_str(), node.at);
            }
        }
    }
    (!findings.is_empty()).then_some(findings)
}

#[cfg(test)]
mod tests;
