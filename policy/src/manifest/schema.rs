//! The shapes of the resources. Texts are checked by the parsers of the types that they become.

use std::net::IpAddr;
use std::str::FromStr;

use super::shape::{Field, Needed, Shape};
use super::tree::Node;
use crate::described::DescribedCall;
use crate::header::HeaderMatch;
use crate::limits::MAX_REQUESTS;
use crate::names::Label;
use crate::path_pattern::PathPattern;
use crate::pattern::{AccountPattern, HostPattern, MethodPattern, NamespacePattern, PrincipalPattern, TrustDomainPattern};
use crate::resource::{API_VERSION, MAX_RULES};
use crate::rule::IpBlock;
use crate::when::When;
use crate::{ServiceName, SpiffeId};

const fn field(name: &'static str, shape: &'static Shape) -> Field {
    Field { name, shape, needed: Needed::No }
}

const fn needed(name: &'static str, shape: &'static Shape) -> Field {
    Field { name, shape, needed: Needed::Yes }
}

const fn values(of: &'static Shape) -> Shape {
    Shape::List { of, least: 1, most: 1000 }
}

fn parses<T: FromStr<Err: ToString>>(text: &str) -> Result<(), String> {
    text.parse::<T>().map(drop).map_err(|problem| problem.to_string())
}

/// A `ServicePolicy`.
pub(crate) static SERVICE_POLICY: Shape = Shape::Object(&[
    needed("apiVersion", &Shape::Choice(&[API_VERSION])),
    needed("kind", &Shape::Choice(&["ServicePolicy"])),
    needed("metadata", &METADATA),
    needed("spec", &SPEC),
]);

/// What names a resource.
pub(crate) static METADATA: Shape =
    Shape::Object(&[needed("name", &LABEL), needed("namespace", &LABEL), field("labels", &FREE), field("annotations", &FREE)]);

static LABEL: Shape = Shape::Text(parses::<Label>);
static FREE: Shape = Shape::Map { key: short, value: &Shape::Text(|_| Ok(())), least: 0 };

fn short(key: &str) -> Result<(), String> {
    if (1..=317).contains(&key.len()) { Ok(()) } else { Err("a key has 1 to 317 bytes".to_owned()) }
}

static SPEC: Shape = Shape::Whole(
    &Shape::Object(&[
        field("targetRefs", &values(&TARGET_REF)),
        field(
            "selector",
            &Shape::Object(&[needed("matchLabels", &Shape::Map { key: short, value: &Shape::Text(|_| Ok(())), least: 1 })]),
        ),
        field("mtls", &MTLS),
        field("limits", &LIMITS),
        field("authorization", &Shape::Object(&[needed("rules", &Shape::List { of: &RULE, least: 0, most: MAX_RULES })])),
    ]),
    one_target,
);

fn one_target(spec: &Node) -> Result<(), String> {
    match (spec.field("targetRefs"), spec.field("selector")) {
        (Some(_), Some(_)) => Err("`targetRefs` and `selector` exclude each other: write one of them".to_owned()),
        _ => Ok(()),
    }
}

static TARGET_REF: Shape = Shape::Object(&[needed("kind", &Shape::Choice(&["Service"])), needed("name", &LABEL)]);

static MODE: Shape = Shape::Choice(&["Strict", "Permissive"]);
static MTLS: Shape =
    Shape::Object(&[needed("mode", &MODE), field("ports", &Shape::Map { key: port_key, value: &MODE, least: 1 })]);

static REQUESTS: Shape = Shape::Number { least: 1, most: MAX_REQUESTS };
static LIMITS: Shape = Shape::Object(&[
    needed("requests", &REQUESTS),
    needed("unit", &Shape::Choice(&["Second", "Minute", "Hour"])),
    field("burst", &REQUESTS),
    field("key", &Shape::Choice(&["Port", "Source"])),
    field("ports", &PORTS),
]);

fn port_key(key: &str) -> Result<(), String> {
    match key.parse::<u16>() {
        Ok(port) if port != 0 && port.to_string() == key => Ok(()),
        _ => Err(format!("`{key}` is not a port from 1 to 65535")),
    }
}

static RULE: Shape = Shape::Object(&[
    field("name", &LABEL),
    needed("action", &Shape::Choice(&["Allow", "Deny", "Audit"])),
    field("from", &values(&SOURCE)),
    field("to", &values(&OPERATION)),
    field("when", &Shape::Text(parses::<When>)),
]);

