//! The routes of one service as its caller's agent asks them: which rule is for a request, and which of its backends.

use std::cmp::Reverse;
use std::sync::Arc;

use super::resource::{
    BackendRef, Filter, HeaderMatch, MatchType, Method, ParentRef, PathMatchType, Route, RouteKind, RouteMatch, RouteRule,
};
use crate::ServiceName;
use crate::header::{HeaderRegex, Headers};

/// A route and when it came to be.
#[derive(Debug, Clone)]
pub struct StoredRoute {
    /// The route.
    pub route: Arc<Route>,
    /// Revision of the store at which it was created: older routes go first where matches are alike.
    pub created: u64,
}

/// What of a request routes look at.
#[derive(Clone, Copy)]
pub struct RouteRequest<'a> {
    /// Method, upper case.
    pub method: &'a str,
    /// Canonical path.
    pub path: &'a str,
    /// Query without `?`.
    pub query: Option<&'a str>,
    /// Fields.
    pub headers: &'a dyn Headers,
}

/// A backend of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
    /// Its share of the sum of all.
    pub weight: u32,
}

/// A rule that is for a request.
#[derive(Debug, Clone)]
pub struct Chosen<'a> {
    /// The rule.
    pub rule: &'a RouteRule,
    /// Its backends, those without share left out.
    pub backends: &'a [Backend],
    /// Its mirrors, each with how many of how many requests it gets.
    pub mirrors: &'a [(Backend, u32, u32)],
    /// `namespace/name` of its route.
    pub route: &'a str,
    /// The prefix that matched, where a prefix did.
    pub prefix: Option<&'a str>,
    /// Its place in the table, which stays the same as long as the table does.
    pub index: usize,
}

/// What the routes of a service say about a request.
#[derive(Debug, Clone)]
pub enum Selection<'a> {
    /// No route is attached to the port: the service itself answers.
    Unrouted,
    /// Routes are attached, and none of them is for this request.
    NoMatch,
    /// This rule.
    Chosen(Chosen<'a>),
}

/// The routes of one service.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// Most specific first; those beside the caller before those beside the service.
    entries: Vec<Entry>,
    rules: Vec<Compiled>,
}

#[derive(Debug)]
struct Compiled {
    rule: RouteRule,
    route: String,
    backends: Vec<Backend>,
    mirrors: Vec<(Backend, u32, u32)>,
}

#[derive(Debug)]
struct Entry {
    matcher: Matcher,
    rank: Rank,
    rule: usize,
    /// The ports that its route is attached to; none for all.
    port: Option<u16>,
    /// Beside the caller, not beside the service.
    is_consumers: bool,
}

/// How specific a match is: the greater, the more.
type Rank = [usize; 5];

#[derive(Debug)]
struct Matcher {
    path: PathMatcher,
    method: Option<Box<str>>,
    headers: Vec<(Box<str>, TextMatcher)>,
    parameters: Vec<(Box<str>, TextMatcher)>,
}

#[derive(Debug)]
enum PathMatcher {
    Any,
    Exact(Box<str>),
    /// Without a slash at its end.
    Prefix(Box<str>),
    Regex(HeaderRegex),
    Grpc(Option<TextMatcher>, Option<TextMatcher>),
}

#[derive(Debug)]
enum TextMatcher {
    Exact(Box<str>),
    Regex(HeaderRegex),
}

impl TextMatcher {
    fn new(kind: MatchType, text: &str) -> Result<Self, String> {
        match kind {
            MatchType::Exact => Ok(Self::Exact(text.into())),
            MatchType::RegularExpression => regex(text).map(Self::Regex),
        }
    }

    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == value,
            Self::Regex(regex) => regex.is_match(value),
        }
    }

    fn exact_len(&self) -> usize {
        match self {
            Self::Exact(text) => text.len(),
            Self::Regex(_) => 0,
        }
    }
}

fn regex(text: &str) -> Result<HeaderRegex, String> {
    HeaderRegex::new(text).map_err(|problem| problem.to_string())
}

