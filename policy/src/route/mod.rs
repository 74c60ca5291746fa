//! Routes of the Gateway API with a Service as parent: which backend gets a request of a caller, and how it is sent there.
//!
//! A route never widens access: the policy of the service that a request arrives at decides on it, whatever led it there.
//! The words are those of `gateway.networking.k8s.io/v1`. What is not supported is refused, never left out.

mod analyse;
mod check;
mod duration;
mod health;
mod resource;
pub(crate) mod schema;
mod table;

pub use analyse::analyse;
pub use check::RouteProblem;
pub use duration::RouteDuration;
pub use health::HealthCheck;
pub use resource::{
    BackendRef, Filter, Fraction, GrpcMethodMatch, HeaderChange, HeaderChanges, HeaderMatch, MatchType, Method, ParentRef,
    PathMatch, PathMatchType, PathRewrite, Redirect, RequestMirror, Retry, Rewrite, Route, RouteKind, RouteMatch, RouteMetadata,
    RouteRule, RouteSpec, Timeouts,
};
pub use table::{Backend, Chosen, RouteRequest, RouteTable, Selection, StoredRoute};

#[cfg(test)]
mod tests;
