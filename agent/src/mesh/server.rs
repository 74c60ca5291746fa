//! The callee's side of a connection: each stream that the peer opens is one request.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    body::BodyReader,
    dispatch::{Opened, Role, Serving},
    driver::{Driver, Ended},
    duplex::Duplex,
    frame::Code,
    head,
    link::{Gone, Link, Place},
    pump::{Unsent, copy},
    running::{Inbox, Running},
    transport::Sealed,
    violation::Violation,
};
use crate::{
    alarm::{self, within},
    apart::apart,
    http::{Body, BodyError, Heads, Limits, Meter, Reply, Request, Service, SharedIo, Transport, h1::Framing},
    policy::lapsed,
    refusal::{Reason, Refusal},
};

/// How long streams may go on once the connection is closing.
const LINGER: Duration = Duration::from_secs(30);
/// How long rooms for streams are kept that nobody needs.
const TIDY: Duration = Duration::from_secs(1);
/// How long the goodbye may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves one connection to its end; `count` hears of the rule that the peer broke, if it did.
pub async fn serve<S: Service + 'static>(io: SharedIo, service: Rc<S>, limits: &Limits, count: impl FnOnce(Violation)) {
    let Some(sealed) = Sealed::new(io) else { return };
    let link = Rc::new(Link::new(limits));
    let mut driver = Driver::new(link.clone(), sealed);
    let (end, bounds) = (limits.connection_end(), Rc::new(limits.clone()));
    let running = Running::new(|inbox: Inbox<Opened>| {
        let (service, bounds) = (service.clone(), bounds.clone());
        async move {
            loop {
                let opened = inbox.next().await;
                apart(stream(&*service, opened, &bounds)).await;
            }
        }
    });
    let mut streams = Streams { running, heads: Heads::new(limits.heads), tidy: None };
    let mut role = Role::Callee(&mut streams);
    // Of a connection without streams, and later of one that is closing.
    let mut deadline = std::pin::pin!(tokio::time::sleep(limits.idle));
    let (mut closing, mut last) = (false, 0);
    let violation = loop {
        let ended = tokio::select! {
            biased;
            ended = poll(&mut driver, &mut role, limits, &link, closing) => ended,
            () = leaving(&*service, end), if !closing => {
                closing = true;
                deadline.as_mut().reset(Instant::now() + LINGER);
                driver.leave(Code::Done);
                continue;
            }
            () = &mut deadline => {
                let state = link.state.borrow();
                if closing {
                    break None;
                }
                closing = state.streams.is_empty() && state.last == last;
                last = state.last;
                drop(state);
                deadline.as_mut().reset(Instant::now() + if closing { FAREWELL } else { limits.idle });
                if closing {
                    driver.leave(Code::Done);
                }
                continue;
            }
        };
        match ended {
            Some(Ended::Broke(violation)) => break Some(violation),
            Some(Ended::Gone) | None => break None,
        }
    };
    if let Some(violation) = violation {
        tracing::warn!(%violation, "another agent broke the mesh protocol");
        count(violation);
        // Its record says what the peer did.
        let reason = if violation == Violation::Flood { Reason::ControlFlood } else { Reason::Malformed };
        drop(service.refuse(Refusal::new(reason, format!("mesh protocol: {violation}"))));
        driver.leave(Code::Protocol);
    }
    let _ = tokio::time::timeout(FAREWELL, std::future::poll_fn(|cx| driver.poll_end(cx))).await;
    link.state.borrow_mut().close();
    // They see that the connection has ended, and write their records.
    let ended = std::future::poll_fn(|cx| {
        streams.run(cx);
        if streams.running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    });
    let _ = tokio::time::timeout(LINGER, ended).await;
}

