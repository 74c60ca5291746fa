//! Operators on other machines: who they are, what each role may do, and the record of what they did.

mod gate;
mod login;
mod role;
mod roster;

pub(crate) use gate::{GateLayer, Note, author};
pub(crate) use login::Logins;
pub(crate) use role::Role;
pub(crate) use roster::{OperatorName, Roster};
