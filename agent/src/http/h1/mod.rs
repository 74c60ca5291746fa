//! HTTP/1.1: an own strict codec. What two readers could understand differently is refused (RFC 9112).

mod body;
mod client;
mod dry;
mod head;
mod line;
mod reader;
mod server;
mod writer;

pub use body::Framing;
pub use client::{Exchange, H1Client, Switched, exchange, request_framing};
pub use dry::{Digest, digest};
pub(crate) use head::{
    ParsedRequest, ParsedResponse, request as parse_request, response as parse_response, trailers as parse_trailers,
};
pub(crate) use line::Line;
pub use reader::{BodyReader, Reader};
pub use server::{Reply, Service, serve};
