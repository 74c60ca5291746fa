//! From the mesh to what one agent sees of it: a pure function.

mod explain;
mod view;

pub(crate) use explain::{ExplainError, Explained, describe, explain, identity};
pub(crate) use view::{Key, Scope, View, view};
