//! Refusals in the words of gRPC. A caller of gRPC reads `grpc-status`; an HTTP status it would have to guess from, and 504 is
//! `UNAVAILABLE` to it and not `DEADLINE_EXCEEDED`.

use super::{Body, Fields, RequestHead, Response, Version};

/// Whether the caller speaks gRPC and reads an answer as such: `application/grpc`, also with a format, over HTTP/2.
pub(crate) fn is_spoken(head: &RequestHead) -> bool {
    let kind = head.fields.single("content-type").and_then(|kind| kind.strip_prefix(b"application/grpc"));
    head.version == Version::Http2 && kind.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// An answer that says nothing in gRPC, as one of trailers only: the status for this HTTP status, and the request's id. The
/// phrase is that of HTTP, which callers of HTTP see too.
pub(super) fn translate(response: Response, request_id: &str) -> Response {
    if response.status == 200 || response.fields.single("grpc-status").is_some() {
        return response;
    }
    let phrase = http::StatusCode::from_u16(response.status).ok().and_then(|code| code.canonical_reason());
    let message = format!("{} {}, request id {request_id}", response.status, phrase.unwrap_or("Refused"));
    let mut fields = Fields::default();
    fields.push(b"content-type", b"application/grpc");
    fields.push(b"grpc-status", code(response.status).to_string().as_bytes());
    // Written as gRPC wants it: nothing in it needs a percent sign.
    fields.push(b"grpc-message", message.as_bytes());
    fields.push(b"x-request-id", request_id.as_bytes());
    Response { status: 200, fields, body: Body::Empty, ..response }
}

/// The status of gRPC for one of HTTP: as gRPC's own clients map it, except where HTTP says more exactly what happened. A table
/// in docs/reasons.md says so.
fn code(status: u16) -> u8 {
    match status {
        408 | 504 => 4,        // DEADLINE_EXCEEDED
        413 | 429 | 431 => 8,  // RESOURCE_EXHAUSTED
        400 => 13,             // INTERNAL
        401 => 16,             // UNAUTHENTICATED
        403 => 7,              // PERMISSION_DENIED
        404 | 405 | 421 => 12, // UNIMPLEMENTED
        499 => 1,              // CANCELLED
        502 | 503 => 14,       // UNAVAILABLE
        _ => 2,                // UNKNOWN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::{Reason, Refusal};

    #[test]
    fn every_refusal_has_a_status_of_grpc_and_the_page_names_it() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reasons.md")).unwrap();
        for reason in Reason::ALL {
            let response = translate(Response::refused(&Refusal::new(*reason, "a secret"), "id-1"), "id-1");
            assert!(response.status == 200 && response.body.is_end());
            let status = std::str::from_utf8(response.fields.single("grpc-status").unwrap()).unwrap();
            let http = reason.status().to_string();
            let row = page.lines().find(|line| {
                let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
                cells.len() == 2 && cells[0].split(", ").any(|one| one == http)
            });
            assert!(row.is_some_and(|row| row.contains(&format!("({status})"))), "{reason:?}: {http} is {status}, {row:?}");
            let message = String::from_utf8_lossy(response.fields.single("grpc-message").unwrap()).into_owned();
            assert!(message.contains("id-1") && !message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn only_an_answer_without_a_status_of_grpc_is_translated() {
        let answer = |status, fields: Fields| Response { status, fields, body: Body::Empty, tenure: None, switched: None };
        let served = translate(answer(200, Fields::default()), "id");
        assert!(served.fields.single("grpc-status").is_none(), "its trailers say it");
        let mut own = Fields::default();
        own.push(b"grpc-status", b"5");
        let own = translate(answer(404, own), "id");
        assert_eq!((own.status, own.fields.single("grpc-status")), (404, Some(b"5".as_slice())));
        assert_eq!(translate(answer(599, Fields::default()), "id").fields.single("grpc-status"), Some(b"2".as_slice()));
    }
}
