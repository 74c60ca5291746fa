//! The SPIFFE Workload API: what a program that knows SPIFFE asks this agent for. It gets the agent's own identity, which is the
//! workload's: the X.509-SVID with its key, trust bundles, and tokens (JWT-SVIDs) that the control plane signs.

mod api;
mod authority;
mod jwks;
mod socket;
mod token;
mod tokens;

pub use api::{Identities, WorkloadApi};
pub use jwks::{JwtKeys, JwtKeysError};
pub use socket::WorkloadSocket;
pub(crate) use socket::serve;
pub use token::{Claims, TokenError};
pub use tokens::{Tokens, TokensError};
