//! The record of one request or opaque connection: written when it is dropped, whatever way it ended.

use std::{rc::Rc, time::Duration};

use outrider_policy::{Effect, Protocol, ServiceName};
use tokio::time::Instant;

use super::{Destination, Observer, Traced, Weight, observer::UnderWay};
use crate::{
    http::{Fields, Limits, RequestHead, grpc},
    identity::Peer,
    policy::{Denied, Verdict},
    refusal::{Blame, Reason, Refusal},
    upstream::Trail,
};

/// Room for the fields that an agent adds to a request.
const ONWARD: usize = 320;

/// Which agent of a call speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Beside the callee: it decides.
    Inbound = 0,
    /// Beside the caller.
    Outbound = 1,
}

impl Side {
    /// The word in log and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// A record under construction.
#[derive(Debug)]
pub struct Record {
    pub(super) observer: Rc<Observer>,
    pub(super) side: Side,
    started: Instant,
    /// What its head takes, if it counts among the requests under way.
    admitted: Option<usize>,
    pub(super) head: Option<Rc<RequestHead>>,
    id: String,
    pub(super) traced: Option<Traced>,
    pub(super) peer: Option<Rc<Peer>>,
    pub(super) destination: Option<Rc<Destination>>,
    pub(super) address: Option<std::net::SocketAddr>,
    pub(super) outside: Option<std::net::SocketAddr>,
    pub(super) verdict: Option<Verdict>,
    pub(super) status: u16,
    /// Until the head of the response.
    pub(super) answered: Option<Duration>,
    pub(super) refusal: Option<Refusal>,
    pub(super) broke: Option<(Reason, String)>,
    pub(super) sent: u64,
    pub(super) trail: Trail,
}

impl Record {
    /// Starts now. In a box: a record goes through many hands.
    pub fn new(observer: &Rc<Observer>, side: Side) -> Box<Self> {
        Box::new(Self {
            observer: observer.clone(),
            side,
            started: Instant::now(),
            admitted: None,
            head: None,
            id: String::new(),
            traced: None,
            peer: None,
            destination: None,
            address: None,
            outside: None,
            verdict: None,
            status: 0,
            answered: None,
            refusal: None,
            broke: None,
            sent: 0,
            trail: Trail::default(),
        })
    }

    /// The request; its id becomes the record's, and its trace goes on here.
    pub fn request(&mut self, head: &Rc<RequestHead>) {
        self.traced = Some(self.observer.sampler.begin(head.trace));
        self.head = Some(head.clone());
    }

    /// Counts it among the requests under way in this worker.
    ///
    /// # Errors
    /// When there are so many already, or their heads take so much.
    pub fn admit(&mut self, limits: &Limits) -> Result<(), Refusal> {
        let UnderWay { requests, bytes } = self.observer.under_way.get();
        let weight = self.head.as_ref().map_or(0, |head| head.weight());
        if requests >= limits.requests {
            return Err(Refusal::new(Reason::Overloaded, "too many requests under way"));
        }
        if bytes + weight > limits.worker_heads {
            return Err(Refusal::new(Reason::Overloaded, "the heads of the requests under way are too large"));
        }
        self.observer.under_way.set(UnderWay { requests: requests + 1, bytes: bytes + weight });
        self.admitted = Some(weight);
        Ok(())
    }

    /// The fields by which the next hop knows the request: its id, and its place in the trace.
    pub fn onward(&self) -> Fields {
        let mut fields = Fields::with_capacity(ONWARD);
        fields.append(b"x-request-id", self.id().as_bytes());
        if let Some(traced) = &self.traced {
            fields.append(b"traceparent", &traced.context.header());
        }
        fields
    }

    /// When it has taken too long: `limit` after it began, or when the time of its route or its caller's deadline is over.
    pub fn late(&self, limit: Duration) -> Instant {
        let end = self.started + limit;
        self.trail.until.map_or(end, |until| until.min(end))
    }

