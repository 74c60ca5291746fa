//! A service and who backs it.

use jiff::Timestamp;
use outrider_proto::v1;
use serde::Serialize;

use super::{Named, short_identity};
use crate::{
    output::Tone,
    table::{Cell, Row},
};

/// A service.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) ports: Vec<Port>,
    /// SPIFFE IDs that may answer for it.
    pub(crate) identities: Vec<String>,
    pub(crate) endpoints: Vec<Endpoint>,
    /// Endpoints whose agent is connected.
    pub(crate) connected: u32,
}

/// A port of a service.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Port {
    pub(crate) port: u32,
    /// `tcp`, `http`, `http2` or `grpc`.
    pub(crate) protocol: &'static str,
}

/// An agent that backs a service.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Endpoint {
    pub(crate) agent: String,
    pub(crate) mesh_address: String,
    pub(crate) identity: String,
    /// Ports of the service that it serves.
    ports: Vec<u32>,
    /// Where it is; none when its agent does not say.
    zone: Option<String>,
}

impl From<v1::ServiceStatus> for Service {
    fn from(wire: v1::ServiceStatus) -> Self {
        let service = wire.service.unwrap_or_default();
        let port = |port: v1::ServicePort| Port { port: port.port, protocol: protocol(port.protocol()) };
        let endpoint = |one: v1::Endpoint| Endpoint {
            agent: one.agent_id,
            mesh_address: one.mesh_address,
            identity: one.identity,
            ports: one.ports,
            zone: Some(one.zone).filter(|zone| !zone.is_empty()),
        };
        Self {
            name: service.name,
            ports: service.ports.into_iter().map(port).collect(),
            identities: service.identities,
            endpoints: service.endpoints.into_iter().map(endpoint).collect(),
            connected: wire.connected,
        }
    }
}

/// The word for a protocol. Undeclared is opaque TCP.
pub(crate) fn protocol(wire: v1::Protocol) -> &'static str {
    match wire {
        v1::Protocol::Unspecified | v1::Protocol::Tcp => "tcp",
        v1::Protocol::Http => "http",
        v1::Protocol::Http2 => "http2",
        v1::Protocol::Grpc => "grpc",
    }
}

impl Named for Service {
    const KIND: &'static str = "service";

    fn name(&self) -> &str {
        &self.name
    }
}

impl Row for Service {
    const COLUMNS: &'static [&'static str] = &["NAME", "PORTS", "IDENTITIES", "CONNECTED", "ENDPOINTS"];

    fn cells(&self, _: Timestamp) -> Vec<Cell> {
        let ports: Vec<String> = self.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
        let identities: Vec<String> = self.identities.iter().map(|identity| short_identity(identity)).collect();
        let endpoints: Vec<&str> = self.endpoints.iter().map(|endpoint| endpoint.mesh_address.as_str()).collect();
        let tone = match self.connected {
            0 => Tone::Bad,
            some if (some as usize) < self.endpoints.len() => Tone::Warn,
            _ => Tone::Good,
        };
        vec![
            self.name.as_str().into(),
            Cell::list(&ports),
            Cell::list(&identities),
            Cell::new(tone, format!("{}/{}", self.connected, self.endpoints.len())),
            Cell::list(&endpoints),
        ]
    }
}
