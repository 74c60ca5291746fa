//! The agent's view of the mesh: what the control plane sent, checked whole before any of it counts.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use aws_lc_rs::digest::{SHA256, digest};
use outrider_policy::{Protocol, ServiceName, ServicePolicy, StoredPolicy, route::StoredRoute};
use outrider_proto::v1::{
    self as wire, JwtBundle, KnownResource, Resource, ResourceKind, RevocationList, RouteBody, ServicePolicyBody, TrustBundle,
    Update,
};
use prost::Message as _;

use crate::{
    policy::PolicyBook,
    route::{Directory, Endpoint, ServiceEntry, ServiceRoutes},
    tls::{Trust, TrustError},
    workload::JwtKeys,
};

/// An update that cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// A resource of a kind this agent does not know.
    #[error("resource `{0}` is of a kind that this agent does not know")]
    Kind(String),
    /// A resource that cannot be read.
    #[error("resource `{name}`: {reason}")]
    Resource {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Policies that cannot be enforced.
    #[error("policy: {0}")]
    Policy(String),
}

/// Resources by kind and name.
#[derive(Clone, Debug, Default)]
pub struct View {
    resources: BTreeMap<(i32, String), Resource>,
    revision: u64,
}

impl View {
    /// The view after one step.
    pub fn after(&self, update: &Update) -> Self {
        let mut next = self.clone();
        for gone in &update.removals {
            next.resources.remove(&(gone.kind, gone.name.clone()));
        }
        for resource in &update.upserts {
            next.resources.insert((resource.kind, resource.name.clone()), resource.clone());
        }
        next.revision = update.revision;
        next
    }

    /// What it holds, for a hello.
    pub fn known(&self) -> Vec<KnownResource> {
        let known = |resource: &Resource| KnownResource {
            kind: resource.kind,
            name: resource.name.clone(),
            hash: digest(&SHA256, &resource.body).as_ref().to_vec(),
        };
        self.resources.values().map(known).collect()
    }

    /// The whole view as one update, for the disk.
    pub fn encode(&self) -> Vec<u8> {
        let upserts = self.resources.values().cloned().collect();
        Update { nonce: 0, revision: self.revision, upserts, removals: Vec::new(), complete: true }.encode_to_vec()
    }

    /// Reads what [`View::encode`] wrote.
    ///
    /// # Errors
    /// When it is something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, prost::DecodeError> {
        Ok(Self::default().after(&Update::decode(bytes)?))
    }

    /// Store revision it reflects.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Puts all of it in force, or none of it.
    ///
    /// # Errors
    /// When any part cannot be understood or enforced; what was in force before still is.
    pub fn put_in_force(
        &self,
        trust: &Trust,
        policies: &PolicyBook,
        directory: &Directory,
        jwt_keys: &JwtKeys,
    ) -> Result<(), ViewError> {
        let (mut bundle, mut revocations, mut keys) = (None, RevocationList::default(), None);
        let (mut services, mut stored, mut routes) = (Vec::new(), Vec::new(), Vec::new());
        for resource in self.resources.values() {
            match ResourceKind::try_from(resource.kind) {
                Ok(ResourceKind::TrustBundle) => bundle = Some(read::<TrustBundle>(resource)?),
                Ok(ResourceKind::Revocations) => revocations = read::<RevocationList>(resource)?,
                Ok(ResourceKind::Service) => services.push(service(resource)?),
                Ok(ResourceKind::ServicePolicy) => stored.push(policy(resource)?),
                Ok(ResourceKind::Route) => routes.push(route(resource)?),
                Ok(ResourceKind::JwtBundle) => keys = Some(jwt_bundle(resource)?),
                Ok(ResourceKind::Unspecified) | Err(_) => return Err(ViewError::Kind(resource.name.clone())),
            }
        }
        let anchors = |trust: &Trust, bundle: &TrustBundle| {
            let unusable =
                |error: TrustError| ViewError::Resource { name: bundle.trust_domain.clone(), reason: error.to_string() };
            trust.replace(bundle).map_err(unusable)
        };
        // The bundle is tried where it counts for nobody; then the policies refuse or are in force, and nothing after that can
        // refuse.
        let bundle = bundle.filter(|bundle| trust.bundle().as_ref() != Some(bundle));
        if let Some(bundle) = &bundle {
            anchors(&Trust::default(), bundle)?;
        }
        let backends = routes.iter().flat_map(|stored| stored.route.backends().collect::<Vec<_>>()).collect();
        let checked = |stored: &StoredRoute| {
            let check = stored.route.health_check()?;
            Some(stored.route.backends().map(|service| (service, check.clone())).collect::<Vec<_>>())
        };
        let checks = routes.iter().filter_map(checked).flatten().collect();
        let routes = tables(&routes)?;
        let revoke = |trust: &Trust| {
            trust
                .revoke(&revocations)
                .map_err(|error| ViewError::Resource { name: "revocations".into(), reason: error.to_string() })
        };
        revoke(&Trust::default())?;
        policies.put_in_force(&stored, self.revision).map_err(ViewError::Policy)?;
        if let Some(bundle) = &bundle {
            anchors(trust, bundle)?;
        }
        revoke(trust)?;
        directory.replace_all(services, routes, backends, checks);
        // Checked when it was read.
        let _ = jwt_keys.replace(keys.as_ref());
        Ok(())
    }
}

