//! Where a connection wanted to go before a rule of the kernel sent it here.

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::refusal::{Reason, Refusal};

/// A destination that the kernel told. Made only here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original(SocketAddr);

impl Original {
    /// Asks the kernel.
    ///
    /// # Errors
    /// `not_redirected` when no rule sent the connection here: whoever connects straight to a capture port names no
    /// destination but the port itself.
    pub fn of(stream: &TcpStream) -> Result<Self, Refusal> {
        let direct = |why: &str| Refusal::new(Reason::NotRedirected, format!("no capture rule sent this connection here: {why}"));
        let here = stream.local_addr().map_err(|error| direct(&error.to_string()))?;
        let socket = SockRef::from(stream);
        // An IPv6 socket may carry IPv4; then the rules of IPv4 know where it was going.
        let told = if here.ip().to_canonical().is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
        let told = told.map_err(|error| direct(&error.to_string()))?;
        let to = told.as_socket().ok_or_else(|| direct("it has no address"))?;
        if canonical(to) == canonical(here) {
            return Err(direct("it was meant for the capture port itself"));
        }
        Ok(Self(SocketAddr::new(to.ip().to_canonical(), to.port()).with_scope(to)))
    }

    /// The address and port.
    pub fn address(self) -> SocketAddr {
        self.0
    }
}

fn canonical(address: SocketAddr) -> (std::net::IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

trait WithScope {
    fn with_scope(self, of: SocketAddr) -> SocketAddr;
}

impl WithScope for SocketAddr {
    /// Link-local addresses need their link.
    fn with_scope(mut self, of: SocketAddr) -> SocketAddr {
        if let (Self::V6(to), SocketAddr::V6(of)) = (&mut self, of) {
            to.set_scope_id(of.scope_id());
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_straight_connection_has_no_destination() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = tokio::net::TcpListener::bind(address).await else { continue };
            let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
            let (_near, (far, _)) = (near.unwrap(), far.unwrap());
            assert_eq!(Original::of(&far).unwrap_err().reason(), Reason::NotRedirected);
        }
    }
}
