use std::sync::Arc;

use super::*;
use crate::NoHeaders;
use crate::manifest::parse_resources;

fn route(yaml: &str) -> Result<Route, Vec<String>> {
    let file = parse_resources("r.yaml", yaml);
    match file.routes.into_iter().next() {
        Some(route) if file.diagnostics.is_empty() => Ok(Arc::unwrap_or_clone(route.route)),
        _ => Err(file.diagnostics.iter().map(ToString::to_string).collect()),
    }
}

fn http(name: &str, namespace: &str, parent: &str, rules: &str) -> Route {
    let yaml = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: {name}, namespace: {namespace} }}\n\
         spec:\n  parentRefs: [{parent}]\n  rules: {rules}\n"
    );
    route(&yaml).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

const ORDERS: &str = "{ kind: Service, name: orders, namespace: shop }";

fn rule(name: &str, matches: &str) -> String {
    format!("{{ name: {name}, matches: [{matches}], backendRefs: [{{ name: orders, namespace: shop, port: 80 }}] }}")
}

fn table(routes: &[(Route, u64)], namespace: &str) -> RouteTable {
    let routes: Vec<StoredRoute> =
        routes.iter().map(|(route, created)| StoredRoute { route: Arc::new(route.clone()), created: *created }).collect();
    RouteTable::compile(&"shop/orders".parse().unwrap(), namespace, &routes).unwrap()
}

fn name_of(table: &RouteTable, method: &str, target: &str, headers: &[(&str, &str)]) -> String {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let headers: &dyn crate::Headers = if headers.is_empty() { &NoHeaders } else { &headers.to_vec() };
    match table.select(80, &RouteRequest { method, path, query, headers }) {
        Selection::Chosen(chosen) => {
            format!("{}/{}", chosen.route, chosen.rule.name.as_ref().map(ToString::to_string).unwrap_or_default())
        }
        Selection::NoMatch => "none".to_owned(),
        Selection::Unrouted => "unrouted".to_owned(),
    }
}

#[test]
fn the_most_specific_match_decides_whatever_the_order() {
    let rules = [
        rule("any", "{ path: { type: PathPrefix, value: / } }"),
        rule("prefix", "{ path: { type: PathPrefix, value: /v1 } }"),
        rule("longer", "{ path: { type: PathPrefix, value: /v1/orders } }"),
        rule("method", "{ path: { type: PathPrefix, value: /v1/orders }, method: POST }"),
        rule("header", "{ path: { value: /v1/orders }, headers: [{ name: X-Beta, value: \"1\" }] }"),
        rule(
            "two-headers",
            "{ path: { value: /v1/orders }, headers: [{ name: x-beta, value: \"1\" }, { name: x-eu, value: \"1\" }] }",
        ),
        rule("query", "{ path: { value: /v1/orders }, queryParams: [{ name: debug, value: a b }] }"),
        rule("regex", "{ path: { type: RegularExpression, value: \"/v1/orders/[0-9]+\" } }"),
        rule("exact", "{ path: { type: Exact, value: /v1/orders/7 } }"),
    ];
    let mut order: Vec<usize> = (0..rules.len()).collect();
    for _ in 0..rules.len() {
        order.rotate_left(1);
        let listed: Vec<&str> = order.iter().map(|at| rules[*at].as_str()).collect();
        let table = table(&[(http("r", "shop", ORDERS, &format!("[{}]", listed.join(", "))), 1)], "shop");
        for (method, target, headers, expected) in [
            ("GET", "/", &[][..], "any"),
            ("GET", "/v1x", &[], "any"),
            ("GET", "/v1", &[], "prefix"),
            ("GET", "/v1/", &[], "prefix"),
            ("GET", "/v1/orders", &[], "longer"),
            ("POST", "/v1/orders", &[], "method"),
            ("POST", "/v1/orders", &[("x-beta", "1")], "method"),
            ("GET", "/v1/orders", &[("x-beta", "1")], "header"),
            ("GET", "/v1/orders", &[("x-beta", "2")], "longer"),
            ("GET", "/v1/orders", &[("x-eu", "1"), ("x-beta", "1")], "two-headers"),
            ("GET", "/v1/orders?debug=a%20b&debug=no", &[], "query"),
            ("GET", "/v1/orders?debug=a+b", &[], "query"),
            ("GET", "/v1/orders?debug=no&debug=a+b", &[], "longer"),
            ("GET", "/v1/orders/8", &[], "regex"),
            ("GET", "/v1/orders/8x", &[], "longer"),
            ("GET", "/v1/orders/7", &[], "exact"),
            ("POST", "/v1/orders/7", &[], "exact"),
        ] {
            assert_eq!(name_of(&table, method, target, headers), format!("shop/r/{expected}"), "{method} {target} {headers:?}");
        }
    }
}

