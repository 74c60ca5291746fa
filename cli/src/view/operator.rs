//! An operator.

use jiff::Timestamp;
use outrider_proto::v1;
use serde::Serialize;

use crate::{
    output::Tone,
    table::{Cell, Row},
    when,
};

/// An operator, as the control plane has it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Operator {
    pub(crate) name: String,
    /// `viewer`, `editor` or `admin`.
    pub(crate) role: String,
    pub(crate) identity: String,
    pub(crate) created: Option<Timestamp>,
    /// Until when an unused login token can be used; absent for none.
    pub(crate) login_expires: Option<Timestamp>,
}

impl From<v1::OperatorStatus> for Operator {
    fn from(wire: v1::OperatorStatus) -> Self {
        Self {
            name: wire.name,
            role: wire.role,
            identity: wire.identity,
            created: when::from_seconds(wire.created),
            login_expires: when::from_seconds(wire.login_expires).filter(|_| wire.login_expires > 0),
        }
    }
}

impl Row for Operator {
    const COLUMNS: &'static [&'static str] = &["OPERATOR", "ROLE", "IDENTITY", "CREATED", "LOGIN OPEN UNTIL"];

    fn cells(&self, now: Timestamp) -> Vec<Cell> {
        vec![
            self.name.as_str().into(),
            self.role.as_str().into(),
            self.identity.as_str().into(),
            Cell::new(Tone::Quiet, when::relative(self.created, now)),
            match self.login_expires {
                Some(_) => Cell::new(Tone::Warn, when::relative(self.login_expires, now)),
                None => "".into(),
            },
        ]
    }
}
