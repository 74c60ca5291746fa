//! What routes make of a request: where it goes, and what is changed on the way there and back.

use std::sync::Arc;

use outrider_policy::{
    ServiceName,
    route::{Chosen, Filter, HeaderChanges, PathRewrite, Redirect, RouteRequest, RouteRule, RouteTable, Selection, StoredRoute},
};

use crate::{
    http::{Body, Fields, RequestHead, Response},
    refusal::{Reason, Refusal},
    upstream::Sending,
};

/// The routes to one service, ready to be asked.
#[derive(Debug)]
pub struct ServiceRoutes {
    table: RouteTable,
    /// By the index of the rule.
    rules: Vec<Arc<Rule>>,
}

/// What a rule does with its requests, wherever they go.
#[derive(Debug)]
pub struct Rule {
    /// How they are sent.
    pub sending: Sending,
    /// Changes of the response's fields.
    pub response: Vec<HeaderChanges>,
    request: Vec<HeaderChanges>,
    rewrite: Option<PathRewrite>,
    redirect: Option<Redirect>,
}

/// A way that a route found.
#[derive(Debug)]
pub enum Found {
    /// No route is for this port: to the service itself.
    Straight,
    /// To a backend.
    Backend {
        /// The service.
        service: ServiceName,
        /// Its port.
        port: u16,
        /// Services and ports that get a copy.
        mirrors: Vec<(ServiceName, u16)>,
        /// What else.
        rule: Arc<Rule>,
        /// The request as it goes there.
        head: Box<RequestHead>,
    },
    /// Nowhere: this is the answer.
    Answer(Box<Response>),
}

impl ServiceRoutes {
    /// The routes to `service`.
    ///
    /// # Errors
    /// When one of them cannot be put in force.
    pub fn new(service: &ServiceName, routes: &[StoredRoute]) -> Result<Self, String> {
        // The control plane sends the routes beside the service and those beside the caller, who is in one namespace.
        let foreign = routes.iter().map(|stored| stored.route.metadata.namespace.as_str());
        let namespace = foreign.clone().find(|namespace| *namespace != service.namespace()).unwrap_or(service.namespace());
        if foreign.into_iter().any(|each| each != namespace && each != service.namespace()) {
            return Err(format!("routes to `{service}` of more than one foreign namespace"));
        }
        let table = RouteTable::compile(service, namespace, routes)?;
        let rules = table.rules().map(|rule| Arc::new(Rule::new(rule))).collect();
        Ok(Self { table, rules })
    }

    /// The way of a request to `port` of `service`.
    ///
    /// # Errors
    /// `no_route`, `no_endpoint`, `ambiguous_path`.
    pub fn find(&self, service: &ServiceName, port: u16, head: &RequestHead) -> Result<Found, Refusal> {
        let request =
            RouteRequest { method: head.method.as_str(), path: head.path(), query: head.query(), headers: &head.fields };
        let chosen = match self.table.select(port, &request) {
            Selection::Unrouted => return Ok(Found::Straight),
            Selection::NoMatch => {
                let detail = format!("routes are attached to port {port} of `{service}`, and none of them is for this request");
                return Err(Refusal::new(Reason::NoRoute, detail));
            }
            Selection::Chosen(chosen) => chosen,
        };
        let unknown = || Refusal::new(Reason::NoEndpoint, format!("route `{}` leads nowhere", chosen.route));
        let rule = self.rules.get(chosen.index).ok_or_else(unknown)?;
        if let Some(redirect) = &rule.redirect {
            return redirected(redirect, head, chosen.prefix).map(|answer| Found::Answer(Box::new(answer)));
        }
        let backend = chosen.backend(|below| fastrand::u64(..below)).ok_or_else(unknown)?;
        let rewritten = rule.head(head, &chosen, service, (&backend.service, backend.port))?;
        let mirrors = chosen.mirrors.iter().filter(|(_, some, of)| fastrand::u32(..*of) < *some);
        Ok(Found::Backend {
            service: backend.service.clone(),
            port: backend.port,
            mirrors: mirrors.map(|(backend, ..)| (backend.service.clone(), backend.port)).collect(),
            rule: rule.clone(),
            head: Box::new(rewritten),
        })
    }
}

