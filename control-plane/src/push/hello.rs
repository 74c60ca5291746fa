//! The first message of a stream, checked in full.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use outrider_policy::{ServiceName, SpiffeId, Target, names};
use outrider_proto::v1;
use tonic::Status;

use crate::{
    clock,
    compile::Key,
    registry::{from_wire, targets_of},
    store::{AgentRow, Backing},
};

/// Most services that one agent backs.
const MAX_BACKINGS: usize = 64;
/// Most ports of one service.
const MAX_PORTS: usize = 64;
/// Most services that one agent calls.
const MAX_WANTS: usize = 1024;
/// Most resources that an agent may hold from before.
const MAX_KNOWN: usize = 65_536;

/// A hello that is in order.
pub(crate) struct Hello {
    pub(crate) agent: AgentRow,
    pub(crate) known: Vec<(Key, [u8; 32])>,
    pub(crate) wants: BTreeSet<ServiceName>,
    /// Whether it knows what revocations are.
    pub(crate) takes_revocations: bool,
    /// Whether it knows what keys for tokens are.
    pub(crate) takes_jwt_bundle: bool,
    /// Serial of its certificate, lower-case hex.
    pub(crate) serial: String,
    /// Unix seconds.
    pub(crate) certificate_end: i64,
}

impl Hello {
    /// Checks a hello of a peer that proved `identity` and may back `grants`. `serial` and `certificate_end` are those of
    /// the connection's certificate.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for malformed ones, PERMISSION_DENIED for services without grant.
    pub(crate) fn read(
        hello: v1::Hello,
        identity: &SpiffeId,
        grants: &BTreeSet<ServiceName>,
        (serial, certificate_end): (String, i64),
    ) -> Result<Self, Status> {
        let invalid = |reason: String| Status::invalid_argument(reason);
        let id_ok = (1..=64).contains(&hello.agent_id.len())
            && hello.agent_id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        if !id_ok {
            return Err(invalid("the agent id is not a UUID".to_owned()));
        }
        if hello.services.len() > MAX_BACKINGS {
            return Err(invalid(format!("an agent backs at most {MAX_BACKINGS} services")));
        }
        let backings = hello.services.iter().map(backing).collect::<Result<Vec<_>, _>>().map_err(invalid)?;
        let unique: BTreeSet<&ServiceName> = backings.iter().map(|backing| &backing.service).collect();
        if unique.len() != backings.len() {
            return Err(invalid("a service is named twice".to_owned()));
        }
        if let Some(foreign) = unique.iter().find(|service| !grants.contains(**service)) {
            return Err(Status::permission_denied(format!(
                "`{identity}` may not back service `{foreign}`: create its join token with `--service {foreign}`"
            )));
        }
        if hello.known.len() > MAX_KNOWN {
            return Err(invalid(format!("an agent holds at most {MAX_KNOWN} resources")));
        }
        let agent = AgentRow {
            id: hello.agent_id,
            identity: identity.clone(),
            version: hello.agent_version.chars().filter(|c| !c.is_control()).take(64).collect(),
            backings,
            present: true,
            last_seen: clock::now(),
            revision: 0,
        };
        Ok(Self {
            agent,
            known: hello.known.into_iter().map(known).collect::<Result<_, _>>().map_err(invalid)?,
            wants: hello.want.as_ref().map_or_else(|| Ok(BTreeSet::new()), wants).map_err(invalid)?,
            takes_revocations: hello.capabilities.iter().any(|capability| capability == "Revocations"),
            takes_jwt_bundle: hello.capabilities.iter().any(|capability| capability == "JwtBundle"),
            serial,
            certificate_end,
        })
    }

    /// The ports that it serves, as policy sees them.
    pub(crate) fn targets(&self) -> Arc<[Target]> {
        targets_of(&self.agent).into()
    }
}

fn backing(wire: &v1::ServiceBacking) -> Result<Backing, String> {
    let service: ServiceName = wire.service.parse().map_err(|error| format!("service: {error}"))?;
    if wire.ports.is_empty() || wire.ports.len() > MAX_PORTS {
        return Err(format!("service `{service}` must declare 1 to {MAX_PORTS} ports"));
    }
    let mut ports = BTreeMap::new();
    for port in &wire.ports {
        let number = u16::try_from(port.port).ok().filter(|port| *port != 0);
        let number = number.ok_or_else(|| format!("service `{service}`: {} is not a port", port.port))?;
        if ports.insert(number, from_wire(port.protocol())).is_some() {
            return Err(format!("service `{service}` declares port {number} twice"));
        }
    }
    let zone_ok =
        wire.zone.len() <= 63 && wire.zone.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if !zone_ok {
        return Err(format!("service `{service}`: the zone is not up to 63 letters, digits, `-`, `.` and `_`"));
    }
    if wire.labels.len() > names::MAX_LABELS || !wire.labels.iter().all(|(key, value)| names::is_label_pair(key, value)) {
        return Err(format!("service `{service}`: its labels are more than {}, or malformed", names::MAX_LABELS));
    }
    let labels = wire.labels.clone().into_iter().collect();
    Ok(Backing { service, mesh_address: address(&wire.mesh_address)?, ports, labels, zone: wire.zone.clone() })
}

/// `host:port` of bounded length and printable characters: other agents connect there and logs show it.
fn address(text: &str) -> Result<String, String> {
    let wrong =
        || format!("mesh address `{}` is not HOST:PORT", text.chars().take(80).flat_map(char::escape_debug).collect::<String>());
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port_ok = port.parse::<u16>().is_ok_and(|port| port != 0);
    let host_ok = (1..=255).contains(&host.len())
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']'));
    if port_ok && host_ok { Ok(text.to_owned()) } else { Err(wrong()) }
}

fn known(wire: v1::KnownResource) -> Result<(Key, [u8; 32]), String> {
    let hash = wire.hash.as_slice().try_into().map_err(|_| "a known resource's hash has 32 bytes".to_owned())?;
    if wire.kind() == v1::ResourceKind::Unspecified || wire.name.len() > 512 {
        return Err("a known resource has a kind and a name of at most 512 bytes".to_owned());
    }
    Ok(((wire.kind(), wire.name), hash))
}

/// The services that an agent calls.
pub(super) fn wants(wire: &v1::WantServices) -> Result<BTreeSet<ServiceName>, String> {
    if wire.services.len() > MAX_WANTS {
        return Err(format!("an agent calls at most {MAX_WANTS} services"));
    }
    wire.services.iter().map(|name| name.parse().map_err(|error| format!("service: {error}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_are_none_or_too_many_are_refused() {
        let declared = |labels: Vec<(String, String)>| {
            backing(&v1::ServiceBacking {
                service: "shop/orders".into(),
                mesh_address: "127.0.0.1:15108".into(),
                ports: vec![v1::ServicePort { port: 80, protocol: v1::Protocol::Http.into() }],
                labels: labels.into_iter().collect(),
                ..v1::ServiceBacking::default()
            })
        };
        let app = || ("app".to_owned(), "orders".to_owned());
        assert_eq!(declared(vec![app()]).map(|backing| backing.labels), Ok([app()].into()));
        assert!(declared(vec![("app".to_owned(), "two words".to_owned())]).is_err());
        assert!(declared((0..65).map(|number| (format!("k{number}"), String::new())).collect()).is_err());
    }
}
