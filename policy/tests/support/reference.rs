//! A second reading of the language: slow, plain, straight from the JSON document, sharing no code with the crate.

use serde_json::Value;

use super::Request;

/// `allow`, `deny` or what the first rule in the order of names says, evaluated one rule after the other.
pub fn decide(policies: &[Value], request: &Request) -> (bool, Option<String>) {
    let mut holding: Vec<(String, String)> = Vec::new();
    for policy in policies {
        let meta = &policy["metadata"];
        for (index, rule) in list(&policy["spec"]["authorization"]["rules"]).iter().enumerate() {
            let name = rule["name"].as_str().map_or_else(|| format!("rules[{index}]"), str::to_owned);
            let action = rule["action"].as_str().unwrap().to_owned();
            if holds(rule, action != "Allow", request) {
                holding
                    .push((action, format!("{}/{}/{name}", meta["namespace"].as_str().unwrap(), meta["name"].as_str().unwrap())));
            }
        }
    }
    holding.sort();
    let first = |wanted: &str| holding.iter().find(|(action, _)| action == wanted).map(|(_, name)| name.clone());
    match (first("Deny"), first("Allow")) {
        (Some(rule), _) => (false, Some(rule)),
        (None, Some(rule)) => (true, Some(rule)),
        (None, None) => (false, None),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array().map(|list| list.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned)).collect())
}

/// `lenient` is the reading of a deny: doubts count as true.
fn holds(rule: &Value, lenient: bool, request: &Request) -> bool {
    let from = list(&rule["from"]);
    let to = list(&rule["to"]);
    (from.is_empty() || from.iter().any(|entry| source(entry, lenient, request)))
        && (to.is_empty() || to.iter().any(|entry| operation(entry, lenient, request)))
        && rule["when"].as_str().is_none_or(|text| when(text, lenient, request))
}

fn source(entry: &Value, lenient: bool, request: &Request) -> bool {
    let id = request.source.as_ref().map(ToString::to_string);
    let rest = id.as_ref().map(|id| id.strip_prefix("spiffe://").unwrap().to_owned());
    let domain = rest.as_ref().map(|rest| rest.split('/').next().unwrap().to_owned());
    let parts: Vec<String> = rest.iter().flat_map(|rest| rest.split('/').map(str::to_owned)).collect();
    let standard = parts.len() == 5 && parts[1] == "ns" && parts[3] == "sa";
    let namespace = standard.then(|| parts[2].clone());
    let account = standard.then(|| format!("{}/{}", parts[2], parts[4]));
    let identity = |field: &str, not: &str, value: &Option<String>| {
        let wanted = texts(&entry[field])
            .is_none_or(|list| value.as_ref().is_some_and(|value| list.iter().any(|pattern| glob(pattern, value))));
        let unwanted = texts(&entry[not]).is_none_or(|list| match value {
            Some(value) => !list.iter().any(|pattern| glob(pattern, value)),
            None => lenient,
        });
        wanted && unwanted
    };
    let anonymous = entry["anonymous"].as_bool().is_none_or(|wanted| wanted == id.is_none());
    let blocks = texts(&entry["ipBlocks"]).is_none_or(|list| list.iter().any(|block| in_block(block, request)));
    let not_blocks = texts(&entry["notIpBlocks"]).is_none_or(|list| !list.iter().any(|block| in_block(block, request)));
    anonymous
        && blocks
        && not_blocks
        && identity("principals", "notPrincipals", &id)
        && identity("namespaces", "notNamespaces", &namespace)
        && identity("serviceAccounts", "notServiceAccounts", &account)
        && identity("trustDomains", "notTrustDomains", &domain)
}

/// IPv4 alone, bit by bit.
fn in_block(block: &str, request: &Request) -> bool {
    let (net, length) = block.split_once('/').unwrap_or((block, "32"));
    let bits = |text: &str| text.split('.').fold(0u32, |sum, part| sum * 256 + part.parse::<u32>().unwrap());
    let length: u32 = length.parse().unwrap();
    (0..length).all(|bit| (bits(net) ^ bits(&request.ip.to_string())) & (1 << (31 - bit)) == 0)
}

fn glob(pattern: &str, value: &str) -> bool {
    if pattern == "*" {
        true
    } else if let Some(end) = pattern.strip_prefix('*') {
        value.ends_with(end)
    } else if let Some(beginning) = pattern.strip_suffix('*') {
        value.starts_with(beginning)
    } else {
        pattern == value
    }
}

