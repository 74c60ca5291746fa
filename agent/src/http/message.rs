//! Requests and responses between the codecs: one canonical form, whatever protocol they came by or leave by.

use std::{collections::VecDeque, rc::Rc};

use bytes::Bytes;

use super::{Fields, HostName, h1, h2, put_number};
use crate::{
    mesh,
    refusal::{Reason, Refusal},
    telemetry::TraceContext,
    tls::Tenure,
};

/// Version a message arrived with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

/// A request's head in canonical form: what policy, route, log and upstream all read.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// Method, upper case.
    pub method: http::Method,
    /// Path and query, both canonical.
    pub target: String,
    /// Length of the path in `target`.
    pub path_len: usize,
    /// Canonical host name, without port.
    pub host: HostName,
    /// Port in the host, if the caller named one.
    pub host_port: Option<u16>,
    /// End-to-end fields, without `host` and without framing fields.
    pub fields: Fields,
    /// Version it arrived with.
    pub version: Version,
    /// The id of this request at both agents and in the response.
    pub id: String,
    /// The trace that the caller is in, as it came; its fields are taken out.
    pub trace: Option<TraceContext>,
    /// Protocol that the caller wants to switch to, in lower case.
    pub upgrade: Option<Box<str>>,
}

impl RequestHead {
    /// Canonical path without query.
    pub fn path(&self) -> &str {
        self.target.get(..self.path_len).unwrap_or_default()
    }

    /// About what it takes in memory.
    pub(crate) fn weight(&self) -> usize {
        size_of::<Self>() + self.target.len() + self.fields.held()
    }

    /// Query without `?`.
    pub fn query(&self) -> Option<&str> {
        self.target.get(self.path_len + 1..)
    }

    /// Writes the request line and the host as HTTP/1.1 does.
    pub(crate) fn put_start(&self, out: &mut Vec<u8>) {
        for part in [self.method.as_str(), " ", &self.target, " HTTP/1.1\r\nhost: ", &self.host] {
            out.extend_from_slice(part.as_bytes());
        }
        if let Some(port) = self.host_port {
            out.push(b':');
            put_number(out, u64::from(port));
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Host and port as the caller named them, canonical.
    pub fn authority(&self) -> String {
        match self.host_port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.to_string(),
        }
    }
}

/// A request.
#[derive(Debug)]
pub struct Request {
    /// Shared with the permit, which decides again when the policy changes.
    pub head: Rc<RequestHead>,
    /// The body.
    pub body: Body,
}

/// A response.
#[derive(Debug)]
pub struct Response {
    /// 200 to 599; interim responses do not travel as messages.
    pub status: u16,
    /// End-to-end fields, without framing fields.
    pub fields: Fields,
    /// The body.
    pub body: Body,
    /// Of its connection: nothing passes when it has ended.
    pub tenure: Option<Tenure>,
    /// With 101: the upstream connection, which speaks another protocol from here on.
    pub switched: Option<Box<h1::Switched>>,
}

/// Whether an answer without a body says how long one would be: neither 1xx nor 204 does (RFC 9110 section 8.6).
pub(crate) fn names_length(to_head: bool, status: u16) -> bool {
    (to_head || status == 304) && !matches!(status, 100..=199 | 204)
}

/// A piece of a body.
#[derive(Clone, Debug)]
pub enum Frame {
    /// Some bytes, never empty.
    Data(Bytes),
    /// Trailers, once, at the end.
    Trailers(Fields),
}

impl Frame {
    /// Bytes of the body in it.
    pub fn data_len(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(_) => 0,
        }
    }
}

/// A body in any of its sources. Readers are in boxes: messages are moved often.
#[derive(Debug)]
pub enum Body {
    /// Nothing.
    Empty,
    /// All of it.
    Full(Bytes),
    /// From an HTTP/1.1 connection.
    H1(Box<h1::BodyReader>),
    /// From an HTTP/2 stream.
    H2(Box<h2::BodyReader>),
    /// From a stream of the mesh protocol.
    Mesh(Box<mesh::BodyReader>),
    /// Sent once already, in vain.
    Again(Box<Again>),
}

/// A body of which the first pieces were read before.
#[derive(Debug)]
pub struct Again {
    /// They come first.
    pub pieces: VecDeque<Frame>,
    /// What follows them.
    pub rest: Body,
    /// Length of the whole body if it was known at first.
    pub length: Option<u64>,
}

/// A body broke off.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BodyError {
    /// The sender's framing is wrong.
    #[error("malformed body: {0}")]
    Malformed(&'static str),
    /// It is larger than a body may be.
    #[error("the body is larger than a body may be")]
    TooLarge,
    /// It comes too slowly.
    #[error("{0}")]
    TooSlow(&'static str),
    /// The connection ended, or the stream was reset, before the body did.
    #[error("body broke off: {0}")]
    Broken(String),
}

impl BodyError {
    /// What a request gets whose body this happened to.
    pub fn refusal(&self) -> Refusal {
        let reason = match self {
            Self::Malformed(_) | Self::Broken(_) => Reason::Malformed,
            Self::TooLarge => Reason::BodyTooLarge,
            Self::TooSlow(_) => Reason::SlowCaller,
        };
        Refusal::new(reason, self.to_string())
    }
}

impl Body {
    /// Length if it is known before reading.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(bytes) => Some(bytes.len() as u64),
            Self::H1(body) => body.length(),
            Self::H2(body) => body.length(),
            Self::Mesh(body) => body.length(),
            Self::Again(again) => again.length,
        }
    }

    /// Whether nothing is left to read.
    pub fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::H1(body) => body.is_end(),
            Self::H2(body) => body.is_end(),
            Self::Mesh(body) => body.is_end(),
            Self::Again(again) => again.pieces.is_empty() && again.rest.is_end(),
        }
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// When the body breaks off or its framing is wrong. Nothing follows an error.
    pub async fn frame(&mut self) -> Result<Option<Frame>, BodyError> {
        match self {
            Self::Empty => Ok(None),
            Self::Full(bytes) => Ok(Some(std::mem::take(bytes)).filter(|bytes| !bytes.is_empty()).map(Frame::Data)),
            Self::H1(body) => body.frame().await,
            Self::H2(body) => body.frame().await,
            Self::Mesh(body) => body.frame().await,
            Self::Again(again) => match again.pieces.pop_front() {
                Some(frame) => Ok(Some(frame)),
                None => Box::pin(again.rest.frame()).await,
            },
        }
    }
}

impl Response {
    /// What a caller sees of a refusal: status and request id, nothing else.
    pub fn refused(refusal: &Refusal, request_id: &str) -> Self {
        let status = refusal.status();
        let phrase = http::StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason()).unwrap_or("Refused");
        let mut fields = Fields::default();
        fields.push(b"content-type", b"text/plain; charset=utf-8");
        fields.push(b"x-request-id", request_id.as_bytes());
        if let Some(seconds) = refusal.seconds_to_wait() {
            fields.push(b"retry-after", seconds.to_string().as_bytes());
        }
        Self {
            status,
            fields,
            body: Body::Full(format!("{status} {phrase}\nrequest id {request_id}\n").into()),
            tenure: None,
            switched: None,
        }
    }
}
