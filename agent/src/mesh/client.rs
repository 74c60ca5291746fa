//! The caller's side of a connection: opens streams.

use std::{rc::Rc, task::Poll, time::Duration};

use outrider_runtime::Tasks;
use tokio::time::Instant;

use super::{
    body::{BodyReader, Upstream},
    dispatch::Role,
    driver::{Driver, Ended},
    duplex::Duplex,
    frame::{Code, Kind},
    head,
    link::{Link, Place},
    pump::Pump,
    stream::{Asked, Waiter},
    transport::Sealed,
    violation::Violation,
};
use crate::{
    alarm::within,
    http::{
        Body, Fields, Heads, Limits, RequestHead, Response, SharedIo, Transport,
        h1::{Framing, ParsedResponse, Switched},
    },
    refusal::{Reason, Refusal},
    tls::Tenure,
    upstream::StreamLease,
};

/// A connection on which nothing came for this long is asked whether it is still there.
const SILENCE: Duration = Duration::from_secs(20);
/// Bytes of a head that are not its fields, at most: host, length and the start line without the target.
const AROUND: usize = 512;
/// How long the answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// A connection without streams ends after this: before the callee's agent ends it.
const IDLE: Duration = Duration::from_secs(60);

/// A connection to another agent. Clones are the same connection; when the last is dropped it ends after its streams.
#[derive(Clone, Debug)]
pub struct MeshClient {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    link: Rc<Link>,
    tenure: Tenure,
    /// What the heads of all streams may take, so that the other agent need not refuse one.
    heads: Heads,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut link = self.link.state.borrow_mut();
        link.leaving = true;
        link.kick();
    }
}

/// What came of an exchange.
#[derive(Debug)]
pub enum Exchange {
    /// The upstream answered.
    Answered(Response),
    /// The other agent has not begun to act on it: another connection may be tried with the whole body.
    Unsent(Body, Refusal),
}

impl MeshClient {
    /// Takes over a connection on which the protocol was agreed; a task of its own drives it. `count` hears of the rule that the
    /// peer broke, if it did.
    ///
    /// # Errors
    /// When `io` is not a TLS connection of which this is the only handle.
    pub fn open(
        io: SharedIo,
        tenure: Tenure,
        limits: &Limits,
        tasks: &Tasks,
        count: impl FnOnce(Violation) + 'static,
    ) -> Result<Self, Refusal> {
        let sealed = Sealed::new(io).ok_or_else(|| Refusal::new(Reason::ConnectFailed, "not a connection of our own"))?;
        let link = Rc::new(Link::new(limits));
        tasks.spawn_scoped_local(drive(Driver::new(link.clone(), sealed), tenure.clone(), limits.clone(), count));
        Ok(Self { shared: Rc::new(Shared { link, tenure, heads: Heads::new(limits.heads / 4 * 3) }) })
    }

    /// Whether another exchange may start on it.
    pub fn is_usable(&self) -> bool {
        let link = self.shared.link.state.borrow();
        !link.leaving && !link.closed && !self.shared.tenure.is_over()
    }
}

/// Drives a connection until it has ended, or nobody uses it any more.
async fn drive(mut driver: Driver, tenure: Tenure, limits: Limits, count: impl FnOnce(Violation)) {
    let link = driver.link.clone();
    let mut timer = std::pin::pin!(tokio::time::sleep(SILENCE));
    let mut ended = std::pin::pin!(tenure.ended());
    let (mut heard, mut idle_since) = (0_u64, None);
    let end = std::future::poll_fn(|cx| {
        if let Poll::Ready(ended) = driver.poll(cx, &mut Role::Caller, &limits) {
            return Poll::Ready(Some(ended));
        }
        {
            let state = link.state.borrow();
            if state.leaving && state.streams.is_empty() && state.out.is_empty() {
                return Poll::Ready(None);
            }
        }
        if ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let mut state = link.state.borrow_mut();
            idle_since = Some(()).filter(|()| state.streams.is_empty()).map(|()| idle_since.unwrap_or(now));
            if idle_since.is_some_and(|since: Instant| now.duration_since(since) >= IDLE) {
                state.leaving = true;
                return Poll::Ready(None);
            }
            // Whatever arrives counts as a sign of life; a ping is sent only into silence.
            let wait = if driver.heard() != heard {
                heard = driver.heard();
                state.pinged = None;
                SILENCE
            } else if state.pinged.is_some() {
                return Poll::Ready(None);
            } else if state.streams.is_empty() {
                SILENCE
            } else {
                let word = fastrand::u64(..);
                state.pinged = Some(word);
                state.put(0, Kind::Ping, false, &word.to_be_bytes());
                ANSWER
            };
            timer.as_mut().reset(now + wait);
        }
        Poll::Pending
    })
    .await;
    if let Some(Ended::Broke(violation)) = end {
        tracing::warn!(%violation, "another agent broke the mesh protocol");
        count(violation);
        driver.leave(Code::Protocol);
    } else if end.is_none() {
        driver.leave(Code::Done);
    }
    let farewell = std::future::poll_fn(|cx| driver.poll_end(cx));
    let _ = tokio::time::timeout(Duration::from_secs(2), farewell).await;
    link.state.borrow_mut().close();
}