#[test]
fn among_equals_the_older_route_then_the_name_then_the_order_decides() {
    let one = |name: &str, rules: &str| http(name, "shop", ORDERS, rules);
    let twice = format!("[{}, {}]", rule("first", "{}"), rule("second", "{}"));
    assert_eq!(name_of(&table(&[(one("a", &twice), 2), (one("b", &twice), 1)], "shop"), "GET", "/", &[]), "shop/b/first");
    assert_eq!(name_of(&table(&[(one("b", &twice), 1), (one("a", &twice), 1)], "shop"), "GET", "/", &[]), "shop/a/first");
}

#[test]
fn routes_beside_the_caller_stand_in_for_those_beside_the_service_and_concern_nobody_else() {
    let own = http("own", "shop", ORDERS, &format!("[{}]", rule("all", "{}")));
    let foreign = http("foreign", "lab", ORDERS, &format!("[{}]", rule("some", "{ path: { value: /lab } }")));
    let both = [(own, 1), (foreign, 2)];
    for (namespace, path, expected) in [
        ("shop", "/lab", "shop/own/all"),
        ("web", "/lab", "shop/own/all"),
        ("lab", "/lab", "lab/foreign/some"),
        ("lab", "/", "none"),
    ] {
        assert_eq!(name_of(&table(&both, namespace), "GET", path, &[]), expected, "{namespace} {path}");
    }
    assert_eq!(name_of(&table(&both[1..], "web"), "GET", "/lab", &[]), "unrouted");
}

#[test]
fn a_route_that_names_a_port_is_for_that_port() {
    let parent = "{ kind: Service, name: orders, port: 8080 }";
    let table = table(&[(http("r", "shop", parent, &format!("[{}]", rule("all", "{}"))), 1)], "shop");
    assert_eq!(name_of(&table, "GET", "/", &[]), "unrouted");
}

#[test]
fn grpc_methods_match_by_service_and_method() {
    let yaml = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: { name: g, namespace: shop }\nspec:\n  \
                parentRefs: [{ kind: Service, name: orders }]\n  rules:\n";
    let one = |name: &str, method: &str| {
        format!("  - {{ name: {name}, matches: [{{ method: {method} }}], backendRefs: [{{ name: orders, port: 80 }}] }}\n")
    };
    let rules = [
        one("service", "{ service: shop.Orders }"),
        one("method", "{ method: Get }"),
        one("both", "{ service: shop.Orders, method: Get }"),
        one("regex", "{ type: RegularExpression, service: \"lab\\\\..*\" }"),
    ];
    let table = table(&[(route(&format!("{yaml}{}", rules.concat())).unwrap(), 1)], "shop");
    for (path, expected) in [
        ("/shop.Orders/Put", "shop/g/service"),
        ("/shop.Orders/Get", "shop/g/both"),
        ("/shop.Other/Get", "shop/g/method"),
        ("/lab.X/Put", "shop/g/regex"),
        ("/shop.Orders2/Put", "none"),
        ("/", "none"),
    ] {
        assert_eq!(name_of(&table, "POST", path, &[]), expected, "{path}");
    }
}

#[test]
fn weights_are_shares_of_their_sum() {
    let refs = "{ name: a, port: 80, weight: 90 }, { name: b, port: 80, weight: 0 }, { name: c, port: 80, weight: 10 }";
    let table = table(&[(http("r", "shop", ORDERS, &format!("[{{ backendRefs: [{refs}] }}]")), 1)], "shop");
    let request = RouteRequest { method: "GET", path: "/", query: None, headers: &NoHeaders };
    let Selection::Chosen(chosen) = table.select(80, &request) else { panic!("no match") };
    let name = |at: u64| {
        chosen
            .backend(|sum| {
                assert_eq!(sum, 100);
                at
            })
            .unwrap()
            .service
            .name()
            .to_owned()
    };
    assert_eq!([0, 89, 90, 99].map(name), ["a", "a", "c", "c"]);
}

