//! A CA certificate.

use jiff::Timestamp;
use outrider_proto::v1;
use serde::Serialize;

use crate::{
    output::Tone,
    table::{Cell, Row},
    when,
};

/// A root or an issuing CA.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CertificateAuthority {
    /// `root` or `issuing`.
    pub(crate) role: String,
    pub(crate) name: String,
    /// It signs now. Others are only trusted.
    pub(crate) signs: bool,
    pub(crate) serial: String,
    pub(crate) not_before: Option<Timestamp>,
    pub(crate) not_after: Option<Timestamp>,
    pub(crate) spki_sha256: String,
}

impl From<v1::CaStatus> for CertificateAuthority {
    fn from(wire: v1::CaStatus) -> Self {
        Self {
            role: wire.role,
            name: wire.common_name,
            signs: wire.signs,
            serial: wire.serial,
            not_before: when::from_seconds(wire.not_before),
            not_after: when::from_seconds(wire.not_after),
            spki_sha256: wire.spki_sha256,
        }
    }
}

impl Row for CertificateAuthority {
    const COLUMNS: &'static [&'static str] = &["ROLE", "NAME", "STATE", "MADE", "ENDS", "KEY"];

    fn cells(&self, now: Timestamp) -> Vec<Cell> {
        let state = if self.signs { Cell::new(Tone::Good, "signs") } else { Cell::new(Tone::Warn, "trusted") };
        let tone = if self.not_after.is_none_or(|end| end <= now) { Tone::Bad } else { Tone::Plain };
        vec![
            self.role.as_str().into(),
            self.name.as_str().into(),
            state,
            Cell::new(Tone::Quiet, when::relative(self.not_before, now)),
            Cell::new(tone, when::relative(self.not_after, now)),
            self.spki_sha256.chars().take(16).collect::<String>().into(),
        ]
    }
}
