//! A snapshot of the mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use aws_lc_rs::digest;
use outrider_policy::{Ground, Protocol, ServiceName, ServicePolicy, StoredPolicy, Target, Unknown};
use outrider_proto::v1;
use prost::Message;

use super::{
    Canary, Reach, Revocations, Route, Routes, ServiceEntry,
    service::{nobody, service},
};
use crate::store::{AgentRow, PolicyRow, StoreError};

/// A resource as agents get it, encoded once for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) kind: v1::ResourceKind,
    pub(crate) name: String,
    /// Store revision at which it last changed.
    pub(crate) revision: u64,
    pub(crate) body: Vec<u8>,
    /// SHA-256 of the body.
    pub(crate) hash: [u8; 32],
}

impl Encoded {
    pub(crate) fn new(kind: v1::ResourceKind, name: String, revision: u64, body: &impl Message) -> Self {
        let body = body.encode_to_vec();
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, &body).as_ref());
        Self { kind, name, revision, body, hash }
    }
}

/// A policy, ready to be matched and to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) stored: StoredPolicy,
    pub(crate) json: String,
    pub(crate) resource: Arc<Encoded>,
}

impl Policy {
    /// Reads a stored policy. One that this version cannot read is an error, never a policy that is left out.
    pub(crate) fn read(row: PolicyRow) -> Result<Self, StoreError> {
        let name = format!("{}/{}", row.namespace, row.name);
        let policy = ServicePolicy::from_json(&row.json)
            .map_err(|error| StoreError::Corrupt { table: "policies", reason: format!("`{name}`: {error}") })?;
        if let Some(problem) = policy.out_of_reach() {
            tracing::warn!(
                policy = name,
                problem,
                "a condition of this policy never holds, and would be refused now: apply it anew"
            );
        }
        Ok(Self::new(Arc::new(policy), row.json, row.revision))
    }

    pub(crate) fn new(policy: Arc<ServicePolicy>, json: String, revision: u64) -> Self {
        let body = v1::ServicePolicyBody { json: json.clone() };
        let resource = Encoded::new(v1::ResourceKind::ServicePolicy, policy.full_name(), revision, &body);
        Self { stored: StoredPolicy { policy, revision }, json, resource: Arc::new(resource) }
    }

    /// Whether it applies to any of these.
    pub(crate) fn applies_to_any(&self, targets: &[Target]) -> bool {
        targets.iter().any(|target| self.stored.policy.applies_to(target))
    }
}

/// The mesh at one revision.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) revision: u64,
    pub(crate) bundle: Arc<Encoded>,
    pub(crate) revocations: Arc<Revocations>,
    /// By `namespace/name`.
    pub(crate) policies: Arc<BTreeMap<String, Arc<Policy>>>,
    pub(crate) routes: Arc<Routes>,
    /// By id.
    pub(crate) agents: Arc<BTreeMap<String, Arc<AgentRow>>>,
    /// Those with at least one endpoint.
    pub(crate) services: Arc<BTreeMap<ServiceName, Arc<ServiceEntry>>>,
    /// Candidates that some agents get in place of what is stored.
    pub(crate) canary: Option<Arc<Canary>>,
    /// Those whose agents are all away, and remembered: callers hear that nobody is there now.
    away: Arc<BTreeMap<ServiceName, Arc<Encoded>>>,
}

