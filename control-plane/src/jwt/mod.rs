//! Tokens (JWT-SVIDs): their keys, when each of them signs, and what is signed.

mod keys;
mod schedule;
mod token;

pub(crate) use keys::{JwtError, JwtKeys};
pub(crate) use schedule::JwtTimes;
pub(crate) use token::{Audience, Token};