impl Rule {
    fn new(rule: &RouteRule) -> Self {
        let mut own = Self { sending: sending(rule), response: Vec::new(), request: Vec::new(), rewrite: None, redirect: None };
        for filter in &rule.filters {
            match filter {
                Filter::RequestHeaderModifier { changes } => own.request.push(changes.clone()),
                Filter::ResponseHeaderModifier { changes } => own.response.push(changes.clone()),
                Filter::UrlRewrite { rewrite } => own.rewrite.clone_from(&rewrite.path),
                Filter::RequestRedirect { redirect } => own.redirect = Some(redirect.clone()),
                Filter::RequestMirror { .. } => {}
            }
        }
        own
    }

    /// The request as it goes to a backend.
    fn head(
        &self,
        head: &RequestHead,
        chosen: &Chosen<'_>,
        called: &ServiceName,
        backend: (&ServiceName, u16),
    ) -> Result<RequestHead, Refusal> {
        let mut own = head.clone();
        if let Some(rewrite) = &self.rewrite {
            let path = rewritten(rewrite, head.path(), chosen.prefix)?;
            let query = head.query().map(|query| format!("?{query}")).unwrap_or_default();
            (own.path_len, own.target) = (path.len(), path + &query);
        }
        self.request.iter().for_each(|changes| change(&mut own.fields, changes));
        own.lead_to(called, backend);
        Ok(own)
    }
}

impl RequestHead {
    /// Names the service that the request goes to instead of the one that was called. The agent there takes no request that
    /// names another service of the mesh than its connection.
    pub fn lead_to(&mut self, called: &ServiceName, (service, port): (&ServiceName, u16)) {
        if service != called && self.host.service().is_some() {
            self.host = service.host().as_str().into();
            self.host_port = self.host_port.and(Some(port));
        }
    }
}

fn sending(rule: &RouteRule) -> Sending {
    let mut sending = Sending::default();
    if let Some(timeouts) = &rule.timeouts {
        sending.timeout = timeouts.request.and_then(|duration| duration.bound());
        sending.try_timeout = timeouts.backend_request.and_then(|duration| duration.bound());
    }
    if let Some(retry) = &rule.retry {
        sending.codes = retry.codes.iter().copied().collect();
        sending.backoff = retry.backoff.map(|duration| duration.get());
        sending.tries = retry.attempts.map_or(sending.tries, |attempts| attempts + 1);
    }
    sending
}

/// Changes fields as a route says: `remove`, `set`, `add`.
pub fn change(fields: &mut Fields, changes: &HeaderChanges) {
    if !changes.remove.is_empty() {
        fields.retain(|name| !changes.remove.iter().any(|gone| name.eq_ignore_ascii_case(gone.as_bytes())));
    }
    for set in &changes.set {
        fields.set(&set.name.to_ascii_lowercase(), set.value.as_bytes());
    }
    for add in &changes.add {
        fields.push(add.name.as_bytes(), add.value.as_bytes());
    }
}

fn rewritten(rewrite: &PathRewrite, path: &str, prefix: Option<&str>) -> Result<String, Refusal> {
    let new = match rewrite {
        PathRewrite::ReplaceFullPath { to } => to.clone(),
        PathRewrite::ReplacePrefixMatch { to } => {
            let rest = prefix.and_then(|prefix| path.strip_prefix(prefix)).unwrap_or(path);
            let joined = format!("{}{rest}", to.trim_end_matches('/'));
            if joined.is_empty() { "/".to_owned() } else { joined }
        }
    };
    // What the policy over there reads must be what the program reads.
    match outrider_policy::path::canonical(new.as_bytes()) {
        Ok(canonical) if *canonical == *new => Ok(new),
        _ => Err(Refusal::new(Reason::AmbiguousPath, "a route rewrites the path to one with several readings")),
    }
}

fn redirected(redirect: &Redirect, head: &RequestHead, prefix: Option<&str>) -> Result<Response, Refusal> {
    let scheme = redirect.scheme.as_deref().unwrap_or("http");
    let host = redirect.hostname.as_deref().unwrap_or(&head.host);
    // The port that was called, unless the redirect names a scheme, which has one of its own.
    let port = redirect.port.or(head.host_port.filter(|_| redirect.scheme.is_none()));
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let path = match &redirect.path {
        Some(rewrite) => rewritten(rewrite, head.path(), prefix)?,
        None => head.path().to_owned(),
    };
    let query = head.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut fields = Fields::default();
    fields.push(b"location", format!("{scheme}://{host}{port}{path}{query}").as_bytes());
    let status = redirect.status_code.unwrap_or(302);
    Ok(Response { status, fields, body: Body::Empty, tenure: None, switched: None })
}
