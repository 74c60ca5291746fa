//! What one agent gets, and no more: the trust bundle, who is revoked, its own services' policies, the services it calls and
//! the routes to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use outrider_policy::{ServiceName, Target};
use outrider_proto::v1;

use crate::registry::{Encoded, World};

/// Names a resource: kind and name.
pub(crate) type Key = (v1::ResourceKind, String);

/// The resources of a view.
pub(crate) type View = BTreeMap<Key, Arc<Encoded>>;

/// What an agent has to do with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    /// The ports of the services it backs.
    pub(crate) targets: Arc<[Target]>,
    /// The services it calls.
    pub(crate) wants: BTreeSet<ServiceName>,
    /// Whether it knows what revocations are.
    pub(crate) takes_revocations: bool,
    /// Who it is: some agents get candidates.
    pub(crate) agent_id: String,
    /// Namespace of its identity: routes there are for its calls.
    pub(crate) namespace: String,
}

/// The view of an agent.
pub(crate) fn view(world: &World, scope: &Scope) -> View {
    let policies =
        world.policies_for(&scope.agent_id).filter(|policy| policy.applies_to_any(&scope.targets)).map(|policy| &policy.resource);
    // A name that nobody knows is answered too: who asked need not wait in vain.
    let services = scope.wants.iter().map(|name| world.described(name));
    let routes = scope.wants.iter().flat_map(|name| world.routes_of(name, &scope.namespace)).map(|route| &route.resource);
    let revocations = world.revocations.resource.as_ref().filter(|_| scope.takes_revocations);
    std::iter::once(&world.bundle)
        .chain(revocations)
        .chain(policies)
        .chain(routes)
        .cloned()
        .chain(services)
        .map(|resource| ((resource.kind, resource.name.clone()), resource))
        .collect()
}
