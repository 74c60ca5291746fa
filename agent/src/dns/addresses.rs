//! Virtual addresses: each service that a captured program asked for has one of each family, the same for as long as this
//! agent's directory lives. Nobody else answers to them; they mean something to this agent's capture only.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use ipnet::{Ipv4Net, Ipv6Net};
use outrider_policy::ServiceName;

use crate::config::SealedFile;

/// Services with an address. An agent calls at most 1024 at a time; over this, the one asked for longest ago goes.
const MOST: usize = 4096;
/// Places tried for one name before it gets none.
const TRIES: u32 = 64;

/// The two addresses of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

#[derive(Debug)]
struct Entry {
    pair: Pair,
    last: AtomicU64,
}

#[derive(Clone, Debug, Default)]
struct Table {
    names: HashMap<ServiceName, Arc<Entry>>,
    services: HashMap<IpAddr, ServiceName>,
}

impl Table {
    fn is_free(&self, address: IpAddr) -> bool {
        !self.services.contains_key(&address)
    }

    fn put(&mut self, name: ServiceName, pair: Pair, last: u64) {
        self.services.insert(pair.v4.into(), name.clone());
        self.services.insert(pair.v6.into(), name.clone());
        self.names.insert(name, Arc::new(Entry { pair, last: AtomicU64::new(last) }));
    }

    fn make_room(&mut self) {
        while self.names.len() >= MOST {
            let oldest = self.names.iter().min_by_key(|(_, entry)| entry.last.load(Ordering::Relaxed));
            let Some((name, pair)) = oldest.map(|(name, entry)| (name.clone(), entry.pair)) else { return };
            self.names.remove(&name);
            self.services.remove(&pair.v4.into());
            self.services.remove(&pair.v6.into());
        }
    }
}

/// Who has which address.
#[derive(Debug)]
pub struct Addresses {
    v4: Ipv4Net,
    v6: Ipv6Net,
    table: ArcSwap<Table>,
    asked: AtomicU64,
    /// Where they are kept, and the one who writes there.
    file: Mutex<SealedFile>,
}

impl Addresses {
    /// Those that were given before, as far as they lie in these networks. A file that is not ours is not used: then the
    /// same names get the same addresses again, save where two wanted one place.
    pub fn open(v4: Ipv4Net, v6: Ipv6Net, file: SealedFile) -> Self {
        let mut table = Table::default();
        match file.read() {
            Ok(Some(text)) => {
                for (name, pair) in String::from_utf8_lossy(&text).lines().filter_map(line).take(MOST) {
                    let fits = v4.contains(&pair.v4) && v6.contains(&pair.v6);
                    if fits && table.is_free(pair.v4.into()) && table.is_free(pair.v6.into()) && !table.names.contains_key(&name)
                    {
                        table.put(name, pair, 0);
                    }
                }
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the kept virtual addresses are not used"),
        }
        Self { v4, v6, table: ArcSwap::from_pointee(table), asked: AtomicU64::new(1), file: Mutex::new(file) }
    }

    /// The service that an address stands for.
    pub fn service(&self, address: IpAddr) -> Option<ServiceName> {
        let table = self.table.load();
        let name = table.services.get(&address.to_canonical())?;
        self.touch(table.names.get(name)?);
        Some(name.clone())
    }

    /// Whether an address lies where virtual ones do, given or not.
    pub fn is_virtual(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.contains(&address),
            IpAddr::V6(address) => self.v6.contains(&address),
        }
    }

    /// The addresses of a service; the first call gives and keeps them. None when its places are all taken.
    pub fn of(&self, name: &ServiceName) -> Option<Pair> {
        if let Some(entry) = self.table.load().names.get(name) {
            self.touch(entry);
            return Some(entry.pair);
        }
        // Nothing in here can panic half-way.
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = Table::clone(&self.table.load());
        if let Some(entry) = table.names.get(name) {
            return Some(entry.pair);
        }
        table.make_room();
        let pair = self.place(name, &table)?;
        table.put(name.clone(), pair, self.asked.fetch_add(1, Ordering::Relaxed));
        let mut lines: Vec<_> = table.names.iter().map(|(name, entry)| (name, entry.pair)).collect();
        lines.sort_unstable_by_key(|(name, _)| *name);
        let text: String = lines.iter().map(|(name, pair)| format!("{name} {} {}\n", pair.v4, pair.v6)).collect();
        // An address that is told and then forgotten could mean another service after a restart.
        if let Err(error) = file.write(text.as_bytes()) {
            tracing::error!(%error, service = %name, "no virtual address: it could not be kept");
            return None;
        }
        self.table.store(Arc::new(table));
        Some(pair)
    }

