//! From the mesh to what one agent sees of it, and what its policies decide: pure functions.

mod explain;
mod replay;
mod view;

pub(crate) use explain::{ExplainError, Explained, Recorded, describe, explain, identity};
pub(crate) use replay::{Judge, Replay, in_short};
pub(crate) use view::{Key, Scope, View, view};
