//! Calls described as data: by `explain --call`, by policy tests and by the vectors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::call::{Call, HttpCall};
use crate::compile::{Problem, compile};
use crate::explain::NearMiss;
use crate::{Effect, Protocol, ServiceName, SpiffeId, StoredPolicy, Target, host, is_method, path, query};

/// A call as somebody would write it down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescribedCall {
    /// Who calls.
    #[serde(default)]
    pub source: DescribedSource,
    /// Which port of which service is called.
    pub destination: DescribedDestination,
    /// The request, unless the protocol is opaque.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<DescribedRequest>,
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescribedSource {
    /// The SPIFFE ID; without it the caller is anonymous.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<SpiffeId>,
    /// The address, `127.0.0.1` if left out.
    #[serde(default = "loopback")]
    pub ip: IpAddr,
}

impl Default for DescribedSource {
    fn default() -> Self {
        Self { identity: None, ip: loopback() }
    }
}

fn loopback() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

/// What is called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescribedDestination {
    /// `namespace/name`.
    pub service: ServiceName,
    /// The labels of the workload.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The port.
    pub port: u16,
    /// What the service declares to speak on it, `http` if left out.
    #[serde(default = "http")]
    pub protocol: Protocol,
}

fn http() -> Protocol {
    Protocol::Http
}

/// A request, as it comes over the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescribedRequest {
    /// The method, `GET` if left out.
    #[serde(default = "get")]
    pub method: String,
    /// The `Host` header or `:authority`; the service's own if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<RawText>,
    /// The path with its query, as sent; none for `CONNECT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<RawText>,
    /// The header lines, `[name, value]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, RawText)>,
}

fn get() -> String {
    "GET".to_owned()
}

/// A text, or a list of bytes where the text is not UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RawText {
    /// UTF-8.
    Text(String),
    /// Any bytes.
    Bytes(Vec<u8>),
}

impl AsRef<[u8]> for RawText {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl From<&str> for RawText {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// What was decided about a described call, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Whether the call passes.
    pub effect: Effect,
    /// The rule that decided, `namespace/policy/rule`.
    pub rule: Option<String>,
    /// Rules that did not hold, the nearest first.
    pub near_misses: Vec<NearMiss>,
    /// Why the request is answered with 400 before any rule, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// The audit rules that held.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub audited: Vec<String>,
}

/// The call in its canonical spelling.
#[derive(Debug, Clone)]
pub struct PreparedCall {
    source: DescribedSource,
    target: Target,
    request: Option<PreparedRequest>,
}

#[derive(Debug, Clone)]
struct PreparedRequest {
    method: String,
    host: String,
    path: String,
    query: Option<String>,
    headers: Vec<(String, RawText)>,
}

/// Why a described call would not reach policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallProblem {
    /// The path is ambiguous or malformed.
    #[error("the request is refused: {0}")]
    Path(#[from] path::PathProblem),
    /// The host is ambiguous or malformed.
    #[error("the request is refused: {0}")]
    Host(#[from] host::HostProblem),
    /// No agent takes a request with such a method.
    #[error("the request is refused: its method is not an upper-case token")]
    Method,
    /// The query is malformed.
    #[error("the request is refused: {0}")]
    Query(#[from] query::QueryProblem),
    /// There is a request, but the port is opaque.
    #[error("the call has a `request`, but its destination speaks `tcp`")]
    RequestOnTcp,
    /// There is no request, but the port is HTTP.
    #[error("the call has no `request`, but its destination speaks `{0}`")]
    NoRequest(Protocol),
}

impl CallProblem {
    /// Whether an agent would answer 400, in contrast to a call that is described wrongly.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::RequestOnTcp | Self::NoRequest(_))
    }
}

impl DescribedCall {
    /// Brings the call into the canonical spelling, as an agent would.
    pub fn prepare(&self) -> Result<PreparedCall, CallProblem> {
        let DescribedDestination { service, labels, port, protocol } = &self.destination;
        let target = Target { service: service.clone(), labels: labels.clone(), port: *port, protocol: *protocol };
        let request = match (&self.request, protocol.is_http()) {
            (Some(request), true) => Some(request.prepare(service)?),
            (None, false) => None,
            (Some(_), false) => return Err(CallProblem::RequestOnTcp),
            (None, true) => return Err(CallProblem::NoRequest(*protocol)),
        };
        Ok(PreparedCall { source: self.source.clone(), target, request })
    }

    /// Decides the call by those of `policies` that apply to its destination.
    ///
    /// # Errors
    /// The policies do not compile, or the call is described wrongly. A request that an agent would refuse is no error.
    pub fn answer(&self, policies: &[StoredPolicy]) -> Result<Answer, AnswerProblem> {
        let prepared = match self.prepare() {
            Ok(prepared) => prepared,
            Err(problem) if problem.is_refusal() => {
                return Ok(Answer {
                    effect: Effect::Deny,
                    rule: None,
                    near_misses: Vec::new(),
                    refused: Some(problem.to_string()),
                    audited: Vec::new(),
                });
            }
            Err(problem) => return Err(AnswerProblem::Call(problem)),
        };
        let compiled = compile(policies, prepared.target()).map_err(AnswerProblem::Policies)?;
        let explanation = compiled.explain(&prepared.call());
        let audited = compiled.decide(&prepared.call()).audited.iter().map(|rule| compiled.rule_name(rule).to_owned()).collect();
        Ok(Answer {
            effect: explanation.effect,
            rule: explanation.rule,
            near_misses: explanation.near_misses,
            refused: None,
            audited,
        })
    }
}

/// Why a described call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerProblem {
    /// The call is described wrongly.
    #[error(transparent)]
    Call(CallProblem),
    /// The policies do not compile.
    #[error("the policies do not compile: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Policies(Vec<Problem>),
}

impl DescribedRequest {
    fn prepare(&self, service: &ServiceName) -> Result<PreparedRequest, CallProblem> {
        if !is_method(self.method.as_bytes()) {
            return Err(CallProblem::Method);
        }
        let host = match &self.host {
            Some(host) => host::canonical(host.as_ref())?.name.into_owned(),
            None => service.host(),
        };
        let raw = self.path.as_ref().map(RawText::as_ref).unwrap_or_default();
        let (raw_path, raw_query) = match raw.iter().position(|byte| *byte == b'?') {
            Some(at) => (raw.get(..at).unwrap_or_default(), raw.get(at + 1..)),
            None => (raw, None),
        };
        // only a CONNECT has no path
        let path = if self.method == "CONNECT" && raw.is_empty() {
            String::new()
        } else {
            path::canonical_target(&self.method, raw_path)?.into_owned()
        };
        let query = raw_query.map(query::canonical).transpose()?.map(Cow::into_owned);
        Ok(PreparedRequest { method: self.method.clone(), host, path, query, headers: self.headers.clone() })
    }
}

impl PreparedCall {
    /// The call, for [`crate::Compiled::decide`].
    pub fn call(&self) -> Call<'_> {
        let http = self.request.as_ref().map(|request| HttpCall {
            method: &request.method,
            host: &request.host,
            path: &request.path,
            query: request.query.as_deref(),
            headers: &request.headers,
        });
        let Target { port, protocol, .. } = self.target;
        Call { source: self.source.identity.as_ref(), source_ip: self.source.ip, port, protocol, http }
    }

    /// Where it goes.
    pub fn target(&self) -> &Target {
        &self.target
    }
}
