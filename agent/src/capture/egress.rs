//! Destinations outside of the mesh: none, unless a setting names them.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Which destinations outside of the mesh captured connections may reach. By default none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Egress {
    everywhere: bool,
    allowed: Vec<(IpNet, Option<u16>)>,
}

impl Egress {
    /// Reads `allow`, `deny` and `NETWORK[:PORT]` as a user wrote them.
    ///
    /// # Errors
    /// Every text that is none of these.
    pub fn read(texts: &[String]) -> Result<Self, Vec<String>> {
        let (mut egress, mut problems) = (Self::default(), Vec::new());
        for (at, text) in texts.iter().enumerate() {
            match text.as_str() {
                "deny" if texts.len() > 1 => problems.push("`--egress deny` stands beside others: leave it out".to_owned()),
                "deny" => {}
                "allow" => egress.everywhere = true,
                text => match network(text) {
                    Some(allowed) => egress.allowed.push(allowed),
                    None => problems.push(format!(
                        "`--egress`, number {}, is `{text}`: use `allow`, `deny`, NETWORK or NETWORK:PORT, [NETWORK]:PORT for IPv6",
                        at + 1
                    )),
                },
            }
        }
        if problems.is_empty() { Ok(egress) } else { Err(problems) }
    }

    /// Whether a destination may be reached. `allow` does not mean neighbours on the link, where clouds keep credentials,
    /// nor what is no single host; networks named do.
    pub fn allows(&self, to: SocketAddr) -> bool {
        let ip = to.ip().to_canonical();
        let named = self.allowed.iter().any(|(net, port)| net.contains(&ip) && port.is_none_or(|port| port == to.port()));
        named || (self.everywhere && !is_special(ip))
    }
}

fn is_special(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.is_link_local() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast() || ip.octets().first() == Some(&0)
        }
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified(),
    }
}

fn network(text: &str) -> Option<(IpNet, Option<u16>)> {
    let read = |text: &str| text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    if let Some(net) = read(text) {
        return Some((net.trunc(), None));
    }
    let (net, port) = text.rsplit_once(':')?;
    let bracketed = net.strip_prefix('[').and_then(|net| net.strip_suffix(']'));
    let net = read(bracketed.unwrap_or(net))?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    // Without brackets it could be either.
    let is_clear = bracketed.is_some() == matches!(net, IpNet::V6(_));
    is_clear.then_some((net.trunc(), Some(port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(texts: &[&str]) -> Egress {
        Egress::read(&texts.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    fn allows(egress: &Egress, to: &str) -> bool {
        egress.allows(to.parse().unwrap())
    }

    #[test]
    fn nothing_outside_is_reached_unless_named() {
        for closed in [egress(&[]), egress(&["deny"])] {
            assert!(!allows(&closed, "1.1.1.1:443") && !allows(&closed, "[2001:db8::1]:443"));
        }
        let some = egress(&["10.0.0.0/8:443", "192.0.2.7", "[2001:db8::/32]:443", "fd00::/8"]);
        for (to, expected) in [
            ("10.1.2.3:443", true),
            ("[::ffff:10.1.2.3]:443", true),
            ("10.1.2.3:80", false),
            ("192.0.2.7:1", true),
            ("192.0.2.8:1", false),
            ("[2001:db8::1]:443", true),
            ("[2001:db8::1]:80", false),
            ("[fd00::1]:80", true),
        ] {
            assert_eq!(allows(&some, to), expected, "{to}");
        }
    }

    #[test]
    fn allow_stops_short_of_what_is_close_by() {
        let all = egress(&["allow"]);
        assert!(allows(&all, "1.1.1.1:443") && allows(&all, "[2001:db8::1]:443"));
        for to in
            ["169.254.169.254:80", "127.0.0.1:80", "0.0.0.0:80", "[::1]:80", "[fe80::1%2]:80", "[::ffff:169.254.169.254]:80"]
        {
            assert!(!allows(&all, to), "{to}");
        }
        assert!(allows(&egress(&["allow", "169.254.169.254:80"]), "169.254.169.254:80"));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for wrong in ["", "example.com", "10.0.0.0/33", "10.0.0.0/8:0", "10.0.0.0/8:x", "fd00::/8:443", "[10.0.0.0/8]:443", "any"]
        {
            assert!(Egress::read(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
        assert!(Egress::read(&["deny".to_owned(), "allow".to_owned()]).is_err());
    }
}
