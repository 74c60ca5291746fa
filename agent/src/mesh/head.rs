//! Heads and trailers on the wire: the text of HTTP/1.1, without what belongs to a connection. Read by the same strict parser as
//! everybody's: that the peer is an agent is no reason to trust what it wrote.

use super::frame::HEAD_MOST;
use crate::{
    http::{
        Fields, Limits, RequestHead,
        h1::{self, Framing, ParsedRequest, ParsedResponse},
        put_number,
    },
    refusal::{Reason, Refusal},
};

/// Fields that agents add to a head on its way to another agent, and bytes of them: what one takes, the next one takes too.
const ADDED: usize = 8;
const ADDED_BYTES: usize = 2 << 10;

pub(super) fn malformed(detail: &str) -> Refusal {
    Refusal::new(Reason::Malformed, detail)
}

/// Writes a request's head; `added` are fields of our own.
pub(crate) fn write_request(out: &mut Vec<u8>, head: &RequestHead, added: &Fields, length: Option<u64>) {
    head.put_start(out);
    out.extend_from_slice(head.fields.as_wire());
    out.extend_from_slice(added.as_wire());
    finish(out, length.filter(|length| *length > 0 || takes_body(&head.method)), head.upgrade.as_deref());
}

/// Methods whose requests say how long their body is, also when there is none.
fn takes_body(method: &http::Method) -> bool {
    matches!(*method, http::Method::POST | http::Method::PUT | http::Method::PATCH)
}

/// Writes a response's head.
pub(super) fn write_response(out: &mut Vec<u8>, status: u16, fields: &Fields, length: Option<u64>, upgrade: Option<&str>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    put_number(out, u64::from(status));
    out.extend_from_slice(b" \r\n");
    out.extend_from_slice(fields.as_wire());
    finish(out, length, upgrade);
}

fn finish(out: &mut Vec<u8>, length: Option<u64>, upgrade: Option<&str>) {
    if let Some(length) = length {
        out.extend_from_slice(b"content-length: ");
        put_number(out, length);
        out.extend_from_slice(b"\r\n");
    }
    if let Some(protocol) = upgrade {
        for part in ["connection: upgrade\r\nupgrade: ", protocol, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Reads a request's head.
///
/// # Errors
/// As for HTTP/1.1; the normalised form comes later, as for all.
pub(super) fn request(text: &[u8], limits: &Limits) -> Result<ParsedRequest, Refusal> {
    bounded(text, limits)?;
    h1::parse_request(text, limits.fields + ADDED)
}

/// Reads a response's head.
///
/// # Errors
/// As for HTTP/1.1; interim responses do not travel.
pub(super) fn response(text: &[u8], to_head: bool, upgrade: Option<&str>, limits: &Limits) -> Result<ParsedResponse, Refusal> {
    bounded(text, limits)?;
    let parsed = h1::parse_response(text, to_head, upgrade, limits.fields + ADDED)?;
    if parsed.status < 200 && !parsed.switches {
        return Err(malformed("interim response"));
    }
    Ok(parsed)
}

/// A payload is one head of a bounded length. That it is whole, and all there is, the parser sees.
fn bounded(text: &[u8], limits: &Limits) -> Result<(), Refusal> {
    let fits = text.len() <= limits.head_bytes + ADDED_BYTES;
    fits.then_some(()).ok_or_else(|| Refusal::new(Reason::HeadTooLarge, "head too large"))
}

/// Whether a head that cannot be read is larger than what this agent takes. Another may be set to take more: it is not its fault.
pub(super) fn is_too_large(text: &[u8], limits: &Limits) -> bool {
    let lines = text.iter().filter(|byte| **byte == b'\n').count();
    text.len() > limits.head_bytes + ADDED_BYTES || lines > limits.fields + ADDED + 2
}

/// Whether a head of these fields and this target fits into a frame, with what agents add.
pub(super) fn fits(fields: &Fields, rest: usize) -> bool {
    fields.as_wire().len() + rest + ADDED_BYTES <= HEAD_MOST
}

/// Length of a body, if its head names it. Where a body ends is said by the frames only.
pub(super) fn length(framing: Framing) -> Result<Option<u64>, Refusal> {
    match framing {
        Framing::Length(length) => Ok(Some(length)),
        Framing::UntilClose => Ok(None),
        Framing::Chunked => Err(malformed("transfer-encoding inside the mesh")),
    }
}

/// Reads trailers: header lines, each ended by CR LF.
pub(super) fn trailers(text: &[u8]) -> Result<Fields, Refusal> {
    let mut whole = Vec::with_capacity(text.len() + 2);
    whole.extend_from_slice(text);
    whole.extend_from_slice(b"\r\n");
    h1::parse_trailers(&whole).map_err(malformed)
}
