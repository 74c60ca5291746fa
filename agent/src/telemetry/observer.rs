//! Where one worker's records go, and what it keeps ready for them.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

use outrider_policy::{Protocol, ServiceName};
use outrider_runtime::Drain;

use super::{
    AccessLog, Clock, Metrics, ReportQueue, Sampler, Series, Side, SpanQueue,
    json::{self, key},
};
use crate::identity::Svids;

/// Destinations that a worker keeps ready; beyond, it begins anew.
const MOST: usize = 1024;

/// A port of a service as records name it, with its counters.
#[derive(Debug)]
pub struct Destination {
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
    /// What the port speaks.
    pub protocol: Protocol,
    /// What is counted of it.
    pub series: Arc<Series>,
    /// The three as lines of the access log name them.
    pub(super) shown: Box<[u8]>,
}

/// What a worker has under way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UnderWay {
    pub(super) requests: usize,
    /// Bytes of their heads.
    pub(super) bytes: usize,
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
    /// Spans to the collector.
    pub spans: SpanQueue,
    /// Which requests are recorded as spans.
    pub sampler: Sampler,
    /// This agent's own certificate.
    pub svids: Arc<Svids>,
    pub(super) drain: Drain,
    pub(super) clock: Clock,
    /// Requests under way.
    pub(super) under_way: Cell<UnderWay>,
    nowhere: [Arc<Series>; 2],
    known: RefCell<HashMap<ServiceName, Vec<Rc<Destination>>>>,
    /// That of the request before, by side.
    last: [RefCell<Option<Rc<Destination>>>; 2],
}

impl Observer {
    /// One worker's.
    pub fn new(
        log: AccessLog,
        metrics: Metrics,
        reports: ReportQueue,
        spans: SpanQueue,
        sampler: Sampler,
        svids: Arc<Svids>,
        drain: Drain,
    ) -> Self {
        let nowhere = [Side::Inbound, Side::Outbound].map(|side| metrics.series.get(side, None));
        Self {
            log,
            metrics,
            reports,
            spans,
            sampler,
            svids,
            drain,
            clock: Clock::default(),
            under_way: Cell::default(),
            nowhere,
            known: RefCell::default(),
            last: Default::default(),
        }
    }

    /// The counters of calls that got to no service.
    pub(super) fn nowhere(&self, side: Side) -> &Series {
        let [inbound, outbound] = &self.nowhere;
        match side {
            Side::Inbound => inbound,
            Side::Outbound => outbound,
        }
    }

    /// A port of a service. Only the first call for it looks beyond what this worker has ready.
    pub(super) fn destination(&self, side: Side, service: &ServiceName, port: u16, protocol: Protocol) -> Rc<Destination> {
        let [inbound, outbound] = &self.last;
        let mut last = match side {
            Side::Inbound => inbound.borrow_mut(),
            Side::Outbound => outbound.borrow_mut(),
        };
        let is_last = |last: &&Rc<Destination>| last.port == port && last.protocol == protocol && last.service == *service;
        if let Some(last) = last.as_ref().filter(is_last) {
            return last.clone();
        }
        last.insert(self.find(side, service, port, protocol)).clone()
    }

    fn find(&self, side: Side, service: &ServiceName, port: u16, protocol: Protocol) -> Rc<Destination> {
        let mut known = self.known.borrow_mut();
        let is_it =
            |each: &&Rc<Destination>| each.port == port && each.protocol == protocol && each.series.side() == side.as_str();
        if let Some(found) = known.get(service).and_then(|of| of.iter().find(is_it)) {
            return found.clone();
        }
        if known.len() >= MOST {
            known.clear();
        }
        let series = self.metrics.series.get(side, Some((service, port)));
        let shown = json::fragment(|line| {
            line.text(key!("destination"), service.as_str());
            line.number(key!("port"), u64::from(port));
            line.text(key!("protocol"), protocol.as_str());
        });
        let destination = Rc::new(Destination { service: service.clone(), port, protocol, series, shown });
        let of = known.entry(service.clone()).or_default();
        if of.len() < MOST {
            of.push(destination.clone());
        }
        destination
    }
}
