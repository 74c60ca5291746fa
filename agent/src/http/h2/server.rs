//! The server's side of an HTTP/2 connection.

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{RecvStream, SendStream, server::SendResponse};
use outrider_runtime::Tasks;
use tokio::{io::AsyncReadExt as _, time::Instant};

use super::{
    BodyReader, WINDOW, as_map,
    flood::{Flood, Guarded},
    gathered::Gathered,
    head::{HeadFields, malformed},
    websocket,
};
use crate::{
    alarm,
    apart::apart,
    http::{
        Body, BodyError, Frame, Heads, Limits, Meter, Reply, Request, Service, SharedIo, Version,
        heads::FIELD,
        limits::TAKEN,
        normalize::{Host, RequestParts},
    },
    policy::lapsed,
    refusal::{Reason, Refusal},
    telemetry::Record,
    turn::{Pause, TURN},
};

/// How long streams may go on once the connection is closing.
const LINGER: Duration = Duration::from_secs(30);
/// How long a connection without streams has to say goodbye.
const FAREWELL: Duration = Duration::from_secs(2);
/// Bytes of an answer that wait on each stream until the connection takes them: its peer may open all windows and read nothing.
const UNSENT: usize = 32 << 10;
/// Bytes of a flood that are read and dropped while its sender is told to go.
const DISCARD: usize = 1 << 20;
/// Bytes of a head that count as one more stream of a turn.
const LARGE: usize = 4 << 10;

type Transport = Gathered<Guarded<SharedIo>>;
type Connection = h2::server::Connection<Transport, Bytes>;

/// A stream, and what its head weighs.
type Incoming = (http::Request<RecvStream>, SendResponse<Bytes>, usize);

/// Serves one connection to its end.
pub async fn serve<S: Service + 'static>(io: SharedIo, service: Rc<S>, limits: &Limits, tasks: &Tasks) {
    let near = io.clone();
    let (io, flood) = Guarded::new(io, limits);
    let io = Gathered::new(io);
    let handshake = h2::server::Builder::new()
        .enable_connect_protocol()
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(UNSENT)
        .max_pending_accept_reset_streams(20)
        .max_concurrent_reset_streams(50)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake::<_, Bytes>(io.clone());
    let mut connection = match tokio::time::timeout(limits.handshake, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return broke_the_rules(&*service, &error),
        Err(_) => return,
    };
    let open = Rc::new(());
    let mut closing = false;
    let end = limits.connection_end();
    // Of a connection without streams, and later of one that is closing.
    let mut deadline = std::pin::pin!(tokio::time::sleep(limits.idle));
    let mut last = Instant::now();
    let mut leaving = std::pin::pin!(leaving(&*service, end));
    let mut head_stalls = std::pin::pin!(flood.head_stalls(limits.head_read));
    // A little later than the streams on it, whose records say why they ended.
    let mut write_stalls = std::pin::pin!(flood.write_stalls(limits.take + FAREWELL));
    let mut exhausted = std::pin::pin!(flood.exhausted());
    let (bounds, turn) = (Rc::new(limits.clone()), RefCell::<Turn>::default());
    let heads = Heads::new(limits.heads);
    let tell_rest = || flood.unseen().rest().into_iter().for_each(|refusal| drop(service.refuse(refusal)));
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = accept(&mut connection, &io, &flood, &turn) => accepted,
            () = &mut leaving, if !closing => {
                closing = true;
                let idle = Rc::strong_count(&open) == 1;
                deadline.as_mut().reset(Instant::now() + if idle { FAREWELL } else { LINGER });
                connection.graceful_shutdown();
                continue;
            }
            () = &mut head_stalls => return tell_rest(),
            () = &mut write_stalls => {
                near.reset();
                return tell_rest();
            }
            why = &mut exhausted => {
                drop(service.refuse(Refusal::new(Reason::ControlFlood, why)));
                connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                let _ = tokio::time::timeout(FAREWELL, std::future::poll_fn(|cx| connection.poll_closed(cx))).await;
                tell_rest();
                let _ = tokio::time::timeout(FAREWELL, discard(near)).await;
                return;
            }
            () = &mut deadline => {
                if closing {
                    return tell_rest();
                }
                if last.elapsed() < limits.idle {
                    deadline.as_mut().reset(last + limits.idle);
                    continue;
                }
                let idle = Rc::strong_count(&open) == 1;
                closing = idle;
                deadline.as_mut().reset(Instant::now() + if idle { FAREWELL } else { limits.idle });
                if idle {
                    connection.graceful_shutdown();
                }
                continue;
            }
            // After streams were taken, and after all that ends a connection: there may be many of them.
            refusals = refused(&flood, &turn) => {
                for refusal in refusals {
                    match refusal.reason() {
                        Reason::Malformed => flood.reset(),
                        Reason::HeadTooLarge => flood.too_large(),
                        _ => {}
                    }
                    drop(service.refuse(refusal));
                }
                continue;
            }
        };
        match accepted {
            Some(Ok((request, mut respond, weight))) => {
                last = alarm::instant();
                let Some(head) = heads.hold(weight) else {
                    // The caller may send it again.
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                    flood.refused();
                    continue;
                };
                flood.unseen().taken(request.body().stream_id().into());
                if closing {
                    deadline.as_mut().reset(last + LINGER);
                }
                let (service, held, flood, limits) = (service.clone(), open.clone(), flood.clone(), bounds.clone());
                tasks.spawn_scoped_local(async move {
                    match stream(&*service, request, respond, &limits).await {
                        Some(()) => flood.answered(),
                        None => flood.reset(),
                    }
                    drop((held, head));
                });
            }
            Some(Err(error)) => {
                tell_rest();
                return broke_the_rules(&*service, &error);
            }
            None => return tell_rest(),
        }
    }
}

