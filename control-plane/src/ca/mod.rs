//! The certificate authority: root → issuing CA → leaf.

mod authority;
mod certificate;
mod csr;
mod schedule;
mod server_leaf;

pub(crate) use authority::{Authority, CaError, CaInfo, Leaf};
pub(crate) use certificate::hex;
pub(crate) use csr::{CsrError, SigningRequest};
pub(crate) use schedule::renew_at;
pub(crate) use server_leaf::ServerLeaf;

#[cfg(test)]
mod tests;
