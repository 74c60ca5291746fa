//! Where a request goes: to the own program, or to an endpoint of a service in the mesh.

mod directory;

use std::net::SocketAddr;
use std::sync::Arc;

pub use directory::{Directory, Endpoint, ServiceEntry};
use outrider_policy::{Protocol, ServiceName};

use crate::{
    http::RequestHead,
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
    },
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
    let service = ServiceName::from_host(&head.host).ok_or_else(|| {
        Refusal::new(
            Reason::EgressDenied,
            format!("`{}` is not a service of the mesh (NAME.NAMESPACE), and no egress rule allows it", head.host),
        )
    })?;
    Ok((service, head.host_port))
}

/// The way to a port of a service.
///
/// # Errors
/// `unknown_service`, `no_endpoint`.
pub async fn to_service(directory: &Directory, name: &ServiceName, port: Option<u16>) -> Result<Route, Refusal> {
    let service = directory.find(name).await?;
    let (port, protocol) = service.port(port).ok_or_else(|| {
        let ports: Vec<_> = service.ports.iter().map(|(port, protocol)| format!("{port}/{}", protocol.as_str())).collect();
        let asked = port.map_or("the default port".to_owned(), |port| format!("port {port}"));
        Refusal::new(Reason::UnknownService, format!("`{name}` has no {asked}; it has {}", ports.join(", ")))
    })?;
    let service = service.serving(port);
    if service.endpoints.is_empty() {
        return Err(Refusal::new(Reason::NoEndpoint, format!("`{name}` has no endpoint for port {port} now")));
    }
    Ok(Route { kind: Kind::Mesh { service, port, protocol } })
}