/// Sends a request and returns the response. `added` are fields of our own.
///
/// # Errors
/// `upstream_failed`, `upstream_timeout`.
pub async fn exchange(
    client: MeshClient,
    head: &RequestHead,
    added: &Fields,
    body: Body,
    lease: StreamLease,
    limits: &Limits,
) -> Result<Exchange, Refusal> {
    let link = &client.shared.link;
    if !head::fits(&head.fields, head.target.len() + head.host.len() + added.as_wire().len()) {
        return Err(Refusal::new(Reason::HeadTooLarge, "the head does not fit into a frame between agents"));
    }
    let weight = head.target.len() + head.fields.as_wire().len() + added.as_wire().len() + AROUND;
    let room = async {
        let head = std::future::poll_fn(|cx| client.shared.heads.poll_hold(cx, weight)).await;
        std::future::poll_fn(|cx| link.poll_open(cx)).await.map(|()| head)
    };
    let lease = match within(limits.connect, room).await {
        Ok(Ok(head)) => lease.holding(head),
        Ok(Err(gone)) => return Ok(Exchange::Unsent(body, failed(gone.0))),
        Err(_) => return Err(Refusal::new(Reason::Overloaded, "the other agent has as many requests under way as it takes")),
    };
    let without_body = body.is_end();
    let asked = Asked { to_head: head.method == http::Method::HEAD, upgrade: head.upgrade.clone() };
    // A request to switch protocols stays open: what follows are the other protocol's bytes.
    let ends = without_body && head.upgrade.is_none();
    let length = body.length();
    let place = Rc::new(link.open(asked, ends, |out| head::write_request(out, head, added, length)));
    let mut pump = if without_body { None } else { Some(Pump::start(place.clone(), body, limits.stall).await?) };
    // The time for an answer begins when the upstream has the whole request.
    let early = match pump.as_mut().and_then(|pump| pump.task.as_mut()) {
        None => None,
        Some(task) => tokio::select! {
            biased;
            answer = place.answer() => Some(answer),
            refused = task => match refused {
                Ok(Some(refusal)) => return Err(refusal),
                Ok(None) | Err(_) => None,
            },
        },
    };
    let answer = match early {
        Some(answer) => answer,
        None => tokio::select! {
            biased;
            answer = within(limits.response_head, place.answer()) => {
                answer.map_err(|_| Refusal::new(Reason::UpstreamTimeout, "no response in time"))?
            }
            refusal = client.shared.tenure.fallen() => return Err(refusal),
        },
    };
    let parsed = match answer {
        Ok(parsed) => parsed,
        // The other agent has not begun: whatever the method is, the request may be sent elsewhere.
        Err(Code::Refused) => {
            let body = match pump.take() {
                None => Some(Body::Empty),
                Some(pump) => pump.take_back().await,
            };
            return body.map(|body| Exchange::Unsent(body, failed(Code::Refused))).ok_or_else(|| failed(Code::Refused));
        }
        Err(code) => return Err(failed(code)),
    };
    pump.iter().for_each(Pump::answered);
    let tenure = Some(client.shared.tenure.clone());
    let ParsedResponse { status, fields, framing, switches, .. } = parsed;
    if switches {
        let io = SharedIo::new(Transport::Stream(Box::new(Duplex::new(place, Some(lease)))));
        let switched = Some(Box::new(Switched { io, already: bytes::BytesMut::new(), lease: None }));
        return Ok(Exchange::Answered(Response { status, fields, body: Body::Empty, tenure, switched }));
    }
    if head.upgrade.is_some() {
        // It stays HTTP: the request ends here.
        let _ = place.finish().await;
    }
    let is_end = place.stream.state.borrow().is_exhausted();
    let body = if is_end && pump.as_ref().is_none_or(Pump::is_finished) {
        Body::Empty
    } else {
        let length = match framing {
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::UntilClose => None,
        };
        Body::Mesh(Box::new(BodyReader::new(place, length, Some(Upstream { _lease: lease, _pump: pump }))))
    };
    Ok(Exchange::Answered(Response { status, fields, body, tenure, switched: None }))
}

fn failed(code: Code) -> Refusal {
    Refusal::new(Reason::UpstreamFailed, format!("the other agent gave the request up: {}", code.as_str()))
}

impl Place {
    /// The answer's head.
    async fn answer(&self) -> Result<ParsedResponse, Code> {
        std::future::poll_fn(|cx| {
            let mut state = self.stream.state.borrow_mut();
            if let Some(head) = state.head.take() {
                return Poll::Ready(Ok(head));
            }
            if let Some(code) = state.over() {
                return Poll::Ready(Err(code));
            }
            state.wait(Waiter::Reader, cx.waker());
            Poll::Pending
        })
        .await
    }
}
