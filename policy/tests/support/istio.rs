//! What Istio decides, said naively from its reference, and random documents and calls to compare with.

use outrider_policy::{Protocol, Target};
use serde_json::{Value, json};

use super::Request;
use super::dice::Dice;

const ROOT: &str = "istio-system";

/// Whether a call passes: no deny policy holds, and there is no allow policy for the workload or one of them holds.
pub fn allows(documents: &[Value], target: &Target, request: &Request) -> bool {
    let selected: Vec<&Value> =
        documents.iter().filter(|document| document["kind"] == "AuthorizationPolicy" && selects(document, target)).collect();
    let of = |action: &'static str| {
        selected.iter().filter(move |document| document["spec"]["action"].as_str().unwrap_or("ALLOW") == action)
    };
    let any = |action: &'static str| {
        of(action).any(|document| list(&document["spec"]["rules"]).iter().any(|rule| holds(rule, document, action, request)))
    };
    !any("DENY") && (of("ALLOW").count() == 0 || any("ALLOW"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn selects(document: &Value, target: &Target) -> bool {
    let namespace = document["metadata"]["namespace"].as_str().unwrap();
    let labels = document["spec"]["selector"]["matchLabels"].as_object();
    (namespace == ROOT || namespace == target.service.namespace())
        && labels.into_iter().flatten().all(|(key, value)| target.labels.get(key).map(String::as_str) == value.as_str())
        && (list(&document["spec"]["targetRefs"]).is_empty()
            || list(&document["spec"]["targetRefs"]).iter().any(|one| one["name"] == target.service.name()))
}

/// The parts of a rule that Istio leaves out on TCP void an allow rule, and count as true in any other.
fn holds(rule: &Value, document: &Value, action: &str, request: &Request) -> bool {
    let tcp = request.protocol == Protocol::Tcp;
    let http = ["hosts", "methods", "paths"];
    let is_http =
        |name: &str| http.iter().any(|one| name.eq_ignore_ascii_case(one) || name.eq_ignore_ascii_case(&format!("not{one}")));
    let about_http = list(&rule["to"])
        .iter()
        .any(|to| to["operation"].as_object().unwrap().iter().any(|(name, value)| is_http(name) && !list(value).is_empty()))
        || list(&rule["when"]).iter().any(|when| when["key"].as_str().unwrap().starts_with("request."));
    if tcp && about_http && action == "ALLOW" {
        return false;
    }
    let namespace = document["metadata"]["namespace"].as_str().unwrap();
    let from = list(&rule["from"]);
    let to = list(&rule["to"]);
    (from.is_empty() || from.iter().any(|one| entry(&one["source"], namespace, request)))
        && (to.is_empty() || to.iter().any(|one| entry(&one["operation"], namespace, request)))
        && list(&rule["when"]).iter().all(|when| {
            let key = when["key"].as_str().unwrap();
            both(&when["values"], &when["notValues"], &|value| attribute(key, value, namespace, request))
        })
}

fn entry(entry: &Value, namespace: &str, request: &Request) -> bool {
    ["principals", "namespaces", "serviceAccounts", "ipBlocks", "hosts", "ports", "methods", "paths"].into_iter().all(|field| {
        let (first, rest) = field.split_at(1);
        let not = format!("not{}{rest}", first.to_uppercase());
        both(&entry[field], &entry[not], &|value| attribute(field, value, namespace, request))
    })
}

/// One of the values, and none of the others. A value that says nothing here (`None`) is left out.
fn both(values: &Value, not_values: &Value, is: &dyn Fn(&str) -> Option<bool>) -> bool {
    let told = |values: &Value| -> Vec<bool> { list(values).iter().filter_map(|value| is(value.as_str().unwrap())).collect() };
    let (wanted, unwanted) = (told(values), told(not_values));
    (wanted.is_empty() || wanted.contains(&true)) && !unwanted.contains(&true)
}

fn attribute(name: &str, value: &str, namespace: &str, request: &Request) -> Option<bool> {
    let id = request.source.as_ref().map(ToString::to_string);
    let part = |at: usize| id.as_ref().map(|id| id.split('/').nth(at).unwrap().to_owned());
    let http = request.protocol != Protocol::Tcp;
    Some(match name {
        "principals" | "source.principal" => id.is_some_and(|id| text(value, id.strip_prefix("spiffe://").unwrap())),
        "namespaces" | "source.namespace" => part(4).is_some_and(|own| text(value, &own)),
        "serviceAccounts" | "source.serviceAccount" => {
            let full = if value.contains('/') { value.to_owned() } else { format!("{namespace}/{value}") };
            part(4).zip(part(6)).is_some_and(|(namespace, name)| format!("{namespace}/{name}") == full)
        }
        "ipBlocks" | "source.ip" => in_block(value, request),
        "ports" | "destination.port" => value == request.port.to_string(),
        _ if !http => return None,
        "hosts" => text(&value.to_lowercase(), &request.host.to_lowercase()),
        "methods" => text(value, &request.method),
        "paths" if value.contains("{*}") || value.contains("{**}") => template(value, &request.path),
        "paths" => text(value, &request.path),
        header => {
            let header = header.strip_prefix("request.headers[").unwrap().strip_suffix(']').unwrap();
            let own = request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(header));
            own.is_some_and(|(_, own)| value == "*" || text(value, std::str::from_utf8(own).unwrap()))
        }
    })
}

/// Exact, `beginning*`, `*end`, or `*` for anything that is there.
fn text(pattern: &str, value: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(""), _) => !value.is_empty(),
        (Some(end), _) => value.ends_with(end),
        (None, Some(beginning)) => value.starts_with(beginning),
        (None, None) => pattern == value,
    }
}

