//! HTTP/2 on the h2 crate: streams become the same requests as HTTP/1.1, and the same refusals.

mod body;
mod client;
mod flood;
mod gathered;
mod head;
mod server;
mod unseen;
mod websocket;

pub use body::BodyReader;
pub use client::{Exchange, H2Client, exchange};
pub use flood::within_budget;
pub use server::serve;
pub use websocket::Duplex;

use bytes::Bytes;

use super::{Fields, normalize::hop_by_hop};
use crate::refusal::{Reason, Refusal};

/// Bytes a peer may send on a stream, and on a connection, before we have taken some.
const WINDOW: u32 = 1 << 20;

/// Bytes of fields that there is room for at first.
const USUAL: usize = 512;

/// Fields with another value in each message: in the table of HPACK they would only drive out those that come again
/// (RFC 7541 section 6.2.3).
static UNIQUE: [http::HeaderName; 2] =
    [http::HeaderName::from_static("x-request-id"), http::HeaderName::from_static("traceparent")];

/// Whether a field belongs to the connection, which HTTP/2 fields never do (RFC 9113 section 8.2.2).
fn is_connection_field(name: &str) -> bool {
    name == "transfer-encoding" || hop_by_hop(name.as_bytes())
}

/// Fields as the h2 crate takes them, one part after another.
fn as_map(parts: &[&Fields]) -> Result<http::HeaderMap, Refusal> {
    let mut map = http::HeaderMap::with_capacity(parts.iter().map(|fields| fields.len()).sum::<usize>() + 2);
    for fields in parts.iter().filter(|fields| !fields.is_empty()) {
        // All values share one allocation.
        let wire = Bytes::copy_from_slice(fields.as_wire());
        for (name, value) in fields.places() {
            let name = fields.as_wire().get(name).unwrap_or_default();
            let unique = UNIQUE.iter().find(|unique| unique.as_str().as_bytes() == name);
            let name = unique.map_or_else(|| http::HeaderName::from_bytes(name), |unique| Ok(unique.clone()));
            let (Ok(name), Ok(mut value)) = (name, http::HeaderValue::from_maybe_shared(wire.slice(value))) else {
                return Err(Refusal::new(Reason::Malformed, "a field cannot be written in HTTP/2"));
            };
            value.set_sensitive(unique.is_some());
            map.append(name, value);
        }
    }
    Ok(map)
}
