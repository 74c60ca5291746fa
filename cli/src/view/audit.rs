//! Who changed what, or tried to.

use jiff::Timestamp;
use outrider_proto::v1;
use serde::Serialize;

use super::Named;
use crate::{
    output::Tone,
    table::{Cell, Row},
    when,
};

/// An entry of the log.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Audit {
    pub(crate) number: u64,
    pub(crate) time: Option<Timestamp>,
    /// SPIFFE ID of an operator, or `uid N` on the local socket.
    pub(crate) who: String,
    pub(crate) role: String,
    pub(crate) call: String,
    pub(crate) subject: String,
    /// Revision of the change; 0 for none.
    pub(crate) revision: u64,
    /// `ok`, or the code of the refusal.
    pub(crate) outcome: String,
    pub(crate) from: String,
    #[serde(skip)]
    name: String,
}

impl From<v1::AuditEntry> for Audit {
    fn from(wire: v1::AuditEntry) -> Self {
        Self {
            number: wire.number,
            time: when::from_seconds(wire.time),
            who: wire.who,
            role: wire.role,
            call: wire.call,
            subject: wire.subject,
            revision: wire.revision,
            outcome: wire.outcome,
            from: wire.from,
            name: wire.number.to_string(),
        }
    }
}

impl Named for Audit {
    const KIND: &'static str = "audit entry";

    fn name(&self) -> &str {
        &self.name
    }
}

impl Row for Audit {
    const COLUMNS: &'static [&'static str] = &["TIME", "WHO", "ROLE", "CALL", "SUBJECT", "REVISION", "OUTCOME", "FROM"];

    fn cells(&self, now: Timestamp) -> Vec<Cell> {
        let tone = if self.outcome == "ok" { Tone::Good } else { Tone::Bad };
        let revision = if self.revision == 0 { String::new() } else { self.revision.to_string() };
        vec![
            Cell::new(Tone::Quiet, when::relative(self.time, now)),
            self.who.as_str().into(),
            self.role.as_str().into(),
            self.call.as_str().into(),
            self.subject.as_str().into(),
            revision.into(),
            Cell::new(tone, self.outcome.clone()),
            self.from.as_str().into(),
        ]
    }
}