static PRINCIPALS: Shape = values(&Shape::Text(parses::<PrincipalPattern>));
static NAMESPACES: Shape = values(&Shape::Text(parses::<NamespacePattern>));
static ACCOUNTS: Shape = values(&Shape::Text(parses::<AccountPattern>));
static TRUST_DOMAINS: Shape = values(&Shape::Text(parses::<TrustDomainPattern>));
static IP_BLOCKS: Shape = values(&Shape::Text(parses::<IpBlock>));

static SOURCE: Shape = Shape::Object(&[
    field("principals", &PRINCIPALS),
    field("notPrincipals", &PRINCIPALS),
    field("namespaces", &NAMESPACES),
    field("notNamespaces", &NAMESPACES),
    field("serviceAccounts", &ACCOUNTS),
    field("notServiceAccounts", &ACCOUNTS),
    field("trustDomains", &TRUST_DOMAINS),
    field("notTrustDomains", &TRUST_DOMAINS),
    field("ipBlocks", &IP_BLOCKS),
    field("notIpBlocks", &IP_BLOCKS),
    field("anonymous", &Shape::Flag),
]);

static HOSTS: Shape = values(&Shape::Text(parses::<HostPattern>));
static PORTS: Shape = values(&Shape::Number { least: 1, most: 65535 });
static METHODS: Shape = values(&Shape::Text(parses::<MethodPattern>));
static PATHS: Shape = values(&Shape::Text(parses::<PathPattern>));
static HEADERS: Shape = values(&HEADER);

static OPERATION: Shape = Shape::Object(&[
    field("hosts", &HOSTS),
    field("notHosts", &HOSTS),
    field("ports", &PORTS),
    field("notPorts", &PORTS),
    field("methods", &METHODS),
    field("notMethods", &METHODS),
    field("paths", &PATHS),
    field("notPaths", &PATHS),
    field("headers", &HEADERS),
    field("notHeaders", &HEADERS),
]);

static ANY_TEXT: Shape = Shape::Text(|_| Ok(()));
static HEADER: Shape = Shape::Whole(
    &Shape::Object(&[
        needed("name", &ANY_TEXT),
        field("exact", &ANY_TEXT),
        field("oneOf", &values(&ANY_TEXT)),
        field("prefix", &ANY_TEXT),
        field("suffix", &ANY_TEXT),
        field("contains", &ANY_TEXT),
        field("regex", &ANY_TEXT),
        field("present", &Shape::Flag),
    ]),
    |node| match serde_json::from_value::<HeaderMatch>(node.value()) {
        Ok(header) => header.check().map_err(|problem| problem.to_string()),
        Err(problem) => Err(problem.to_string()),
    },
);

/// A `PolicyTest`.
pub(crate) static POLICY_TEST: Shape = Shape::Object(&[
    needed("apiVersion", &Shape::Choice(&[API_VERSION])),
    needed("kind", &Shape::Choice(&["PolicyTest"])),
    needed("metadata", &Shape::Object(&[needed("name", &LABEL)])),
    needed("spec", &Shape::Object(&[needed("cases", &Shape::List { of: &CASE, least: 1, most: MAX_RULES })])),
]);

static CASE: Shape = Shape::Object(&[
    needed("name", &ANY_TEXT),
    needed("given", &CALL),
    needed(
        "expect",
        &Shape::Object(&[
            needed("effect", &Shape::Choice(&["allow", "deny"])),
            field("rule", &ANY_TEXT),
            field("refused", &Shape::Flag),
        ]),
    ),
]);

/// A described call.
pub(crate) static CALL: Shape = Shape::Whole(
    &Shape::Object(&[
        field(
            "source",
            &Shape::Object(&[field("identity", &Shape::Text(parses::<SpiffeId>)), field("ip", &Shape::Text(parses::<IpAddr>))]),
        ),
        needed(
            "destination",
            &Shape::Object(&[
                needed("service", &Shape::Text(parses::<ServiceName>)),
                field("labels", &FREE),
                needed("port", &Shape::Number { least: 1, most: 65535 }),
                field("protocol", &Shape::Choice(&["tcp", "http", "http2", "grpc"])),
            ]),
        ),
        field(
            "request",
            &Shape::Object(&[
                field("method", &ANY_TEXT),
                field("host", &Shape::Any),
                field("path", &Shape::Any),
                field("headers", &Shape::Any),
            ]),
        ),
    ]),
    |node| match serde_json::from_value::<DescribedCall>(node.value()) {
        Ok(call) => {
            call.prepare().err().filter(|problem| !problem.is_refusal()).map_or(Ok(()), |problem| Err(problem.to_string()))
        }
        Err(problem) => Err(problem.to_string()),
    },
);