/// The streams of a connection.
struct Streams<B, F> {
    running: Running<Opened, B, F>,
    heads: Heads,
    /// When rooms are given back.
    tidy: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl<B: FnMut(Inbox<Opened>) -> F, F: Future<Output = ()>> Serving for Streams<B, F> {
    fn heads(&self) -> &Heads {
        &self.heads
    }

    fn open(&mut self, opened: Opened) {
        self.running.start(opened);
    }

    fn run(&mut self, cx: &mut Context<'_>) {
        self.running.run(cx);
        if self.running.is_roomy() {
            let tidy = self.tidy.get_or_insert_with(|| Box::pin(alarm::at(alarm::instant() + TIDY)));
            if tidy.as_mut().poll(cx).is_ready() {
                self.tidy = None;
                self.running.tidy();
            }
        }
    }
}

/// Ends when a connection should take no more streams.
async fn leaving(service: &impl Service, end: Instant) {
    tokio::select! {
        () = service.closing() => {}
        () = alarm::at(end) => {}
    }
}

/// Drives the connection; `None` when it is closing and nothing is left to do.
async fn poll(driver: &mut Driver, role: &mut Role<'_>, limits: &Limits, link: &Link, closing: bool) -> Option<Ended> {
    // A little later than the streams on it, whose records say why they ended.
    let patience = limits.take + FAREWELL;
    let mut stuck = std::pin::pin!(tokio::time::sleep(patience));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(ended) = driver.poll(cx, role, limits) {
            return Poll::Ready(Some(ended));
        }
        if let Some(since) = driver.sealed.stuck() {
            if stuck.deadline() != since + patience {
                stuck.as_mut().reset(since + patience);
            }
            if stuck.as_mut().poll(cx).is_ready() {
                driver.sealed.reset();
                return Poll::Ready(Some(Ended::Gone));
            }
        }
        let state = link.state.borrow();
        if closing && state.streams.is_empty() && state.out.is_empty() { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// Serves one stream.
async fn stream(service: &impl Service, opened: Opened, limits: &Limits) {
    // The head is held until the end.
    let Opened { place, parsed, end, held: _held } = opened;
    let place = Rc::new(place);
    let mut to_head = false;
    let mut upgrade = None;
    let admitted = parsed.and_then(|parsed| {
        if matches!(parsed.framing, Framing::Length(length) if length > limits.body_bytes as u64) {
            return Err(BodyError::TooLarge.refusal());
        }
        let mut head = parsed.parts.normalize()?;
        head.upgrade = parsed.upgrade;
        Ok((head, parsed.length))
    });
    let reply = match admitted {
        Err(refusal) => service.refuse(refusal),
        Ok((head, length)) => {
            to_head = head.method == http::Method::HEAD;
            upgrade.clone_from(&head.upgrade);
            // A request to switch protocols has no body: what follows are the other protocol's bytes.
            let body = if end || head.upgrade.is_some() {
                Body::Empty
            } else {
                let kind = head.fields.single("content-type");
                let is_grpc = kind.is_some_and(|kind| kind.starts_with(b"application/grpc"));
                Body::Mesh(Box::new(BodyReader::new(place.clone(), length, None).metered(Meter::new(limits, is_grpc))))
            };
            let request = Request { head: Rc::new(head), body };
            tokio::select! {
                biased;
                reply = apart(service.call(request)) => reply,
                _ = place.given_up() => return,
            }
        }
    };
    answer(&place, reply, to_head, upgrade.as_deref(), limits).await;
    place.link.state.borrow_mut().budget.answered();
}

/// Sends a response, for as long as it is permitted and there is somebody to take it.
async fn answer(place: &Rc<Place>, reply: Reply, to_head: bool, upgrade: Option<&str>, limits: &Limits) {
    let Reply { mut response, mut permit, mut record, tunnel } = reply;
    if !head::fits(&response.fields, 0) {
        record.broke(Reason::UpstreamFailed, "the head of the answer does not fit into a frame between agents");
        return place.fail(Code::Broken);
    }
    let (mut body, tenure, late) = (response.body, response.tenure.take(), record.late(limits.request));
    let no_body = to_head || matches!(response.status, 204 | 304);
    let ends = tunnel.is_none() && (no_body || body.is_end());
    let length = body.length().filter(|_| !no_body && tunnel.is_none());
    let protocol = upgrade.filter(|_| tunnel.is_some());
    let head = |out: &mut Vec<u8>| head::write_response(out, response.status, &response.fields, length, protocol);
    let sent = std::future::poll_fn(|cx| place.link.poll_head(cx, &place.stream, ends, head));
    match within(limits.take, sent).await {
        Ok(Ok(())) => {}
        Ok(Err(Gone(_))) => return record.broke(Reason::CallerGone, "the caller went away"),
        Err(_) => return record.broke(Reason::SlowCaller, "the caller stopped reading"),
    }
    if let Some(tunnel) = tunnel {
        let near = SharedIo::new(Transport::Stream(Box::new(Duplex::new(place.clone(), None))));
        return tunnel.relay(near, bytes::BytesMut::new(), record).await;
    }
    if ends {
        return;
    }
    let outcome = tokio::select! {
        biased;
        copied = copy(place, &mut body, limits.take, |frame| record.sent(frame.data_len())) => copied.map_err(Err),
        refusal = lapsed(permit.as_mut(), tenure.as_ref(), Some(late)) => Err(Ok(refusal)),
        // The program may be silent for long: it is told at once that nobody listens any more.
        code = place.given_up() => Err(Err(Unsent::Sink(code))),
    };
    match outcome {
        Ok(()) => {}
        Err(Ok(refusal)) => {
            record.refused(&refusal);
            place.fail(Code::Cancelled);
        }
        Err(Err(Unsent::Source(reason, text))) => {
            record.broke(reason, text);
            place.fail(Code::Broken);
        }
        Err(Err(Unsent::Bounded(refusal))) => {
            record.broke(refusal.reason(), refusal.detail());
            place.fail(Code::Broken);
        }
        Err(Err(Unsent::Sink(code))) => {
            record.broke(Reason::CallerGone, format!("the caller gave the request up: {}", code.as_str()))
        }
    }
}