impl World {
    /// The mesh as the store has it; `ages` are the revisions at which resources were created, by namespace and name.
    pub(crate) fn load(
        revision: u64,
        bundle: v1::TrustBundle,
        revocations: Arc<Revocations>,
        policies: Vec<PolicyRow>,
        ages: &BTreeMap<(String, String), u64>,
        agents: Vec<AgentRow>,
    ) -> Result<Self, StoreError> {
        let name = bundle.trust_domain.clone();
        let (routes, policies): (Vec<_>, Vec<_>) = policies.into_iter().partition(|row| Route::is_row_of(&row.name));
        let routes = routes.into_iter().map(|row| {
            let created = ages.get(&(row.namespace.clone(), row.name.clone())).copied().unwrap_or(row.revision);
            Route::read(row, created).map(|route| (route.resource.name.clone(), Arc::new(route)))
        });
        let policies =
            policies.into_iter().map(|row| Policy::read(row).map(|policy| (policy.resource.name.clone(), Arc::new(policy))));
        let mut world = Self {
            revision,
            bundle: Arc::new(Encoded::new(v1::ResourceKind::TrustBundle, name, 0, &bundle)),
            revocations,
            policies: Arc::new(policies.collect::<Result<_, _>>()?),
            routes: Arc::new(routes.collect::<Result<_, _>>()?),
            agents: Arc::default(),
            services: Arc::default(),
            canary: None,
            away: Arc::default(),
        };
        world.put_agents(agents, revision);
        Ok(world)
    }

    /// The policies that an agent gets.
    pub(crate) fn policies_for(&self, agent_id: &str) -> impl Iterator<Item = &Arc<Policy>> {
        let candidates = self.canary.as_ref().filter(|canary| canary.chosen.contains(agent_id)).map(|canary| &canary.policies);
        let is_replaced = move |name: &String| candidates.is_some_and(|candidates| candidates.contains_key(name));
        let stored = self.policies.iter().filter(move |(name, _)| !is_replaced(name)).map(|(_, policy)| policy);
        stored.chain(candidates.into_iter().flat_map(BTreeMap::values))
    }

    /// Puts policies in and takes others out.
    pub(crate) fn change_policies(&mut self, puts: Vec<Policy>, deletes: &[String], revision: u64) {
        let policies = Arc::make_mut(&mut self.policies);
        for name in deletes {
            policies.remove(name);
        }
        for policy in puts {
            policies.insert(policy.resource.name.clone(), Arc::new(policy));
        }
        self.revision = revision;
    }

    /// Puts agents in; services are made anew where they changed.
    pub(crate) fn put_agents(&mut self, rows: Vec<AgentRow>, revision: u64) {
        let agents = Arc::make_mut(&mut self.agents);
        let mut touched = BTreeSet::new();
        for row in rows {
            touched.extend(row.backings.iter().map(|backing| backing.service.clone()));
            let id = row.id.clone();
            if let Some(before) = agents.insert(id, Arc::new(row)) {
                touched.extend(before.backings.iter().map(|backing| backing.service.clone()));
            }
        }
        self.revision = revision;
        self.describe_anew(touched, revision);
    }

    /// Forgets agents that are not present.
    pub(crate) fn forget_agents(&mut self, before: i64) {
        let old = self.agents.values().filter(|agent| !agent.present && agent.last_seen < before);
        let old: BTreeSet<String> = old.map(|agent| agent.id.clone()).collect();
        if !old.is_empty() {
            self.drop_agents(&old);
        }
    }

    /// Forgets these agents, which are away.
    pub(crate) fn drop_agents(&mut self, ids: &BTreeSet<String>) {
        let agents = Arc::make_mut(&mut self.agents);
        let gone: Vec<Arc<AgentRow>> = ids.iter().filter_map(|id| agents.remove(id)).collect();
        let touched = gone.iter().flat_map(|agent| agent.backings.iter().map(|backing| backing.service.clone())).collect();
        self.describe_anew(touched, self.revision);
    }

    fn describe_anew(&mut self, touched: BTreeSet<ServiceName>, revision: u64) {
        let services = Arc::make_mut(&mut self.services);
        let away = Arc::make_mut(&mut self.away);
        for name in touched {
            let entry = service(&self.agents, &name, revision);
            match &entry {
                Some(_) => away.remove(&name),
                None => match nobody(&self.agents, &name, revision) {
                    Some(described) => away.insert(name.clone(), Arc::new(described)),
                    None => away.remove(&name),
                },
            };
            match entry {
                Some(entry) if services.get(&name).is_some_and(|old| old.is_as(&entry)) => {}
                Some(entry) => {
                    services.insert(name, Arc::new(entry));
                }
                None => {
                    services.remove(&name);
                }
            }
        }
    }

