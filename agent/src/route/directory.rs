//! Services this agent calls: asked for at the first call, kept current by the control plane afterwards.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use outrider_policy::{Protocol, ServiceName, SpiffeId, route::HealthCheck};
use tokio::{sync::watch, time::Instant};

use super::ServiceRoutes;
use crate::refusal::{Reason, Refusal};

/// Services an agent may ask for.
const MOST: usize = 1024;
/// How long a first call waits for the control plane to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a name that does not exist keeps its place after the last call for it, once somebody asks for another.
const KEPT: Duration = Duration::from_secs(30);

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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// `host:port` of its mesh listener.
    pub address: String,
    /// Identity it must prove.
    pub identity: SpiffeId,
    /// Ports of the service that it serves; empty for all of them.
    pub ports: Vec<u16>,
    /// Where it is, if its agent says so.
    pub zone: Option<Box<str>>,
}

impl ServiceEntry {
    /// The port a caller means. A URL without a port, or with 80, means the only HTTP port there is.
    pub fn port(&self, named: Option<u16>) -> Option<(u16, Protocol)> {
        let exact = self.ports.iter().find(|(port, _)| *port == named.unwrap_or(80)).copied();
        let mut http = self.ports.iter().filter(|(_, protocol)| protocol.is_http());
        let only = http.next().filter(|_| http.next().is_none()).copied();
        exact.or_else(|| only.filter(|_| named.is_none_or(|port| port == 80)))
    }

    /// The service with only those endpoints that serve this port.
    pub fn serving(self: Arc<Self>, port: u16) -> Arc<Self> {
        let serves = |endpoint: &Endpoint| endpoint.ports.is_empty() || endpoint.ports.contains(&port);
        if self.endpoints.iter().all(serves) {
            return self;
        }
        let endpoints = self.endpoints.iter().filter(|endpoint| serves(endpoint)).cloned().collect();
        Arc::new(Self { name: self.name.clone(), ports: self.ports.clone(), endpoints })
    }

    /// Nobody backs it, and nobody is remembered to have done so.
    fn is_unknown(&self) -> bool {
        self.ports.is_empty()
    }
}

/// The services this agent calls.
#[derive(Debug)]
pub struct Directory {
    services: ArcSwap<HashMap<ServiceName, Arc<ServiceEntry>>>,
    routes: ArcSwap<HashMap<ServiceName, Arc<ServiceRoutes>>>,
    checks: ArcSwap<HashMap<ServiceName, HealthCheck>>,
    changed: watch::Sender<u64>,
    /// Counts the changes of services and routes: moved on after they are in place.
    version: AtomicU64,
    wanted: watch::Sender<BTreeSet<ServiceName>>,
    asked: Mutex<HashMap<ServiceName, Asked>>,
}

/// Who asks for a name that is not known, or not to exist.
#[derive(Debug)]
struct Asked {
    last: Instant,
    /// Calls that wait for the answer.
    waiting: usize,
}

/// A call that waits for an answer; its end gives up the name's place, unless another call waits too.
#[derive(Debug)]
struct Waiting<'a> {
    directory: &'a Directory,
    name: &'a ServiceName,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut asked = self.directory.asked();
        let Some(entry) = asked.get_mut(self.name) else { return };
        entry.waiting = entry.waiting.saturating_sub(1);
        if entry.waiting == 0 && !self.directory.services.load().contains_key(self.name) {
            asked.remove(self.name);
            self.directory.wanted.send_if_modified(|wanted| wanted.remove(self.name));
        }
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            services: ArcSwap::default(),
            routes: ArcSwap::default(),
            checks: ArcSwap::default(),
            changed: watch::Sender::new(0),
            version: AtomicU64::new(0),
            wanted: watch::Sender::new(BTreeSet::new()),
            asked: Mutex::default(),
        }
    }
}

impl Directory {
    /// Replaces all that is known: services, and the routes to them with what these lead to.
    pub fn replace_all(
        &self,
        services: Vec<ServiceEntry>,
        routes: HashMap<ServiceName, Arc<ServiceRoutes>>,
        backends: BTreeSet<ServiceName>,
        checks: HashMap<ServiceName, HealthCheck>,
    ) {
        self.checks.store(Arc::new(checks));
        // Routes first: a service that is new must not be called past its routes.
        self.routes.store(Arc::new(routes));
        self.replace(services);
        self.wanted.send_if_modified(|wanted| {
            let before = wanted.len();
            let missing: Vec<ServiceName> = backends.into_iter().filter(|name| !wanted.contains(name)).collect();
            wanted.extend(missing.into_iter().take(MOST.saturating_sub(before)));
            wanted.len() != before
        });
    }

