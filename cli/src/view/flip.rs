//! Recorded requests that a change of policies would decide otherwise.

use jiff::Timestamp;
use outrider_proto::v1;
use serde::Serialize;

use super::short_identity;
use crate::{
    output::Tone,
    table::{Cell, Row},
    when,
};

/// Requests that would flip in the same way.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Flip {
    /// SPIFFE ID; empty for a caller without identity.
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) port: u32,
    /// Empty for opaque TCP.
    pub(crate) method: String,
    /// `allow` or `deny`.
    pub(crate) before: String,
    pub(crate) rule_before: Option<String>,
    pub(crate) after: String,
    pub(crate) rule_after: Option<String>,
    pub(crate) count: u64,
    /// The newest of them, at most 100.
    pub(crate) requests: Vec<Recorded>,
}

/// A recorded request, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Recorded {
    pub(crate) request_id: String,
    pub(crate) time: Option<Timestamp>,
    pub(crate) host: String,
    pub(crate) path: String,
}

impl From<v1::RecordedRequest> for Recorded {
    fn from(wire: v1::RecordedRequest) -> Self {
        Self { request_id: wire.request_id, time: when::from_nanoseconds(wire.time), host: wire.host, path: wire.path }
    }
}

impl From<v1::FlipGroup> for Flip {
    fn from(wire: v1::FlipGroup) -> Self {
        let rule = |rule: String| Some(rule).filter(|rule| !rule.is_empty());
        Self {
            source: wire.source,
            destination: wire.destination,
            port: wire.port,
            method: wire.method,
            before: wire.before,
            rule_before: rule(wire.rule_before),
            after: wire.after,
            rule_after: rule(wire.rule_after),
            count: wire.count,
            requests: wire.requests.into_iter().map(Recorded::from).collect(),
        }
    }
}

impl Flip {
    /// The paths of the requests that are known, each once, the most frequent first.
    fn paths(&self) -> Vec<&str> {
        let mut counted: Vec<(usize, &str)> = Vec::new();
        for request in &self.requests {
            match counted.iter_mut().find(|(_, path)| *path == request.path) {
                Some((count, _)) => *count += 1,
                None => counted.push((1, &request.path)),
            }
        }
        counted.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        counted.into_iter().map(|(_, path)| path).collect()
    }

    fn call(&self) -> String {
        let paths = self.paths();
        let more = match paths.len() {
            0..=2 => String::new(),
            many => format!(" and {} more paths", many - 2),
        };
        let shown = paths.iter().take(2).copied().collect::<Vec<_>>().join(", ");
        format!("{} {shown}{more}", self.method).trim().to_owned()
    }
}

impl Row for Flip {
    const COLUMNS: &'static [&'static str] = &["REQUESTS", "FROM", "TO", "CALL", "NOW", "THEN", "FOR EXAMPLE"];

    fn cells(&self, _: Timestamp) -> Vec<Cell> {
        let effect = |effect: &str, rule: &Option<String>| match rule {
            Some(rule) => format!("{effect} by {rule}"),
            None => format!("{effect}, no rule"),
        };
        let tone = if self.after == "deny" { Tone::Bad } else { Tone::Warn };
        let source = if self.source.is_empty() { "(no identity)".to_owned() } else { short_identity(&self.source) };
        vec![
            self.count.to_string().into(),
            source.into(),
            format!("{}:{}", self.destination, self.port).into(),
            self.call().into(),
            effect(&self.before, &self.rule_before).into(),
            Cell::new(tone, effect(&self.after, &self.rule_after)),
            self.requests.first().map(|request| request.request_id.clone()).unwrap_or_default().into(),
        ]
    }
}
