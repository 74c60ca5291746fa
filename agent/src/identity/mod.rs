//! Who this agent is: its certificate, how it is got and renewed, and who its peers are.

mod join;
mod peer;
mod renewal;
mod rotation;
mod svid;

pub use join::JoinToken;
pub use peer::Peer;
pub use renewal::{IdentityError, Renewal};
pub use rotation::{renew_at, retry_after};
pub use svid::{SigningRequest, Svid, SvidError, Svids};
