//! The kernel's rules: one table, for IPv4 and IPv6 alike, rendered from checked values only.

use std::{fmt, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{DNS_PORT, INBOUND_PORT, OUTBOUND_PORT};

/// Name of the table.
pub(super) const TABLE: &str = "outrider";
/// Ports that other agents and the platform reach directly: the mesh, health.
const AGENT_PORTS: [u16; 2] = [15108, 15120];

/// One port, or several in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl FromStr for Ports {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.parse().ok().filter(|port| *port > 0);
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err("use a port from 1 to 65535, or FIRST-LAST"),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(out, "{}", self.first) } else { write!(out, "{}-{}", self.first, self.last) }
    }
}

impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(|wrong| D::Error::custom(format!("`{text}`: {wrong}")))
    }
}

/// What is captured, and what is left alone. Everything here is a number or a network: no text of a user reaches a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Rules {
    /// User the agent runs as, by number: its connections are never captured; may be repeated
    #[arg(long, value_name = "UID")]
    pub agent_uid: Vec<u32>,
    /// Group the agent runs as, by number: its connections are never captured; may be repeated
    #[arg(long, value_name = "GID")]
    pub agent_gid: Vec<u32>,
    /// What to capture [default: both]
    #[arg(long, value_name = "DIRECTIONS")]
    pub directions: Option<super::Directions>,
    /// Where the agent takes captured connections of programs [default: 15102]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub outbound_port: Option<u16>,
    /// Where the agent takes captured connections to programs [default: 15106]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub inbound_port: Option<u16>,
    /// Where the agent takes captured DNS [default: 15153]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub dns_port: Option<u16>,
    /// Capture only programs of this user, by number; may be repeated [default: all]
    #[arg(long, value_name = "UID")]
    pub only_uid: Vec<u32>,
    /// Leave programs of this user alone; may be repeated
    #[arg(long, value_name = "UID")]
    pub exempt_uid: Vec<u32>,
    /// Leave connections to this port or range alone, DNS included; may be repeated
    #[arg(long, value_name = "PORT")]
    pub exempt_outbound_port: Vec<Ports>,
    /// Leave connections to this network alone, DNS included; may be repeated
    #[arg(long, value_name = "NETWORK")]
    pub exempt_outbound_net: Vec<IpNet>,
    /// Leave connections from outside to this port or range alone, beside 15108 and 15120; may be repeated
    #[arg(long, value_name = "PORT")]
    pub exempt_inbound_port: Vec<Ports>,
    /// Leave connections from this network alone; may be repeated
    #[arg(long, value_name = "NETWORK")]
    pub exempt_inbound_net: Vec<IpNet>,
}

/// Lines of a table.
struct Script(String);

impl Script {
    fn line(&mut self, depth: usize, text: impl fmt::Display) {
        self.0.push_str(&"\t".repeat(depth));
        self.0.push_str(&text.to_string());
        self.0.push('\n');
    }

    /// A rule that lets alone whatever matches one of `values`; none when there are none.
    fn exempt<T: fmt::Display>(&mut self, matching: &str, values: impl IntoIterator<Item = T>) {
        let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
        if !values.is_empty() {
            self.line(2, format!("{matching} {{ {} }} return", values.join(", ")));
        }
    }

    fn exempt_networks(&mut self, end: &str, networks: &[IpNet]) {
        let v4 = networks.iter().filter_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None }).collect();
        let v6 = networks.iter().filter_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None }).collect();
        self.exempt(&format!("ip {end}"), ipnet::Ipv4Net::aggregate(&v4));
        self.exempt(&format!("ip6 {end}"), ipnet::Ipv6Net::aggregate(&v6));
    }
}

/// Ports without overlaps, which a set does not take.
fn merged(ports: impl IntoIterator<Item = Ports>) -> Vec<Ports> {
    let mut sorted: Vec<Ports> = ports.into_iter().collect();
    sorted.sort_unstable();
    let mut merged: Vec<Ports> = Vec::new();
    for next in sorted {
        match merged.last_mut() {
            Some(last) if next.first <= last.last.saturating_add(1) => last.last = last.last.max(next.last),
            _ => merged.push(next),
        }
    }
    merged
}

