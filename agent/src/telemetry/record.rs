//! The record of one request or opaque connection: written when it is dropped, whatever way it ended.

use std::{
    rc::Rc,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use outrider_policy::{Effect, Protocol, ServiceName};
use outrider_proto::v1::{DecisionRecord, HeaderValue, Protocol as WireProtocol, Side as WireSide};
use tokio::time::Instant;

use super::{AccessLog, Metrics, ReportQueue, Weight, json::Object};
use crate::{
    http::RequestHead,
    identity::{Peer, Svids},
    policy::{Denied, Verdict},
    refusal::{Blame, Reason, Refusal},
    upstream::Trail,
};

/// Which agent of a call speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// Where one worker's records go.
#[derive(Debug)]
pub struct Observer {
    /// Access log.
    pub log: AccessLog,
    /// Metrics.
    pub metrics: Metrics,
    /// Reports to the control plane.
    pub reports: ReportQueue,
    /// This agent's own certificate.
    pub svids: Arc<Svids>,
}

/// A record under construction.
#[derive(Debug)]
pub struct Record {
    observer: Rc<Observer>,
    side: Side,
    started: Instant,
    head: Option<Rc<RequestHead>>,
    id: String,
    peer: Option<Rc<Peer>>,
    destination: Option<(ServiceName, u16, Protocol)>,
    address: Option<std::net::SocketAddr>,
    verdict: Option<Verdict>,
    status: u16,
    refusal: Option<Refusal>,
    broke: Option<String>,
    sent: u64,
    trail: Trail,
}

impl Record {
    /// Starts now.
    pub fn new(observer: &Rc<Observer>, side: Side) -> Self {
        Self {
            observer: observer.clone(),
            side,
            started: Instant::now(),
            head: None,
            id: String::new(),
            peer: None,
            destination: None,
            address: None,
            verdict: None,
            status: 0,
            refusal: None,
            broke: None,
            sent: 0,
            trail: Trail::default(),
        }
    }

    /// The request; its id becomes the record's.
    pub fn request(&mut self, head: &Rc<RequestHead>) {
        self.head = Some(head.clone());
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

    /// What the call is for.
    pub fn destination(&mut self, service: &ServiceName, port: u16, protocol: Protocol) {
        self.destination = Some((service.clone(), port, protocol));
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

    /// Where to note how a call goes.
    pub fn trail(&mut self) -> &mut Trail {
        &mut self.trail
    }

    /// Status sent to the caller.
    pub fn status(&mut self, status: u16) {
        self.status = status;
    }

    /// It was refused, at the start or under way.
    pub fn refused(&mut self, refusal: &Refusal) {
        if self.status == 0 {
            self.status = refusal.status();
        }
        self.refusal = Some(refusal.clone());
    }

    /// It broke off under way.
    pub fn broke(&mut self, detail: impl Into<String>) {
        self.broke.get_or_insert(detail.into());
    }

    /// Bytes of the response's body went out.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    fn source(&self) -> String {
        match self.side {
            Side::Inbound => self.peer.as_ref().map(|peer| peer.name().to_owned()).unwrap_or_default(),
            Side::Outbound => self.observer.svids.latest().map(|svid| svid.leaf.id.to_string()).unwrap_or_default(),
        }
    }

    /// What was decided. A call that a policy allowed and that failed afterwards was allowed.
    fn effect(&self) -> Effect {
        let verdict = self.verdict.as_ref().map(Verdict::effect);
        refused(self.side, self.refusal.as_ref().map(Refusal::blame), verdict)
    }

    /// The rule that decided so: an allow rule does not explain why its permit was taken back.
    fn rule(&self) -> &str {
        let decided = self.verdict.as_ref().filter(|verdict| verdict.effect() == self.effect());
        decided.map(Verdict::rule).unwrap_or_default()
    }

    fn weight(&self) -> Weight {
        let stranger = self.side == Side::Inbound && self.peer.is_none();
        match (self.effect(), &self.refusal, &self.broke) {
            (Effect::Deny, ..) if !stranger => Weight::Denial,
            (Effect::Allow, None, None) => Weight::Served,
            _ => Weight::Failure,
        }
    }

    fn detail(&self) -> &str {
        self.refusal.as_ref().map(Refusal::detail).or(self.broke.as_deref()).unwrap_or_default()
    }

    fn write(&self, out: &mut Vec<u8>, micros: u64) {
        let mut line = Object::new(out);
        line.text("time", &jiff::Timestamp::now().to_string());
        line.text("side", self.side.as_str());
        line.text("id", self.id());
        line.text("source", &self.source());
        if let Some((service, port, protocol)) = &self.destination {
            line.text("destination", service.as_str());
            line.number("port", u64::from(*port));
            line.text("protocol", protocol.as_str());
        }
        if let Some(head) = &self.head {
            line.text("method", head.method.as_str());
            line.text("host", &head.host);
            line.text("path", head.path());
        }
        if self.status != 0 {
            line.number("status", u64::from(self.status));
        }
        if let Some(verdict) = &self.verdict {
            line.text("effect", effect(verdict.effect()));
            line.text("rule", verdict.rule());
            line.number("revision", verdict.revision());
        }
        if let Some(refusal) = &self.refusal {
            line.text("reason", refusal.reason().as_str());
        } else if self.broke.is_some() {
            line.text("reason", "broke_off");
        }
        line.text("detail", self.detail());
        if self.trail.tries != 0 {
            line.number("attempts", u64::from(self.trail.tries));
            line.text("endpoint", &self.trail.endpoint);
        }
        line.number("bytes", self.sent);
        line.number("micros", micros);
        if let Some(peer) = &self.peer {
            line.text("peer", &peer.address().to_string());
            line.text("peer_identity", peer.name());
            line.text("tls", peer.tls());
        } else if let Some(address) = self.address {
            line.text("peer", &address.to_string());
        }
        line.end();
    }

    fn report(&self, micros: u64) -> DecisionRecord {
        let cap = |text: &str| text.chars().take(1024).collect::<String>();
        let head = self.head.as_deref();
        let protocol = self.destination.as_ref().map_or(WireProtocol::Unspecified, |(_, _, protocol)| wire_protocol(*protocol));
        let mut headers = Vec::new();
        for name in self.verdict.iter().flat_map(Verdict::headers_read) {
            let values = head.into_iter().flat_map(|head| head.fields.values(name));
            headers.extend(
                values.map(|value| HeaderValue { name: name.to_string(), value: value.iter().copied().take(1024).collect() }),
            );
        }
        headers.truncate(32);
        DecisionRecord {
            request_id: self.id().to_owned(),
            time: i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(i64::MAX),
            side: match self.side {
                Side::Inbound => WireSide::Inbound,
                Side::Outbound => WireSide::Outbound,
            }
            .into(),
            source: self.source(),
            destination: self.destination.as_ref().map(|(service, ..)| service.to_string()).unwrap_or_default(),
            port: self.destination.as_ref().map_or(0, |(_, port, _)| u32::from(*port)),
            protocol: protocol.into(),
            method: head.map(|head| cap(head.method.as_str())).unwrap_or_default(),
            host: head.map(|head| cap(&head.host)).unwrap_or_default(),
            path: head.map(|head| cap(head.path())).unwrap_or_default(),
            effect: effect(self.effect()).to_owned(),
            rule: self.rule().to_owned(),
            revision: self.verdict.as_ref().map_or(0, Verdict::revision),
            status: u32::from(self.status),
            reason: self.refusal.as_ref().map(|refusal| refusal.reason().as_str().to_owned()).unwrap_or_default(),
            detail: cap(self.detail()),
            tls: self.peer.as_ref().map(|peer| peer.tls().to_owned()).unwrap_or_default(),
            peer_address: self.peer.as_ref().map(|peer| peer.address().to_string()).unwrap_or_default(),
            duration_micros: micros,
            headers,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let reason = self.refusal.as_ref().map(Refusal::reason).or(self.broke.as_ref().map(|_| Reason::UpstreamFailed));
        self.observer.metrics.request(self.side, self.status, reason, elapsed.as_secs_f64());
        self.observer.log.line(|out| self.write(out, micros));
        self.observer.reports.offer(self.weight(), || self.report(micros));
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

fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::Allow => "allow",
        Effect::Deny => "deny",
    }
}

/// The protocol as the wire names it.
pub fn wire_protocol(protocol: Protocol) -> WireProtocol {
    match protocol {
        Protocol::Tcp => WireProtocol::Tcp,
        Protocol::Http => WireProtocol::Http,
        Protocol::Http2 => WireProtocol::Http2,
        Protocol::Grpc => WireProtocol::Grpc,
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
