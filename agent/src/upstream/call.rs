//! A call to a service in the mesh: an endpoint is chosen, tried, and where that is safe and the budget allows it another.

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    Upstreams,
    breaker::Held,
    deadline,
    fleet::{Chosen, Fleet},
    lease::StreamLease,
    outlier::Outcome,
    retry::{self, Failure, Known, Next, Sending},
};
use crate::{
    apart::apart,
    http::{Body, Fields, Frame, Request, RequestHead, Response},
    refusal::{Reason, Refusal},
    route::{self, Plan, ServiceEntry},
};

/// Bodies up to this size may be kept to be sent again, where a route wants retries.
const REPLAYED: u64 = 16 << 10;

/// How a call went, for the record. Filled in as it goes, so that a call that is given up half-way has one too.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    /// Tries so far.
    pub tries: u32,
    /// The last endpoint, `host:port`.
    pub endpoint: Option<Rc<str>>,
    /// When the time for the whole call is over, where a route or the caller gave it one.
    pub until: Option<Instant>,
}

/// Counts a call as failed if it is dropped before its end: whoever waited for it has given up.
struct Unfinished<'a> {
    upstreams: &'a Upstreams,
    over: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.upstreams.behind.failed();
        }
    }
}

impl Upstreams {
    /// Calls a service as a route says.
    pub(super) async fn call_by(
        self: &Rc<Self>,
        plan: &Plan,
        (service, port): (&Arc<ServiceEntry>, u16),
        request: Request,
        added: &Fields,
        trail: &mut Trail,
    ) -> Result<Response, Refusal> {
        let mut body = request.body;
        if !plan.mirrors.is_empty() {
            match whole(body, self.limits.stall).await? {
                Ok(bytes) => {
                    self.mirror(&plan.mirrors, &bytes, added);
                    body = if bytes.is_empty() { Body::Empty } else { Body::Full(bytes) };
                }
                // What is large, or has no length, is not copied.
                Err(streaming) => body = streaming,
            }
        }
        let request = Request { head: plan.head.clone(), body };
        let mut response = self.call(service, port, &plan.rule.sending, request, added, trail).await?;
        plan.rule.response.iter().for_each(|changes| route::change(&mut response.fields, changes));
        Ok(response)
    }

    /// Calls a port of a service.
    pub(super) async fn call(
        &self,
        service: &Arc<ServiceEntry>,
        port: u16,
        sending: &Sending,
        request: Request,
        added: &Fields,
        trail: &mut Trail,
    ) -> Result<Response, Refusal> {
        let fleet = self.fleet(service, port);
        let held = fleet.requests.begin(self.bounds.requests, "requests are under way at this service");
        let held = Rc::new(held.inspect_err(|_| self.behind.failed())?);
        let mut unfinished = Unfinished { upstreams: self, over: false };
        let given = deadline::given(&request.head);
        let timeout = sending.timeout.into_iter().chain(given).min();
        let mut request = request;
        if let Some(left) = timeout.filter(|_| given.is_some()) {
            let mut head = RequestHead::clone(&request.head);
            deadline::pass_on(&mut head.fields, left);
            request.head = Rc::new(head);
        }
        let outcome = match timeout {
            None => self.tries(&fleet, &held, sending, request, added, trail).await,
            Some(timeout) => {
                trail.until = Some(Instant::now() + timeout);
                let tries = self.tries(&fleet, &held, sending, request, added, trail);
                Box::pin(tokio::time::timeout(timeout, tries)).await.unwrap_or_else(|_| {
                    let whose = if given == Some(timeout) { "the caller's deadline" } else { "the route" };
                    Err(Refusal::new(Reason::UpstreamTimeout, format!("no response within the {timeout:?} of {whose}")))
                })
            }
        };
        unfinished.over = outcome.as_ref().is_ok_and(|response| response.status < 500);
        outcome
    }