    /// What whoever wants to call a service is told of it, also when it does not exist.
    pub(crate) fn described(&self, name: &ServiceName) -> Arc<Encoded> {
        let known = self.services.get(name).map(|entry| &entry.resource).or_else(|| self.away.get(name));
        known.cloned().unwrap_or_else(|| {
            let unknown = v1::Service { name: name.to_string(), ..v1::Service::default() };
            Arc::new(Encoded::new(v1::ResourceKind::Service, name.to_string(), 0, &unknown))
        })
    }

    /// The agents that are present and have a port for which `concerned` holds; they may be away for a moment.
    pub(crate) fn reach(&self, concerned: impl Fn(&[Target]) -> bool) -> Reach {
        self.agents.values().filter(|agent| agent.present && concerned(&targets_of(agent))).cloned().collect()
    }

    /// Whether the endpoints of an agent are part of the mesh.
    pub(crate) fn is_present(&self, agent_id: &str) -> bool {
        self.agents.get(agent_id).is_some_and(|agent| agent.present)
    }

    /// Every port of every service, as policy sees them.
    pub(crate) fn targets(&self) -> Vec<Target> {
        self.services.values().flat_map(|entry| &entry.targets).cloned().collect()
    }

    /// What policies land in.
    pub(crate) fn ground(&self, unknown: Unknown) -> Ground {
        Ground { services: self.targets(), away: self.away.keys().cloned().collect(), unknown }
    }

    /// The labels of the workloads behind each service; those of agents with the same labels once.
    pub(crate) fn labels(&self) -> ServiceLabels {
        let labels = |entry: &Arc<ServiceEntry>| entry.targets.iter().map(|target| target.labels.clone()).collect();
        ServiceLabels(self.services.iter().map(|(name, entry)| (name.clone(), labels(entry))).collect())
    }
}

/// Labels of the workloads behind services.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServiceLabels(BTreeMap<ServiceName, BTreeSet<BTreeMap<String, String>>>);

impl ServiceLabels {
    /// Each set of labels that a workload of the service has, at least one.
    pub(crate) fn of(&self, service: &ServiceName) -> Vec<BTreeMap<String, String>> {
        let sets = self.0.get(service).filter(|sets| !sets.is_empty());
        sets.map_or_else(|| vec![BTreeMap::new()], |sets| sets.iter().cloned().collect())
    }
}

/// The ports of an agent's services, as policy sees them.
pub(crate) fn targets_of(agent: &AgentRow) -> Vec<Target> {
    let ports =
        agent.backings.iter().flat_map(|backing| backing.ports.iter().map(move |(port, protocol)| (backing, port, protocol)));
    ports
        .map(|(backing, port, protocol)| Target {
            service: backing.service.clone(),
            labels: backing.labels.clone(),
            port: *port,
            protocol: *protocol,
        })
        .collect()
}

/// The protocol as the wire names it.
pub(crate) fn to_wire(protocol: Protocol) -> v1::Protocol {
    match protocol {
        Protocol::Tcp => v1::Protocol::Tcp,
        Protocol::Http => v1::Protocol::Http,
        Protocol::Http2 => v1::Protocol::Http2,
        Protocol::Grpc => v1::Protocol::Grpc,
    }
}

/// The wire's protocol; undeclared is opaque.
pub(crate) fn from_wire(protocol: v1::Protocol) -> Protocol {
    match protocol {
        v1::Protocol::Unspecified | v1::Protocol::Tcp => Protocol::Tcp,
        v1::Protocol::Http => Protocol::Http,
        v1::Protocol::Http2 => Protocol::Http2,
        v1::Protocol::Grpc => Protocol::Grpc,
    }
}
