//! What the values of a route must be: the same checks for who applies one and for the agent that gets it.

use super::resource::{
    BackendRef, Filter, HeaderChanges, HeaderMatch, MatchType, Method, PathMatch, PathMatchType, PathRewrite, Route, RouteKind,
    RouteMatch, RouteRule,
};
use crate::header::HeaderRegex;
use crate::manifest::Step;
use crate::path;
use crate::reserved::reserved;

/// Something wrong with a route, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteProblem {
    /// The way from the document to the place.
    pub path: Vec<Step<'static>>,
    /// What is wrong.
    pub message: String,
}

/// Collects problems at the place that it is at.
struct Findings {
    at: Vec<Step<'static>>,
    found: Vec<RouteProblem>,
    reading: Reading,
}

/// Where a route comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// From somebody who applies it.
    Written,
    /// From the store, which may have taken what is refused by now.
    Stored,
}

impl Findings {
    fn say(&mut self, message: impl Into<String>) {
        self.found.push(RouteProblem { path: self.at.clone(), message: message.into() });
    }

    fn within(&mut self, steps: &[Step<'static>], look: impl FnOnce(&mut Self)) {
        let before = self.at.len();
        self.at.extend_from_slice(steps);
        look(self);
        self.at.truncate(before);
    }

    fn each<T>(&mut self, field: &'static str, all: &[T], mut look: impl FnMut(&mut Self, &T)) {
        for (index, one) in all.iter().enumerate() {
            self.within(&[Step::Field(field), Step::Element(index)], |findings| look(findings, one));
        }
    }
}

impl Route {
    /// What is wrong with its values, as somebody has written them.
    pub fn problems(&self) -> Vec<RouteProblem> {
        self.read(Reading::Written)
    }

    /// What is wrong with its values, as they are stored: a part of [`Route::problems`].
    pub(super) fn stored_problems(&self) -> Vec<RouteProblem> {
        self.read(Reading::Stored)
    }

    fn read(&self, reading: Reading) -> Vec<RouteProblem> {
        let mut findings = Findings { at: vec![Step::Field("spec")], found: Vec::new(), reading };
        for problem in self.annotation_problems() {
            findings
                .found
                .push(RouteProblem { path: vec![Step::Field("metadata"), Step::Field("annotations")], message: problem });
        }
        if self.spec.parent_refs.is_empty() || self.spec.rules.is_empty() {
            findings.say("a route has at least one parent and one rule");
        }
        let matches: usize = self.spec.rules.iter().map(|rule| rule.matches.len()).sum();
        if self.spec.rules.len() > 16 || matches > 128 || self.spec.parent_refs.len() > 32 {
            findings.say("a route has at most 32 parents, 16 rules and 128 matches");
        }
        findings.each("rules", &self.spec.rules, |findings, rule| self.rule(findings, rule));
        findings.found
    }

    fn rule(&self, findings: &mut Findings, rule: &RouteRule) {
        findings.each("matches", &rule.matches, |findings, each| self.matching(findings, each));
        findings.each("filters", &rule.filters, |findings, filter| {
            check_filter(findings, filter, rule);
            if let Filter::RequestMirror { mirror } = filter {
                let at = [Step::Field("requestMirror"), Step::Field("backendRef")];
                findings.within(&at, |findings| self.may_lead_to(findings, &mirror.backend_ref));
            }
        });
        findings.each("backendRefs", &rule.backend_refs, |findings, backend| self.may_lead_to(findings, backend));
        let redirects = rule.filters.iter().any(|filter| matches!(filter, Filter::RequestRedirect { .. }));
        let kinds: Vec<_> = rule.filters.iter().map(std::mem::discriminant).collect();
        let twice = |at: usize| kinds.get(at).is_some_and(|kind| kinds.iter().take(at).any(|other| other == kind));
        let mirrors = |filter: &Filter| matches!(filter, Filter::RequestMirror { .. });
        for (at, filter) in rule.filters.iter().enumerate() {
            if twice(at) && !mirrors(filter) {
                findings
                    .within(&[Step::Field("filters"), Step::Element(at)], |findings| findings.say("this filter is there twice"));
            }
        }
        match (redirects, rule.backend_refs.is_empty()) {
            (false, true) => findings.say("a rule without `backendRefs` leads nowhere"),
            (true, false) => findings.say("a rule that redirects has no `backendRefs`"),
            (true, true) => {}
            (false, false) if rule.backend_refs.iter().all(|backend| backend.weight == 0) => {
                findings
                    .within(&[Step::Field("backendRefs")], |findings| findings.say("all weights are 0: nothing would be served"));
            }
            (false, false) => {}
        }
        if redirects && rule.filters.iter().any(|filter| mirrors(filter) || matches!(filter, Filter::UrlRewrite { .. })) {
            findings.say("a rule that redirects sends nothing that could be mirrored or rewritten");
        }
        if let Some(timeouts) = &rule.timeouts {
            let request = timeouts.request.and_then(super::RouteDuration::bound);
            let single = timeouts.backend_request.and_then(super::RouteDuration::bound);
            if request.zip(single).is_some_and(|(request, single)| single > request) {
                findings.within(&[Step::Field("timeouts")], |findings| findings.say("`backendRequest` is longer than `request`"));
            }
        }
        if let Some(retry) = &rule.retry {
            findings.within(&[Step::Field("retry")], |findings| {
                if retry.codes.iter().any(|code| !(400..600).contains(code)) {
                    findings.say("`codes` are statuses from 400 to 599");
                }
                if retry.attempts.is_some_and(|attempts| attempts > 5) {
                    findings.say("`attempts` is at most 5");
                }
            });
        }
    }