    /// Changes with services and routes. Read before looking, so that no change is lost.
    pub fn version(&self) -> u64 {
        self.version.load(Acquire)
    }

    /// The routes to a service.
    pub fn routes(&self, name: &ServiceName) -> Option<Arc<ServiceRoutes>> {
        self.routes.load().get(name).cloned()
    }

    /// How endpoints of a service are asked how they are, if a route wants it.
    pub fn check(&self, name: &ServiceName) -> Option<HealthCheck> {
        self.checks.load().get(name).cloned()
    }

    /// Replaces all that is known of services.
    pub fn replace(&self, services: Vec<ServiceEntry>) {
        let map: HashMap<_, _> = services.into_iter().map(|service| (service.name.clone(), Arc::new(service))).collect();
        // What was in a snapshot is wanted again; what does not exist only when somebody calls it.
        self.wanted.send_if_modified(|wanted| {
            let before = wanted.len();
            let known = map.values().filter(|service| !service.is_unknown() && !wanted.contains(&service.name));
            let missing: Vec<ServiceName> = known.take(MOST.saturating_sub(before)).map(|service| service.name.clone()).collect();
            wanted.extend(missing);
            wanted.len() != before
        });
        self.services.store(Arc::new(map));
        self.version.fetch_add(1, Release);
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
        if let Some(answer) = self.known(name) {
            return answer;
        }
        let mut changes = self.changed.subscribe();
        let _waiting = self.wait_for(name)?;
        let answer = async {
            loop {
                if let Some(answer) = self.known(name) {
                    return answer;
                }
                if changes.changed().await.is_err() {
                    return Err(Refusal::new(Reason::Draining, "the agent is going away"));
                }
            }
        };
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        let unanswered = || Refusal::new(Reason::UnknownService, format!("the control plane did not describe `{name}` in time"));
        answer.unwrap_or_else(|_| Err(unanswered()))
    }

    /// A service as it is known now; nothing is asked.
    pub fn current(&self, name: &ServiceName) -> Option<Arc<ServiceEntry>> {
        self.services.load().get(name).cloned()
    }

    /// Whether the control plane says that there is no such service.
    pub fn is_denied(&self, name: &ServiceName) -> bool {
        self.services.load().get(name).is_some_and(|service| service.is_unknown())
    }

    /// What the control plane said of a name, if anything.
    fn known(&self, name: &ServiceName) -> Option<Result<Arc<ServiceEntry>, Refusal>> {
        let service = self.services.load().get(name).cloned()?;
        if !service.is_unknown() {
            return Some(Ok(service));
        }
        // As long as somebody calls it the control plane says when it comes to exist. Without room the answer still stands.
        let _ = self.want(name, &mut self.asked());
        Some(Err(Refusal::new(Reason::UnknownService, format!("there is no service `{name}`"))))
    }

