//! One rule of a policy and the conditions in it.
//!
//! A rule holds if one of its `from` entries, one of its `to` entries and its `when` hold; a part that is absent holds
//! always. An entry holds if all of its fields do; a field holds if one of its values does, its `not…` form if none does.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};

use crate::header::HeaderMatch;
use crate::path_pattern::PathPattern;
use crate::pattern::{AccountPattern, HostPattern, MethodPattern, NamespacePattern, PrincipalPattern, TrustDomainPattern};
use crate::resource::MAX_RULES;
use crate::when::When;

/// What a rule does to the calls it holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Refuses them, whatever else allows them.
    Deny,
    /// Lets them pass, unless a deny rule holds.
    Allow,
    /// Records them, and has no part in the verdict.
    Audit,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Deny => "Deny",
            Self::Allow => "Allow",
            Self::Audit => "Audit",
        })
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Its name, one in the policy; `rules[N]` stands for a missing one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<crate::names::Label>,
    /// What it does.
    pub action: Action,
    /// Who calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub from: Vec<Source>,
    /// What is called.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub to: Vec<Operation>,
    /// A CEL expression that holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<When>,
}

impl Rule {
    /// Whether a condition of it is about HTTP, so that it cannot be decided on an opaque port.
    pub fn needs_http(&self) -> bool {
        self.to.iter().any(Operation::needs_http) || self.when.as_ref().is_some_and(When::needs_http)
    }
}

/// Who calls: one entry of `from`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Source {
    /// SPIFFE IDs.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub principals: Vec<PrincipalPattern>,
    /// None of these SPIFFE IDs.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub not_principals: Vec<PrincipalPattern>,
    /// Namespaces of the caller.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub namespaces: Vec<NamespacePattern>,
    /// None of these namespaces.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub not_namespaces: Vec<NamespacePattern>,
    /// Service accounts of the caller, `namespace/name`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub service_accounts: Vec<AccountPattern>,
    /// None of these service accounts.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub not_service_accounts: Vec<AccountPattern>,
    /// Trust domains of the caller.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub trust_domains: Vec<TrustDomainPattern>,
    /// None of these trust domains.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub not_trust_domains: Vec<TrustDomainPattern>,
    /// Addresses of the caller, single or as CIDR blocks.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub ip_blocks: Vec<IpBlock>,
    /// None of these addresses.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub not_ip_blocks: Vec<IpBlock>,
    /// `true`: callers without identity alone; `false`: callers with one alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anonymous: Option<bool>,
}

/// What is called: one entry of `to`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Operation {
    /// Hosts, without port.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub hosts: Vec<HostPattern>,
    /// None of these hosts.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub not_hosts: Vec<HostPattern>,
    /// Ports of the service.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "ports")]
    pub ports: Vec<u16>,
    /// None of these ports.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "ports")]
    pub not_ports: Vec<u16>,
    /// HTTP methods.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub methods: Vec<MethodPattern>,
    /// None of these methods.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub not_methods: Vec<MethodPattern>,
    /// Paths.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub paths: Vec<PathPattern>,
    /// None of these paths.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub not_paths: Vec<PathPattern>,
    /// Conditions on headers, all of which hold.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub headers: Vec<HeaderMatch>,
    /// Conditions on headers, none of which holds.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "at_least_one")]
    pub not_headers: Vec<HeaderMatch>,
}

impl Operation {
    pub(crate) fn out_of_reach(&self) -> Option<String> {
        let mut headers = self.headers.iter().chain(&self.not_headers);
        let mut methods = self.methods.iter().chain(&self.not_methods);
        let header = headers.find_map(|header| header.check().err()).map(|problem| problem.to_string());
        header.or_else(|| methods.find_map(|method| method.check().err()).map(|problem| problem.to_string()))
    }
}

impl Operation {
    /// Whether a condition of it is about HTTP.
    pub fn needs_http(&self) -> bool {
        let hosts = !self.hosts.is_empty() || !self.not_hosts.is_empty();
        let methods = !self.methods.is_empty() || !self.not_methods.is_empty();
        let paths = !self.paths.is_empty() || !self.not_paths.is_empty();
        hosts || methods || paths || !self.headers.is_empty() || !self.not_headers.is_empty()
    }
}

/// A CIDR block, or a single address. An IPv4 address mapped into IPv6 is the IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpBlock(IpNet);

/// The text is neither an address nor a CIDR block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither an address nor a CIDR block such as `10.0.0.0/8`")]
pub struct IpBlockProblem(String);

impl IpBlock {
    /// Whether `ip` lies in the block.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(&ip.to_canonical())
    }

    /// The block with its host bits cleared.
    pub fn net(&self) -> IpNet {
        self.0
    }
}

impl std::str::FromStr for IpBlock {
    type Err = IpBlockProblem;
    fn from_str(text: &str) -> Result<Self, IpBlockProblem> {
        let problem = || IpBlockProblem(text.chars().take(80).collect());
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(|ip| IpNet::from(ip.to_canonical())));
        let net = net.map_err(|_| problem())?;
        match net {
            // a block of mapped addresses would contain nothing, as addresses are compared in their canonical form
            IpNet::V6(v6) => match v6.network().to_ipv4_mapped() {
                Some(v4) if v6.prefix_len() >= 96 => {
                    IpNet::new(v4.into(), v6.prefix_len() - 96).map(|net| Self(net.trunc())).map_err(|_| problem())
                }
                _ => Ok(Self(net.trunc())),
            },
            IpNet::V4(_) => Ok(Self(net.trunc())),
        }
    }
}
impl TryFrom<String> for IpBlock {
    type Error = IpBlockProblem;
    fn try_from(text: String) -> Result<Self, IpBlockProblem> {
        text.parse()
    }
}
impl From<IpBlock> for String {
    fn from(block: IpBlock) -> Self {
        block.0.to_string()
    }
}
impl std::fmt::Display for IpBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A list that is written down but empty would match nothing where its absence matches everything: refused.
pub(crate) fn at_least_one<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let list = Vec::deserialize(deserializer)?;
    if list.is_empty() {
        Err(serde::de::Error::custom("an empty list matches nothing: leave the field out to match everything"))
    } else {
        Ok(list)
    }
}

fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
    let list: Vec<u16> = at_least_one(deserializer)?;
    if list.contains(&0) { Err(serde::de::Error::custom("port 0 does not exist")) } else { Ok(list) }
}

pub(crate) fn bounded_rules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Rule>, D::Error> {
    let rules: Vec<Rule> = Vec::deserialize(deserializer)?;
    if rules.len() > MAX_RULES {
        Err(serde::de::Error::custom(format!("a policy has at most {MAX_RULES} rules")))
    } else {
        Ok(rules)
    }
}