    /// Whoever may write routes in one namespace must not draw its callers to another one.
    fn may_lead_to(&self, findings: &mut Findings, backend: &BackendRef) {
        let Some(service) = self.backend(backend) else { return findings.say("the backend has no name") };
        let foreign = service.namespace() != self.metadata.namespace.as_str();
        if backend.port == 0 {
            findings.say("port 0 does not exist");
        }
        if foreign && !self.parents().any(|parent| parent == service) {
            findings.say(format!(
                "a route of namespace `{}` may not lead to `{service}`: routes lead to services of their own namespace, or on to their parent",
                self.metadata.namespace
            ));
        }
    }

    fn matching(&self, findings: &mut Findings, each: &RouteMatch) {
        match (self.kind, &each.method) {
            (RouteKind::Http, Some(Method::Http(method))) => {
                if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
                    findings.within(&[Step::Field("method")], |findings| findings.say("a method is a word in upper case"));
                }
            }
            (RouteKind::Grpc, Some(Method::Grpc(method))) => findings.within(&[Step::Field("method")], |findings| {
                if method.service.is_none() && method.method.is_none() {
                    findings.say("write `service`, `method` or both");
                }
                for text in method.service.iter().chain(&method.method) {
                    match method.kind {
                        MatchType::RegularExpression => regex(findings, text),
                        MatchType::Exact if text.is_empty() || text.contains('/') => {
                            findings.say("names of gRPC have no `/`, and are not empty");
                        }
                        MatchType::Exact => {}
                    }
                }
            }),
            (RouteKind::Http, Some(Method::Grpc(_))) | (RouteKind::Grpc, Some(Method::Http(_))) => {
                findings.say("an HTTPRoute matches methods of HTTP, a GRPCRoute those of gRPC");
            }
            (_, None) => {}
        }
        if self.kind == RouteKind::Grpc && (each.path.is_some() || !each.query_params.is_empty()) {
            findings.say("a GRPCRoute matches methods and headers");
        }
        if let Some(path) = &each.path {
            findings.within(&[Step::Field("path")], |findings| check_path(findings, path));
        }
        findings.each("headers", &each.headers, |findings, header| {
            field_name(findings, &header.name);
            if let Some(why) = reserved(header.name.as_bytes()).filter(|_| findings.reading == Reading::Written) {
                findings.say(format!("no route ever sees `{}`: {}", header.name, why.way_out()));
            }
            check_value(findings, header);
        });
        findings.each("queryParams", &each.query_params, |findings, parameter| {
            if parameter.name.is_empty() || parameter.name.len() > 256 {
                findings.say("a parameter's name has 1 to 256 bytes");
            }
            check_value(findings, parameter);
        });
    }
}

fn check_value(findings: &mut Findings, header: &HeaderMatch) {
    match header.kind {
        MatchType::RegularExpression => regex(findings, &header.value),
        MatchType::Exact if header.value.is_empty() || header.value.len() > 4096 => findings.say("a value has 1 to 4096 bytes"),
        MatchType::Exact => {}
    }
}

fn regex(findings: &mut Findings, text: &str) {
    if let Err(problem) = HeaderRegex::new(text) {
        findings.say(problem.to_string());
    }
}

