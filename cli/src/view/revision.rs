//! A change of policies.

use jiff::Timestamp;
use outrider_proto::v1;
use serde::Serialize;

use super::Named;
use crate::{
    output::Tone,
    table::{Cell, Row},
    when,
};

/// A revision at which policies changed.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Revision {
    pub(crate) revision: u64,
    pub(crate) time: Option<Timestamp>,
    /// SPIFFE ID of an operator, or `uid N` on the local socket.
    pub(crate) who: String,
    /// `Apply`, `Delete`, `Canary` or `Rollback`.
    pub(crate) call: String,
    pub(crate) policies: Vec<String>,
    /// The revision as text: its name in lists.
    #[serde(skip)]
    name: String,
}

impl From<v1::Revision> for Revision {
    fn from(wire: v1::Revision) -> Self {
        Self {
            revision: wire.revision,
            time: when::from_seconds(wire.time),
            who: wire.who,
            call: wire.call,
            policies: wire.policies,
            name: wire.revision.to_string(),
        }
    }
}

impl Named for Revision {
    const KIND: &'static str = "revision";

    fn name(&self) -> &str {
        &self.name
    }
}

impl Row for Revision {
    const COLUMNS: &'static [&'static str] = &["REVISION", "TIME", "CALL", "WHO", "POLICIES"];

    fn cells(&self, now: Timestamp) -> Vec<Cell> {
        vec![
            self.name.as_str().into(),
            Cell::new(Tone::Quiet, when::relative(self.time, now)),
            self.call.as_str().into(),
            self.who.as_str().into(),
            Cell::list(&self.policies),
        ]
    }
}
