//! The way of the request before on a connection: programs ask one service many times in a row.

use std::cell::RefCell;

use outrider_policy::ServiceName;

use super::{Directory, Kind, Route, called, to_service};
use crate::{
    http::{HostName, RequestHead},
    refusal::Refusal,
};

/// The last route of one connection. It holds until anything changes in the directory.
#[derive(Debug, Default)]
pub struct Recent(RefCell<Option<Kept>>);

#[derive(Debug)]
struct Kept {
    version: u64,
    host: HostName,
    port: Option<u16>,
    route: Route,
}

impl Recent {
    /// The way of a request: to `fixed`, a service and its port, or where its host says.
    ///
    /// # Errors
    /// As [`called`] and [`to_service`].
    pub async fn route(
        &self,
        directory: &Directory,
        fixed: Option<(&ServiceName, Option<u16>)>,
        head: &RequestHead,
    ) -> Result<Route, Refusal> {
        if let Some(route) = self.find(directory, head) {
            return Ok(route);
        }
        let version = directory.version();
        let (service, port) = match fixed {
            Some((service, port)) => (service.clone(), port),
            None => called(head)?,
        };
        let route = Box::pin(to_service(directory, &service, port, Some(head))).await?;
        self.keep(version, directory, head, &route);
        Ok(route)
    }

    /// The route of a request that names the same host as the one before.
    fn find(&self, directory: &Directory, head: &RequestHead) -> Option<Route> {
        let kept = self.0.borrow();
        let kept = kept.as_ref().filter(|kept| kept.version == directory.version() && head.method != http::Method::CONNECT)?;
        (kept.port == head.host_port && kept.host == head.host).then(|| kept.route.clone())
    }

    /// Keeps a route that was found at this version of the directory, if every request to the host would get it.
    fn keep(&self, version: u64, directory: &Directory, head: &RequestHead, route: &Route) {
        let Kind::Mesh { service, plan: None, .. } = route.kind() else { return };
        if directory.routes(&service.name).is_none() {
            let kept = Kept { version, host: head.host.clone(), port: head.host_port, route: route.clone() };
            *self.0.borrow_mut() = Some(kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use outrider_policy::Protocol;

    use super::{
        super::{Endpoint, ServiceEntry},
        *,
    };
    use crate::http::{Fields, normalize::Host, normalize::RequestParts};

    fn head(method: &str, host: &str) -> RequestHead {
        let target = if method == "CONNECT" { host } else { "/a" };
        let host = Host::field(Some(host.as_bytes()));
        let parts =
            RequestParts::new(method.as_bytes(), target.as_bytes(), host, Fields::default(), crate::http::Version::Http11);
        parts.unwrap().normalize().unwrap()
    }

    fn entry(address: &str) -> ServiceEntry {
        let identity = "spiffe://mesh.internal/ns/shop/sa/files".parse().unwrap();
        let endpoint = Endpoint { address: address.to_owned(), identity, ports: Vec::new(), zone: None };
        ServiceEntry { name: "shop/files".parse().unwrap(), ports: vec![(80, Protocol::Http)], endpoints: vec![endpoint] }
    }

    #[tokio::test]
    async fn a_route_is_kept_for_its_host_and_until_the_directory_changes() {
        let (directory, recent) = (Arc::new(Directory::default()), Recent::default());
        directory.replace(vec![entry("127.0.0.1:1")]);
        let request = head("GET", "files.shop");
        assert!(recent.find(&directory, &request).is_none());
        recent.route(&directory, None, &request).await.unwrap();
        assert!(recent.find(&directory, &request).is_some());
        for other in [head("GET", "other.shop"), head("GET", "files.shop:81"), head("CONNECT", "files.shop:80")] {
            assert!(recent.find(&directory, &other).is_none(), "{other:?}");
        }
        directory.replace(vec![entry("127.0.0.1:2")]);
        assert!(recent.find(&directory, &request).is_none(), "endpoints have changed");
    }
}
