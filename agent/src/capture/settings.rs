//! What the agent captures, and which connections out of the mesh it lets through.

use std::str::FromStr;

use clap::ValueEnum;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{DNS_PORT, Egress, INBOUND_PORT, OUTBOUND_PORT};
use crate::dns::Forward;

/// Virtual addresses, unless a setting says otherwise: reserved (RFC 1112) and unique local (RFC 4193), so never anybody's.
const VIRTUAL_V4: &str = "240.0.0.0/8";
const VIRTUAL_V6: &str = "fd6f:7574:7269::/48";

/// Which connections are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Directions {
    /// Those of the program beside this agent.
    Outbound,
    /// Those to it.
    Inbound,
    /// Both.
    Both,
}

/// Settings as the user gives them.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct CaptureSettings {
    /// Take connections that `outrider-agent capture install` redirects here [default: none]
    #[arg(long = "capture", env = "OUTRIDER_CAPTURE", value_name = "DIRECTIONS")]
    pub directions: Option<Directions>,
    /// Port for captured connections of the program [default: 15102]
    #[arg(long = "capture-outbound-port", value_name = "PORT")]
    pub outbound_port: Option<u16>,
    /// Port for captured connections to the program [default: 15106]
    #[arg(long = "capture-inbound-port", value_name = "PORT")]
    pub inbound_port: Option<u16>,
    /// Port for captured DNS [default: 15153]
    #[arg(long = "capture-dns-port", value_name = "PORT")]
    pub dns_port: Option<u16>,
    /// Destinations outside of the mesh that captured connections may reach: `deny`, `allow`, or NETWORK[:PORT]; may be repeated [default: deny]
    #[arg(long, value_name = "EGRESS")]
    pub egress: Vec<String>,
    /// Server that is asked for names outside of the mesh, [SUFFIX=]IP[:PORT]; may be repeated [default: none, such names are refused]
    #[arg(long, value_name = "SUFFIX=SERVER")]
    pub dns_forward: Vec<String>,
    /// Network of the virtual addresses of services; once for IPv4, once for IPv6 [default: 240.0.0.0/8 and fd6f:7574:7269::/48]
    #[arg(long, value_name = "NETWORK")]
    pub virtual_network: Vec<String>,
}

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Capture {
    /// Port for captured connections of the program.
    pub outbound: Option<u16>,
    /// Port for captured DNS.
    pub dns: Option<u16>,
    /// Port for captured connections to the program.
    pub inbound: Option<u16>,
    /// What may be reached outside of the mesh.
    pub egress: Egress,
    /// Who is asked for names outside of the mesh.
    pub forward: Vec<Forward>,
    /// Where virtual addresses lie.
    pub virtual_v4: Ipv4Net,
    /// Where virtual addresses lie.
    pub virtual_v6: Ipv6Net,
}

