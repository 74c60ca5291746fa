//! What becomes of a captured connection: it goes to the mesh, out of it where that is allowed, or nowhere.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::BytesMut;
use tokio::net::{TcpSocket, TcpStream};

use super::{Capture, Egress, Original};
use crate::{
    config::{BackedPort, ExplicitUpstream, PlaintextPort},
    dns::Addresses,
    http::{SharedIo, Transport, normalize::new_request_id},
    inbound,
    listener::{Accepted, Bound, ListenError},
    outbound,
    refusal::{Reason, Refusal},
    tcp::Tunnel,
    telemetry::{Record, Side},
    worker::Worker,
};

/// Which way a captured connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the own program.
    Outbound,
    /// To it.
    Inbound,
}

impl Direction {
    /// The side it is recorded under.
    pub fn side(self) -> Side {
        match self {
            Self::Outbound => Side::Outbound,
            Self::Inbound => Side::Inbound,
        }
    }
}

/// Opens the listeners for captured connections. The kernel's rules send those of the program to loopback, of either family,
/// and those from outside to the address they came to.
pub(crate) fn listeners(
    capture: &Capture,
    mut bind: impl FnMut(SocketAddr, &'static str) -> Result<Bound, ListenError>,
) -> Result<Vec<(Direction, Bound)>, ListenError> {
    let mut bound = Vec::new();
    if let Some(port) = capture.outbound {
        let flag = "--capture-outbound-port";
        bound.push((Direction::Outbound, bind((Ipv4Addr::LOCALHOST, port).into(), flag)?));
        match bind((Ipv6Addr::LOCALHOST, port).into(), flag) {
            Ok(v6) => bound.push((Direction::Outbound, v6)),
            Err(error) if error.has_no_such_family() => no_ipv6(&error),
            Err(error) => return Err(error),
        }
    }
    if let Some(port) = capture.inbound {
        let flag = "--capture-inbound-port";
        let both = match bind((Ipv6Addr::UNSPECIFIED, port).into(), flag) {
            Err(error) if error.has_no_such_family() => {
                no_ipv6(&error);
                bind((Ipv4Addr::UNSPECIFIED, port).into(), flag)
            }
            outcome => outcome,
        };
        bound.push((Direction::Inbound, both?));
    }
    Ok(bound)
}

fn no_ipv6(error: &ListenError) {
    tracing::warn!(%error, "no IPv6 here: what the capture rules redirect of it is refused");
}

/// Where a captured connection of the own program goes.
#[derive(Debug)]
enum Way {
    /// To a service of the mesh.
    Service(ExplicitUpstream),
    /// Out of the mesh.
    Outside(SocketAddr),
}

/// What the workers share about capture.
#[derive(Debug)]
pub struct Captured {
    addresses: Arc<Addresses>,
    egress: Egress,
    backed: Vec<BackedPort>,
    /// Own connections out of the mesh: their port and where they go. One of them that comes back is a loop.
    leaving: Mutex<HashSet<(u16, SocketAddr)>>,
}

/// An own connection out of the mesh, for as long as it lives.
#[derive(Debug)]
struct Leaving<'a> {
    captured: &'a Captured,
    connection: (u16, SocketAddr),
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.captured.leaving().remove(&self.connection);
    }
}

impl Captured {
    /// Nothing is captured yet.
    pub fn new(addresses: Arc<Addresses>, egress: Egress, backed: Vec<BackedPort>) -> Self {
        Self { addresses, egress, backed, leaving: Mutex::default() }
    }