    /// An id for what has no request.
    pub fn set_id(&mut self, id: String) {
        self.id = id;
    }

    /// Id of the request or connection.
    pub fn id(&self) -> &str {
        self.head.as_ref().map_or(self.id.as_str(), |head| &head.id)
    }

    /// The other end of the mesh connection.
    pub fn peer(&mut self, peer: &Rc<Peer>) {
        self.peer = Some(peer.clone());
    }

    /// Where the caller is.
    pub fn address(&mut self, address: std::net::SocketAddr) {
        self.address = Some(address);
    }

    /// Where a connection out of the mesh goes.
    pub fn outside(&mut self, to: std::net::SocketAddr) {
        self.outside = Some(to);
    }

    /// What the call is for.
    pub fn destination(&mut self, service: &ServiceName, port: u16, protocol: Protocol) {
        self.destination = Some(self.observer.destination(self.side, service, port, protocol));
    }

    /// What the policy decided.
    pub fn verdict(&mut self, verdict: Verdict) {
        self.observer.metrics.decision(verdict.effect());
        self.verdict = Some(verdict);
    }

    /// The policy denied it; what it decided stays here.
    pub fn denied(&mut self, denied: Denied) -> Refusal {
        if let Some(verdict) = denied.verdict {
            self.verdict(verdict);
        }
        denied.refusal
    }

    /// Whether the answer goes to another agent of the mesh.
    pub fn is_for_an_agent(&self) -> bool {
        self.side == Side::Inbound && self.peer.as_ref().is_some_and(|peer| peer.id().is_some())
    }

    /// Whether the answer goes to a program that speaks gRPC. Agents tell each other the status of HTTP.
    pub fn is_for_grpc(&self) -> bool {
        !self.is_for_an_agent() && self.head.as_ref().is_some_and(|head| grpc::is_spoken(head))
    }

    /// Where to note how a call goes.
    pub fn trail(&mut self) -> &mut Trail {
        &mut self.trail
    }

    /// Status sent to the caller.
    pub fn status(&mut self, status: u16) {
        self.status = status;
        self.answered = Some(self.started.elapsed());
    }

    /// It was refused, at the start or under way.
    pub fn refused(&mut self, refusal: &Refusal) {
        if self.status == 0 {
            self.status = refusal.status();
        }
        self.refusal = Some(refusal.clone());
    }

    /// It broke off under way, for this reason.
    pub fn broke(&mut self, reason: Reason, detail: impl Into<String>) {
        self.broke.get_or_insert_with(|| (reason, detail.into()));
    }

    /// Bytes of the response's body went out.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// Reads the SPIFFE ID of the caller; empty when it proved none.
    pub(super) fn with_source<T>(&self, read: impl FnOnce(&str) -> T) -> T {
        match self.side {
            Side::Inbound => read(self.peer.as_ref().map(|peer| peer.name()).unwrap_or_default()),
            Side::Outbound => {
                let own = self.observer.svids.latest();
                read(own.as_ref().map(|svid| svid.leaf.id.as_str()).unwrap_or_default())
            }
        }
    }

    /// Why it was not served, or broke off.
    pub(super) fn reason(&self) -> Option<Reason> {
        self.refusal.as_ref().map(Refusal::reason).or(self.broke.as_ref().map(|(reason, _)| *reason))
    }

    /// What was decided. A call that a policy allowed and that failed afterwards was allowed.
    pub(super) fn effect(&self) -> Effect {
        let verdict = self.verdict.as_ref().map(Verdict::effect);
        refused(self.side, self.refusal.as_ref().map(Refusal::blame), verdict)
    }

    /// The rule that decided so: an allow rule does not explain why its permit was taken back.
    pub(super) fn rule(&self) -> &str {
        let decided = self.verdict.as_ref().filter(|verdict| verdict.effect() == self.effect());
        decided.map(Verdict::rule).unwrap_or_default()
    }

