//! A recorded decision.

use jiff::Timestamp;
use outrider_proto::v1;
use serde::Serialize;

use super::{Named, service::protocol, short_identity};
use crate::{
    output::Tone,
    table::{Cell, Row},
    when,
};

/// A decision that an agent reported.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Decision {
    pub(crate) request_id: String,
    pub(crate) time: Option<Timestamp>,
    /// `inbound` (the callee's agent, which decides) or `outbound` (the caller's).
    pub(crate) side: &'static str,
    /// SPIFFE ID; empty for a caller that proved none.
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) port: u32,
    pub(crate) protocol: &'static str,
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) path: String,
    /// `allow` or `deny`.
    pub(crate) effect: String,
    /// `namespace/policy/rule`; none when nothing matched.
    pub(crate) rule: Option<String>,
    pub(crate) revision: u64,
    /// HTTP status sent to the caller; 0 for opaque TCP.
    pub(crate) status: u32,
    pub(crate) reason: String,
    pub(crate) detail: String,
    pub(crate) tls: String,
    pub(crate) peer_address: String,
    pub(crate) duration_micros: u64,
    /// Header values that the policy read; bytes that are not UTF-8 are replaced.
    pub(crate) headers: Vec<(String, String)>,
    /// Audit rules that held, `namespace/policy/rule` each.
    pub(crate) audited: Vec<String>,
}

impl From<v1::DecisionRecord> for Decision {
    fn from(wire: v1::DecisionRecord) -> Self {
        let side = match wire.side() {
            v1::Side::Outbound => "outbound",
            v1::Side::Inbound | v1::Side::Unspecified => "inbound",
        };
        let headers =
            wire.headers.iter().map(|one| (one.name.clone(), String::from_utf8_lossy(&one.value).into_owned())).collect();
        Self {
            protocol: protocol(wire.protocol()),
            side,
            headers,
            request_id: wire.request_id,
            time: when::from_nanoseconds(wire.time),
            source: wire.source,
            destination: wire.destination,
            port: wire.port,
            method: wire.method,
            host: wire.host,
            path: wire.path,
            effect: wire.effect,
            rule: Some(wire.rule).filter(|rule| !rule.is_empty()),
            revision: wire.revision,
            status: wire.status,
            reason: wire.reason,
            detail: wire.detail,
            tls: wire.tls,
            peer_address: wire.peer_address,
            duration_micros: wire.duration_micros,
            audited: wire.audited,
        }
    }
}

impl Named for Decision {
    const KIND: &'static str = "decision";

    fn name(&self) -> &str {
        &self.request_id
    }

    fn namespace(&self) -> Option<&str> {
        self.destination.split_once('/').map(|(namespace, _)| namespace)
    }
}

impl Row for Decision {
    const COLUMNS: &'static [&'static str] =
        &["TIME", "REQUEST", "SIDE", "FROM", "TO", "CALL", "EFFECT", "STATUS", "RULE OR REASON"];

    fn cells(&self, now: Timestamp) -> Vec<Cell> {
        let caller = if self.source.is_empty() { "anonymous".to_owned() } else { short_identity(&self.source) };
        let call = if self.method.is_empty() { self.protocol.to_owned() } else { format!("{} {}", self.method, self.path) };
        let why = match (&self.rule, self.reason.as_str()) {
            // The caller's agent decides nothing, it sends.
            (None, "") if self.side == "outbound" => String::new(),
            (None, "") => "no rule matched".to_owned(),
            (None, reason) => reason.to_owned(),
            (Some(rule), "") => rule.clone(),
            (Some(rule), reason) => format!("{rule} ({reason})"),
        };
        let why = match (why.as_str(), self.audited.as_slice()) {
            (_, []) => why,
            ("", audited) => format!("audited by {}", audited.join(", ")),
            (_, audited) => format!("{why}, audited by {}", audited.join(", ")),
        };
        let status = if self.status == 0 { String::new() } else { self.status.to_string() };
        vec![
            Cell::new(Tone::Quiet, when::relative(self.time, now)),
            self.request_id.as_str().into(),
            self.side.into(),
            caller.into(),
            Cell::cut(&if self.destination.is_empty() {
                self.host.clone()
            } else {
                format!("{}:{}", self.destination, self.port)
            }),
            Cell::cut(&call),
            match (self.side, self.effect.as_str()) {
                ("outbound", "allow") => Cell::new(Tone::Quiet, "sent"),
                (_, "allow") => Cell::new(Tone::Good, "allow"),
                (_, effect) => Cell::new(Tone::Bad, effect),
            },
            status.into(),
            why.into(),
        ]
    }
}
