//! A leaf certificate as issued.

use jiff::Timestamp;
use outrider_proto::v1;
use serde::Serialize;

use super::{Named, namespace_of, short_identity};
use crate::{
    output::Tone,
    table::{Cell, Row},
    when,
};

/// A certificate.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Certificate {
    pub(crate) serial: String,
    pub(crate) identity: String,
    pub(crate) not_before: Option<Timestamp>,
    pub(crate) not_after: Option<Timestamp>,
    /// What proved the identity: `join-token` or `renewal`.
    pub(crate) evidence: String,
    /// The agent that holds it now; empty when none said so.
    pub(crate) agent: String,
    pub(crate) issuer: String,
    /// Replica of the control plane that issued it.
    pub(crate) replica: String,
    /// SHA-256 of the public key of the root that it chains to, in hex.
    pub(crate) root: String,
}

impl From<v1::CertificateStatus> for Certificate {
    fn from(wire: v1::CertificateStatus) -> Self {
        Self {
            serial: wire.serial,
            identity: wire.identity,
            not_before: when::from_seconds(wire.not_before),
            not_after: when::from_seconds(wire.not_after),
            evidence: wire.evidence,
            agent: wire.agent_id,
            issuer: wire.issuer,
            replica: wire.replica,
            root: wire.root,
        }
    }
}

impl Named for Certificate {
    const KIND: &'static str = "certificate";

    fn name(&self) -> &str {
        &self.serial
    }

    fn namespace(&self) -> Option<&str> {
        namespace_of(&self.identity)
    }
}

impl Row for Certificate {
    const COLUMNS: &'static [&'static str] = &["SERIAL", "IDENTITY", "ISSUED", "ENDS", "BY", "ISSUER", "HELD BY"];

    fn cells(&self, now: Timestamp) -> Vec<Cell> {
        let tone = if self.not_after.is_none_or(|end| end <= now) { Tone::Bad } else { Tone::Plain };
        vec![
            self.serial.as_str().into(),
            short_identity(&self.identity).into(),
            Cell::new(Tone::Quiet, when::relative(self.not_before, now)),
            Cell::new(tone, when::relative(self.not_after, now)),
            self.evidence.as_str().into(),
            self.issuer.as_str().into(),
            self.agent.as_str().into(),
        ]
    }
}