fn check_path(findings: &mut Findings, matched: &PathMatch) {
    match matched.kind {
        PathMatchType::RegularExpression => regex(findings, &matched.value),
        PathMatchType::Exact | PathMatchType::PathPrefix => canonical(findings, &matched.value),
    }
}

/// Requests have canonical paths: another spelling would match nothing.
fn canonical(findings: &mut Findings, text: &str) {
    let shown: String = text.chars().take(80).collect();
    match path::canonical(text.as_bytes()) {
        Ok(canonical) if canonical == text => {}
        Ok(canonical) => findings.say(format!("`{shown}` matches nothing: requests have the spelling `{canonical}`")),
        Err(problem) => findings.say(format!("`{shown}` is no path: {problem}")),
    }
}

fn field_name(findings: &mut Findings, name: &str) {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !(1..=256).contains(&name.len()) || !name.bytes().all(token) {
        findings
            .say(format!("`{}` is not a header name", name.chars().take(80).flat_map(char::escape_debug).collect::<String>()));
    }
}

/// Fields that decide what a request is, who sent it, or where it ends.
fn is_reserved(name: &str) -> bool {
    const NAMES: [&str; 14] = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
        "te",
        "trailer",
        "expect",
        "keep-alive",
        "proxy-connection",
        "x-forwarded-client-cert",
        "x-request-id",
        "grpc-timeout",
        "http2-settings",
    ];
    let name = name.to_ascii_lowercase();
    NAMES.contains(&name.as_str()) || name.starts_with("x-outrider-") || name.starts_with("x-envoy-") || name.starts_with("l5d-")
}

fn changes(findings: &mut Findings, changes: &HeaderChanges) {
    let named = changes.set.iter().chain(&changes.add).map(|change| &change.name).chain(&changes.remove);
    for name in named {
        field_name(findings, name);
        if is_reserved(name) {
            findings.say(format!("`{name}` cannot be changed: it says what the request is, or who sent it"));
        }
    }
    for change in changes.set.iter().chain(&changes.add) {
        let plain = change.value.bytes().all(|byte| byte == b'\t' || (byte >= 0x20 && byte != 0x7f));
        if !plain || change.value.len() > 4096 || change.value.trim() != change.value {
            findings.say(format!("the value of `{}` has control characters, outer spaces, or more than 4096 bytes", change.name));
        }
    }
}

fn check_filter(findings: &mut Findings, filter: &Filter, rule: &RouteRule) {
    match filter {
        Filter::RequestHeaderModifier { changes: own } | Filter::ResponseHeaderModifier { changes: own } => {
            changes(findings, own)
        }
        Filter::RequestMirror { mirror } => {
            if mirror.percent.is_some() && mirror.fraction.is_some() {
                findings.say("write `percent` or `fraction`");
            }
            if mirror.fraction.is_some_and(|share| share.denominator == 0 || share.numerator > share.denominator) {
                findings.say("a fraction is at most 1, and its denominator is not 0");
            }
            if mirror.backend_ref.weight != 1 {
                findings.say("a mirror has no weight: use `percent` or `fraction`");
            }
        }
        Filter::RequestRedirect { redirect } => {
            if !matches!(redirect.status_code, None | Some(301 | 302 | 303 | 307 | 308)) {
                findings.say("`statusCode` is 301, 302, 303, 307 or 308");
            }
            if let Some(host) = &redirect.hostname
                && crate::host::canonical(host.as_bytes()).ok().is_none_or(|found| found.port.is_some() || found.name != *host)
            {
                findings.say("`hostname` is not a host name in lower case");
            }
            redirect.path.iter().for_each(|path| rewritten(findings, path, rule));
        }
        Filter::UrlRewrite { rewrite } => match &rewrite.path {
            Some(path) => rewritten(findings, path, rule),
            None => findings.say("`urlRewrite` has nothing to rewrite: write `path`"),
        },
    }
}

fn rewritten(findings: &mut Findings, path: &PathRewrite, rule: &RouteRule) {
    let (PathRewrite::ReplaceFullPath { to } | PathRewrite::ReplacePrefixMatch { to }) = path;
    canonical(findings, to);
    let is_prefix = |each: &RouteMatch| each.path.as_ref().is_none_or(|path| path.kind == PathMatchType::PathPrefix);
    if matches!(path, PathRewrite::ReplacePrefixMatch { .. }) && !rule.matches.iter().all(is_prefix) {
        findings.say("`replacePrefixMatch` needs matches of type PathPrefix");
    }
}
