//! The client's side of an HTTP/1.1 connection: one exchange at a time.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use bytes::BytesMut;
use tokio::{io::AsyncWriteExt as _, task::JoinHandle};

use super::{
    body::Framing,
    head,
    reader::{BodyReader, Reader, read_head},
    writer::Writer,
};
use crate::{
    alarm::within,
    http::{
        Limits,
        io::SharedIo,
        message::{Body, BodyError, Frame, RequestHead, Response},
    },
    refusal::{Reason, Refusal},
    tls::Tenure,
    upstream::Lease,
};

/// How long an upstream that no longer reads may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// An HTTP/1.1 connection to an upstream.
#[derive(Debug)]
pub struct H1Client {
    io: SharedIo,
    reader: Rc<RefCell<Reader>>,
    /// Sends the current request's body.
    pump: Option<Pump>,
    /// When this is over it is not used for another exchange.
    pub tenure: Tenure,
}

/// Sends a request's body. Dropped, it stops.
#[derive(Debug)]
struct Pump {
    task: JoinHandle<Result<(), PumpError>>,
    /// Set once all of the body has been sent, and never otherwise.
    sent: Rc<Cell<bool>>,
}

impl Pump {
    fn start(io: SharedIo, body: Body, stall: Duration) -> Self {
        let sent = Rc::new(Cell::new(false));
        let done = sent.clone();
        let task = tokio::task::spawn_local(async move {
            pump(io, body, stall).await?;
            done.set(true);
            Ok(())
        });
        Self { task, sent }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
enum PumpError {
    /// The caller's body broke off, or went on too long.
    Source(BodyError),
    /// The upstream does not take it.
    Sink,
}

/// A connection that has left HTTP.
#[derive(Debug)]
pub struct Switched {
    /// The connection.
    pub io: SharedIo,
    /// What was read from it already.
    pub already: BytesMut,
    /// Its place at the endpoint, where the connection itself has none.
    pub lease: Option<Lease>,
}

/// What came of an exchange.
#[derive(Debug)]
pub enum Exchange {
    /// The upstream answered.
    Answered(Response),
    /// Nothing came back on a connection that had been used before, and nothing of the body was taken: try another one.
    Stale(Body),
}

impl H1Client {
    /// A client over a fresh connection.
    pub fn new(io: SharedIo, tenure: Tenure) -> Self {
        let reader = Rc::new(RefCell::new(Reader::new(io.clone(), BytesMut::new())));
        Self { io, reader, pump: None, tenure }
    }

    /// Whether the exchange before is over in both directions. An upstream may answer before it has the whole request: what
    /// is sent next on such a connection would be read as the rest of that request.
    pub fn is_over(&self) -> bool {
        self.pump.as_ref().is_none_or(|pump| pump.sent.get()) && self.reader.borrow().body_is_end()
    }

    /// Whether another exchange may start on it.
    pub fn is_usable(&mut self) -> bool {
        if !self.is_over() || self.tenure.is_over() {
            return false;
        }
        self.pump = None;
        self.reader.borrow_mut().is_quiet()
    }
}

/// Sends a request whose head is `wire` and returns the response. `lease` holds the connection and follows the body.
///
/// # Errors
/// `upstream_failed`, `upstream_timeout`, or the caller's own fault in its body.
pub async fn exchange(
    mut lease: Lease,
    head: &RequestHead,
    wire: &[u8],
    body: Body,
    limits: &Limits,
) -> Result<Exchange, Refusal> {
    let reused = lease.reused;
    let client = lease.client_mut()?;
    let (io, reader, tenure) = (client.io.clone(), client.reader.clone(), client.tenure.clone());
    let mut writer = io.clone();
    let without_body = body.is_end();
    let sent = async {
        writer.write_all(wire).await?;
        writer.flush().await
    }
    .await;
    if let Err(error) = sent {
        return if reused { Ok(Exchange::Stale(body)) } else { Err(Refusal::caused(Reason::UpstreamFailed, &error)) };
    }
    let replayable = reused && without_body && head.method.is_idempotent();
    if !without_body {
        client.pump = Some(Pump::start(io.clone(), body, limits.stall));
    }
    let mut to_answer = std::pin::pin!(answer(&reader, head, limits));
    // The time for an answer begins when the upstream has the whole request.
    let early = match &mut client.pump {
        None => None,
        Some(Pump { task, .. }) => tokio::select! {
            biased;
            parsed = &mut to_answer => Some(parsed),
            sent = task => match sent {
                Ok(Ok(())) => None,
                Ok(Err(PumpError::Source(error))) => return Err(error.refusal()),
                Ok(Err(PumpError::Sink)) | Err(_) => {
                    client.tenure.end();
                    let stopped = |_| Err(Refusal::new(Reason::UpstreamFailed, "upstream stopped reading").into());
                    Some(tokio::time::timeout(LAST_WORDS, &mut to_answer).await.unwrap_or_else(stopped))
                }
            },
        },
    };
    let late = |_| Err(Answer::Refused(Refusal::new(Reason::UpstreamTimeout, "no response in time")));
    let parsed = match early {
        Some(parsed) => parsed,
        None => tokio::select! {
            biased;
            parsed = within(limits.response_head, to_answer) => parsed.unwrap_or_else(late),
            refusal = tenure.fallen() => Err(refusal.into()),
        },
    };
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(Answer::Ended(_)) if replayable => return Ok(Exchange::Stale(Body::Empty)),
        Err(Answer::Ended(refusal) | Answer::Refused(refusal)) => return Err(refusal),
    };
    if !parsed.keep_alive {
        client.tenure.end();
    }
    if parsed.switches {
        let already = reader.borrow_mut().take_rest();
        let switched = Some(Box::new(Switched { io, already, lease: Some(lease) }));
        let (status, fields) = (parsed.status, parsed.fields);
        return Ok(Exchange::Answered(Response { status, fields, body: Body::Empty, tenure: Some(tenure), switched }));
    }
    reader.borrow_mut().begin_body(parsed.framing);
    let body = if reader.borrow().body_is_end() {
        lease.give_back();
        Body::Empty
    } else {
        Body::H1(Box::new(BodyReader::new(reader.clone(), Some(lease))))
    };
    Ok(Exchange::Answered(Response { status: parsed.status, fields: parsed.fields, body, tenure: Some(tenure), switched: None }))
}

enum Answer {
    /// The connection ended before a first byte.
    Ended(Refusal),
    Refused(Refusal),
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

async fn answer(reader: &RefCell<Reader>, request: &RequestHead, limits: &Limits) -> Result<head::ParsedResponse, Answer> {
    match super::reader::wait_for_bytes(reader).await {
        Ok(true) => {}
        Ok(false) => return Err(Answer::Ended(Refusal::new(Reason::UpstreamFailed, "upstream closed the connection"))),
        Err(error) => return Err(Answer::Ended(Refusal::caused(Reason::UpstreamFailed, &error))),
    }
    let to_head = request.method == http::Method::HEAD;
    for _ in 0..limits.interim_responses {
        // Whatever is wrong, the upstream has failed.
        let parsed = read_head(reader, limits, |text| head::response(text, to_head, request.upgrade.as_deref(), limits.fields))
            .await
            .map_err(|refusal| Refusal::new(Reason::UpstreamFailed, refusal.detail()))?;
        if parsed.status >= 200 || parsed.switches {
            return Ok(parsed);
        }
    }
    Err(Refusal::new(Reason::UpstreamFailed, "too many interim responses").into())
}

/// Framing that a request with this body is sent with.
pub fn request_framing(body: &Body) -> Framing {
    body.length().map_or(Framing::Chunked, Framing::Length)
}

async fn pump(io: SharedIo, mut body: Body, stall: Duration) -> Result<(), PumpError> {
    let chunked = request_framing(&body) == Framing::Chunked;
    let mut writer = Writer::new(io);
    loop {
        let frame = within(stall, body.frame()).await;
        let frame = frame.map_err(|_| PumpError::Source(BodyError::TooSlow("the body stopped arriving")))?;
        let frame = frame.map_err(PumpError::Source)?;
        let write = async {
            write_frame(&mut writer, frame.as_ref(), chunked).await?;
            writer.flush().await
        };
        within(stall, write).await.ok().and_then(Result::ok).ok_or(PumpError::Sink)?;
        if frame.is_none() || (body.is_end() && !chunked) {
            return Ok(());
        }
    }
}

/// Writes a piece of a body, or its end. Trailers end here: HTTP/1.1 peers do not expect them.
pub(super) async fn write_frame(writer: &mut Writer, frame: Option<&Frame>, chunked: bool) -> std::io::Result<()> {
    match frame {
        Some(Frame::Data(data)) if chunked => {
            writer.write(format!("{:x}\r\n", data.len()).as_bytes()).await?;
            writer.write(data).await?;
            writer.write(b"\r\n").await
        }
        Some(Frame::Data(data)) => writer.write(data).await,
        Some(Frame::Trailers(_)) => Ok(()),
        None if chunked => writer.write(b"0\r\n\r\n").await,
        None => Ok(()),
    }
}
