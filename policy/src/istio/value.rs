//! Values of Istio's as patterns of ours, and what two lists of patterns have in common.

use std::fmt::Display;
use std::str::FromStr;

use ipnet::IpNet;
use serde_json::json;

use super::place::{Place, Report};
use crate::TrustDomain;
use crate::header::{HeaderMatch, MAX_REGEX_CHARS};
use crate::path_pattern::{PathKind, PathPattern, Segment};
use crate::pattern::{HostPattern, Pattern, PrincipalPattern};
use crate::rule::IpBlock;

/// A value and where it stands.
pub(super) type Word<'n> = (Place<'n>, &'n str);

/// Reads values that are written alike on both sides.
pub(super) fn alike<P: FromStr<Err: Display>>(words: &[Word<'_>], report: &mut Report<'_>) -> Vec<P> {
    words.iter().filter_map(|(place, text)| parsed(place, text, report)).collect()
}

fn parsed<P: FromStr<Err: Display>>(place: &Place<'_>, text: &str, report: &mut Report<'_>) -> Option<P> {
    text.parse().map_err(|problem: P::Err| report.refuse(place.not_kept(&problem.to_string()))).ok()
}

/// Principals are written without their scheme, and `cluster.local` may stand for another trust domain.
pub(super) fn principals(
    words: &[Word<'_>],
    trust_domain: Option<&TrustDomain>,
    report: &mut Report<'_>,
) -> Vec<PrincipalPattern> {
    let with_scheme = |text: &str| match (text.starts_with('*'), text.split_once('/'), trust_domain) {
        (true, ..) => text.to_owned(),
        (false, Some(("cluster.local", rest)), Some(domain)) => format!("spiffe://{domain}/{rest}"),
        (false, ..) => format!("spiffe://{text}"),
    };
    words.iter().filter_map(|(place, text)| parsed(place, &with_scheme(text), report)).collect()
}

/// Service accounts are `namespace/name`, or the name of one in the policy's namespace; there are no wildcards.
pub(super) fn service_accounts(
    words: &[Word<'_>],
    namespace: &str,
    report: &mut Report<'_>,
) -> Vec<crate::pattern::AccountPattern> {
    let mut accounts = Vec::new();
    for (place, text) in words {
        if text.contains('*') {
            report.refuse(place.invalid("a service account has no `*`"));
            continue;
        }
        let full = if text.contains('/') { (*text).to_owned() } else { format!("{namespace}/{text}") };
        accounts.extend(parsed(place, &full, report));
    }
    accounts
}

/// Istio compares the whole `Host`, with its port, without regard to case; here the port is not part of it.
pub(super) fn hosts(words: &[Word<'_>], report: &mut Report<'_>) -> Vec<HostPattern> {
    let lower: Vec<String> = words.iter().map(|(_, text)| text.to_ascii_lowercase()).collect();
    let with_any_port = |host: &str| lower.iter().any(|other| other.strip_suffix(":*") == Some(host));
    let mut hosts = Vec::new();
    for ((place, _), text) in words.iter().zip(&lower) {
        match text.strip_suffix(":*") {
            // said by the host itself
            Some(host) if lower.iter().any(|other| other == host) && !host.starts_with('*') => continue,
            None if !text.ends_with('*') && !with_any_port(text) => {
                let text = "Istio takes it for the host without a port alone, Outrider for the host with any port";
                report.note(place.remark(text));
            }
            _ => {}
        }
        hosts.extend(parsed(place, text, report));
    }
    hosts
}

/// Ports are texts there and numbers here.
pub(super) fn ports(words: &[Word<'_>], report: &mut Report<'_>) -> Vec<u16> {
    let mut ports = Vec::new();
    for (place, text) in words {
        match text.parse::<u16>().ok().filter(|port| *port != 0 && text.bytes().all(|b| b.is_ascii_digit())) {
            Some(port) => ports.push(port),
            None => report.refuse(place.not_kept("it is not a port from 1 to 65535")),
        }
    }
    ports
}

/// Paths mean the same where a path has one spelling.
pub(super) fn paths(words: &[Word<'_>], report: &mut Report<'_>) -> Vec<PathPattern> {
    let mut paths = Vec::new();
    for (place, text) in words {
        match path(text) {
            Ok(path) => paths.push(path),
            Err(why) => report.refuse(place.not_kept(&why)),
        }
    }
    paths
}

fn path(text: &str) -> Result<PathPattern, String> {
    if text.contains(';') || text.contains("%3B") {
        return Err("requests with parameters (`;`) are read with and without them".to_owned());
    }
    let template = text.contains("{*}") || text.contains("{**}");
    if !template && text.contains(['{', '}']) {
        return Err("no request has this path: `{*}` and `{**}` are the variables".to_owned());
    }
    let segments: Vec<&str> = text.split('/').collect();
    let last = segments.len().saturating_sub(1);
    let spelled = |(at, segment): (usize, &&str)| match *segment {
        // before something else it stands for at least one segment there, and for any number here
        "{**}" if at < last => "{*}/{**}".to_owned(),
        other => other.to_owned(),
    };
    let written = if template { segments.iter().enumerate().map(spelled).collect::<Vec<_>>().join("/") } else { text.to_owned() };
    let pattern = PathPattern::new(&written).map_err(|problem| problem.to_string())?;
    let canonical = match pattern.kind() {
        PathKind::Plain(plain) => plain.to_string() == text,
        PathKind::Template(parts) => {
            let literals = parts.iter().filter_map(|part| match part {
                Segment::Literal(text) => Some(&**text),
                Segment::One | Segment::Rest => None,
            });
            literals.eq(segments.iter().skip(1).copied().filter(|segment| !matches!(*segment, "{*}" | "{**}")))
        }
    };
    let variables =
        !template || segments.iter().all(|segment| !segment.contains(['{', '}']) || matches!(*segment, "{*}" | "{**}"));
    match (canonical, variables) {
        (true, true) => Ok(pattern),
        (_, false) => Err("`{*}` and `{**}` are its only variables".to_owned()),
        (false, _) => Err("paths are compared in their canonical spelling, which this is not".to_owned()),
    }
}

/// The condition that a header has one of these values.
pub(super) fn header(name: &str, words: &[Word<'_>], place: &Place<'_>, report: &mut Report<'_>) -> Option<HeaderMatch> {
    let texts: Vec<&str> = words.iter().map(|(_, text)| *text).collect();
    let condition = match texts.as_slice() {
        texts if texts.contains(&"*") => json!({ "name": name, "present": true }),
        [one] => return one_value(name, one, place, report),
        texts if texts.iter().all(|text| !text.starts_with('*') && !text.ends_with('*')) => {
            json!({ "name": name, "oneOf": texts })
        }
        texts => {
            let regex = texts.iter().map(|text| expression(text)).collect::<Vec<_>>().join("|");
            if regex.len() > MAX_REGEX_CHARS {
                report
                    .refuse(place.not_kept(&format!("the values make an expression of more than {MAX_REGEX_CHARS} characters")));
                return None;
            }
            json!({ "name": name, "regex": regex })
        }
    };
    read(condition, place, report)
}

/// The condition that a header has this value.
pub(super) fn one_value(name: &str, text: &str, place: &Place<'_>, report: &mut Report<'_>) -> Option<HeaderMatch> {
    let condition = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => json!({ "name": name, "present": true }),
        (Some(end), _) => json!({ "name": name, "suffix": end }),
        (None, Some(beginning)) => json!({ "name": name, "prefix": beginning }),
        (None, None) => json!({ "name": name, "exact": text }),
    };
    read(condition, place, report)
}

fn read(condition: serde_json::Value, place: &Place<'_>, report: &mut Report<'_>) -> Option<HeaderMatch> {
    let read = serde_json::from_value::<HeaderMatch>(condition).map_err(|problem| problem.to_string());
    let seen = read.and_then(|header| header.check().map(|()| header).map_err(|problem| problem.to_string()));
    seen.map_err(|problem| report.refuse(place.not_kept(&problem))).ok()
}

fn expression(text: &str) -> String {
    match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(end), _) => format!(".*{}", regex::escape(end)),
        (None, Some(beginning)) => format!("{}.*", regex::escape(beginning)),
        (None, None) => regex::escape(text),
    }
}

/// What a value can be matched by both `a` and `b`; an error where no pattern says so.
fn common(a: &Pattern, b: &Pattern) -> Result<Option<Pattern>, ()> {
    match (a, b) {
        _ if a.covers(b) => Ok(Some(b.clone())),
        _ if b.covers(a) => Ok(Some(a.clone())),
        (Pattern::Prefix(_), Pattern::Suffix(_)) | (Pattern::Suffix(_), Pattern::Prefix(_)) => Err(()),
        _ => Ok(None),
    }
}

/// Leaves in `own` what `others` match too; an empty `own` stands for everything. False where nothing is left.
pub(super) fn narrow<P: FromStr + Clone + PartialEq>(
    own: &mut Vec<P>,
    others: &[P],
    pattern: fn(&P) -> &Pattern,
) -> Result<bool, ()> {
    if own.is_empty() {
        *own = others.to_vec();
        return Ok(!own.is_empty());
    }
    let mut left: Vec<P> = Vec::new();
    for (a, b) in own.iter().flat_map(|a| others.iter().map(move |b| (a, b))) {
        let both = common(pattern(a), pattern(b))?.map(|both| both.to_string().parse::<P>().map_err(drop)).transpose()?;
        left.extend(both.filter(|both| !left.contains(both)));
    }
    *own = left;
    Ok(!own.is_empty())
}

/// The same for blocks of addresses, of which one lies in the other or they have nothing in common.
pub(super) fn narrow_blocks(own: &mut Vec<IpBlock>, others: &[IpBlock]) -> bool {
    if own.is_empty() {
        *own = others.to_vec();
        return !own.is_empty();
    }
    let within = |a: &IpNet, b: &IpNet| a.contains(b);
    let mut left = Vec::new();
    for (a, b) in own.iter().flat_map(|a| others.iter().map(move |b| (a, b))) {
        let both = if within(&a.net(), &b.net()) {
            Some(*b)
        } else if within(&b.net(), &a.net()) {
            Some(*a)
        } else {
            None
        };
        left.extend(both.filter(|both| !left.contains(both)));
    }
    *own = left;
    !own.is_empty()
}

/// The same for ports.
pub(super) fn narrow_ports(own: &mut Vec<u16>, others: &[u16]) -> bool {
    if own.is_empty() {
        *own = others.to_vec();
    } else {
        own.retain(|port| others.contains(port));
    }
    !own.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_over_where_they_mean_the_same() {
        for (istio, ours) in [
            ("/a", "/a"),
            ("/a/*", "/a/*"),
            ("*/b", "*/b"),
            ("*", "*"),
            ("/a/{*}", "/a/{*}"),
            ("/a/{**}", "/a/{**}"),
            ("/a/{**}/z", "/a/{*}/{**}/z"),
            ("/a/{**}/", "/a/{*}/{**}/"),
            ("/caf%C3%A9", "/caf%C3%A9"),
        ] {
            assert_eq!(path(istio).map(|path| path.to_string()), Ok(ours.to_owned()), "{istio}");
        }
        for bad in [
            "/a b",
            "/caf%c3%a9",
            "/é",
            "/%61",
            "/a;b",
            "/a//b",
            "/a/../b",
            "a",
            "/a/{id}",
            "/a/{id}/{*}",
            "/a*b",
            "/x{*}",
            "*a*",
            "/a?b",
        ] {
            assert!(path(bad).is_err(), "`{bad}` was kept");
        }
    }

    #[test]
    fn lists_are_narrowed_to_what_both_match() {
        let patterns = |texts: &[&str]| -> Vec<Pattern> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        for (own, others, left) in [
            (&[][..], &["a"][..], Ok((true, &["a"][..]))),
            (&["a", "b"], &["b", "c"], Ok((true, &["b"]))),
            (&["a*"], &["ab", "b"], Ok((true, &["ab"]))),
            (&["a*"], &["ab*", "*"], Ok((true, &["ab*", "a*"]))),
            (&["a"], &["b"], Ok((false, &[]))),
            (&["a*"], &["*b"], Err(())),
        ] {
            let mut list = patterns(own);
            let answer = narrow(&mut list, &patterns(others), |pattern| pattern);
            assert_eq!(answer, left.map(|(some, _)| some));
            if let Ok((_, left)) = left {
                assert_eq!(list, patterns(left));
            }
        }
        let blocks = |texts: &[&str]| -> Vec<IpBlock> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let mut own = blocks(&["10.0.0.0/8", "192.168.0.1"]);
        assert!(narrow_blocks(&mut own, &blocks(&["10.1.0.0/16", "192.168.0.0/16"])));
        assert_eq!(own, blocks(&["10.1.0.0/16", "192.168.0.1"]));
        assert!(!narrow_blocks(&mut own, &blocks(&["::1"])));
    }
}
