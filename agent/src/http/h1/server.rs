//! The server's side of an HTTP/1.1 connection: requests in order, each answered before the next is read.

use std::{cell::RefCell, rc::Rc, task::Poll, time::Duration};

use bytes::BytesMut;
use tokio::time::Instant;

use super::{
    body::Framing,
    client::write_frame,
    head,
    reader::{BodyReader, Reader, asked, discard, gone, read_head, wait_for_bytes},
    writer::Writer,
};
use crate::{
    alarm::{self, Late, in_steps, within},
    apart::apart,
    http::{
        BodyError, Limits, Meter,
        io::SharedIo,
        limits::TAKEN,
        message::{Body, Frame, Request, Response},
        put_number,
    },
    policy::{Permit, lapsed},
    refusal::{Reason, Refusal},
    tcp::Tunnel,
    telemetry::Record,
};

/// What answers requests: the inbound or the outbound page.
pub trait Service {
    /// Answers a request.
    fn call(&self, request: Request) -> impl Future<Output = Reply>;
    /// Answers something that did not become a request.
    fn refuse(&self, refusal: Refusal) -> Reply;
    /// Ends when the connection should take no more requests.
    fn closing(&self) -> impl Future<Output = ()>;
    /// Whether [`Service::closing`] has ended.
    fn is_closing(&self) -> bool;
}

/// An answer, what allowed it, and its line in the access log.
#[derive(Debug)]
pub struct Reply {
    /// The response.
    pub response: Response,
    /// Ends the response's body when it no longer holds.
    pub permit: Option<Permit>,
    /// Written when the body has ended.
    pub record: Box<Record>,
    /// After a 200 to CONNECT, or a 101: where the bytes go from then on.
    pub tunnel: Option<Box<Tunnel>>,
}

/// Serves one connection to its end.
pub async fn serve(io: SharedIo, already: BytesMut, service: &impl Service, limits: &Limits) {
    let reader = Rc::new(RefCell::new(Reader::new(io.clone(), already)));
    let mut writer = Writer::new(io);
    let end = limits.connection_end();
    let answered_last = loop {
        reader.borrow_mut().release();
        let arrived = tokio::select! {
            biased;
            arrived = within(limits.idle, wait_for_bytes(&reader)) => arrived,
            () = service.closing() => break false,
            () = alarm::at(end) => break false,
        };
        if !matches!(arrived, Ok(Ok(true))) {
            break false;
        }
        // In a box: an idle connection need not hold the room that exchanges take.
        match Box::pin(exchanges(service, &reader, &mut writer, limits, end)).await {
            Next::Another => {}
            Next::Last => break true,
            Next::Gone => break false,
            Next::Stalled => return writer.reset(),
            Next::Switched(tunnel, record) => {
                let rest = reader.borrow_mut().take_rest();
                return Box::pin(tunnel.relay(writer.into_io(), rest, record)).await;
            }
        }
    };
    Box::pin(leave(&reader, &mut writer, limits, answered_last)).await;
}

/// One request after another, for as long as the next one does not let wait for itself.
async fn exchanges(
    service: &impl Service,
    reader: &Rc<RefCell<Reader>>,
    writer: &mut Writer,
    limits: &Limits,
    end: Instant,
) -> Next {
    loop {
        match exchange(service, reader, writer, limits, end).await {
            Next::Another => {}
            next => return next,
        }
        reader.borrow_mut().release();
        if service.is_closing() || alarm::instant() >= end {
            return Next::Another;
        }
        match within(alarm::TICK, wait_for_bytes(reader)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false) | Err(_)) => return Next::Gone,
            Err(Late) => return Next::Another,
        }
    }
}

/// What follows an exchange.
enum Next {
    /// Another request may come.
    Another,
    /// Nothing: the connection ends with this answer.
    Last,
    /// Nothing: nobody waits for an answer.
    Gone,
    /// Nothing: the caller takes no answer, and would take no last words either.
    Stalled,
    /// Another protocol.
    Switched(Box<Tunnel>, Box<Record>),
}