    fn leaving(&self) -> MutexGuard<'_, HashSet<(u16, SocketAddr)>> {
        // Nothing in here can panic half-way.
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a connection of the own program goes.
    fn way(&self, to: SocketAddr, from: SocketAddr) -> Result<Way, Refusal> {
        if let Some(service) = self.addresses.service(to.ip()) {
            return Ok(Way::Service(ExplicitUpstream { listen: to, service, port: Some(to.port()) }));
        }
        if self.addresses.is_virtual(to.ip()) {
            return Err(Refusal::new(Reason::UnknownService, format!("the virtual address {to} was given to no service")));
        }
        if self.leaving().contains(&(from.port(), to)) || is_own(to.ip()) {
            let why = "leads back to this agent: do the capture rules exempt the user or group it runs as?";
            return Err(Refusal::new(Reason::CaptureLoop, format!("{to} {why}")));
        }
        if self.egress.allows(to) {
            return Ok(Way::Outside(to));
        }
        let why = "is not an address of a service of the mesh, and no `--egress` allows it";
        Err(Refusal::new(Reason::EgressDenied, format!("{to} {why}")))
    }

    /// The port of an own service that a connection from outside is for.
    fn port(&self, to: SocketAddr) -> Result<PlaintextPort, Refusal> {
        let at = |port: &&BackedPort| port.program.port() == to.port();
        let mut found = self.backed.iter().filter(at);
        let own = match (found.next(), found.next()) {
            (Some(only), None) => Some(only),
            // Several services of one program: the one whose port has that number.
            (Some(_), Some(_)) => self.backed.iter().filter(at).find(|port| port.port == to.port()),
            (None, _) => None,
        };
        let own = own.ok_or_else(|| {
            Refusal::new(Reason::UnknownService, format!("port {} is not that of one service this agent backs", to.port()))
        })?;
        Ok(PlaintextPort { listen: to, service: own.service.clone(), port: own.port, is_http: own.protocol.is_http() })
    }

    /// Connects out of the mesh.
    async fn leave(&self, to: SocketAddr) -> io::Result<(TcpStream, Leaving<'_>)> {
        let (socket, any): (_, IpAddr) = match to {
            SocketAddr::V4(_) => (TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into()),
            SocketAddr::V6(_) => (TcpSocket::new_v6()?, Ipv6Addr::UNSPECIFIED.into()),
        };
        socket.bind((any, 0).into())?;
        let connection = (socket.local_addr()?.port(), to);
        self.leaving().insert(connection);
        let leaving = Leaving { captured: self, connection };
        let stream = socket.connect(to).await?;
        let _ = stream.set_nodelay(true);
        Ok((stream, leaving))
    }
}

/// Whether an address is one of this machine's: only to those a socket can be bound.
fn is_own(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}

/// Serves a captured connection to its end.
pub(crate) async fn serve(worker: Rc<Worker>, captured: Arc<Captured>, direction: Direction, accepted: Accepted) {
    let from = accepted.address;
    let original = Original::of(&accepted.stream).map(Original::address);
    let refusal = match direction {
        Direction::Inbound => match original.and_then(|to| captured.port(to)) {
            Ok(port) => return inbound::serve(worker, accepted, Some(port)).await,
            Err(refusal) => refusal,
        },
        Direction::Outbound => match original.and_then(|to| captured.way(to, from)) {
            Ok(Way::Service(upstream)) => return outbound::serve(worker, accepted, Some(upstream)).await,
            Ok(Way::Outside(to)) => return outside(worker, &captured, to, accepted).await,
            Err(refusal) => refusal,
        },
    };
    let mut record = Record::new(&worker.observer, direction.side());
    record.set_id(new_request_id());
    record.address(from);
    record.refused(&refusal);
}

