//! The certificate authority: root → issuing CA → leaf.

mod authority;
#[cfg(feature = "bench")]
mod bench;
mod certificate;
mod csr;
mod external;
mod going;
mod handover;
mod phase;
mod progress;
mod schedule;
mod server_leaf;
mod signer;

#[cfg(feature = "bench")]
pub use bench::leaves_per_second;

pub(crate) use authority::{Anchor, Authority, CaError, Leaf};
pub(crate) use certificate::hex;
pub(crate) use csr::{CsrError, SigningRequest};
pub use external::CaFiles;
pub(crate) use phase::Phase;
pub(crate) use progress::{Facts, Present, Progress, Waiting, progress};
pub(crate) use schedule::{Lifetimes, renew_at};
pub(crate) use server_leaf::ServerLeaf;
pub(crate) use signer::CaInfo;

#[cfg(test)]
mod tests;