fn sorted(ids: impl IntoIterator<Item = u32>) -> Vec<u32> {
    let mut ids: Vec<u32> = ids.into_iter().collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

impl Rules {
    /// Whether they can be put in force.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        let (out, into) = self.directions();
        if out && self.agent_uid.is_empty() && self.agent_gid.is_empty() {
            problems.push(
                "the agent's own connections would be captured too, and go round for ever: name the user or group that it alone runs as \
                 with `--agent-uid` or `--agent-gid`"
                    .to_owned(),
            );
        }
        let ports = [self.outbound_port(), self.inbound_port(), self.dns_port()];
        if ports.contains(&0) {
            problems.push("a port is `0`: use 1 to 65535".to_owned());
        }
        let [outbound, inbound, dns] = ports;
        if outbound == inbound || outbound == dns || inbound == dns {
            problems.push("the agent's ports are not three different ones".to_owned());
        }
        if let Some(both) = self.only_uid.iter().find(|uid| self.exempt_uid.contains(uid) || self.agent_uid.contains(uid)) {
            problems.push(format!("user {both} is both captured and left alone"));
        }
        let is_all = |net: &&IpNet| net.prefix_len() == 0;
        if let Some(all) = self.exempt_inbound_net.iter().find(is_all).filter(|_| into) {
            problems.push(format!("`--exempt-inbound-net {all}` leaves everything alone: use `--directions outbound`"));
        }
        if let Some(all) = self.exempt_outbound_net.iter().find(is_all).filter(|_| out) {
            problems.push(format!("`--exempt-outbound-net {all}` leaves everything alone: use `--directions inbound`"));
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    fn directions(&self) -> (bool, bool) {
        match self.directions.unwrap_or(super::Directions::Both) {
            super::Directions::Outbound => (true, false),
            super::Directions::Inbound => (false, true),
            super::Directions::Both => (true, true),
        }
    }

    fn outbound_port(&self) -> u16 {
        self.outbound_port.unwrap_or(OUTBOUND_PORT)
    }

    fn inbound_port(&self) -> u16 {
        self.inbound_port.unwrap_or(INBOUND_PORT)
    }

    fn dns_port(&self) -> u16 {
        self.dns_port.unwrap_or(DNS_PORT)
    }

    /// The table as nft reads it, under this name. A dormant one does nothing.
    pub(super) fn table(&self, name: &str, is_dormant: bool) -> String {
        let (outbound, inbound) = self.directions();
        let mut script = Script(String::new());
        script.line(0, format_args!("table inet {name} {{"));
        script.line(1, "comment \"Outrider: transparent capture\"");
        if is_dormant {
            script.line(1, "flags dormant");
        }
        if outbound {
            self.outbound_chain(&mut script);
        }
        if inbound {
            self.inbound_chain(&mut script);
        }
        script.line(0, "}");
        script.0
    }

    fn outbound_chain(&self, script: &mut Script) {
        script.line(1, "chain outbound {");
        script.line(2, "type nat hook output priority -100; policy accept;");
        script.exempt("meta skuid", sorted(self.agent_uid.iter().chain(&self.exempt_uid).copied()));
        script.exempt("meta skgid", sorted(self.agent_gid.iter().copied()));
        if !self.only_uid.is_empty() {
            let only: Vec<String> = sorted(self.only_uid.iter().copied()).iter().map(ToString::to_string).collect();
            script.line(2, format_args!("meta skuid != {{ {} }} return", only.join(", ")));
        }
        script.exempt_networks("daddr", &self.exempt_outbound_net);
        script.exempt("tcp dport", merged(self.exempt_outbound_port.iter().copied()));
        script.exempt("udp dport", merged(self.exempt_outbound_port.iter().copied()));
        // Before loopback: a resolver of the machine often listens there.
        for transport in ["udp", "tcp"] {
            script.line(2, format_args!("{transport} dport 53 redirect to :{}", self.dns_port()));
        }
        script.line(2, "oifname \"lo\" return");
        script.line(2, format_args!("meta l4proto tcp redirect to :{}", self.outbound_port()));
        script.line(1, "}");
    }

    fn inbound_chain(&self, script: &mut Script) {
        script.line(1, "chain inbound {");
        script.line(2, "type nat hook prerouting priority -100; policy accept;");
        script.line(2, "iifname \"lo\" return");
        // What this machine passes on to others is theirs.
        script.line(2, "fib daddr type != local return");
        script.exempt_networks("saddr", &self.exempt_inbound_net);
        let agent = AGENT_PORTS.map(|port| Ports { first: port, last: port });
        script.exempt("tcp dport", merged(agent.into_iter().chain(self.exempt_inbound_port.iter().copied())));
        script.line(2, format_args!("meta l4proto tcp redirect to :{}", self.inbound_port()));
        script.line(1, "}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Rules {
        Rules {
            agent_uid: vec![15100],
            agent_gid: vec![15100],
            exempt_uid: vec![7, 7],
            exempt_outbound_port: ["9000-9010", "9005-9020", "9021", "22"].map(|text| text.parse().unwrap()).to_vec(),
            exempt_outbound_net: ["10.0.0.0/9", "10.128.0.0/9", "fd00::/8"].map(|text| text.parse().unwrap()).to_vec(),
            exempt_inbound_port: vec!["9090".parse().unwrap()],
            exempt_inbound_net: vec!["192.0.2.0/24".parse().unwrap()],
            ..Rules::default()
        }
    }

    #[test]
    fn the_rules_are_those_on_the_page() {
        let expected = include_str!("rules.nft");
        assert_eq!(some().table(TABLE, false), expected, "docs/capture.md shows this file's rules: change both");
    }

    #[test]
    fn rules_that_cannot_work_are_refused() {
        assert!(some().check().is_ok());
        let wrong = |change: fn(&mut Rules)| {
            let mut rules = some();
            change(&mut rules);
            rules.check().unwrap_err().join("\n")
        };
        let loops = wrong(|rules| {
            rules.agent_uid.clear();
            rules.agent_gid.clear();
        });
        assert!(loops.contains("--agent-uid"), "{loops}");
        assert!(wrong(|rules| rules.dns_port = Some(15102)).contains("three different"));
        assert!(wrong(|rules| rules.only_uid = vec![15100]).contains("15100"));
        assert!(wrong(|rules| rules.exempt_inbound_net = vec!["::/0".parse().unwrap()]).contains("--directions"));
    }

    #[test]
    fn ports_are_numbers_and_ranges_of_them() {
        for wrong in ["", "0", "65536", "9-8", "80 }", "1-2-3", "http", "-"] {
            assert!(wrong.parse::<Ports>().is_err(), "{wrong}");
        }
        assert_eq!("80-90".parse::<Ports>().unwrap().to_string(), "80-90");
    }
}