/// Character by character: `{*}` is one or more that are no slash, `{**}` any, none included.
fn template(pattern: &str, path: &str) -> bool {
    if let Some(rest) = pattern.strip_prefix("{**}") {
        return (0..=path.len()).any(|at| template(rest, &path[at..]));
    }
    if let Some(rest) = pattern.strip_prefix("{*}") {
        return (1..=path.len()).take_while(|at| !path[..*at].contains('/')).any(|at| template(rest, &path[at..]));
    }
    match (pattern.chars().next(), path.chars().next()) {
        (None, None) => true,
        (Some(a), Some(b)) => a == b && template(&pattern[1..], &path[1..]),
        _ => false,
    }
}

/// IPv4 alone, bit by bit.
fn in_block(block: &str, request: &Request) -> bool {
    let (net, length) = block.split_once('/').unwrap_or((block, "32"));
    let bits = |text: &str| text.split('.').fold(0u32, |sum, part| sum * 256 + part.parse::<u32>().unwrap());
    let length: u32 = length.parse().unwrap();
    (0..length).all(|bit| (bits(net) ^ bits(&request.ip.to_string())) & (1 << (31 - bit)) == 0)
}

/// A small world, so that policies and calls meet often. Its requests have one reading each.
pub struct World;

impl World {
    pub fn documents(dice: &mut Dice) -> Vec<Value> {
        (0..=dice.below(3)).map(|number| document(dice, number)).collect()
    }

    pub fn call(dice: &mut Dice) -> (Target, Request) {
        let mut request = Request::anonymous();
        request.source = match dice.below(6) {
            0 => None,
            1 => Some("spiffe://other.example/ns/shop/sa/web"),
            2 => Some("spiffe://mesh.example/ns/bank/sa/web"),
            3 => Some("spiffe://mesh.example/ns/shop/sa/api"),
            _ => Some("spiffe://mesh.example/ns/shop/sa/web"),
        }
        .map(|id| id.parse().unwrap());
        request.ip = dice.pick(&["10.0.0.9", "10.1.2.3", "192.168.1.1"]).parse().unwrap();
        request.port = if dice.one_in(3) { 9090 } else { 8080 };
        request.method = dice.pick(&["GET", "GET", "PUT", "POST"]).into();
        request.host = dice.pick(&["orders.shop", "files.shop", "x.bank"]).into();
        request.path = dice.pick(&["/", "/a", "/a/b", "/a/b/c", "/a/", "/b/c", "/ab", "/a/x/b", "/caf%C3%A9"]).into();
        for header in ["x-role", "x-tenant"] {
            if dice.one_in(2) {
                let value = dice.pick(&["admin", "user", "adults", "bad.min"]);
                request = request.with_header(header, value);
            }
        }
        if dice.one_in(8) {
            request = request.opaque();
        }
        let service = dice.pick(&["shop/orders", "shop/files", "bank/orders"]).parse().unwrap();
        let mut labels = std::collections::BTreeMap::new();
        for (key, values) in [("app", ["orders", "files"]), ("version", ["v1", "v2"])] {
            if !dice.one_in(4) {
                labels.insert(key.to_owned(), dice.pick(&values).to_owned());
            }
        }
        (Target { service, labels, port: request.port, protocol: request.protocol }, request)
    }
}

