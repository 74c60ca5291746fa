//! What the control plane reports, in the shape that programs read: field names here are a contract (see `OUTPUT.md`).

mod agent;
mod audit;
mod authority;
mod certificate;
mod decision;
mod flip;
mod laggard;
mod operator;
mod policy;
mod revision;
mod revocation;
mod rotation;
mod route;
mod service;

pub(crate) use self::{
    agent::Agent, audit::Audit, authority::CertificateAuthority, certificate::Certificate, decision::Decision, flip::Flip,
    flip::Recorded, laggard::Laggard, operator::Operator, policy::Policy, revision::Revision, revocation::Revocation,
    rotation::Rotation, route::Route, service::Service,
};

/// A name in a list, for filters.
pub(crate) trait Named {
    /// What the thing is called in messages.
    const KIND: &'static str;

    /// Its name.
    fn name(&self) -> &str;

    /// Its namespace, where it has one.
    fn namespace(&self) -> Option<&str> {
        self.name().split_once('/').map(|(namespace, _)| namespace)
    }
}

/// Namespace of a SPIFFE ID of a workload.
fn namespace_of(identity: &str) -> Option<&str> {
    identity.split_once("/ns/").and_then(|(_, rest)| rest.split('/').next())
}

/// `shop/web` for `spiffe://mesh.internal/ns/shop/sa/web`; anything else as it is.
pub(crate) fn short_identity(identity: &str) -> String {
    let parts = identity.split_once("/ns/").and_then(|(_, rest)| rest.split_once("/sa/"));
    parts.map_or_else(|| identity.to_owned(), |(namespace, account)| format!("{namespace}/{account}"))
}
