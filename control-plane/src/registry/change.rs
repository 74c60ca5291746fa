//! What can change the mesh. Everything goes through one queue, so that revisions and snapshots have one order.

use outrider_policy::{Diagnostic, SpiffeId, Unknown};
use tokio::sync::{oneshot, watch};

use super::{CanaryOrder, CanaryState, RolledBack};
use crate::store::{AgentRow, Author, Lease, RevocationRow, RotationRow, StoreError};

/// What happened to a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Created,
    Updated,
    Unchanged,
    Deleted,
}

/// The end of an apply or delete.
#[derive(Clone, Debug, Default)]
pub(crate) struct Applied {
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// `namespace/name` each.
    pub(crate) changes: Vec<(String, Change)>,
    /// Store revision afterwards.
    pub(crate) revision: u64,
}

/// Why a change did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    /// It names something that is not there.
    #[error("{0}")]
    NotFound(String),
    /// The agent's id belongs to somebody else.
    #[error("agent id `{0}` belongs to an agent of another identity: remove the agent's state directory to get a new id")]
    AgentTaken(String),
    /// More agents than this control plane holds.
    #[error("this control plane holds at most {0} agents")]
    TooManyAgents(usize),
    /// More agents than one identity may have.
    #[error("`{0}` has {1} agents, which is as many as one identity may have")]
    TooManyOfIdentity(SpiffeId, usize),
    /// More revocations than agents hold.
    #[error("there are {0} revocations, which is as many as agents hold: revoke an identity instead of its certificates")]
    TooManyRevocations(usize),
    /// Candidates are being tried.
    #[error("a canary (revision {0}) is under way: wait for its end, or end it with `outrider rollback`")]
    Canary(u64),
    /// What one replica alone can do.
    #[error("a canary lives in one control plane, and {0} run on this store: apply without `--canary`, or stop the others first")]
    Replicas(usize),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The control plane leaves.
    #[error("the control plane is stopping")]
    Stopping,
}

type Reply<T> = oneshot::Sender<Result<T, ChangeError>>;

/// A change that somebody asks for.
#[derive(Debug)]
pub(crate) enum Request {
    /// Checks documents, `(source, yaml)` each, and stores all or none.
    Apply { documents: Vec<(String, String)>, unknown: Unknown, dry_run: bool, author: Author, reply: Reply<Applied> },
    /// Deletes policies, `namespace/name` each, all or none.
    Delete { names: Vec<String>, author: Author, reply: Reply<Applied> },
    /// Tries candidates at some agents.
    Canary { order: CanaryOrder, reply: Reply<watch::Receiver<CanaryState>> },
    /// Puts policies back to a revision; 0 is before the last change.
    Rollback { revision: u64, dry_run: bool, author: Author, reply: Reply<RolledBack> },
    /// Changes who is believed.
    Trust(TrustChange),
    /// An agent opened a stream.
    Join { agent: AgentRow, epoch: u64, reply: Reply<()> },
    /// An agent's stream ended; with `goodbye` its endpoints go at once.
    Leave { agent_id: String, epoch: u64, goodbye: bool, _done: oneshot::Sender<()> },
}

/// A change of who is believed. Each answers with its revision.
#[derive(Debug)]
pub(crate) enum TrustChange {
    /// Revokes a certificate or an identity.
    Revoke { row: RevocationRow, author: Author, reply: Reply<u64> },
    /// Undoes the revocation of this subject.
    Unrevoke { subject: String, author: Author, reply: Reply<u64> },
    /// Takes a rotation of the trust anchor on; `None` when it is not in that phase any more.
    Advance { lease: Lease, row: RotationRow, reply: Reply<Option<u64>> },
    /// Takes it back; `None` when it is too late.
    Abort { row: RotationRow, author: Author, reply: Reply<Option<u64>> },
}
