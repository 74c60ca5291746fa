use super::*;
use crate::evaluate::{Facts, Reading};
use crate::{Call, HttpCall, Protocol, SpiffeId, Target};
use std::time::{Duration, Instant};

/// What an allow and a deny make of `text` for a GET of `path` by `spiffe://td/ns/shop/sa/web`.
fn readings(text: &str, path: &str, headers: &[(&str, &[u8])]) -> (bool, bool) {
    let when = When::new(text).unwrap_or_else(|problem| panic!("{text}: {problem}"));
    let source: SpiffeId = "spiffe://td/ns/shop/sa/web".parse().unwrap();
    let headers = headers.to_vec();
    let http = HttpCall { method: "GET", host: "orders.shop", path, query: Some("a=b"), headers: &headers };
    let call = Call {
        source: Some(&source),
        source_ip: "10.0.0.9".parse().unwrap(),
        port: 8080,
        protocol: Protocol::Http,
        http: Some(http),
    };
    let target = Target {
        service: "shop/orders".parse().unwrap(),
        labels: [("app".to_owned(), "o".to_owned())].into(),
        port: 8080,
        protocol: Protocol::Http,
    };
    let (facts, destination) = (Facts::of(&call), Destination::of(&target));
    (when.holds(&facts, &destination, Reading::Every), when.holds(&facts, &destination, Reading::Some))
}

#[test]
fn expressions_over_every_attribute_hold_or_do_not() {
    for text in [
        "source.identity == 'spiffe://td/ns/shop/sa/web'",
        "source.trustDomain == 'td' && source.namespace == \"shop\" && source.serviceAccount == 'web'",
        "source.ip == '10.0.0.9'",
        "source.ip.startsWith('10.')",
        "destination.service == 'orders' && destination.namespace == source.namespace",
        "destination.port == 8080 && destination.port > 1024 && destination.port in [80, 8080]",
        "destination.labels['app'] == 'o' && destination.labels.app == 'o'",
        "request.method in ['GET', 'HEAD']",
        "request.host.endsWith('.shop')",
        "request.path.startsWith('/v1/' + source.namespace)",
        "request.query.contains('a=')",
        "request.headers['X-Tenant'] == source.namespace",
        "'x-tenant' in request.headers && has(request.headers.tenant) == false",
        "connection.mtls && connection.protocol == 'http'",
        "size(request.path) == 10 && request.method.size() != 4",
        "request.path.matches('^/v1/[a-z]+') && request.path.matches('shop')",
        "!(request.method == 'POST') || false",
        "request.method == 'POST' ? false : true",
        "request.headers['absent'] == 'x' || true",
        "!has(request.headers.absent)",
    ] {
        assert_eq!(readings(text, "/v1/shop/1", &[("x-tenant", b"shop")]), (true, true), "{text}");
        assert_eq!(readings(&format!("!({text})"), "/v1/shop/1", &[("x-tenant", b"shop")]), (false, false), "not {text}");
    }
}

#[test]
fn what_cannot_be_told_denies() {
    for text in [
        "request.headers['absent'] == 'x'",
        "request.headers['absent'] != 'x'",
        "destination.labels['absent'] == 'x'",
        "size(request.headers['bin']) == 1",
    ] {
        assert_eq!(readings(text, "/", &[("bin", b"\xff")]), (false, true), "{text}");
    }
}

#[test]
fn every_line_element_and_form_is_a_reading() {
    let admin = "request.headers['x-role'] == 'admin'";
    assert_eq!(readings(admin, "/", &[("x-role", b"admin")]), (true, true));
    assert_eq!(readings(admin, "/", &[("x-role", b"user"), ("x-role", b"admin")]), (false, true));
    assert_eq!(readings(admin, "/", &[("x-role", b"user, admin")]), (false, true));
    assert_eq!(readings(admin, "/", &[("x-role", b"user")]), (false, false));
    assert_eq!(
        readings("request.headers['ua'].contains('Mozilla')", "/", &[("ua", b"Mozilla (KHTML, like Gecko)")]),
        (true, true)
    );
    assert_eq!(readings("request.path == '/admin'", "/admin;x", &[]), (false, true));
    assert_eq!(readings("request.headers['bin'].startsWith('a')", "/", &[("bin", b"a\xff")]), (true, true));
    let many: Vec<(&str, &[u8])> = (0..100).map(|_| ("x-role", &b"user"[..])).collect();
    assert_eq!(readings(admin, "/", &many), (false, true));
}

#[test]
fn mistakes_are_refused_with_a_reason() {
    for (text, reason) in [
        ("", "empty"),
        ("source.namespace ==", "not a CEL expression"),
        ("source.namespac == 'a'", "did you mean `source.namespace`?"),
        ("jwt.claims.sub == 'a'", "does not read tokens"),
        ("request.headers == 'a'", "name the key"),
        ("request.headers[request.method] == 'a'", "name the key"),
        ("source.namespace", "not a condition"),
        ("source.namespace == 1", "cannot be compared"),
        ("destination.port == '80'", "cannot be compared"),
        ("source.namespace && true", "expected a condition"),
        ("[1, 2].all(x, x > 0)", "not part of policy expressions"),
        ("{'a': 1} == {'a': 1}", "not part of policy expressions"),
        ("1.5 > 1.0", "not part of policy expressions"),
        ("duration('1s') == duration('1s')", "not part of policy expressions"),
        ("request.path.matches(request.query)", "in quotes"),
        ("request.path.matches('(')", "regular expression is refused"),
        ("request.path.matches('(a{1000}){1000}')", "KiB"),
        ("request.headers['host'] == 'a'", "use `hosts`"),
        ("1 in [1, 'a']", "not both"),
        ("foo(1)", "not part of policy expressions"),
    ] {
        let problem = When::new(text).expect_err(text).to_string();
        assert!(problem.contains(reason), "{text}: {problem}");
    }
}

#[test]
fn hostile_expressions_are_refused_at_once() {
    for text in [
        "(".repeat(1024),
        "!".repeat(1024),
        "[".repeat(1024),
        "a.".repeat(512),
        "a".repeat(2000),
        "-".repeat(1024),
        "1+".repeat(511) + "1",
        "true?".repeat(200),
        "{".repeat(1000),
        "\"".repeat(1001),
        "a(".repeat(500),
        "\0".repeat(10),
    ] {
        let started = Instant::now();
        assert!(When::new(&text).is_err(), "{text}");
        assert!(started.elapsed() < Duration::from_millis(1500), "{} took {:?}", &text[..4], started.elapsed());
    }
    // long, but honest
    assert!(When::new(&vec!["request.method == 'GET'"; 30].join(" || ")).is_ok());
}
