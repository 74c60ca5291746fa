//! Names of mesh services for captured programs: a small resolver that answers with virtual addresses, and asks others only
//! where a setting says so.

mod addresses;
mod forward;
pub mod message;
mod resolver;
mod server;

pub use addresses::{Addresses, Pair};
pub use forward::Forward;
pub use resolver::Resolver;
pub(crate) use server::listen;
pub use server::{Listener, Transport};
