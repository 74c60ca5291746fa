//! What this agent knows of failures further down the chain of calls: a failure that came from there is not tried again here.
//!
//! A program that answers 503 because its own call failed would be called again by its caller, which would be called again by
//! its own: with three tries each, four hops make 27 calls of one. The agent beside the program sees both sides. When a call
//! of the program failed while it served a request, the failure of that request is marked as come from further down.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Counts failures of the own program's calls. Clones are the same count.
#[derive(Clone, Debug, Default)]
pub struct Behind(Arc<AtomicU64>);

impl Behind {
    /// A call of the own program failed, or was given up.
    pub fn failed(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// A call of the own program was tried again.
    pub fn retried(&self) {
        self.failed();
    }

    /// The count now, to compare with later.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
