//! What is allowed: the policies in force for this agent's own services, and permits, which are minted only here.

mod book;
mod limit;
mod permit;

pub use book::{InForce, PolicyBook};
pub use limit::{Limiter, Over};
pub use permit::{Denied, Permit, Verdict, lapsed};
