//! HTTP as the agent understands it: strict codecs at the edges, one canonical request between them.

pub(crate) mod fields;
pub mod h1;
pub mod h2;
pub mod io;
pub mod message;
pub mod normalize;
pub mod preface;
mod seal;

use std::time::Duration;

pub use fields::Fields;
pub use h1::{Reply, Service};
pub use io::{SharedIo, Transport};
pub use message::{Body, BodyError, Frame, Request, RequestHead, Response, Version};
pub use seal::{meant_for, refused, seal};

/// Fields of a head that there is ever room for.
const MOST_FIELDS: usize = 100;

/// Bounds on what a peer can make the agent hold or wait for.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a head, start line included.
    pub head_bytes: usize,
    /// Fields of a head, at most [`MOST_FIELDS`].
    pub fields: usize,
    /// Time for a head to arrive once its first byte has.
    pub head_read: Duration,
    /// Time a connection may stay without a request.
    pub idle: Duration,
    /// Time a sender may pause within an HTTP/1.1 request body, and a receiver before it takes more of a body.
    pub stall: Duration,
    /// Time an upstream may take to begin its response once it has the whole request.
    pub response_head: Duration,
    /// Interim (1xx) responses before a final one.
    pub interim_responses: usize,
    /// Time for TCP and TLS to an upstream.
    pub connect: Duration,
    /// Time for a TLS handshake that a caller began.
    pub handshake: Duration,
    /// Streams at a time on an HTTP/2 connection.
    pub streams: u32,
    /// Connections at a time on a listener, per worker.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 32 << 10,
            fields: MOST_FIELDS,
            head_read: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            stall: Duration::from_secs(30),
            response_head: Duration::from_secs(60),
            interim_responses: 8,
            connect: Duration::from_secs(5),
            handshake: Duration::from_secs(10),
            streams: 256,
            connections: 20_000,
        }
    }
}