/// Records why a connection ended, if the library ended it: no stream tells of frames that are none of HTTP/2.
fn broke_the_rules(service: &impl Service, error: &h2::Error) {
    if error.is_library() {
        let is_flood = error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
        let reason = if is_flood { Reason::ControlFlood } else { Reason::Malformed };
        drop(service.refuse(Refusal::new(reason, format!("connection of HTTP/2: {error}"))));
    }
}

/// A connection's turn among those of its worker.
#[derive(Debug, Default)]
struct Turn {
    taken: usize,
    pause: Pause,
}

/// The next stream. What has arrived is read as its heads are taken, and no faster; what is to be sent leaves when there is no other.
async fn accept(
    connection: &mut Connection,
    io: &Transport,
    flood: &Flood,
    turn: &RefCell<Turn>,
) -> Option<Result<Incoming, h2::Error>> {
    std::future::poll_fn(|cx| {
        let accepted = turn.borrow_mut().poll_accept(connection, flood, cx);
        if accepted.is_pending() {
            io.send(cx);
        }
        accepted
    })
    .await
}

impl Turn {
    fn poll_accept(
        &mut self,
        connection: &mut Connection,
        flood: &Flood,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Incoming, h2::Error>>> {
        if self.pause.lasts(cx) {
            return Poll::Pending;
        }
        let Poll::Ready(accepted) = connection.poll_accept(cx) else {
            // What the library refuses by itself it would refuse without an end; and when there are many, it is their turn now.
            if flood.all_taken() && !flood.unseen().has_many() {
                self.pause.begin(cx);
            }
            return Poll::Pending;
        };
        flood.taken();
        Poll::Ready(accepted.map(|accepted| {
            let (request, respond) = accepted?;
            let weight = weight(&request);
            self.taken += 1 + weight / LARGE;
            if self.taken >= TURN {
                self.taken = 0;
                self.pause.begin(cx);
            }
            Ok((request, respond, weight))
        }))
    }
}

/// Refusals of the library, a turn of them at a time.
async fn refused(flood: &Flood, turn: &RefCell<Turn>) -> Vec<Refusal> {
    let mut refused = std::pin::pin!(flood.unseen().refused());
    std::future::poll_fn(|cx| {
        let turn = &mut *turn.borrow_mut();
        if turn.pause.lasts(cx) {
            return Poll::Pending;
        }
        let refused = refused.as_mut().poll(cx);
        if refused.is_ready() {
            turn.pause.begin(cx);
        }
        refused
    })
    .await
}

/// Bytes that a request's head takes.
fn weight(request: &http::Request<RecvStream>) -> usize {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD).sum::<usize>();
    let uri = request.uri();
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    fields + target + uri.authority().map_or(0, |authority| authority.as_str().len())
}

