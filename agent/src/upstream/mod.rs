//! Where requests go: which endpoint gets one and whether it is tried again, and the connections of one worker, shared with
//! nobody.

mod balance;
mod behind;
mod breaker;
mod budget;
mod call;
mod deadline;
mod ewma;
mod fleet;
mod lease;
mod mesh;
mod mirror;
mod outlier;
mod pool;
mod probe;
mod retry;
mod send;
mod turnstile;

pub use behind::Behind;
pub use breaker::Bounds;
pub use call::Trail;
pub use fleet::Fleets;
pub use lease::{Lease, StreamLease};
pub use pool::{Key, Pool};
pub use retry::{FIELD, FURTHER_DOWN, Sending, UNSENT};
pub use send::Upstreams;
pub use turnstile::Turnstile;