/// One request, whose first byte is there, and its answer.
async fn exchange(
    service: &impl Service,
    reader: &Rc<RefCell<Reader>>,
    writer: &mut Writer,
    limits: &Limits,
    end: Instant,
) -> Next {
    let parsed = within(limits.head_read, read_head(reader, limits, |head| head::request(head, limits.fields)))
        .await
        .unwrap_or_else(|_| Err(Refusal::new(Reason::HeadTimeout, "the head did not arrive in time")));
    let mut upgrade = None;
    let (reply, keep_alive, to_head, http10) = match parsed.and_then(|parsed| admit(parsed, reader, limits)) {
        Err(refusal) => (service.refuse(refusal), false, false, false),
        Ok((request, mut flags)) => {
            let to_head = request.head.method == http::Method::HEAD;
            // What follows a CONNECT, or a switch of protocols, was meant for the other end of a tunnel: when there is none, it must
            // not be read as requests of this caller (RFC 9931 section 3).
            let may_go_on = request.head.method != http::Method::CONNECT && request.head.upgrade.is_none();
            upgrade.clone_from(&request.head.upgrade);
            let reply = {
                let mut call = std::pin::pin!(apart(service.call(request)));
                loop {
                    tokio::select! {
                        biased;
                        reply = &mut call => break reply,
                        () = asked(reader), if flags.expects_continue => {
                            flags.expects_continue = false;
                            if let Err((reason, _)) = write_now(writer, b"HTTP/1.1 100 Continue\r\n\r\n", limits.take).await {
                                return if reason == Reason::SlowCaller { Next::Stalled } else { Next::Gone };
                            }
                        }
                        () = gone(reader) => return Next::Gone,
                    }
                }
            };
            let keep_alive = flags.keep_alive && may_go_on && !service.is_closing() && alarm::instant() < end;
            (reply, keep_alive, to_head, flags.http10)
        }
    };
    if let Some(tunnel) = reply.tunnel {
        let head = switching_head(&reply.response, upgrade.as_deref());
        return match write_now(writer, &head, limits.take).await {
            Ok(()) => Next::Switched(tunnel, reply.record),
            Err(_) => Next::Gone,
        };
    }
    // A request body that nobody read to its end stands before the next head: such a connection ends.
    let reusable = keep_alive && reader.borrow().body_is_end();
    let style = Style { reusable, to_head, http10, take: limits.take, request: limits.request };
    match write_reply(writer, reader, reply, &style).await {
        Written::Whole(true) if reader.borrow().body_is_end() => Next::Another,
        Written::Whole(_) | Written::Cut => Next::Last,
        Written::Stalled => Next::Stalled,
    }
}

/// Ends a connection.
async fn leave(reader: &RefCell<Reader>, writer: &mut Writer, limits: &Limits, answered_last: bool) {
    let _ = tokio::time::timeout(limits.take, writer.shutdown()).await;
    // Closing while the caller still writes would reset the connection, and the answer might be lost with it.
    if answered_last {
        let _ = tokio::time::timeout(LINGER, discard(reader)).await;
    }
}

/// How long a caller whose request was refused may go on writing.
const LINGER: Duration = Duration::from_secs(2);

/// How a response is written.
struct Style {
    reusable: bool,
    to_head: bool,
    http10: bool,
    take: Duration,
    /// Time from the first byte of the request to the last of the response.
    request: Duration,
}

struct Flags {
    keep_alive: bool,
    expects_continue: bool,
    http10: bool,
}

fn admit(parsed: head::ParsedRequest, reader: &Rc<RefCell<Reader>>, limits: &Limits) -> Result<(Request, Flags), Refusal> {
    if matches!(parsed.framing, Framing::Length(length) if length > limits.body_bytes as u64) {
        return Err(BodyError::TooLarge.refusal());
    }
    let http10 = parsed.parts.is_http10();
    let mut head = parsed.parts.normalize()?;
    head.upgrade = parsed.upgrade;
    let head = Rc::new(head);
    reader.borrow_mut().begin_body(parsed.framing);
    let body = if parsed.framing == Framing::Length(0) {
        Body::Empty
    } else {
        Body::H1(Box::new(BodyReader::new(reader.clone(), None).metered(Meter::new(limits, false))))
    };
    let expects_continue = parsed.expects_continue && !http10 && !body.is_end();
    Ok((Request { head, body }, Flags { keep_alive: parsed.keep_alive, expects_continue, http10 }))
}

async fn write_now(writer: &mut Writer, bytes: &[u8], take: Duration) -> Result<(), (Reason, String)> {
    let io = writer.watch();
    let write = async {
        writer.write(bytes).await?;
        writer.flush().await
    };
    in_time(take, &io, write).await
}

/// What became of a response.
enum Written {
    /// It was sent whole. `true` when another request may follow.
    Whole(bool),
    /// It broke off.
    Cut,
    /// The caller does not take it, and would take no last words either.
    Stalled,
}

