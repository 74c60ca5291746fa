//! Canonical hosts. Requests name few of them again and again: what was read lately is not read anew.

use std::{cell::RefCell, fmt, net::IpAddr, ops::Deref, rc::Rc};

use outrider_policy::{ServiceName, host};

use crate::refusal::{Reason, Refusal};

/// Hosts that a worker remembers.
const RECENT: usize = 64;

thread_local! {
    static HOSTS: RefCell<[Option<Known>; RECENT]> = const { RefCell::new([const { None }; RECENT]) };
}

/// A canonical host name, without port, and the service that it means. Clones are cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(Rc<Named>);

#[derive(Debug, PartialEq, Eq)]
struct Named {
    text: Box<str>,
    service: Option<ServiceName>,
}

#[derive(Debug)]
struct Known {
    raw: Box<[u8]>,
    name: HostName,
    port: Option<u16>,
}

impl HostName {
    /// The service of the mesh that the name means.
    pub fn service(&self) -> Option<&ServiceName> {
        self.0.service.as_ref()
    }
}

impl From<&str> for HostName {
    /// Of a name that is canonical.
    fn from(text: &str) -> Self {
        Self(Rc::new(Named { text: text.into(), service: service_of(text) }))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl Deref for HostName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0.text
    }
}

/// The service that a name may mean, in requests and to the resolver: `NAME.NAMESPACE`, and under `.mesh.internal`, `.svc` and
/// `.svc.cluster.local`.
pub(crate) fn service_of(name: &str) -> Option<ServiceName> {
    if name.parse::<IpAddr>().is_ok() {
        return None;
    }
    ServiceName::from_host(name.strip_suffix(".mesh.internal").unwrap_or(name))
}

/// What a `Host` or `:authority` says: the name, and the port if there is one; or `bad_host`.
pub(super) type HostRead = Result<(HostName, Option<u16>), Refusal>;

/// Reads a `Host` or `:authority`.
///
/// # Errors
/// `bad_host`.
pub(super) fn read(raw: &[u8]) -> HostRead {
    let place = place(raw);
    let known = HOSTS.with_borrow(|hosts| {
        let known = hosts.get(place)?.as_ref().filter(|known| *known.raw == *raw)?;
        Some((known.name.clone(), known.port))
    });
    if let Some(known) = known {
        return Ok(known);
    }
    let host = host::canonical(raw).map_err(|problem| Refusal::new(Reason::BadHost, problem.to_string()))?;
    let (name, port) = (HostName::from(&*host.name), host.port);
    HOSTS.with_borrow_mut(|hosts| {
        if let Some(place) = hosts.get_mut(place) {
            *place = Some(Known { raw: raw.into(), name: name.clone(), port });
        }
    });
    Ok((name, port))
}

/// Where a host is remembered, if it is. Two that share a place cost each other a reading, and nothing else.
fn place(raw: &[u8]) -> usize {
    raw.iter().rev().take(16).fold(raw.len(), |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte))) % RECENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_four_names_and_no_others() {
        let files: ServiceName = "shop/files".parse().unwrap();
        for name in ["files.shop", "files.shop.mesh.internal", "files.shop.svc", "files.shop.svc.cluster.local"] {
            assert_eq!(service_of(name), Some(files.clone()), "{name}");
        }
        for name in ["", "files", "a.files.shop", "mesh.internal.", "files.shop.mesh.internal.evil", "10.0.0.1", "::1"] {
            assert_eq!(service_of(name), None, "{name}");
        }
    }

    #[test]
    fn what_was_read_before_reads_the_same_and_what_is_wrong_is_never_remembered() {
        for _ in 0..2 {
            let (name, port) = read(b"Files.Shop:8080").unwrap();
            assert_eq!((&*name, port), ("files.shop", Some(8080)));
            assert_eq!(name.service().map(ToString::to_string).as_deref(), Some("shop/files"));
            let (name, port) = read(b"files.shop").unwrap();
            assert_eq!((&*name, port), ("files.shop", None));
            assert_eq!(read(b"a@b").unwrap_err().reason(), Reason::BadHost);
            assert!(read(b"example.com").unwrap().0.service().is_some() && read(b"example").unwrap().0.service().is_none());
        }
        for number in 0..10 * RECENT {
            let raw = format!("host-{number}.shop:{}", number + 1);
            for _ in 0..2 {
                let (name, port) = read(raw.as_bytes()).unwrap();
                assert_eq!((format!("{}:{}", &*name, port.unwrap_or_default()), name.service().is_some()), (raw.clone(), true));
            }
        }
    }
}
