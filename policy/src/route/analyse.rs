//! What is wrong, or probably not meant, with routes in a mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::resource::{BackendRef, Filter, Route, RouteKind};
use crate::manifest::{Diagnostic, Finding, RouteManifest, Severity, Step};
use crate::{Protocol, ServiceName, Target};

struct Report<'a> {
    manifest: &'a RouteManifest,
    diagnostics: Vec<Diagnostic>,
}

impl Report<'_> {
    fn say(&mut self, severity: Severity, path: &[Step<'_>], message: String, help: &str) {
        let finding = Finding::new(self.manifest.position_of(path), message);
        let finding = if help.is_empty() { finding } else { finding.help(help) };
        self.diagnostics.push(finding.diagnostic(severity, &self.manifest.source));
    }
}

/// Ports of services and what they speak.
type Ports = BTreeMap<ServiceName, BTreeMap<u16, Protocol>>;

/// Examines the routes that are about to be applied, beside those that are stored and the ports that are known.
pub fn analyse(new: &[RouteManifest], existing: &[Arc<Route>], services: &[Target]) -> Vec<Diagnostic> {
    let replaced: BTreeSet<(RouteKind, String)> = new.iter().map(|one| (one.route.kind, one.route.full_name())).collect();
    let kept = existing.iter().filter(|route| !replaced.contains(&(route.kind, route.full_name())));
    let all: Vec<&Arc<Route>> = new.iter().map(|one| &one.route).chain(kept).collect();
    let mut ports = Ports::new();
    for target in services {
        ports.entry(target.service.clone()).or_default().insert(target.port, target.protocol);
    }
    new.iter()
        .flat_map(|manifest| {
            let mut report = Report { manifest, diagnostics: Vec::new() };
            parents(&mut report, &all, &ports);
            backends(&mut report, &ports);
            report.diagnostics
        })
        .collect()
}

fn parents(report: &mut Report<'_>, all: &[&Arc<Route>], ports: &Ports) {
    let route = report.manifest.route.clone();
    for (index, reference) in route.spec.parent_refs.iter().enumerate() {
        let at = [Step::Field("spec"), Step::Field("parentRefs"), Step::Element(index)];
        let Some(service) = route.parent(reference) else { continue };
        let known = ports.get(&service);
        if known.is_none() {
            report.say(
                Severity::Warning,
                &at,
                format!("no agent backs `{service}` now"),
                "check the name, or go on and start it",
            );
        }
        match reference.port.map(|port| (port, known.map(|known| known.get(&port)))) {
            Some((port, Some(None))) => {
                report.say(Severity::Error, &at, format!("`{service}` has no port {port}"), "leave `port` out to attach to all");
            }
            Some((port, Some(Some(protocol)))) if !protocol.is_http() => {
                let message = format!("port {port} of `{service}` speaks {protocol}: routes are for HTTP");
                report.say(Severity::Error, &at, message, "declare the port as http, http2 or grpc");
            }
            _ => {}
        }
        let overlaps = |other: &Route| {
            let same_side = other.metadata.namespace == route.metadata.namespace;
            same_side
                && other.spec.parent_refs.iter().any(|one| {
                    let same_port = one.port.is_none() || reference.port.is_none() || one.port == reference.port;
                    other.parent(one).as_ref() == Some(&service) && same_port
                })
        };
        if let Some(other) = all.iter().find(|other| other.kind != route.kind && overlaps(other)) {
            let message = format!("{} `{}` is attached to `{service}` too", other.kind.as_str(), other.full_name());
            report.say(Severity::Error, &at, message, "attach routes of one kind to a port");
        }
    }
}

fn backends(report: &mut Report<'_>, ports: &Ports) {
    let route = report.manifest.route.clone();
    for (rule_index, rule) in route.spec.rules.iter().enumerate() {
        let rule_at = [Step::Field("spec"), Step::Field("rules"), Step::Element(rule_index)];
        for (index, reference) in rule.backend_refs.iter().enumerate() {
            let at = [rule_at.as_slice(), &[Step::Field("backendRefs"), Step::Element(index)]].concat();
            backend(report, &route, reference, &at, ports);
        }
        for (index, filter) in rule.filters.iter().enumerate() {
            if let Filter::RequestMirror { mirror } = filter {
                let within =
                    [Step::Field("filters"), Step::Element(index), Step::Field("requestMirror"), Step::Field("backendRef")];
                let at = [rule_at.as_slice(), &within].concat();
                backend(report, &route, &mirror.backend_ref, &at, ports);
            }
        }
    }
}

fn backend(report: &mut Report<'_>, route: &Route, reference: &BackendRef, at: &[Step<'_>], ports: &Ports) {
    let Some(service) = route.backend(reference) else { return };
    let Some(known) = ports.get(&service) else {
        let message = format!("no agent backs `{service}` now: requests that are led there are refused with 503");
        return report.say(Severity::Warning, at, message, "check the name, or go on and start it");
    };
    match known.get(&reference.port) {
        None => {
            let listed: Vec<String> = known.keys().map(u16::to_string).collect();
            let message = format!("`{service}` has no port {}; it has {}", reference.port, listed.join(", "));
            report.say(Severity::Error, at, message, "");
        }
        Some(protocol) if !protocol.is_http() => {
            let message = format!("port {} of `{service}` speaks {protocol}: routes are for HTTP", reference.port);
            report.say(Severity::Error, at, message, "declare the port as http, http2 or grpc");
        }
        Some(Protocol::Http) if route.kind == RouteKind::Grpc => {
            let message = format!("port {} of `{service}` speaks HTTP/1.1, and gRPC needs HTTP/2", reference.port);
            report.say(Severity::Error, at, message, "declare the port as grpc or http2");
        }
        Some(_) => {}
    }
}
