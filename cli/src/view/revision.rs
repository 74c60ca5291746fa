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
    /// User id of the operator's process.
    pub(crate) uid: u32,
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
            uid: wire.uid,
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
    const COLUMNS: &'static [&'static str] = &["REVISION", "TIME", "CALL", "BY UID", "POLICIES"];

    fn cells(&self, now: Timestamp) -> Vec<Cell> {
        vec![
            self.name.as_str().into(),
            Cell::new(Tone::Quiet, when::relative(self.time, now)),
            self.call.as_str().into(),
            self.uid.to_string().into(),
            Cell::list(&self.policies),
        ]
    }
}