    async fn tries(
        &self,
        fleet: &Fleet,
        held: &Rc<Held>,
        sending: &Sending,
        request: Request,
        added: &Fields,
        trail: &mut Trail,
    ) -> Result<Response, Refusal> {
        let Request { head, body } = request;
        let mut replay = Replay::new(body, sending, &head, self.limits.stall).await?;
        let mut tried: SmallVec<[Chosen; 4]> = SmallVec::new();
        let idempotent = head.method.is_idempotent();
        let mut now = self.now();
        fleet.request(now);
        loop {
            let chosen = fleet.choose(now, &tried, self.bounds.endpoint_requests)?;
            trail.tries += 1;
            trail.endpoint = Some(chosen.what.address.clone());
            tried.push(chosen.clone());
            let body = replay.take().ok_or_else(|| Refusal::new(Reason::UpstreamFailed, "the body is gone"))?;
            let stream = StreamLease::take(&chosen.load, Some(held.clone()));
            let outcome = self.attempt((fleet, &chosen), (sending, &mut now), (&head, added), (body, stream)).await;
            let known = Known { tries: trail.tries, idempotent, another: fleet.has_another(&tried) };
            let next = match &outcome {
                Ok(response) => sending.after_response(response, known),
                Err(failure) => sending.after_failure(failure, known),
            };
            let outcome = match outcome {
                Ok(mut response) => {
                    response.fields.remove(retry::FIELD);
                    Ok(response)
                }
                Err(Failure { refusal, unsent }) => {
                    replay.put_back(unsent.map(|body| *body));
                    Err(refusal)
                }
            };
            let pause = match next {
                _ if !replay.is_there() => None,
                Next::End => None,
                Next::Elsewhere => Some(Duration::ZERO),
                Next::Again(pause) => fleet.may_retry(now).then_some(pause),
            };
            let Some(pause) = pause else { return outcome };
            self.behind.retried();
            if !pause.is_zero() {
                Box::pin(tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64()))).await;
                now = self.now();
            }
        }
    }

    /// One try at one endpoint, begun `now`, and what it says about the endpoint. Afterwards `now` is its end: the clock is read
    /// once for each try.
    async fn attempt(
        &self,
        (fleet, chosen): (&Fleet, &Chosen),
        (sending, now): (&Sending, &mut Duration),
        (head, added): (&Rc<RequestHead>, &Fields),
        (body, stream): (Body, StreamLease),
    ) -> Result<Response, Failure> {
        let (began, connects) = (*now, self.fleets.connects.get());
        let stop = &chosen.what;
        let to = (&stop.slot, &stop.endpoint);
        let outcome = match sending.try_timeout {
            None => apart(self.exchange_mesh(to, head, added, body, stream)).await,
            Some(timeout) => {
                let exchange = self.exchange_mesh(to, head, added, body, stream);
                Box::pin(tokio::time::timeout(timeout, exchange)).await.unwrap_or_else(|_| {
                    let late = format!("no response within the {timeout:?} of a try");
                    Err(Failure::sent(Refusal::new(Reason::UpstreamTimeout, late)))
                })
            }
        };
        *now = self.now();
        let (now, took) = (*now, now.saturating_sub(began));
        match &outcome {
            Ok(response) => {
                let own_fault = response.status >= 500 && response.fields.single(retry::FIELD) != Some(retry::FURTHER_DOWN);
                // Failing is quick: it must not look like a quick endpoint. And handshakes say nothing about answers.
                if !own_fault && self.fleets.connects.get() == connects {
                    chosen.answered(now, took);
                }
                fleet.note(chosen, if own_fault { Outcome::Failed } else { Outcome::Served }, now);
            }
            Err(failure) if failure.is_endpoints() => {
                // What does not answer must not look quick.
                chosen.answered(now, took.max(Duration::from_millis(100)));
                fleet.note(chosen, Outcome::Failed, now);
            }
            Err(_) => {}
        }
        outcome
    }
}

/// All of a small body; the body itself when it is larger, or nobody knows how long it is.
async fn whole(mut body: Body, stall: Duration) -> Result<Result<Bytes, Body>, Refusal> {
    if body.length().is_none_or(|length| length > REPLAYED) {
        return Ok(Err(body));
    }
    let mut whole = BytesMut::new();
    loop {
        let frame = tokio::time::timeout(stall, body.frame()).await;
        let frame = frame.map_err(|_| Refusal::new(Reason::Malformed, "the body stopped arriving"))?;
        match frame.map_err(|error| Refusal::caused(Reason::Malformed, &error))? {
            Some(Frame::Data(data)) => whole.extend_from_slice(&data),
            // Trailers of a request end here: they are sent with bodies that stream.
            Some(Frame::Trailers(_)) | None => return Ok(Ok(whole.freeze())),
        }
    }
}

/// A body that may have to be sent again.
enum Replay {
    /// All of it is here.
    Whole(Bytes),
    /// It comes as it comes, and goes once.
    Once(Option<Body>),
}

impl Replay {
    /// Reads a small body whole where it may be wanted again.
    async fn new(body: Body, sending: &Sending, head: &RequestHead, stall: Duration) -> Result<Self, Refusal> {
        if body.is_end() {
            return Ok(Self::Whole(Bytes::new()));
        }
        if head.upgrade.is_some() || sending.codes.is_empty() {
            return Ok(Self::Once(Some(body)));
        }
        Ok(match Box::pin(whole(body, stall)).await? {
            Ok(bytes) => Self::Whole(bytes),
            Err(streaming) => Self::Once(Some(streaming)),
        })
    }

    fn take(&mut self) -> Option<Body> {
        match self {
            Self::Whole(bytes) if bytes.is_empty() => Some(Body::Empty),
            Self::Whole(bytes) => Some(Body::Full(bytes.clone())),
            Self::Once(body) => body.take(),
        }
    }

    fn put_back(&mut self, unsent: Option<Body>) {
        if let (Self::Once(body), Some(unsent)) = (self, unsent) {
            *body = Some(unsent);
        }
    }

    fn is_there(&self) -> bool {
        match self {
            Self::Whole(_) => true,
            Self::Once(body) => body.is_some(),
        }
    }
}
