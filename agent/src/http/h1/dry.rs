//! A connection without sockets: what the fuzz targets and their stable twin feed bytes to.

use bytes::BytesMut;

use super::{
    Framing,
    body::{Decoded, Decoder},
    head::{request, response},
    reader::take_head,
};
use crate::{
    http::{Fields, Limits, RequestHead, h1::ParsedRequest},
    mesh::write_request,
    refusal::Refusal,
};

/// What was read from a connection: a line for each message, and for what ended it.
pub type Digest = Vec<String>;

/// What a connection is at in its bytes.
enum At {
    Head { searched: usize },
    Body(Decoder, String),
    End,
}

/// Takes `bytes` as they would arrive in pieces of `step`, from a caller or from an upstream.
///
/// # Panics
/// When more is held than there may be, or a head that was accepted reads as another one when it is sent on.
pub fn digest(bytes: &[u8], step: usize, requests: bool) -> Digest {
    let limits = Limits::default();
    let (mut buf, mut seen, mut at) = (BytesMut::new(), Digest::new(), At::Head { searched: 0 });
    for piece in bytes.chunks(step.max(1)) {
        buf.extend_from_slice(piece);
        if let Err(refusal) = advance(&mut buf, &mut at, &mut seen, requests, &limits) {
            seen.push(refusal);
            return seen;
        }
        assert!(buf.len() <= limits.head_bytes + step || matches!(at, At::End), "waits for more than a head");
    }
    match at {
        At::Body(mut decoder, text) => seen.push(decoder.end_of_input().map_or("broken".to_owned(), |()| text)),
        At::Head { .. } if !buf.is_empty() => seen.push("broken".to_owned()),
        At::Head { .. } | At::End => {}
    }
    seen
}

/// Reads as far as the bytes go. An error is a word for the refusal: which rule is broken first may depend on how bytes arrive.
fn advance(buf: &mut BytesMut, at: &mut At, seen: &mut Digest, requests: bool, limits: &Limits) -> Result<(), String> {
    loop {
        match at {
            At::End => return Ok(()),
            At::Head { searched } => {
                let head = take_head(buf, searched, limits, |head| read(head, requests, limits)).map_err(|_| "refused")?;
                let Some((framing, text, last)) = head else { return Ok(()) };
                *at = match last {
                    true => {
                        seen.push(text);
                        At::End
                    }
                    false => At::Body(Decoder::new(framing), text),
                };
            }
            At::Body(decoder, text) => match decoder.decode(buf).map_err(|_| "broken")? {
                Decoded::Data(data) => text.push_str(&data.escape_ascii().to_string()),
                Decoded::Trailers(fields) => text.push_str(&shown(&fields)),
                Decoded::NeedMore => return Ok(()),
                Decoded::End => {
                    seen.push(std::mem::take(text));
                    *at = At::Head { searched: 0 };
                }
            },
        }
    }
}

/// What a head says, and whether nothing of HTTP follows it.
fn read(head: &[u8], requests: bool, limits: &Limits) -> Result<(Framing, String, bool), Refusal> {
    if !requests {
        let parsed = response(head, false, Some("websocket"), limits.fields)?;
        return Ok((parsed.framing, format!("{} {}", parsed.status, shown(&parsed.fields)), parsed.switches));
    }
    let ParsedRequest { parts, framing, upgrade, .. } = request(head, limits.fields)?;
    let mut head = parts.normalize()?;
    head.upgrade = upgrade;
    let text = told(&head);
    // A tunnel is no request to anybody.
    if head.method == http::Method::CONNECT {
        return Ok((framing, text, true));
    }
    // What is sent on to another agent is what was read here.
    let mut wire = Vec::new();
    write_request(&mut wire, &head, &Fields::default(), None);
    let again = request(&wire, limits.fields).and_then(|parsed| {
        let mut head = parsed.parts.normalize()?;
        head.upgrade = parsed.upgrade;
        Ok(told(&head))
    });
    assert!(wire.len() > limits.head_bytes || again.as_deref() == Ok(text.as_str()), "{text:?} is sent on as {again:?}");
    Ok((framing, text, head.upgrade.is_some()))
}

fn told(head: &RequestHead) -> String {
    let RequestHead { method, target, host, host_port, fields, upgrade, .. } = head;
    format!("{method} {target} {} {host} {host_port:?} {upgrade:?} {}", head.path(), shown(fields))
}

fn shown(fields: &Fields) -> String {
    fields.iter().map(|(name, value)| format!("{}: {}\n", name.escape_ascii(), value.escape_ascii())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_lines_before_a_request_are_no_request_however_they_arrive() {
        let bytes = b"\r\n\r\n\r\nGET /a HTTP/1.1\r\nhost: b\r\n\r\n\r\n\r\n";
        for step in 1..=bytes.len() {
            assert_eq!(digest(bytes, step, true), ["GET /a /a b None None "], "in pieces of {step}");
        }
    }
}