fn document(dice: &mut Dice, number: usize) -> Value {
    let mut spec = json!({});
    match dice.below(7) {
        0 | 1 => spec["selector"] = json!({"matchLabels": {"app": dice.pick(&["orders", "files"])}}),
        2 => spec["selector"] = json!({"matchLabels": {"app": "orders", "version": dice.pick(&["v1", "v2"])}}),
        3 => spec["selector"] = json!({"matchLabels": {"version": "v1"}}),
        4 => spec["selector"] = json!({}),
        _ => {}
    }
    let namespace = dice.pick(&["shop", "shop", "shop", "bank", ROOT]);
    if spec["selector"].is_null() && namespace != ROOT && dice.one_in(3) {
        spec["targetRefs"] = json!([{"group": "", "kind": "Service", "name": dice.pick(&["orders", "files"])}]);
    }
    spec.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    match dice.below(5) {
        0 => spec["action"] = "AUDIT".into(),
        1 | 2 => spec["action"] = "DENY".into(),
        3 => spec["action"] = "ALLOW".into(),
        _ => {}
    }
    if !dice.one_in(8) {
        spec["rules"] = (0..dice.below(4)).map(|_| rule(dice)).collect();
    }
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": format!("p{number}"), "namespace": namespace}, "spec": spec})
}

fn rule(dice: &mut Dice) -> Value {
    let mut rule = json!({});
    if dice.one_in(2) {
        rule["from"] = (0..=dice.below(2)).map(|_| json!({"source": fields(dice, false)})).collect();
    }
    if dice.one_in(2) {
        rule["to"] = (0..=dice.below(2)).map(|_| json!({"operation": fields(dice, true)})).collect();
    }
    if dice.one_in(3) {
        rule["when"] = (0..=dice.below(2)).map(|_| condition(dice)).collect();
    }
    rule
}

const PRINCIPALS: [&str; 6] =
    ["mesh.example/ns/shop/sa/web", "mesh.example/ns/shop/sa/api", "mesh.example/*", "*/sa/web", "*", "other.example/ns/*"];
const NAMESPACES: [&str; 5] = ["shop", "bank", "sh*", "*nk", "*"];
const ACCOUNTS: [&str; 4] = ["shop/web", "bank/web", "web", "shop/api"];
const BLOCKS: [&str; 4] = ["10.0.0.0/8", "10.0.0.9", "192.168.0.0/16", "10.1.0.0/16"];
const PORTS: [&str; 2] = ["8080", "9090"];

fn some(dice: &mut Dice, choices: &[&str]) -> Value {
    (0..=dice.below(3)).map(|_| Value::from(dice.pick(choices))).collect()
}

/// At least one field of a source or an operation.
fn fields(dice: &mut Dice, operation: bool) -> Value {
    let paths =
        ["/", "/a", "/a/*", "*b", "*", "/a/{*}", "/{*}/b", "/a/{**}", "/a/{**}/b", "/{**}", "/a/{*}/c", "/caf%C3%A9", "/{**}/c"];
    let source: [(&str, &str, &[&str]); 4] = [
        ("principals", "notPrincipals", &PRINCIPALS),
        ("namespaces", "notNamespaces", &NAMESPACES),
        ("ipBlocks", "notIpBlocks", &BLOCKS),
        ("serviceAccounts", "notServiceAccounts", &ACCOUNTS),
    ];
    let what: [(&str, &str, &[&str]); 4] = [
        ("hosts", "notHosts", &["orders.shop", "Files.shop", "*.shop", "or*", "*"]),
        ("ports", "notPorts", &PORTS),
        ("methods", "notMethods", &["GET", "PUT", "P*", "*T", "*"]),
        ("paths", "notPaths", &paths),
    ];
    // accounts exclude the other identities
    let from = if operation {
        &what[..]
    } else if dice.one_in(3) {
        &source[2..]
    } else {
        &source[..3]
    };
    let mut entry = json!({});
    while entry.as_object().unwrap().is_empty() {
        for (is, not, choices) in from {
            if dice.one_in(3) {
                entry[*is] = some(dice, choices);
            }
            if dice.one_in(6) {
                entry[*not] = some(dice, choices);
            }
        }
    }
    entry
}

fn condition(dice: &mut Dice) -> Value {
    let (key, choices): (&str, &[&str]) = match dice.below(8) {
        0 => ("source.principal", &PRINCIPALS),
        1 => ("source.namespace", &NAMESPACES),
        2 => ("source.serviceAccount", &ACCOUNTS),
        3 => ("source.ip", &BLOCKS),
        4 => ("destination.port", &PORTS),
        5 => ("request.headers[X-Role]", &["admin", "user", "ad*", "*min", "*"]),
        _ => ("request.headers[x-tenant]", &["admin", "user", "bad.*", "*.min", "bad.min"]),
    };
    let mut condition = json!({"key": key});
    let both = dice.below(3);
    if both != 1 {
        condition["values"] = some(dice, choices);
    }
    if both != 0 {
        condition["notValues"] = some(dice, choices);
    }
    condition
}
