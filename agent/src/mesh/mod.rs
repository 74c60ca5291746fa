//! The mesh protocol between two agents of ours: requests multiplexed over few mutual TLS connections, with a frame head of
//! eight bytes, and everything that is ready sent in one record and one system call. `docs/mesh-protocol.md` specifies it.

mod body;
mod budget;
mod client;
mod dispatch;
mod driver;
mod dry;
mod duplex;
pub mod frame;
mod head;
mod link;
mod outbox;
mod pump;
mod running;
mod server;
mod stream;
mod transport;
mod violation;

pub use body::BodyReader;
pub use client::{Exchange, MeshClient, exchange};
pub use dry::digest;
pub use duplex::Duplex;
pub(crate) use head::write_request;
pub use server::serve;
pub use violation::Violation;

/// The protocol's name in TLS. Another version would have another name.
pub const ALPN: &[u8] = b"outrider/1";

/// Bytes of data that may be under way on a stream.
const STREAM_WINDOW: u32 = 512 << 10;
/// Bytes of data that may be under way on a connection.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Of these, bytes that are kept for streams that have next to nothing under way, and how much that is: so streams that nobody takes, however
/// many, never hold up the others.
const RESERVED: u32 = CONNECTION_WINDOW / 2;
const LITTLE: u32 = RESERVED / STREAMS as u32;
/// Of what is not reserved and left, the part that one stream may have under way.
const SHARE: u32 = 8;
/// Streams at a time on a connection.
const STREAMS: usize = 1024;
/// Bytes that may wait to be sent before streams wait for room.
const OUTBOX: usize = 128 << 10;