impl RouteTable {
    /// The table of `service` for callers of `namespace`, of those routes that concern them.
    ///
    /// # Errors
    /// When a route cannot be put in force.
    pub fn compile(service: &ServiceName, namespace: &str, routes: &[StoredRoute]) -> Result<Self, String> {
        let mut routes: Vec<&StoredRoute> = routes.iter().filter(|stored| stored.route.concerns(service, namespace)).collect();
        routes.sort_by_key(|stored| (stored.created, stored.route.full_name()));
        let mut table = Self::default();
        for StoredRoute { route, .. } in routes {
            let is_parent = |parent: &&ParentRef| route.parent(parent).as_ref() == Some(service);
            let ports: Vec<Option<u16>> = route.spec.parent_refs.iter().filter(is_parent).map(|parent| parent.port).collect();
            for rule in &route.spec.rules {
                let rule_index = table.rules.len();
                table.rules.push(Compiled::new(route, rule));
                let everything = [RouteMatch::default()];
                let matches = if rule.matches.is_empty() { everything.as_slice() } else { &rule.matches };
                for port in &ports {
                    for each in matches {
                        let matcher = Matcher::new(each).map_err(|reason| format!("route `{}`: {reason}", route.full_name()))?;
                        let is_consumers = route.metadata.namespace.as_str() != service.namespace();
                        let rank = matcher.rank(route.kind);
                        table.entries.push(Entry { rank, matcher, rule: rule_index, port: *port, is_consumers });
                    }
                }
            }
        }
        // Stable: among equals the older route, then the first in order, stays first.
        table.entries.sort_by_key(|entry| (Reverse(entry.is_consumers), Reverse(entry.rank)));
        Ok(table)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What the routes say about a request to `port`.
    pub fn select(&self, port: u16, request: &RouteRequest<'_>) -> Selection<'_> {
        let attached = |entry: &&Entry| entry.port.is_none_or(|own| own == port);
        let Some(first) = self.entries.iter().find(attached) else { return Selection::Unrouted };
        // Routes beside the caller stand in for those beside the service.
        let same_side = |entry: &&Entry| entry.is_consumers == first.is_consumers;
        let mut candidates = self.entries.iter().filter(attached).filter(same_side);
        let Some(entry) = candidates.find(|entry| entry.matcher.matches(request)) else { return Selection::NoMatch };
        let Some(compiled) = self.rules.get(entry.rule) else { return Selection::NoMatch };
        Selection::Chosen(Chosen {
            rule: &compiled.rule,
            backends: &compiled.backends,
            mirrors: &compiled.mirrors,
            route: &compiled.route,
            prefix: entry.matcher.path.prefix(),
            index: entry.rule,
        })
    }

    /// Every rule, by its index in what is chosen.
    pub fn rules(&self) -> impl Iterator<Item = &RouteRule> {
        self.rules.iter().map(|compiled| &compiled.rule)
    }
}

impl Chosen<'_> {
    /// The backend for a random number; `random(n)` is below `n`. None when the rule has none.
    pub fn backend(&self, random: impl FnOnce(u64) -> u64) -> Option<&Backend> {
        let sum: u64 = self.backends.iter().map(|backend| u64::from(backend.weight)).sum();
        let mut left = if self.backends.len() > 1 { random(sum) } else { 0 };
        self.backends.iter().find(|backend| {
            let is_it = left < u64::from(backend.weight);
            left = left.saturating_sub(u64::from(backend.weight));
            is_it
        })
    }
}

impl Compiled {
    fn new(route: &Route, rule: &RouteRule) -> Self {
        let backend = |reference: &BackendRef| {
            let service = route.backend(reference)?;
            Some(Backend { service, port: reference.port, weight: reference.weight })
        };
        let backends = rule.backend_refs.iter().filter_map(backend).filter(|backend| backend.weight > 0).collect();
        let mirror = |filter: &Filter| match filter {
            Filter::RequestMirror { mirror } => {
                let (some, of) = match (mirror.percent, mirror.fraction) {
                    (Some(percent), _) => (percent, 100),
                    (None, Some(share)) => (share.numerator, share.denominator),
                    (None, None) => (1, 1),
                };
                backend(&mirror.backend_ref).map(|backend| (backend, some, of))
            }
            _ => None,
        };
        let mirrors = rule.filters.iter().filter_map(mirror).collect();
        Self { rule: rule.clone(), route: route.full_name(), backends, mirrors }
    }
}

impl Matcher {
    fn new(each: &RouteMatch) -> Result<Self, String> {
        let path = match (&each.path, &each.method) {
            (_, Some(Method::Grpc(method))) => {
                let part = |text: &Option<String>| text.as_ref().map(|text| TextMatcher::new(method.kind, text)).transpose();
                PathMatcher::Grpc(part(&method.service)?, part(&method.method)?)
            }
            (None, _) => PathMatcher::Any,
            (Some(path), _) => match path.kind {
                PathMatchType::Exact => PathMatcher::Exact(path.value.as_str().into()),
                PathMatchType::PathPrefix => PathMatcher::Prefix(path.value.trim_end_matches('/').into()),
                PathMatchType::RegularExpression => PathMatcher::Regex(regex(&path.value)?),
            },
        };
        let method = match &each.method {
            Some(Method::Http(method)) => Some(method.as_str().into()),
            Some(Method::Grpc(_)) | None => None,
        };
        let all = |matches: &[HeaderMatch], lower: bool| -> Result<Vec<_>, String> {
            // Of several conditions on one name the first one counts.
            let mut compiled: Vec<(Box<str>, TextMatcher)> = Vec::new();
            for one in matches {
                let name = if lower { one.name.to_ascii_lowercase() } else { one.name.clone() };
                if compiled.iter().all(|(other, _)| **other != *name) {
                    compiled.push((name.into(), TextMatcher::new(one.kind, &one.value)?));
                }
            }
            Ok(compiled)
        };
        Ok(Self { path, method, headers: all(&each.headers, true)?, parameters: all(&each.query_params, false)? })
    }