/// Ends when a connection should take no more streams.
async fn leaving(service: &impl Service, end: Instant) {
    tokio::select! {
        () = service.closing() => {}
        () = alarm::at(end) => {}
    }
}

/// Reads and drops what still comes: closing while the peer writes would take our last words from it.
async fn discard(mut io: SharedIo) {
    let mut left = DISCARD;
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = io.read(&mut piece).await
        && left > 0
    {
        left = left.saturating_sub(count);
    }
}

/// Serves one stream. `None` when the caller reset it: then what was done for it is dropped.
async fn stream(
    service: &impl Service,
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    limits: &Limits,
) -> Option<()> {
    let to_head = request.method() == http::Method::HEAD;
    let (request, switching) = match admit(request, limits) {
        Ok(admitted) => admitted,
        Err(refusal) => return send(service.refuse(refusal), respond, to_head, limits).await,
    };
    let reply = tokio::select! {
        biased;
        reply = apart(service.call(request)) => reply,
        _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => return None,
    };
    match switching {
        Some(caller) => caller.answer(reply, respond, limits).await,
        None => send(reply, respond, to_head, limits).await,
    }
}

fn admit(request: http::Request<RecvStream>, limits: &Limits) -> Result<(Request, Option<websocket::Caller>), Refusal> {
    let (head, stream) = request.into_parts();
    if head.headers.len() > limits.fields {
        return Err(Refusal::new(Reason::HeadTooLarge, "too many header fields"));
    }
    let protocol = head.extensions.get::<h2::ext::Protocol>().map(h2::ext::Protocol::as_str);
    let switches = head.method == http::Method::CONNECT && protocol == Some(websocket::PROTOCOL);
    if head.method == http::Method::CONNECT && !switches {
        return Err(Refusal::new(Reason::MethodNotServed, "connect over HTTP/2"));
    }
    // The h2 crate has no scheme for us where there is no `:authority`.
    if !matches!(head.uri.scheme_str(), None | Some("http" | "https")) {
        return Err(malformed("scheme is neither http nor https"));
    }
    let HeadFields { mut fields, host, length } = HeadFields::read(&head.headers)?;
    let target = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = Host::authority(authority, host);
    let is_grpc = fields.single("content-type").is_some_and(|kind| kind.starts_with(b"application/grpc"));
    let (mut switching, mut stream) = (None, Some(stream));
    if switches {
        switching = stream.take().map(|stream| websocket::Caller::new(stream, &mut fields));
    }
    let method = if switches { "GET" } else { head.method.as_str() };
    let parts = RequestParts::new(method.as_bytes(), target.as_bytes(), host, fields, Version::Http2)?;
    let mut head = parts.normalize()?;
    head.upgrade = switches.then(|| websocket::PROTOCOL.into());
    let head = Rc::new(head);
    if length.is_some_and(|length| length > limits.body_bytes as u64) {
        return Err(BodyError::TooLarge.refusal());
    }
    let meter = || Meter::new(limits, is_grpc);
    let body = match stream.filter(|stream| !stream.is_end_stream()) {
        None => Body::Empty,
        Some(stream) => Body::H2(Box::new(BodyReader::new(stream, length, None).metered(meter()))),
    };
    Ok((Request { head, body }, switching))
}

