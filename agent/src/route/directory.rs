//! Services this agent calls: asked for at the first call, kept current by the control plane afterwards.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use outrider_policy::{Protocol, ServiceName, SpiffeId};
use tokio::sync::watch;

use crate::refusal::{Reason, Refusal};

/// Services an agent may ask for.
const MOST: usize = 1024;
/// How long a first call waits for the control plane to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// A service as the control plane describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Its name.
    pub name: ServiceName,
    /// Its ports.
    pub ports: Vec<(u16, Protocol)>,
    /// Who backs it.
    pub endpoints: Vec<Endpoint>,
}

/// An agent that backs a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `host:port` of its mesh listener.
    pub address: String,
    /// Identity it must prove.
    pub identity: SpiffeId,
}

impl ServiceEntry {
    /// The port a caller means. A URL without a port, or with 80, means the only HTTP port there is.
    pub fn port(&self, named: Option<u16>) -> Option<(u16, Protocol)> {
        let exact = self.ports.iter().find(|(port, _)| *port == named.unwrap_or(80)).copied();
        let mut http = self.ports.iter().filter(|(_, protocol)| protocol.is_http());
        let only = http.next().filter(|_| http.next().is_none()).copied();
        exact.or_else(|| only.filter(|_| named.is_none_or(|port| port == 80)))
    }
}

/// The services this agent calls.
#[derive(Debug)]
pub struct Directory {
    services: ArcSwap<HashMap<ServiceName, Arc<ServiceEntry>>>,
    changed: watch::Sender<u64>,
    wanted: watch::Sender<BTreeSet<ServiceName>>,
}

impl Default for Directory {
    fn default() -> Self {
        Self { services: ArcSwap::default(), changed: watch::Sender::new(0), wanted: watch::Sender::new(BTreeSet::new()) }
    }
}

impl Directory {
    /// Replaces all that is known.
    pub fn replace(&self, services: Vec<ServiceEntry>) {
        let map: HashMap<_, _> = services.into_iter().map(|service| (service.name.clone(), Arc::new(service))).collect();
        // What was in a snapshot is wanted again.
        self.wanted.send_if_modified(|wanted| {
            let before = wanted.len();
            wanted.extend(map.keys().take(MOST.saturating_sub(before)).cloned());
            wanted.len() != before
        });
        self.services.store(Arc::new(map));
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Names that the control plane should describe.
    pub fn wanted(&self) -> watch::Receiver<BTreeSet<ServiceName>> {
        self.wanted.subscribe()
    }

    /// A service by name. The first call for a name asks the control plane and waits a little.
    ///
    /// # Errors
    /// `unknown_service` when nobody knows it, or nobody answers in time.
    pub async fn find(&self, name: &ServiceName) -> Result<Arc<ServiceEntry>, Refusal> {
        if let Some(service) = self.services.load().get(name) {
            return Self::existing(service);
        }
        let mut changes = self.changed.subscribe();
        self.want(name)?;
        let answer = async {
            loop {
                if let Some(service) = self.services.load().get(name) {
                    return Self::existing(service);
                }
                if changes.changed().await.is_err() {
                    return Err(Refusal::new(Reason::Draining, "the agent is going away"));
                }
            }
        };
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        let unanswered = || Refusal::new(Reason::UnknownService, format!("the control plane did not describe `{name}` in time"));
        let answer = answer.unwrap_or_else(|_| Err(unanswered()));
        if answer.is_err() {
            // A name that nobody knows does not keep its place.
            self.wanted.send_if_modified(|wanted| wanted.remove(name));
        }
        answer
    }

    fn existing(service: &Arc<ServiceEntry>) -> Result<Arc<ServiceEntry>, Refusal> {
        if service.ports.is_empty() {
            return Err(Refusal::new(Reason::UnknownService, format!("there is no service `{}`", service.name)));
        }
        Ok(service.clone())
    }

    fn want(&self, name: &ServiceName) -> Result<(), Refusal> {
        let mut full = false;
        self.wanted.send_if_modified(|wanted| {
            full = wanted.len() >= MOST && !wanted.contains(name);
            !full && wanted.insert(name.clone())
        });
        if full { Err(Refusal::new(Reason::Overloaded, format!("this agent calls {MOST} services already"))) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(ports: &[(u16, Protocol)]) -> ServiceEntry {
        ServiceEntry { name: "shop/files".parse().unwrap(), ports: ports.to_vec(), endpoints: Vec::new() }
    }

    #[test]
    fn a_url_without_port_means_the_only_http_port() {
        let one = service(&[(8080, Protocol::Http), (5432, Protocol::Tcp)]);
        assert_eq!(one.port(None), Some((8080, Protocol::Http)));
        assert_eq!(one.port(Some(80)), Some((8080, Protocol::Http)));
        assert_eq!(one.port(Some(8080)), Some((8080, Protocol::Http)));
        assert_eq!(one.port(Some(9)), None);
        let two = service(&[(8080, Protocol::Http), (8081, Protocol::Http)]);
        assert_eq!(two.port(None), None);
        assert_eq!(service(&[(80, Protocol::Http), (81, Protocol::Http)]).port(None), Some((80, Protocol::Http)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_nobody_knows_is_refused_and_forgotten() {
        let directory = Directory::default();
        let refusal = directory.find(&"shop/none".parse().unwrap()).await.unwrap_err();
        assert_eq!(refusal.reason(), Reason::UnknownService);
        assert!(directory.wanted().borrow().is_empty());
    }

    #[tokio::test]
    async fn a_first_call_waits_for_the_answer() {
        let directory = Directory::default();
        let name: ServiceName = "shop/files".parse().unwrap();
        let mut wanted = directory.wanted();
        let answer = async {
            wanted.wait_for(|wanted| wanted.contains(&name)).await.unwrap();
            directory.replace(vec![service(&[(80, Protocol::Http)])]);
        };
        let (found, ()) = tokio::join!(directory.find(&name), answer);
        assert_eq!(found.unwrap().name, name);
    }
}