impl CaptureSettings {
    /// What the agent needs; none when nothing is captured.
    ///
    /// # Errors
    /// Everything that is wrong, each with the flag and what stands there.
    pub fn check(&self) -> Result<Option<Capture>, Vec<String>> {
        let mut problems = Vec::new();
        let egress = Egress::read(&self.egress).unwrap_or_else(|wrong| {
            problems.extend(wrong);
            Egress::default()
        });
        let forward = each(&self.dns_forward, "--dns-forward", "[SUFFIX=]IP[:PORT]", &mut problems);
        let (virtual_v4, virtual_v6) = self.networks(&mut problems).unwrap_or_default();
        let ports = [
            ("--capture-outbound-port", self.outbound_port, OUTBOUND_PORT),
            ("--capture-inbound-port", self.inbound_port, INBOUND_PORT),
            ("--capture-dns-port", self.dns_port, DNS_PORT),
        ];
        let [outbound, inbound, dns] = ports.map(|(flag, port, default)| {
            if port == Some(0) {
                problems.push(format!("`{flag}` is `0`: the capture rules name the port, so choose one from 1 to 65535"));
            }
            port.unwrap_or(default)
        });
        if outbound == inbound || outbound == dns || inbound == dns {
            problems.push("the ports for captured connections are not three different ones".to_owned());
        }
        let Some(directions) = self.directions else {
            if !self.is_empty() {
                problems
                    .push("settings of capture without `--capture`: say `--capture both`, `outbound` or `inbound`".to_owned());
            }
            return if problems.is_empty() { Ok(None) } else { Err(problems) };
        };
        if forward.iter().any(|forward: &Forward| forward.server.port() == dns && forward.server.ip().is_loopback()) {
            problems.push("`--dns-forward` leads back to this agent".to_owned());
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let goes_out = directions != Directions::Inbound;
        Ok(Some(Capture {
            outbound: goes_out.then_some(outbound),
            dns: goes_out.then_some(dns),
            inbound: (directions != Directions::Outbound).then_some(inbound),
            egress,
            forward,
            virtual_v4,
            virtual_v6,
        }))
    }

    fn is_empty(&self) -> bool {
        let ports = [self.outbound_port, self.inbound_port, self.dns_port];
        let lists = [&self.egress, &self.dns_forward, &self.virtual_network];
        ports.iter().all(Option::is_none) && lists.iter().all(|list| list.is_empty())
    }

    fn networks(&self, problems: &mut Vec<String>) -> Option<(Ipv4Net, Ipv6Net)> {
        let given: Vec<IpNet> = each(&self.virtual_network, "--virtual-network", "a network such as 240.0.0.0/8", problems);
        let v4: Vec<Ipv4Net> =
            given.iter().filter_map(|net| if let IpNet::V4(net) = net { Some(net.trunc()) } else { None }).collect();
        let v6: Vec<Ipv6Net> =
            given.iter().filter_map(|net| if let IpNet::V6(net) = net { Some(net.trunc()) } else { None }).collect();
        if v4.len() > 1 || v6.len() > 1 {
            problems.push("`--virtual-network` names two networks of one family".to_owned());
        }
        let v4 = v4.first().copied().or_else(|| VIRTUAL_V4.parse().ok())?;
        let v6 = v6.first().copied().or_else(|| VIRTUAL_V6.parse().ok())?;
        if v4.prefix_len() > 22 || v6.prefix_len() > 96 {
            problems.push("`--virtual-network` has too little room: use /22 or larger, and /96 or larger for IPv6".to_owned());
        }
        if v4.network().is_loopback() || v4.network().is_multicast() || v6.network().is_multicast() {
            problems.push("`--virtual-network` is a network that has a meaning of its own".to_owned());
        }
        Some((v4, v6))
    }
}

fn each<T: FromStr>(texts: &[String], flag: &str, form: &str, problems: &mut Vec<String>) -> Vec<T> {
    let mut read = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        match text.parse() {
            Ok(value) => read.push(value),
            Err(_) => problems.push(format!("`{flag}`, number {}, is `{text}`: use {form}", at + 1)),
        }
    }
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_captured_unless_said_and_then_everything_is_checked() {
        assert!(CaptureSettings::default().check().unwrap().is_none());
        let both = CaptureSettings { directions: Some(Directions::Both), ..CaptureSettings::default() };
        let capture = both.check().unwrap().unwrap();
        assert_eq!((capture.outbound, capture.inbound, capture.dns), (Some(15102), Some(15106), Some(15153)));
        assert_eq!((capture.virtual_v4.to_string(), capture.virtual_v6.to_string().as_str()), ("240.0.0.0/8".into(), VIRTUAL_V6));
        let inbound = CaptureSettings { directions: Some(Directions::Inbound), ..CaptureSettings::default() };
        let capture = inbound.check().unwrap().unwrap();
        assert_eq!((capture.outbound, capture.inbound, capture.dns), (None, Some(15106), None));
    }

    #[test]
    fn every_mistake_is_named_with_its_place() {
        let wrong = CaptureSettings {
            directions: Some(Directions::Both),
            outbound_port: Some(0),
            inbound_port: Some(15153),
            egress: vec!["10.0.0.0/8".into(), "example.com".into()],
            dns_forward: vec!["127.0.0.1:15153".into(), "nobody".into()],
            virtual_network: vec!["240.0.0.0/30".into(), "x; drop".into()],
            ..CaptureSettings::default()
        };
        let problems = wrong.check().unwrap_err().join("\n");
        for word in [
            "--capture-outbound-port",
            "three different",
            "number 2, is `example.com`",
            "`nobody`",
            "back to this agent",
            "/22",
            "number 2, is `x; drop`",
        ] {
            assert!(problems.contains(word), "{word}: {problems}");
        }
        let lonely = CaptureSettings { egress: vec!["allow".into()], ..CaptureSettings::default() };
        assert!(lonely.check().unwrap_err().join("\n").contains("--capture both"));
    }
}
