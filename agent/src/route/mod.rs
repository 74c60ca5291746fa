//! Where a request goes: to the own program, or to an endpoint of a service in the mesh.

mod directory;
mod plan;
mod recent;

use std::{net::SocketAddr, rc::Rc, sync::Arc};

pub use directory::{Directory, Endpoint, ServiceEntry};
use outrider_policy::{Protocol, ServiceName};
pub use plan::{Found, Rule, ServiceRoutes, change};
pub use recent::Recent;

use crate::{
    http::{Fields, RequestHead},
    policy::Permit,
    refusal::{Reason, Refusal},
};

/// A decided way to go. Made only here.
#[derive(Clone, Debug)]
pub struct Route {
    kind: Kind,
}

/// What a route leads to.
#[derive(Clone, Debug)]
pub enum Kind {
    /// The own program.
    Local {
        /// Where it listens.
        program: SocketAddr,
        /// What it speaks.
        protocol: Protocol,
    },
    /// A service in the mesh.
    Mesh {
        /// The service and who backs it.
        service: Arc<ServiceEntry>,
        /// Its port.
        port: u16,
        /// What the port speaks.
        protocol: Protocol,
        /// What a route changes; none when none is for it.
        plan: Option<Plan>,
    },
    /// Nowhere: a route answers.
    Answer(Rc<AnswerParts>),
}

/// The answer of a route: status and fields.
pub type AnswerParts = (u16, Fields);

/// What a route changes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How requests are sent.
    pub rule: Arc<Rule>,
    /// The request as it goes to the service.
    pub head: Rc<RequestHead>,
    /// Services that get a copy, with the request as it goes there.
    pub mirrors: Vec<(Arc<ServiceEntry>, u16, Rc<RequestHead>)>,
}

impl Route {
    /// What it leads to.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }
}

/// The own program behind a port of an own service.
#[derive(Clone, Debug)]
pub struct LocalPort {
    /// Where it listens.
    pub program: SocketAddr,
    /// What it speaks.
    pub protocol: Protocol,
}

impl LocalPort {
    /// The way to the own program, for whoever has a permit.
    pub fn route(&self, _permit: &Permit) -> Route {
        Route { kind: Kind::Local { program: self.program, protocol: self.protocol } }
    }
}

/// The service and port that a request from the own program is for.
///
/// # Errors
/// `egress_denied` when the host is not in the mesh.
pub fn called(head: &RequestHead) -> Result<(ServiceName, Option<u16>), Refusal> {
    let service = head.host.service().ok_or_else(|| {
        Refusal::new(
            Reason::EgressDenied,
            format!("`{}` is not a service of the mesh (NAME.NAMESPACE), and no egress rule allows it", head.host),
        )
    })?;
    Ok((service.clone(), head.host_port))
}

/// The way to a port of a service, by the routes to it where it is a request's.
///
/// # Errors
/// `unknown_service`, `no_endpoint`, `no_route`.
pub async fn to_service(
    directory: &Directory,
    name: &ServiceName,
    port: Option<u16>,
    head: Option<&RequestHead>,
) -> Result<Route, Refusal> {
    let service = directory.find(name).await?;
    let (port, protocol) = service.port(port).ok_or_else(|| no_port(&service, port))?;
    let routes = head.filter(|head| head.method != http::Method::CONNECT);
    let routes = routes.and_then(|head| Some((head, directory.routes(name)?)));
    let found = routes.map_or(Ok(Found::Straight), |(head, routes)| routes.find(name, port, head))?;
    match found {
        Found::Straight => Ok(Route { kind: Kind::Mesh { service: served(service, port)?, port, protocol, plan: None } }),
        Found::Answer(answer) => Ok(Route { kind: Kind::Answer(Rc::new((answer.status, answer.fields))) }),
        Found::Backend { service, port, mirrors, rule, head } => {
            let backend = directory.find(&service).await?;
            let (port, protocol) = backend.port(Some(port)).ok_or_else(|| no_port(&backend, Some(port)))?;
            let copies = mirrors.into_iter().filter_map(|(mirror, port)| {
                // A mirror that is not there yet misses a copy, and nothing else happens.
                let entry = directory.current(&mirror)?;
                let mut copy = RequestHead::clone(&head);
                copy.lead_to(name, (&mirror, port));
                Some((served(entry, port).ok()?, port, Rc::new(copy)))
            });
            let plan = Plan { rule, mirrors: copies.collect(), head: Rc::new(*head) };
            Ok(Route { kind: Kind::Mesh { service: served(backend, port)?, port, protocol, plan: Some(plan) } })
        }
    }
}

fn no_port(service: &ServiceEntry, port: Option<u16>) -> Refusal {
    let ports: Vec<_> = service.ports.iter().map(|(port, protocol)| format!("{port}/{}", protocol.as_str())).collect();
    let asked = port.map_or("the default port".to_owned(), |port| format!("port {port}"));
    Refusal::new(Reason::UnknownService, format!("`{}` has no {asked}; it has {}", service.name, ports.join(", ")))
}

/// The service with those endpoints that serve the port.
fn served(service: Arc<ServiceEntry>, port: u16) -> Result<Arc<ServiceEntry>, Refusal> {
    let service = service.serving(port);
    if service.endpoints.is_empty() {
        return Err(Refusal::new(Reason::NoEndpoint, format!("`{}` has no endpoint for port {port} now", service.name)));
    }
    Ok(service)
}
