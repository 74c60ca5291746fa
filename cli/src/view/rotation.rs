//! How far a change of the trust anchor is.

use jiff::Timestamp;
use outrider_proto::v1::{self, ca_rotation::Phase};
use serde::Serialize;

use super::Laggard;
use crate::when;

/// A change of the trust anchor.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rotation {
    /// `prepared`, `distributing`, `issuing`, `proving`, `retiring`, `done` or `aborted`.
    pub(crate) phase: &'static str,
    /// The phase that it goes on to by itself.
    pub(crate) goal: &'static str,
    pub(crate) old_root: String,
    pub(crate) new_root: String,
    pub(crate) started: Option<Timestamp>,
    pub(crate) phase_started: Option<Timestamp>,
    /// Agents that must follow before the phase is over.
    pub(crate) agents: u32,
    pub(crate) done: u32,
    pub(crate) laggards: Vec<Laggard>,
    /// Who would be waited for without `--skip-away`.
    pub(crate) skipped: Vec<Laggard>,
    /// What else is waited for.
    pub(crate) waiting: Vec<String>,
    /// The phase that was asked for is reached.
    #[serde(skip)]
    pub(crate) reached: bool,
}

impl Rotation {
    /// `None` when there never was one.
    pub(crate) fn read(wire: v1::CaRotation) -> Option<Self> {
        Some(Self {
            phase: word(wire.phase())?,
            goal: word(wire.goal()).unwrap_or_default(),
            old_root: wire.old_root,
            new_root: wire.new_root,
            started: when::from_seconds(wire.started),
            phase_started: when::from_seconds(wire.phase_started),
            agents: wire.agents,
            done: wire.done,
            laggards: wire.laggards.into_iter().map(Laggard::from).collect(),
            skipped: wire.skipped.into_iter().map(Laggard::from).collect(),
            waiting: wire.waiting,
            reached: wire.reached,
        })
    }

    /// Whether nothing is under way.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, "done" | "aborted")
    }

    /// What the phase is, in a sentence.
    pub(crate) fn meaning(&self) -> &'static str {
        match self.phase {
            "prepared" => "there is a new root, which nobody trusts yet",
            "distributing" => "agents get the trust bundle with both roots",
            "issuing" => "leaves are issued from the new root",
            "proving" => "agents renew, until nobody holds a valid leaf of the old root",
            "retiring" => "the old root has left the trust bundle, and agents hear of it",
            "done" => "the old root is believed by nobody",
            _ => "the new root is gone, nothing was issued from it",
        }
    }
}

fn word(phase: Phase) -> Option<&'static str> {
    match phase {
        Phase::Unspecified => None,
        Phase::Prepared => Some("prepared"),
        Phase::Distributing => Some("distributing"),
        Phase::Issuing => Some("issuing"),
        Phase::Proving => Some("proving"),
        Phase::Retiring => Some("retiring"),
        Phase::Done => Some("done"),
        Phase::Aborted => Some("aborted"),
    }
}
