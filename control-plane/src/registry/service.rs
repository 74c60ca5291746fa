//! A service as the agents that back it declare it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use outrider_policy::{Protocol, ServiceName, Target};
use outrider_proto::v1;

use super::{Encoded, world::to_wire};
use crate::store::AgentRow;

/// A service with endpoints.
#[derive(Clone, Debug)]
pub(crate) struct ServiceEntry {
    pub(crate) service: v1::Service,
    pub(crate) ports: BTreeMap<u16, Protocol>,
    /// The ports as policy sees them: once for each set of labels that a workload has there.
    pub(crate) targets: Vec<Target>,
    pub(crate) resource: Arc<Encoded>,
}

impl ServiceEntry {
    /// Whether callers are told the same, and the same policies apply.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        self.resource.hash == other.resource.hash && self.targets == other.targets
    }
}

/// What each port of a service speaks, as these agents declare it.
fn ports<'a>(agents: impl Iterator<Item = &'a Arc<AgentRow>>, name: &ServiceName) -> BTreeMap<u16, Protocol> {
    let mut ports = BTreeMap::new();
    let mut newest = BTreeMap::new();
    for agent in agents {
        for (port, protocol) in
            agent.backings.iter().filter(|backing| backing.service == *name).flat_map(|backing| &backing.ports)
        {
            // Where agents disagree, for example during a roll-out, the newest declaration counts.
            let seen = newest.entry(*port).or_insert(0);
            if agent.revision >= *seen {
                *seen = agent.revision;
                ports.insert(*port, *protocol);
            }
        }
    }
    ports
}

/// A service from the agents that are present; `None` when nobody backs it.
pub(super) fn service(agents: &BTreeMap<String, Arc<AgentRow>>, name: &ServiceName, revision: u64) -> Option<ServiceEntry> {
    let ports = ports(agents.values().filter(|agent| agent.present), name);
    let mut identities = BTreeSet::new();
    let mut endpoints = Vec::new();
    let mut targets = BTreeSet::new();
    for agent in agents.values().filter(|agent| agent.present) {
        for backing in agent.backings.iter().filter(|backing| backing.service == *name) {
            identities.insert(agent.identity.to_string());
            targets.extend(backing.ports.keys().filter_map(|port| {
                let protocol = *ports.get(port)?;
                Some(Target { service: name.clone(), labels: backing.labels.clone(), port: *port, protocol })
            }));
            // A port counts only where the agent takes what callers will speak to it.
            let speaks = |port: &u16, protocol: &Protocol| ports.get(port).is_some_and(|own| own.is_http() == protocol.is_http());
            let served = backing.ports.iter().filter(|(port, protocol)| speaks(port, protocol));
            endpoints.push(v1::Endpoint {
                agent_id: agent.id.clone(),
                mesh_address: backing.mesh_address.clone(),
                identity: agent.identity.to_string(),
                ports: served.map(|(port, _)| u32::from(*port)).collect(),
                zone: backing.zone.clone(),
            });
        }
    }
    if endpoints.is_empty() {
        return None;
    }
    let service = v1::Service {
        name: name.to_string(),
        ports: wire_ports(&ports),
        identities: identities.into_iter().collect(),
        endpoints,
    };
    let resource = Encoded::new(v1::ResourceKind::Service, name.to_string(), revision, &service);
    Some(ServiceEntry { service, ports, targets: targets.into_iter().collect(), resource: Arc::new(resource) })
}

/// A service that no agent backs now, as those that are away declared it; `None` when none is remembered.
pub(super) fn nobody(agents: &BTreeMap<String, Arc<AgentRow>>, name: &ServiceName, revision: u64) -> Option<Encoded> {
    let ports = ports(agents.values(), name);
    let service = v1::Service { name: name.to_string(), ports: wire_ports(&ports), ..v1::Service::default() };
    (!ports.is_empty()).then(|| Encoded::new(v1::ResourceKind::Service, name.to_string(), revision, &service))
}

fn wire_ports(ports: &BTreeMap<u16, Protocol>) -> Vec<v1::ServicePort> {
    let wire =
        |(port, protocol): (&u16, &Protocol)| v1::ServicePort { port: u32::from(*port), protocol: to_wire(*protocol).into() };
    ports.iter().map(wire).collect()
}