/// Writes a response and its body, for as long as it is permitted and there is somebody to take it.
async fn write_reply(writer: &mut Writer, reader: &RefCell<Reader>, reply: Reply, style: &Style) -> Written {
    let Reply { mut response, mut permit, mut record, .. } = reply;
    let (tenure, late) = (response.tenure.take(), record.late(style.request));
    tokio::select! {
        biased;
        outcome = write_response(writer, response, style, &mut record) => match outcome {
            Ok(keep_alive) => return Written::Whole(keep_alive),
            Err((reason, detail)) => {
                record.broke(reason, detail);
                if reason == Reason::SlowCaller {
                    return Written::Stalled;
                }
            }
        },
        refusal = lapsed(permit.as_mut(), tenure.as_ref(), Some(late)) => record.refused(&refusal),
        () = gone(reader) => record.broke(Reason::CallerGone, "the caller went away"),
    }
    Written::Cut
}

async fn write_response(
    writer: &mut Writer,
    response: Response,
    style: &Style,
    record: &mut Record,
) -> Result<bool, (Reason, String)> {
    let mut body = response.body;
    let no_body = style.to_head || response.status == 204 || response.status == 304;
    let length = body.length();
    let chunked = length.is_none() && !style.http10 && !no_body;
    let until_close = length.is_none() && style.http10 && !no_body;
    let keep_alive = style.reusable && !until_close;
    let length = length.filter(|_| !no_body);
    let io = writer.watch();
    response_head(writer.gather(), response.status, response.fields.as_wire(), length, chunked, keep_alive);
    if no_body {
        in_time(style.take, &io, writer.flush()).await?;
        return Ok(keep_alive);
    }
    loop {
        // What is there already travels in one write with the head; only then it is worth waiting.
        let frame = {
            let mut next = std::pin::pin!(body.frame());
            match futures_util::poll!(&mut next) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    in_time(style.take, &io, writer.flush()).await?;
                    next.await
                }
            }
        };
        let frame = frame.map_err(|error| (Reason::UpstreamFailed, error.to_string()))?;
        if let Some(Frame::Data(data)) = &frame {
            record.sent(data.len());
        }
        in_time(style.take, &io, write_frame(writer, frame.as_ref(), chunked)).await?;
        if frame.is_none() || (body.is_end() && !chunked) {
            in_time(style.take, &io, writer.flush()).await?;
            return Ok(keep_alive);
        }
    }
}

/// A write that the caller takes in time.
async fn in_time(
    take: Duration,
    io: &SharedIo,
    write: impl Future<Output = std::io::Result<()>>,
) -> Result<(), (Reason, String)> {
    match in_steps(take, TAKEN, || io.taken(), write).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err((Reason::CallerGone, "the caller went away".to_owned())),
        Err(_) => Err((Reason::SlowCaller, "the caller stopped reading".to_owned())),
    }
}

/// The head after which the connection carries something else: 200 to CONNECT, or 101 with the protocol.
fn switching_head(response: &Response, protocol: Option<&str>) -> Vec<u8> {
    let mut head = Vec::new();
    response_head(&mut head, response.status, response.fields.as_wire(), None, false, true);
    if let Some(protocol) = protocol.filter(|_| response.status == 101) {
        head.truncate(head.len() - 2);
        head.extend_from_slice(format!("connection: upgrade\r\nupgrade: {protocol}\r\n\r\n").as_bytes());
    }
    head
}

fn response_head(head: &mut Vec<u8>, status: u16, fields: &[u8], length: Option<u64>, chunked: bool, keep_alive: bool) {
    let reason = http::StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason()).unwrap_or_default();
    head.reserve(128 + fields.len());
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(http::StatusCode::from_u16(status).as_ref().map_or("500", |code| code.as_str()).as_bytes());
    head.push(b' ');
    head.extend_from_slice(reason.as_bytes());
    head.extend_from_slice(b"\r\n");
    head.extend_from_slice(fields);
    if chunked {
        head.extend_from_slice(b"transfer-encoding: chunked\r\n");
    } else if let Some(length) = length {
        head.extend_from_slice(b"content-length: ");
        put_number(head, length);
        head.extend_from_slice(b"\r\n");
    }
    if !keep_alive {
        head.extend_from_slice(b"connection: close\r\n");
    }
    head.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::io::Transport;

    struct Nobody;

    impl Service for Nobody {
        async fn call(&self, _: Request) -> Reply {
            std::future::pending().await
        }

        fn refuse(&self, refusal: Refusal) -> Reply {
            panic!("nothing is refused: {refusal:?}")
        }

        async fn closing(&self) {
            std::future::pending().await
        }

        fn is_closing(&self) -> bool {
            false
        }
    }

    #[tokio::test]
    async fn a_connection_that_waits_takes_less_than_a_kilobyte() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (io, limits) = (SharedIo::new(Transport::Plain(stream)), Limits::default());
        let size = std::mem::size_of_val(&serve(io, BytesMut::new(), &Nobody, &limits));
        assert!(size < 1024, "{size} bytes");
    }
}
