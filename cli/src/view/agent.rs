//! An agent as the control plane knows it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use outrider_proto::v1;
use serde::Serialize;

use super::{Named, namespace_of, short_identity};
use crate::{
    output::Tone,
    table::{Cell, Row},
    when,
};

/// An agent.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Agent {
    pub(crate) id: String,
    pub(crate) identity: String,
    pub(crate) version: String,
    pub(crate) services: Vec<String>,
    pub(crate) connected: bool,
    pub(crate) last_seen: Option<Timestamp>,
    /// Store revision in force there.
    pub(crate) revision: u64,
    /// Why it refused the newest revision it was sent; empty when it did not.
    pub(crate) nack: String,
    pub(crate) certificate_serial: String,
    pub(crate) certificate_not_after: Option<Timestamp>,
    /// Labels of the workload.
    pub(crate) labels: BTreeMap<String, String>,
}

impl From<v1::AgentStatus> for Agent {
    fn from(wire: v1::AgentStatus) -> Self {
        Self {
            id: wire.agent_id,
            identity: wire.identity,
            version: wire.version,
            services: wire.services,
            connected: wire.connected,
            last_seen: when::from_seconds(wire.last_seen),
            revision: wire.revision,
            nack: wire.nack,
            certificate_serial: wire.certificate_serial,
            certificate_not_after: when::from_seconds(wire.certificate_not_after),
            labels: wire.labels.into_iter().collect(),
        }
    }
}

impl Named for Agent {
    const KIND: &'static str = "agent";

    fn name(&self) -> &str {
        &self.id
    }

    fn namespace(&self) -> Option<&str> {
        namespace_of(&self.identity)
    }
}

impl Row for Agent {
    const COLUMNS: &'static [&'static str] =
        &["AGENT", "IDENTITY", "SERVICES", "STATE", "LAST SEEN", "REVISION", "CERTIFICATE ENDS", "VERSION"];

    fn cells(&self, now: Timestamp) -> Vec<Cell> {
        let state = match (self.connected, self.nack.as_str()) {
            (true, "") => Cell::new(Tone::Good, "connected"),
            (true, nack) => Cell::new(Tone::Bad, format!("refused: {nack}")),
            (false, _) => Cell::new(Tone::Warn, "away"),
        };
        let expired = self.certificate_not_after.is_some_and(|end| end <= now);
        vec![
            self.id.as_str().into(),
            short_identity(&self.identity).into(),
            Cell::list(&self.services),
            state,
            Cell::new(Tone::Quiet, if self.connected { "now".to_owned() } else { when::relative(self.last_seen, now) }),
            self.revision.to_string().into(),
            Cell::new(if expired { Tone::Bad } else { Tone::Plain }, when::relative(self.certificate_not_after, now)),
            self.version.as_str().into(),
        ]
    }
}
