//! What a record becomes: a line of the access log, a report to the control plane, a span.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrider_policy::{Effect, Protocol};
use outrider_proto::v1::{DecisionRecord, HeaderValue, Protocol as WireProtocol, Side as WireSide};

use tokio::time::Instant;

use super::{
    Record, Side, Span, Traced,
    json::{self, Object, key},
};
use crate::policy::Verdict;

/// Most characters of one text in a report or span.
const CAP: usize = 1024;

impl Record {
    /// One line of JSON.
    pub(super) fn write(&self, out: &mut Vec<u8>, now: Instant, took: Duration) {
        let mut line = Object::new(out);
        line.plain(key!("time"), |out| self.observer.clock.write(now, out));
        line.text(key!("side"), self.side.as_str());
        line.text(key!("id"), self.id());
        if let Some(traced) = &self.traced {
            line.plain(key!("trace"), |out| out.extend_from_slice(&traced.context.trace_id()));
        }
        self.with_source(|source| line.text(key!("source"), source));
        if let Some(to) = self.outside {
            line.text(key!("outside"), &to.to_string());
        }
        if let Some(destination) = &self.destination {
            line.written(&destination.shown);
        }
        if let Some(head) = &self.head {
            line.text(key!("method"), head.method.as_str());
            line.text(key!("host"), &head.host);
            line.text(key!("path"), head.path());
        }
        if self.status != 0 {
            line.number(key!("status"), u64::from(self.status));
        }
        if let Some(verdict) = &self.verdict {
            line.text(key!("effect"), effect(verdict.effect()));
            line.text(key!("rule"), verdict.rule());
            line.number(key!("revision"), verdict.revision());
            let audited: Vec<&str> = verdict.audited().collect();
            if !audited.is_empty() {
                line.text(key!("audited"), &audited.join(" "));
            }
        }
        if let Some(reason) = self.reason() {
            line.text(key!("reason"), reason.as_str());
            line.text(key!("stage"), reason.stage().as_str());
        }
        line.text(key!("detail"), self.detail());
        if self.trail.tries != 0 {
            line.number(key!("attempts"), u64::from(self.trail.tries));
            line.text(key!("endpoint"), self.trail.endpoint.as_deref().unwrap_or_default());
        }
        line.number(key!("bytes"), self.sent);
        line.number(key!("micros"), micros(took));
        if let Some(answered) = self.answered {
            line.number(key!("head_micros"), micros(answered));
        }
        if let Some(peer) = &self.peer {
            line.written(peer.shown(|peer| {
                json::fragment(|line| {
                    line.shown(key!("peer"), &peer.address());
                    line.text(key!("peer_identity"), peer.name());
                    line.text(key!("tls"), peer.tls());
                })
            }));
        } else if let Some(address) = &self.address {
            line.shown(key!("peer"), address);
        }
        line.end();
    }

    /// What the control plane hears.
    pub(super) fn report(&self, took: Duration) -> DecisionRecord {
        let head = self.head.as_deref();
        let destination = self.destination.as_deref();
        let protocol = destination.map_or(WireProtocol::Unspecified, |destination| wire_protocol(destination.protocol));
        let mut headers = Vec::new();
        for name in self.verdict.iter().flat_map(Verdict::headers_read) {
            let values = head.into_iter().flat_map(|head| head.fields.values(name));
            headers.extend(
                values.map(|value| HeaderValue { name: name.to_string(), value: value.iter().copied().take(CAP).collect() }),
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
            source: self.with_source(str::to_owned),
            destination: destination.map(|destination| destination.service.to_string()).unwrap_or_default(),
            port: destination.map_or(0, |destination| u32::from(destination.port)),
            protocol: protocol.into(),
            method: head.map(|head| capped(head.method.as_str())).unwrap_or_default(),
            host: head.map(|head| capped(&head.host)).unwrap_or_default(),
            path: head.map(|head| capped(head.path())).unwrap_or_default(),
            effect: effect(self.effect()).to_owned(),
            rule: self.rule().to_owned(),
            revision: self.verdict.as_ref().map_or(0, Verdict::revision),
            status: u32::from(self.status),
            reason: self.reason().map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
            detail: capped(self.detail()),
            tls: self.peer.as_ref().map(|peer| peer.tls().to_owned()).unwrap_or_default(),
            peer_address: self.peer.as_ref().map(|peer| peer.address().to_string()).unwrap_or_default(),
            duration_micros: micros(took),
            headers,
            audited: self.verdict.iter().flat_map(Verdict::audited).map(str::to_owned).collect(),
        }
    }

    /// What a collector hears.
    pub(super) fn span(&self, traced: &Traced, took: Duration) -> Span {
        let head = self.head.as_deref();
        let (trace, id) = traced.context.ids();
        Span {
            trace,
            id,
            parent: traced.parent,
            side: self.side,
            began: SystemTime::now().checked_sub(took).unwrap_or(UNIX_EPOCH),
            took,
            method: head.map(|head| capped(head.method.as_str())).unwrap_or_default(),
            host: head.map(|head| capped(&head.host)).unwrap_or_default(),
            path: head.map(|head| capped(head.path())).unwrap_or_default(),
            destination: self.destination.as_ref().map(|destination| (destination.service.clone(), destination.port)),
            peer: self.peer.as_ref().map(|peer| peer.name().to_owned()).unwrap_or_default(),
            rule: self.rule().to_owned(),
            request_id: self.id().to_owned(),
            status: self.status,
            reason: self.reason(),
        }
    }
}

fn capped(text: &str) -> String {
    text.chars().take(CAP).collect()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
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