fn operation(entry: &Value, lenient: bool, request: &Request) -> bool {
    let http = request.protocol.is_http();
    let told = |value: &str, field: &str, not: &str| {
        let known = http && !value.is_empty();
        let wanted =
            texts(&entry[field]).is_none_or(|list| if known { list.iter().any(|pattern| glob(pattern, value)) } else { lenient });
        wanted
            && texts(&entry[not])
                .is_none_or(|list| if known { !list.iter().any(|pattern| glob(pattern, value)) } else { lenient })
    };
    let port = |field: &str| texts(&entry[field]).map(|list| list.contains(&request.port.to_string()));
    port("ports").unwrap_or(true)
        && !port("notPorts").unwrap_or(false)
        && (entry["methods"].is_null() && entry["notMethods"].is_null() || told(&request.method, "methods", "notMethods"))
        && told(&request.host, "hosts", "notHosts")
        && paths(entry, lenient, request)
        && list(&entry["headers"]).iter().all(|header| if http { header_holds(header, lenient, request) } else { lenient })
        && list(&entry["notHeaders"]).iter().all(|header| if http { !header_holds(header, !lenient, request) } else { lenient })
}

fn paths(entry: &Value, lenient: bool, request: &Request) -> bool {
    let known = request.protocol.is_http() && !request.path.is_empty();
    let forms = forms(&request.path);
    let meant = |list: &[String], wanted: bool| {
        let is_meant = |form: &String| list.iter().any(|pattern| path_matches(pattern, form)) == wanted;
        if !known {
            lenient
        } else if lenient {
            forms.iter().any(is_meant)
        } else {
            forms.iter().all(is_meant)
        }
    };
    texts(&entry["paths"]).is_none_or(|list| meant(&list, true))
        && texts(&entry["notPaths"]).is_none_or(|list| meant(&list, false))
}

/// As it is, without parameters, with needless escapes decoded, and both.
fn forms(path: &str) -> Vec<String> {
    let strip = |path: &str| path.split('/').map(|segment| segment.split(';').next().unwrap()).collect::<Vec<_>>().join("/");
    let mut decoded = path.to_owned();
    for c in "!$&'()*+,;=:@".chars() {
        decoded = decoded.replace(&format!("%{:02X}", u32::from(c)), &c.to_string());
    }
    vec![path.to_owned(), strip(path), strip(&decoded), decoded]
}

fn path_matches(pattern: &str, path: &str) -> bool {
    if !pattern.contains('{') {
        return glob(pattern, path);
    }
    let segments: Vec<&str> = path[1..].split('/').collect();
    let parts: Vec<&str> = pattern[1..].split('/').collect();
    template(&parts, &segments, parts.len() == 1)
}

/// `at_root`: whether nothing but the leading slash stands before a `{**}`.
fn template(parts: &[&str], segments: &[&str], _at_root: bool) -> bool {
    match parts.first() {
        None => segments.is_empty(),
        Some(part) if part.ends_with("**}") => {
            // the slash before it must be there, so at least one segment (perhaps an empty one) stands for it or what follows
            !segments.is_empty() && (0..=segments.len()).any(|skip| template(&parts[1..], &segments[skip..], false))
        }
        Some(part) if part.starts_with('{') => {
            segments.first().is_some_and(|segment| !segment.is_empty()) && template(&parts[1..], &segments[1..], false)
        }
        Some(part) => segments.first() == Some(part) && template(&parts[1..], &segments[1..], false),
    }
}

fn header_holds(header: &Value, lenient: bool, request: &Request) -> bool {
    let name = header["name"].as_str().unwrap().to_lowercase();
    let lines: Vec<String> = request
        .headers
        .iter()
        .filter(|(own, _)| own.to_lowercase() == name)
        .map(|(_, value)| String::from_utf8_lossy(value).trim().to_owned())
        .collect();
    if header["present"].as_bool() == Some(false) {
        return lines.is_empty();
    }
    let value_matches = |value: &str| {
        let text = |field: &str| header[field].as_str();
        match (text("exact"), text("prefix"), text("suffix"), text("contains"), &header["oneOf"]) {
            (Some(exact), ..) => value == exact,
            (_, Some(prefix), ..) => value.starts_with(prefix),
            (_, _, Some(suffix), ..) => value.ends_with(suffix),
            (_, _, _, Some(part), _) => value.contains(part),
            (.., Value::Array(all)) => all.iter().any(|one| one.as_str() == Some(value)),
            _ => true,
        }
    };
    let elements = |line: &String| line.split(',').map(|element| element.trim().to_owned()).collect::<Vec<_>>();
    if lenient {
        lines.iter().any(|line| value_matches(line) || elements(line).iter().any(|element| value_matches(element)))
    } else {
        !lines.is_empty()
            && lines.iter().all(|line| value_matches(line) || elements(line).iter().all(|element| value_matches(element)))
    }
}

/// The expressions that the generator writes.
fn when(text: &str, lenient: bool, request: &Request) -> bool {
    match text {
        "connection.mtls" => request.source.is_some(),
        "source.namespace == 'shop'" => {
            request.source.as_ref().and_then(|id| id.namespace()).map_or(lenient, |namespace| namespace == "shop")
        }
        "destination.port == 8080 || request.method == 'PUT'" => {
            request.port == 8080 || if request.protocol.is_http() { request.method == "PUT" } else { lenient }
        }
        "!has(request.headers.role)" => {
            if request.protocol.is_http() {
                !request.headers.iter().any(|(name, _)| name == "role")
            } else {
                lenient
            }
        }
        other => panic!("no reference for `{other}`"),
    }
}