    fn touch(&self, entry: &Entry) {
        entry.last.store(self.asked.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    fn place(&self, name: &ServiceName, table: &Table) -> Option<Pair> {
        let tries = || (0..TRIES).map(|attempt| draw(name, attempt));
        let v4 = tries().filter_map(|drawn| host_v4(self.v4, drawn)).find(|address| table.is_free((*address).into()))?;
        let v6 = tries().filter_map(|drawn| host_v6(self.v6, drawn)).find(|address| table.is_free((*address).into()))?;
        Some(Pair { v4, v6 })
    }
}

/// A name's place: the same at every agent, whatever else it calls.
fn draw(name: &ServiceName, attempt: u32) -> u128 {
    let hash = digest::digest(&digest::SHA256, format!("{attempt} {name}").as_bytes());
    let first = hash.as_ref().first_chunk::<16>().copied().unwrap_or_default();
    u128::from_be_bytes(first)
}

/// A host of the network: neither its first address nor its last.
fn host_v4(net: Ipv4Net, drawn: u128) -> Option<Ipv4Addr> {
    let mask = u32::from(net.hostmask());
    let host = u32::try_from(drawn & u128::from(mask)).ok()?;
    (host != 0 && host != mask).then(|| Ipv4Addr::from(u32::from(net.network()) | host))
}

fn host_v6(net: Ipv6Net, drawn: u128) -> Option<Ipv6Addr> {
    let host = drawn & u128::from(net.hostmask());
    (host != 0).then(|| Ipv6Addr::from(u128::from(net.network()) | host))
}

fn line(text: &str) -> Option<(ServiceName, Pair)> {
    let mut words = text.split(' ');
    let (name, v4, v6) = (words.next()?, words.next()?, words.next()?);
    Some((name.parse().ok()?, Pair { v4: v4.parse().ok()?, v6: v6.parse().ok()? }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StateDir;

    fn name(number: usize) -> ServiceName {
        format!("shop/s{number}").parse().unwrap()
    }

    fn open(state: &StateDir, v4: &str) -> Addresses {
        Addresses::open(v4.parse().unwrap(), "fd6f::/48".parse().unwrap(), state.sealed("addresses"))
    }

    #[test]
    fn an_address_means_one_service_and_outlives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("agent")).unwrap();
        // So few places that names want the same ones.
        let first = open(&state, "240.0.0.0/24");
        let pairs: Vec<Pair> = (0..100).map(|number| first.of(&name(number)).unwrap()).collect();
        for (number, pair) in pairs.iter().enumerate() {
            assert_eq!(first.service(pair.v4.into()), Some(name(number)));
            assert_eq!(first.service(pair.v6.into()), Some(name(number)));
            assert_eq!(first.service(pair.v4.to_ipv6_mapped().into()), Some(name(number)), "in IPv6 clothes");
        }
        let again = open(&state, "240.0.0.0/24");
        for (number, pair) in pairs.iter().enumerate().rev() {
            assert_eq!(again.of(&name(number)), Some(*pair));
        }
        let moved = open(&state, "240.1.0.0/24");
        assert_eq!(moved.service(pairs[0].v4.into()), None, "an address outside of the network means nothing");
    }

    #[test]
    fn full_networks_give_no_address_and_old_names_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("agent")).unwrap();
        let few = open(&state, "240.0.0.0/30");
        let given = (0..20).filter(|number| few.of(&name(*number)).is_some()).count();
        assert_eq!(given, 2, "the first and the last address of a network are no hosts");

        let mut table = Table::default();
        for number in 0..MOST {
            let at = u32::try_from(number).unwrap();
            let pair = Pair { v4: Ipv4Addr::from(at), v6: Ipv6Addr::from(u128::from(at)) };
            table.put(name(number), pair, u64::from(at) + 1);
        }
        table.make_room();
        assert!(!table.names.contains_key(&name(0)) && table.names.contains_key(&name(1)));
        assert_eq!((table.names.len(), table.services.len()), (MOST - 1, 2 * MOST - 2));
    }
}
