//! The certificate authority: root → issuing CA → leaf.

mod authority;
#[cfg(feature = "bench")]
mod bench;
mod certificate;
mod csr;
mod schedule;
mod server_leaf;

#[cfg(feature = "bench")]
pub use bench::leaves_per_second;

pub(crate) use authority::{Authority, CaError, CaInfo, Leaf};
pub(crate) use certificate::hex;
pub(crate) use csr::{CsrError, SigningRequest};
pub(crate) use schedule::renew_at;
pub(crate) use server_leaf::ServerLeaf;

#[cfg(test)]
mod tests;
