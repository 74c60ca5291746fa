//! Something that nobody believes any more.

use jiff::Timestamp;
use outrider_proto::v1;
use serde::Serialize;

use super::{Named, short_identity};
use crate::{
    output::Tone,
    table::{Cell, Row},
    when,
};

/// A revoked certificate or identity.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Revocation {
    /// Serial number, or SPIFFE ID.
    pub(crate) subject: String,
    pub(crate) identity: String,
    pub(crate) reason: String,
    pub(crate) revoked: Option<Timestamp>,
    /// When the certificate ends; `None` for an identity, which stays revoked.
    pub(crate) ends: Option<Timestamp>,
}

impl From<v1::RevocationStatus> for Revocation {
    fn from(wire: v1::RevocationStatus) -> Self {
        Self {
            subject: wire.subject,
            identity: wire.identity,
            reason: wire.reason,
            revoked: when::from_seconds(wire.revoked),
            ends: (wire.ends != 0).then(|| when::from_seconds(wire.ends)).flatten(),
        }
    }
}

impl Named for Revocation {
    const KIND: &'static str = "revocation";

    fn name(&self) -> &str {
        &self.subject
    }
}

impl Row for Revocation {
    const COLUMNS: &'static [&'static str] = &["REVOKED", "OF", "SINCE", "UNTIL", "WHY"];

    fn cells(&self, now: Timestamp) -> Vec<Cell> {
        let until = match self.ends {
            Some(end) => when::relative(Some(end), now),
            None => "undone".to_owned(),
        };
        let what = if self.subject == self.identity { "identity".to_owned() } else { self.subject.clone() };
        vec![
            what.into(),
            short_identity(&self.identity).into(),
            Cell::new(Tone::Quiet, when::relative(self.revoked, now)),
            Cell::new(Tone::Quiet, until),
            self.reason.as_str().into(),
        ]
    }
}