/// Carries the bytes of a connection out of the mesh, and those that come back.
async fn outside(worker: Rc<Worker>, captured: &Captured, to: SocketAddr, accepted: Accepted) {
    let (stream, from, _held) = accepted.split();
    let mut record = Record::new(&worker.observer, Side::Outbound);
    record.set_id(new_request_id());
    record.address(from);
    record.outside(to);
    let failed = |why: &dyn std::fmt::Display| Refusal::new(Reason::ConnectFailed, format!("{to}: {why}"));
    match tokio::time::timeout(worker.limits.connect, captured.leave(to)).await {
        Ok(Ok((far, _leaving))) => {
            let (near, far) = (SharedIo::new(Transport::Plain(stream)), SharedIo::new(Transport::Plain(far)));
            Tunnel::new(far, None, None).relay(near, BytesMut::new(), record).await;
        }
        Ok(Err(error)) => record.refused(&failed(&error)),
        Err(_) => record.refused(&failed(&"connecting timed out")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StateDir;

    fn captured(egress: &[&str]) -> (tempfile::TempDir, Captured) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("agent")).unwrap();
        let networks = ("240.0.0.0/8".parse().unwrap(), "fd6f::/48".parse().unwrap());
        let addresses = Addresses::open(networks.0, networks.1, state.sealed("addresses"));
        let egress = Egress::read(&egress.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        let port = |service: &str, port: u16, program: &str| BackedPort {
            service: service.parse().unwrap(),
            port,
            protocol: outrider_policy::Protocol::Http,
            program: program.parse().unwrap(),
        };
        let backed = vec![
            port("shop/orders", 80, "127.0.0.1:8080"),
            port("shop/a", 9000, "127.0.0.1:9000"),
            port("shop/b", 80, "127.0.0.1:9000"),
            port("shop/c", 80, "127.0.0.1:7000"),
            port("shop/d", 81, "127.0.0.1:7000"),
        ];
        (dir, Captured::new(Arc::new(addresses), egress, backed))
    }

    fn refused(way: Result<Way, Refusal>) -> Reason {
        way.unwrap_err().reason()
    }

    #[test]
    fn a_virtual_address_is_its_service_and_everything_else_is_outside() {
        let (_dir, captured) = captured(&["allow"]);
        let from: SocketAddr = "127.0.0.1:5000".parse().unwrap();
        let pair = captured.addresses.of(&"shop/orders".parse().unwrap()).unwrap();
        for address in [IpAddr::from(pair.v4), pair.v6.into(), pair.v4.to_ipv6_mapped().into()] {
            match captured.way((address, 80).into(), from) {
                Ok(Way::Service(upstream)) => assert_eq!((upstream.service.as_str(), upstream.port), ("shop/orders", Some(80))),
                other => panic!("{address}: {other:?}"),
            }
        }
        let nobody = "240.255.1.1:80".parse().unwrap();
        assert_eq!(refused(captured.way(nobody, from)), Reason::UnknownService, "also where egress allows everything");
        assert!(matches!(captured.way("192.0.2.1:443".parse().unwrap(), from), Ok(Way::Outside(_))));
    }

    #[test]
    fn what_no_setting_allows_does_not_leave_and_what_comes_back_is_a_loop() {
        let (_dir, closed) = captured(&[]);
        let (to, from): (SocketAddr, SocketAddr) = ("192.0.2.1:443".parse().unwrap(), "10.0.0.1:5000".parse().unwrap());
        assert_eq!(refused(closed.way(to, from)), Reason::EgressDenied);
        let (_dir, open) = captured(&["allow", "127.0.0.0/8"]);
        assert_eq!(refused(open.way("127.0.0.1:80".parse().unwrap(), from)), Reason::CaptureLoop);
        open.leaving().insert((5000, to));
        assert_eq!(refused(open.way(to, from)), Reason::CaptureLoop);
        drop(Leaving { captured: &open, connection: (5000, to) });
        assert!(open.way(to, from).is_ok());
    }

    #[test]
    fn a_connection_from_outside_is_for_one_service_or_for_none() {
        let (_dir, captured) = captured(&[]);
        let port = |to: &str| captured.port(to.parse().unwrap()).map(|port| port.service.to_string());
        assert_eq!(port("10.0.0.2:8080").unwrap(), "shop/orders");
        assert_eq!(port("[fd00::2]:9000").unwrap(), "shop/a", "of two, the one with that number");
        assert_eq!(port("10.0.0.2:7000").unwrap_err().reason(), Reason::UnknownService, "of two, neither");
        assert_eq!(port("10.0.0.2:22").unwrap_err().reason(), Reason::UnknownService);
    }
}