fn read<M: prost::Message + Default>(resource: &Resource) -> Result<M, ViewError> {
    M::decode(resource.body.as_slice())
        .map_err(|error| ViewError::Resource { name: resource.name.clone(), reason: error.to_string() })
}

fn jwt_bundle(resource: &Resource) -> Result<JwtBundle, ViewError> {
    let bundle = read(resource)?;
    JwtKeys::check(&bundle).map_err(|error| ViewError::Resource { name: resource.name.clone(), reason: error.to_string() })?;
    Ok(bundle)
}

fn policy(resource: &Resource) -> Result<StoredPolicy, ViewError> {
    let wrong = |reason: String| ViewError::Resource { name: resource.name.clone(), reason };
    let body: ServicePolicyBody = read(resource)?;
    // Unknown fields are errors in the policy's own types: a reading that leaves something out would be a weaker one.
    let policy: ServicePolicy = serde_json::from_str(&body.json).map_err(|error| wrong(error.to_string()))?;
    Ok(StoredPolicy { policy: Arc::new(policy), revision: resource.revision })
}

fn route(resource: &Resource) -> Result<StoredRoute, ViewError> {
    let wrong = |reason: String| ViewError::Resource { name: resource.name.clone(), reason };
    let body: RouteBody = read(resource)?;
    let route = outrider_policy::route::Route::from_json(&body.json).map_err(wrong)?;
    Ok(StoredRoute { route: Arc::new(route), created: body.created })
}

/// The routes of each service that they attach to.
fn tables(routes: &[StoredRoute]) -> Result<HashMap<ServiceName, Arc<ServiceRoutes>>, ViewError> {
    let parents: BTreeSet<ServiceName> = routes.iter().flat_map(|stored| stored.route.parents().collect::<Vec<_>>()).collect();
    let table = |parent: ServiceName| {
        let own: Vec<StoredRoute> =
            routes.iter().filter(|stored| stored.route.parents().any(|each| each == parent)).cloned().collect();
        let table = ServiceRoutes::new(&parent, &own);
        let table = table.map_err(|reason| ViewError::Resource { name: parent.to_string(), reason })?;
        Ok((parent, Arc::new(table)))
    };
    parents.into_iter().map(table).collect()
}

fn service(resource: &Resource) -> Result<ServiceEntry, ViewError> {
    let wrong = |reason: String| ViewError::Resource { name: resource.name.clone(), reason };
    let service: wire::Service = read(resource)?;
    let name = service.name.parse().map_err(|error| wrong(format!("{error}")))?;
    let mut ports = Vec::new();
    for port in &service.ports {
        let number = u16::try_from(port.port).map_err(|_| wrong(format!("port {}", port.port)))?;
        ports.push((number, protocol(port.protocol())));
    }
    let mut endpoints = Vec::new();
    for endpoint in service.endpoints {
        if !service.identities.contains(&endpoint.identity) {
            return Err(wrong(format!("endpoint `{}` may not prove `{}`", endpoint.mesh_address, endpoint.identity)));
        }
        let identity = endpoint.identity.parse().map_err(|error| wrong(format!("{error}")))?;
        let ports = endpoint.ports.iter().map(|port| u16::try_from(*port).map_err(|_| wrong(format!("port {port}"))));
        let ports = ports.collect::<Result<_, _>>()?;
        let zone = Some(endpoint.zone).filter(|zone| !zone.is_empty()).map(String::into_boxed_str);
        endpoints.push(Endpoint { address: endpoint.mesh_address, identity, ports, zone });
    }
    Ok(ServiceEntry { name, ports, endpoints })
}

fn protocol(protocol: wire::Protocol) -> Protocol {
    match protocol {
        wire::Protocol::Http => Protocol::Http,
        wire::Protocol::Http2 => Protocol::Http2,
        wire::Protocol::Grpc => Protocol::Grpc,
        wire::Protocol::Tcp | wire::Protocol::Unspecified => Protocol::Tcp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_with_an_unusable_part_puts_nothing_in_force() {
        let (trust, policies, directory) = (Trust::default(), PolicyBook::new(Vec::new(), Arc::default()), Directory::default());
        let bundle = |roots: Vec<Vec<u8>>| TrustBundle { trust_domain: "mesh.internal".to_owned(), roots };
        let resource = |kind: ResourceKind, name: &str, body: Vec<u8>| Resource {
            kind: kind.into(),
            name: name.to_owned(),
            revision: 7,
            body,
        };
        let service = wire::Service { name: "shop/orders".to_owned(), ..wire::Service::default() };
        let view = |bundle: TrustBundle| {
            let upserts = vec![
                resource(ResourceKind::TrustBundle, "mesh.internal", bundle.encode_to_vec()),
                resource(ResourceKind::Service, "shop/orders", service.encode_to_vec()),
            ];
            View::default().after(&Update { revision: 7, upserts, ..Update::default() })
        };
        for broken in [bundle(Vec::new()), bundle(vec![b"no certificate".to_vec()])] {
            assert!(view(broken).put_in_force(&trust, &policies, &directory, &JwtKeys::default()).is_err());
            assert_eq!((policies.revision(), trust.bundle()), (0, None), "a part was put in force");
        }
    }
}