    fn weight(&self) -> Weight {
        let stranger = self.side == Side::Inbound && self.peer.is_none();
        let is_audited = self.verdict.as_ref().is_some_and(|verdict| verdict.audited().next().is_some());
        match (self.effect(), &self.refusal, &self.broke) {
            (Effect::Deny, ..) if !stranger => Weight::Denial,
            (Effect::Allow, None, None) if !is_audited => Weight::Served,
            _ => Weight::Failure,
        }
    }

    pub(super) fn detail(&self) -> &str {
        self.refusal.as_ref().map(Refusal::detail).or(self.broke.as_ref().map(|(_, detail)| detail.as_str())).unwrap_or_default()
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.started);
        if let Some(weight) = self.admitted {
            let UnderWay { requests, bytes } = self.observer.under_way.get();
            self.observer.under_way.set(UnderWay { requests: requests.saturating_sub(1), bytes: bytes.saturating_sub(weight) });
        }
        if std::thread::panicking() && self.refusal.is_none() {
            self.broke(Reason::InternalFault, "a fault of the agent itself: its log says which");
        }
        // Nobody waited for an answer any more.
        if self.head.is_some() && self.status == 0 && self.refusal.is_none() {
            let reason = if self.observer.drain.is_stopping() { Reason::Draining } else { Reason::CallerGone };
            self.broke(reason, "ended before there was an answer");
        }
        let recorded = self.traced.filter(|traced| traced.recorded);
        let series =
            self.destination.as_ref().map_or_else(|| self.observer.nowhere(self.side), |destination| &*destination.series);
        series.count(self.effect(), self.status, self.reason(), took, recorded.map(|traced| traced.context));
        self.observer.log.line(|out| self.write(out, now, took));
        self.observer.reports.offer(self.weight(), || self.report(took));
        if let Some(traced) = recorded {
            self.observer.spans.offer(|| self.span(&traced, took));
        }
    }
}

/// The effect of a call that ended with a refusal of this blame, after this verdict.
fn refused(side: Side, blame: Option<Blame>, verdict: Option<Effect>) -> Effect {
    match (blame, verdict) {
        (None, None | Some(Effect::Allow)) => Effect::Allow,
        (Some(Blame::Policy), _) | (_, Some(Effect::Deny)) => Effect::Deny,
        (Some(_), Some(Effect::Allow)) => Effect::Allow,
        // Nothing was decided: the callee's agent let nobody in, the caller's agent sends what it can.
        (Some(Blame::Upstream | Blame::Mesh), None) if side == Side::Outbound => Effect::Allow,
        (Some(_), None) => Effect::Deny,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_policy_or_nobody_allowed_is_called_denied() {
        for (side, blame, verdict, effect) in [
            (Side::Inbound, None, Some(Effect::Allow), Effect::Allow),
            (Side::Inbound, Some(Blame::Upstream), Some(Effect::Allow), Effect::Allow),
            (Side::Inbound, Some(Blame::Mesh), Some(Effect::Allow), Effect::Allow),
            (Side::Inbound, Some(Blame::Policy), Some(Effect::Deny), Effect::Deny),
            (Side::Inbound, Some(Blame::Policy), Some(Effect::Allow), Effect::Deny),
            (Side::Inbound, Some(Blame::Upstream), None, Effect::Deny),
            (Side::Inbound, Some(Blame::Caller), None, Effect::Deny),
            (Side::Outbound, None, None, Effect::Allow),
            (Side::Outbound, Some(Blame::Upstream), None, Effect::Allow),
            (Side::Outbound, Some(Blame::Policy), None, Effect::Deny),
            (Side::Outbound, Some(Blame::Caller), None, Effect::Deny),
        ] {
            assert_eq!(refused(side, blame, verdict), effect, "{side:?} {blame:?} {verdict:?}");
        }
    }
}