    /// The order of the Gateway API. Where it leaves the place of regular expressions open: below exact paths, above prefixes.
    fn rank(&self, kind: RouteKind) -> Rank {
        let (headers, parameters) = (self.headers.len(), self.parameters.len());
        if kind == RouteKind::Grpc {
            let len = |part: &Option<TextMatcher>| part.as_ref().map_or(0, TextMatcher::exact_len);
            return match &self.path {
                PathMatcher::Grpc(service, method) => [len(service), len(method), headers, 0, 0],
                _ => [0, 0, headers, 0, 0],
            };
        }
        let (class, length) = match &self.path {
            PathMatcher::Exact(_) => (3, 0),
            PathMatcher::Regex(_) => (2, 0),
            PathMatcher::Prefix(prefix) => (1, prefix.len().max(1)),
            PathMatcher::Any | PathMatcher::Grpc(..) => (1, 1),
        };
        [class, length, usize::from(self.method.is_some()), headers, parameters]
    }

    fn matches(&self, request: &RouteRequest<'_>) -> bool {
        self.path.matches(request.path)
            && self.method.as_ref().is_none_or(|method| **method == *request.method)
            && self.headers.iter().all(|(name, value)| has_header(request.headers, name, value))
            && self.parameters.iter().all(|(name, value)| has_parameter(request.query, name, value))
    }
}

fn has_header(headers: &dyn Headers, name: &str, wanted: &TextMatcher) -> bool {
    let mut found = false;
    headers.visit(name, &mut |value| {
        found |= wanted.matches(value);
        if found { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    });
    found
}

/// The first parameter of a name counts. Names and values are compared as they would be without percent-encoding.
fn has_parameter(query: Option<&str>, name: &str, wanted: &TextMatcher) -> bool {
    let pairs = query.into_iter().flat_map(|query| query.split('&'));
    let mut named = pairs.filter_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key) == name.as_bytes()).then(|| decoded(value))
    });
    named.next().is_some_and(|value| wanted.matches(&value))
}

fn decoded(text: &str) -> Vec<u8> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let mut ahead = bytes.clone();
        let escaped = digit(ahead.next()).zip(digit(ahead.next())).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        match (byte, escaped) {
            (b'%', Some(escaped)) => {
                out.push(escaped);
                bytes = ahead;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
    }
    out
}

impl PathMatcher {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => **exact == *path,
            Self::Prefix(prefix) => path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Regex(regex) => regex.is_match(path.as_bytes()),
            Self::Grpc(service, method) => {
                let Some((own_service, own_method)) = path.strip_prefix('/').and_then(|path| path.rsplit_once('/')) else {
                    return false;
                };
                let is =
                    |wanted: &Option<TextMatcher>, own: &str| wanted.as_ref().is_none_or(|wanted| wanted.matches(own.as_bytes()));
                is(service, own_service) && is(method, own_method)
            }
        }
    }

    fn prefix(&self) -> Option<&str> {
        match self {
            Self::Prefix(prefix) => Some(prefix),
            Self::Any => Some(""),
            Self::Exact(_) | Self::Regex(_) | Self::Grpc(..) => None,
        }
    }
}