    fn wait_for<'a>(&'a self, name: &'a ServiceName) -> Result<Waiting<'a>, Refusal> {
        let mut asked = self.asked();
        self.want(name, &mut asked)?.waiting += 1;
        Ok(Waiting { directory: self, name })
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<ServiceName, Asked>> {
        // Nothing in here can panic half-way.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a name. Names that turned out not to exist make room: all that nobody called for a while, and when that is
    /// not enough the one that was called longest ago.
    fn want<'a>(&self, name: &ServiceName, asked: &'a mut HashMap<ServiceName, Asked>) -> Result<&'a mut Asked, Refusal> {
        let (services, now) = (self.services.load(), Instant::now());
        let last = |asked: &HashMap<ServiceName, Asked>, name: &ServiceName| asked.get(name).map(|asked| asked.last);
        let is_unknown = |each: &ServiceName| each != name && services.get(each).is_some_and(|service| service.is_unknown());
        let mut full = false;
        self.wanted.send_if_modified(|wanted| {
            let before = wanted.len();
            wanted.retain(|each| !is_unknown(each) || last(asked, each).is_some_and(|last| now.duration_since(last) < KEPT));
            let mut changed = wanted.len() != before;
            if wanted.len() >= MOST && !wanted.contains(name) {
                let oldest = wanted.iter().filter(|each| is_unknown(each)).min_by_key(|each| last(asked, each)).cloned();
                changed |= oldest.is_some_and(|oldest| wanted.remove(&oldest));
            }
            full = wanted.len() >= MOST && !wanted.contains(name);
            changed | (!full && wanted.insert(name.clone()))
        });
        if full {
            return Err(Refusal::new(Reason::Overloaded, format!("this agent calls {MOST} services already")));
        }
        if asked.len() > MOST {
            let wanted = self.wanted.borrow();
            asked.retain(|each, _| wanted.contains(each));
        }
        let entry = asked.entry(name.clone()).or_insert(Asked { last: now, waiting: 0 });
        entry.last = now;
        Ok(entry)
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

    fn unknown(name: &str) -> ServiceEntry {
        ServiceEntry { name: name.parse().unwrap(), ports: Vec::new(), endpoints: Vec::new() }
    }

    /// Answers every name that is asked for with "there is no such service", as the control plane does.
    fn deny(directory: &Directory) {
        let names: Vec<ServiceName> = directory.wanted().borrow().iter().cloned().collect();
        directory.replace(names.iter().map(|name| unknown(name.as_str())).collect());
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_does_not_exist_is_refused_as_soon_as_the_control_plane_says_so() {
        let directory = Directory::default();
        let (name, began) = ("shop/none".parse().unwrap(), Instant::now());
        let mut wanted = directory.wanted();
        let answer = async {
            wanted.wait_for(|wanted| !wanted.is_empty()).await.unwrap();
            deny(&directory);
        };
        let (found, ()) = tokio::join!(directory.find(&name), answer);
        assert_eq!((found.unwrap_err().reason(), began.elapsed()), (Reason::UnknownService, Duration::ZERO));
        assert_eq!(directory.find(&name).await.unwrap_err().reason(), Reason::UnknownService);
        assert_eq!(began.elapsed(), Duration::ZERO, "the second call does not wait either");
        assert!(directory.wanted().borrow().contains(&name), "it is heard of when the service comes");
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_do_not_exist_never_take_the_places_of_services() {
        let directory = Directory::default();
        directory.replace(vec![service(&[(80, Protocol::Http)]), unknown("shop/old")]);
        assert_eq!(directory.wanted().borrow().len(), 1, "what a snapshot says does not exist is not asked for again");
        for number in 0..2 * MOST {
            let name: ServiceName = format!("shop/none-{number}").parse().unwrap();
            let waiting = directory.wait_for(&name).unwrap();
            let mut all: Vec<ServiceEntry> = directory.wanted().borrow().iter().map(|name| unknown(name.as_str())).collect();
            all.retain(|each| each.name.as_str() != "shop/files");
            all.push(service(&[(80, Protocol::Http)]));
            directory.replace(all);
            drop(waiting);
        }
        assert_eq!(directory.wanted().borrow().len(), MOST);
        assert!(directory.wanted().borrow().contains(&"shop/files".parse().unwrap()));
        assert!(directory.asked().len() <= MOST + 1);
        tokio::time::advance(KEPT).await;
        let _ = directory.known(&"shop/none-2047".parse().unwrap());
        assert_eq!(directory.wanted().borrow().len(), 2, "what nobody calls gives up its place");
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_caller_keeps_its_place_when_an_earlier_one_gives_up() {
        let directory = Directory::default();
        let name: ServiceName = "shop/files".parse().unwrap();
        let late = async {
            tokio::time::sleep(PATIENCE / 2).await;
            directory.find(&name).await
        };
        let answer = async {
            tokio::time::sleep(PATIENCE + PATIENCE / 4).await;
            assert!(directory.wanted().borrow().contains(&name), "somebody still waits");
            directory.replace(vec![service(&[(80, Protocol::Http)])]);
        };
        let (first, second, ()) = tokio::join!(directory.find(&name), late, answer);
        assert!(first.is_err() && second.is_ok());
    }

    #[test]
    fn only_endpoints_that_serve_the_port_are_used() {
        let endpoint = |address: &str, ports: &[u16]| Endpoint {
            address: address.to_owned(),
            identity: "spiffe://td/ns/shop/sa/files".parse().unwrap(),
            ports: ports.to_vec(),
            zone: None,
        };
        let endpoints = vec![endpoint("a", &[80]), endpoint("b", &[80, 81]), endpoint("c", &[])];
        let service = Arc::new(ServiceEntry { endpoints, ..service(&[(80, Protocol::Http), (81, Protocol::Http)]) });
        let serving = |port| -> Vec<String> {
            service.clone().serving(port).endpoints.iter().map(|endpoint| endpoint.address.clone()).collect()
        };
        assert_eq!((serving(80), serving(81)), (vec!["a".into(), "b".into(), "c".into()], vec!["b".into(), "c".into()]));
    }
}