/// Sends a response, for as long as it is permitted and there is somebody to take it. `None` when the caller reset the stream.
pub(super) async fn send(reply: Reply, mut respond: SendResponse<Bytes>, to_head: bool, limits: &Limits) -> Option<()> {
    let Reply { response, mut permit, mut record, .. } = reply;
    let (mut body, tenure, late) = (response.body, response.tenure, record.late(limits.request));
    let (Ok(status), Ok(mut fields)) = (http::StatusCode::from_u16(response.status), as_map(&[&response.fields])) else {
        record.broke(Reason::UpstreamFailed, "the response cannot be written in HTTP/2");
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
        return Some(());
    };
    let no_body = to_head || matches!(response.status, 204 | 304);
    if let Some(length) = body.length().filter(|_| !no_body) {
        fields.insert(http::header::CONTENT_LENGTH, length.into());
    }
    let mut head = http::Response::new(());
    *head.status_mut() = status;
    *head.headers_mut() = fields;
    let ends = no_body || body.is_end();
    let mut stream = match respond.send_response(head, ends) {
        Ok(_) if ends => return Some(()),
        Ok(stream) => stream,
        Err(error) => {
            record.broke(Reason::CallerGone, error.to_string());
            return Some(());
        }
    };
    let outcome = tokio::select! {
        biased;
        copied = copy(&mut body, &mut stream, &mut record, limits.take) => copied.map_err(Err),
        refusal = lapsed(permit.as_mut(), tenure.as_ref(), Some(late)) => Err(Ok(refusal)),
    };
    match outcome {
        Ok(()) => Some(()),
        Err(Ok(refusal)) => {
            record.refused(&refusal);
            stream.send_reset(h2::Reason::CANCEL);
            Some(())
        }
        Err(Err(broken)) => {
            record.broke(broken.reason, broken.text);
            stream.send_reset(h2::Reason::INTERNAL_ERROR);
            (!broken.by_caller).then_some(())
        }
    }
}

/// Why a response's body was not sent whole.
struct Broken {
    text: String,
    reason: Reason,
    by_caller: bool,
}

impl Broken {
    fn upstream(error: impl ToString) -> Self {
        Self { text: error.to_string(), reason: Reason::UpstreamFailed, by_caller: false }
    }

    fn caller(error: impl ToString) -> Self {
        Self { text: error.to_string(), reason: Reason::CallerGone, by_caller: true }
    }

    fn slow() -> Self {
        Self { text: "the caller stopped reading".to_owned(), reason: Reason::SlowCaller, by_caller: false }
    }
}

async fn copy(body: &mut Body, stream: &mut SendStream<Bytes>, record: &mut Record, take: Duration) -> Result<(), Broken> {
    loop {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame.map_err(Broken::upstream)?,
            reset = std::future::poll_fn(|cx| stream.poll_reset(cx)) => {
                let reason = reset.map_or_else(|error| error.to_string(), |reason| reason.to_string());
                return Err(Broken::caller(format!("the caller reset the stream: {reason}")));
            }
        };
        match frame {
            Some(Frame::Data(mut data)) => {
                record.sent(data.len());
                // The time is for a piece: who takes a large frame slowly takes it nevertheless.
                while data.len() > TAKEN {
                    in_time(take, send_data(stream, data.split_to(TAKEN), false)).await?;
                }
                if in_time(take, send_data(stream, data, body.is_end())).await? {
                    return Ok(());
                }
            }
            Some(Frame::Trailers(fields)) => {
                let fields = as_map(&[&fields]).map_err(Broken::upstream)?;
                return stream.send_trailers(fields).map_err(Broken::caller);
            }
            None => return stream.send_data(Bytes::new(), true).map_err(Broken::caller),
        }
    }
}

/// What the caller takes in time.
async fn in_time(take: Duration, sending: impl Future<Output = Result<bool, String>>) -> Result<bool, Broken> {
    alarm::within(take, sending).await.map_err(|_| Broken::slow())?.map_err(Broken::caller)
}

/// Sends within the peer's window. Returns whether the stream has ended.
pub(super) async fn send_data(stream: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<bool, String> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        // A reset wakes this too, with an error or with nothing.
        let capacity = match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(Ok(capacity)) => capacity,
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("the stream is closed".to_owned()),
        };
        let piece = data.split_to(capacity.min(data.len()));
        let last = data.is_empty() && end;
        stream.send_data(piece, last).map_err(|error| error.to_string())?;
    }
    Ok(end)
}
