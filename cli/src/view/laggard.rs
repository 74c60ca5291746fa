//! An agent that does not have something it should have.

use jiff::Timestamp;
use outrider_proto::v1;
use serde::Serialize;

use super::short_identity;
use crate::{
    output::Tone,
    table::{Cell, Row},
};

/// An agent that lags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Laggard {
    pub(crate) agent: String,
    pub(crate) identity: String,
    /// Why it refused, or `not connected`; empty when it has not answered.
    pub(crate) reason: String,
}

impl Laggard {
    /// It has no stream.
    pub(crate) fn is_away(&self) -> bool {
        self.reason == "not connected"
    }
}

impl From<v1::Laggard> for Laggard {
    fn from(wire: v1::Laggard) -> Self {
        Self { agent: wire.agent_id, identity: wire.identity, reason: wire.reason }
    }
}

impl Row for Laggard {
    const COLUMNS: &'static [&'static str] = &["AGENT", "IDENTITY", "WHY"];

    fn cells(&self, _: Timestamp) -> Vec<Cell> {
        let why = if self.reason.is_empty() {
            Cell::new(Tone::Warn, "has not answered")
        } else {
            Cell::new(Tone::Bad, self.reason.as_str())
        };
        vec![self.agent.as_str().into(), short_identity(&self.identity).into(), why]
    }
}
