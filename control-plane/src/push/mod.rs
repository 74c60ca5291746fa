//! Keeping agents current: what each holds, what it is sent next, and what it said to it.

mod hello;
mod ledger;
mod stream;

pub(crate) use hello::Hello;
pub(crate) use stream::{Publication, Stream};
