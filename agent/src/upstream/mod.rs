//! Connections to where requests go: pools of one worker, shared with nobody.

mod lease;
mod mesh;
mod pool;
mod send;

pub use lease::{Lease, StreamLease};
pub use pool::{Key, Pool};
pub use send::Upstreams;