#[test]
fn what_is_not_supported_is_refused_with_its_place() {
    let with = |rule: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: r, namespace: shop }}\nspec:\n  \
             parentRefs: [{{ kind: Service, name: orders }}]\n  rules:\n  - {rule}\n"
        )
    };
    let leads = "backendRefs: [{ name: orders, port: 80 }]";
    for (yaml, said) in [
        (with(&format!("{{ sessionPersistence: {{}}, {leads} }}")), "7:7: error: unknown field `sessionPersistence`"),
        (with(&format!("{{ filters: [{{ type: ExtensionRef }}], {leads} }}")), "7:25: error: `ExtensionRef`"),
        (with("{ backendRefs: [{ name: orders }] }"), "the field `port` is missing"),
        (with("{ matches: [{ method: GET }] }"), "leads nowhere"),
        (with("{ backendRefs: [{ name: x, namespace: lab, port: 80 }] }"), "may not lead to `lab/x`"),
        (with("{ backendRefs: [{ name: x, port: 80, weight: 0 }] }"), "all weights are 0"),
        (with(&format!("{{ matches: [{{ path: {{ value: /a/../b }} }}], {leads} }}")), "is no path"),
        (with(&format!("{{ matches: [{{ path: {{ value: /%61 }} }}], {leads} }}")), "requests have the spelling `/a`"),
        (
            with(&format!("{{ matches: [{{ path: {{ type: RegularExpression, value: \"(\" }} }}], {leads} }}")),
            "the regular expression is refused",
        ),
        (with(&format!("{{ timeouts: {{ request: 1s, backendRequest: 2s }}, {leads} }}")), "is longer than"),
        (with(&format!("{{ timeouts: {{ request: soon }}, {leads} }}")), "`soon` is not a duration"),
        (with(&format!("{{ retry: {{ attempts: 9 }}, {leads} }}")), "from 0 to 5"),
        (
            with(&format!(
                "{{ filters: [{{ type: RequestHeaderModifier, requestHeaderModifier: {{ set: [{{ name: Host, value: x }}] }} }}], {leads} }}"
            )),
            "`Host` cannot be changed",
        ),
        (
            with(&format!("{{ filters: [{{ type: URLRewrite, urlRewrite: {{ hostname: x }} }}], {leads} }}")),
            "unknown field `hostname`",
        ),
        (
            with(&format!("{{ matches: [{{ headers: [{{ name: X-Envoy-Peer, value: a }}] }}], {leads} }}")),
            "no route ever sees `X-Envoy-Peer`",
        ),
        (with(&format!("{{ name: a, {leads} }}")).replace("HTTPRoute", "GRPCRoutes"), "GRPCRoutes"),
    ] {
        let problems = route(&yaml).unwrap_err();
        assert!(problems.iter().any(|problem| problem.contains(said)), "{said}: {problems:#?}");
    }
}

#[test]
fn a_route_survives_its_json() {
    let rules = "[{ matches: [{ path: { value: /a }, method: GET }], timeouts: { request: 1s }, retry: { codes: [503], attempts: 2, backoff: 10ms }, \
                 filters: [{ type: RequestMirror, requestMirror: { backendRef: { name: copy, port: 80 }, percent: 5 } }, \
                 { type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /b } } }, \
                 { type: RequestHeaderModifier, requestHeaderModifier: { remove: [x-a], add: [{ name: x-b, value: c }] } }], \
                 backendRefs: [{ name: orders, namespace: shop, port: 80, weight: 3 }] }]";
    let route = http("r", "shop", ORDERS, rules);
    assert_eq!(Route::from_json(&route.to_json().unwrap()).unwrap(), route);
    let backends: Vec<String> = route.backends().map(|service| service.to_string()).collect();
    assert_eq!(backends, ["shop/orders", "shop/copy"]);
    let unseen = "[{ matches: [{ headers: [{ name: x-beta, value: a }] }], backendRefs: [{ name: orders, port: 80 }] }]";
    let stored = http("r", "shop", ORDERS, unseen).to_json().unwrap().replacen("x-beta", "upgrade", 1);
    assert!(Route::from_json(&stored).is_ok(), "what an older version took is read");
    let unknown = route.to_json().unwrap().replacen("\"weight\"", "\"wait\"", 1);
    assert!(Route::from_json(&unknown).is_err());
}
