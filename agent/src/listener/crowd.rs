//! How many callers are connected: to the agent, and from one address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// All connections from callers, of all workers and listeners.
#[derive(Debug)]
pub struct Crowd {
    most: usize,
    most_of_address: usize,
    open: AtomicUsize,
    /// Looked at when a connection comes or goes, never for a request.
    addresses: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection's place in the crowd; dropped, it is free again.
#[derive(Debug)]
pub struct Place {
    crowd: Arc<Crowd>,
    address: Option<IpAddr>,
}

/// Whether callers at a listener come from many addresses, or are the own program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Other agents, and callers in plaintext: each address has a bound of its own.
    Anybody,
    /// The own program: all of them have one address.
    Program,
}

impl Crowd {
    /// Room for so many, and so many of one address.
    pub fn new(most: usize, most_of_address: usize) -> Arc<Self> {
        Arc::new(Self { most, most_of_address, open: AtomicUsize::new(0), addresses: Mutex::default() })
    }

    /// A place, if there is one.
    pub fn enter(self: &Arc<Self>, address: IpAddr, callers: Callers) -> Option<Place> {
        let room = |open: usize| (open < self.most).then_some(open + 1);
        self.open.fetch_update(Relaxed, Relaxed, room).ok()?;
        // From here on the drop of the place gives it back.
        let mut place = Place { crowd: self.clone(), address: None };
        if callers == Callers::Anybody {
            let address = address.to_canonical();
            let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
            let open = addresses.get(&address).copied().unwrap_or_default();
            if open >= self.most_of_address {
                drop(addresses);
                return None;
            }
            addresses.insert(address, open + 1);
            place.address = Some(address);
        }
        Some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.open.fetch_sub(1, Relaxed);
        let Some(address) = self.address else { return };
        let mut addresses = self.crowd.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        match addresses.get_mut(&address) {
            Some(open) if *open > 1 => *open -= 1,
            _ => {
                addresses.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_leaves_room_for_others_and_nothing_is_remembered_of_who_left() {
        let crowd = Crowd::new(5, 3);
        let (a, b): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "::ffff:10.0.0.2".parse().unwrap());
        let mut places: Vec<_> = (0..9).filter_map(|_| crowd.enter(a, Callers::Anybody)).collect();
        assert_eq!(places.len(), 3);
        places.extend((0..9).filter_map(|_| crowd.enter(b, Callers::Anybody)));
        assert_eq!(places.len(), 5, "two are left in all");
        drop(places.pop());
        assert!(crowd.enter(a, Callers::Anybody).is_none(), "an address that has its share");
        let own: Vec<_> = (0..9).filter_map(|_| crowd.enter(a, Callers::Program)).collect();
        assert_eq!(own.len(), 1);
        drop((places, own));
        assert!(crowd.addresses.lock().unwrap().is_empty());
        assert_eq!(crowd.open.load(Relaxed), 0);
    }
}
