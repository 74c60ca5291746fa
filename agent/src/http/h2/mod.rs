//! HTTP/2 on the h2 crate: streams become the same requests as HTTP/1.1, and the same refusals.

mod body;
mod client;
mod flood;
mod gathered;
mod server;
mod websocket;

pub use body::BodyReader;
pub use client::{Exchange, H2Client, exchange};
pub use flood::within_budget;
pub use server::serve;
pub use websocket::Duplex;

use super::{Fields, normalize::hop_by_hop};
use crate::refusal::{Reason, Refusal};

/// Bytes a peer may send on a stream, and on a connection, before we have taken some.
const WINDOW: u32 = 1 << 20;

/// Whether a field belongs to the connection, which HTTP/2 fields never do (RFC 9113 section 8.2.2).
fn is_connection_field(name: &str) -> bool {
    matches!(name, "connection" | "transfer-encoding") || hop_by_hop(name.as_bytes())
}

fn as_map(fields: &Fields) -> Result<http::HeaderMap, Refusal> {
    let mut map = http::HeaderMap::with_capacity(fields.len());
    for (name, value) in fields.iter() {
        let pair = (http::HeaderName::from_bytes(name), http::HeaderValue::from_bytes(value));
        let (Ok(name), Ok(value)) = pair else {
            return Err(Refusal::new(Reason::Malformed, "a field cannot be written in HTTP/2"));
        };
        map.append(name, value);
    }
    Ok(map)
}
