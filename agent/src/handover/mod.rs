//! Restart and upgrade without a refused connection: a running agent hands its sockets to the next one, and leaves when that serves.
//!
//! The next one connects to `handover.sock` in the state directory and gets copies of the lock and of every socket. Both accept
//! from the same queues, so none is ever closed with connections in it. Once the next one serves it says so; then the first
//! takes no more connections, finishes what it has, and ends. If the next one goes away before, nothing has happened.

mod give;
mod record;
mod sockets;
mod take;

pub(crate) use give::{Offer, Succeeded};
pub use record::reread;
pub(crate) use sockets::Sockets;
pub use take::{TakeOver, TakeOverError};

/// The socket in the state directory.
const SOCKET: &str = "handover.sock";
/// What both sides have to speak.
const VERSION: &str = "outrider handover 1";
