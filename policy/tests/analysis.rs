//! What is said about policies before they are applied.
#![expect(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

mod support;

use outrider_policy::{Ground, Protocol, Severity, StoredPolicy, Target, Unknown, analyse, manifest};
use support::{policy, stored};

fn services() -> Vec<Target> {
    let target = |service: &str, port, protocol| Target {
        service: service.parse().unwrap(),
        labels: [("app".to_owned(), service[5..].to_owned())].into(),
        port,
        protocol,
    };
    vec![
        target("shop/orders", 8080, Protocol::Http),
        target("shop/orders", 5432, Protocol::Tcp),
        target("shop/files", 8080, Protocol::Http),
        target("shop/database", 5432, Protocol::Tcp),
    ]
}

/// `severity message` for each finding about `shop/p` with this spec, at most the first line of it.
fn findings(spec: &str, existing: &[StoredPolicy]) -> Vec<String> {
    findings_where(spec, existing, Unknown::Refused)
}

fn findings_where(spec: &str, existing: &[StoredPolicy], unknown: Unknown) -> Vec<String> {
    let yaml = format!(
        "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: {{ name: p, namespace: shop }}\nspec:\n{spec}"
    );
    let (manifests, diagnostics) = manifest::parse("p.yaml", &yaml);
    assert!(diagnostics.is_empty(), "{diagnostics:#?}");
    let ground = Ground { services: services(), away: vec!["shop/asleep".parse().unwrap()], unknown };
    analyse(&manifests, existing, &ground)
        .iter()
        .map(|d| format!("{}:{} {} {} | {}", d.line, d.column, d.severity, d.message, d.help.clone().unwrap_or_default()))
        .collect()
}

fn rules(head: &str, rules: &str) -> Vec<String> {
    findings(&format!("{head}  authorization:\n    rules:\n{rules}"), &[])
}

#[track_caller]
fn expect(found: &[String], expected: &[&str]) {
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "`{found}` is not `{expected}…`");
    }
}

#[test]
fn an_honest_policy_gives_no_findings() {
    let found = rules(
        "  targetRefs: [{ kind: Service, name: files }]\n",
        "      - { action: Allow, from: [{ serviceAccounts: [shop/web] }], to: [{ methods: [GET], paths: ['/{**}'] }] }\n",
    );
    expect(&found, &[]);
}

#[test]
fn http_conditions_on_an_opaque_port_are_refused_with_the_way_out() {
    let orders = "  targetRefs: [{ kind: Service, name: orders }]\n";
    let found = rules(orders, "      - { name: a, action: Allow, from: [{ namespaces: [shop] }], to: [{ methods: [GET] }] }\n");
    expect(
        &found,
        &[
            "8:9 error rule `shop/p/a` has conditions on HTTP, but port 5432 of `shop/orders` speaks tcp | declare the port as http, http2 or grpc, or keep the rule off it with `notPorts: [5432]`",
        ],
    );
    expect(&rules(orders, "      - { action: Allow, to: [{ methods: [GET], notPorts: [5432] }] }\n"), &[]);
    expect(&rules(orders, "      - { action: Allow, to: [{ methods: [GET], ports: [8080] }, { ports: [5432] }] }\n"), &[]);
    expect(
        &rules(orders, "      - { action: Allow, when: 'request.path == \"/\"' }\n"),
        &["8:9 error rule `shop/p/rules[0]` has conditions on HTTP"],
    );
    let database = "  targetRefs: [{ kind: Service, name: database }]\n";
    expect(
        &rules(database, "      - { action: Deny, to: [{ paths: ['/admin'] }] }\n"),
        &["8:9 error rule `shop/p/rules[0]` has conditions on HTTP"],
    );
    let wide = rules("", "      - { action: Allow, to: [{ methods: [GET] }] }\n");
    expect(
        &wide,
        &[
            "7:9 warning rule `shop/p/rules[0]` has conditions on HTTP, but port 5432 of `shop/orders` speaks tcp, where it allows nothing",
        ],
    );
}

#[test]
fn an_unknown_service_is_refused_and_named_with_the_one_that_was_probably_meant() {
    let at = |name: &str| format!("  targetRefs: [{{ kind: Service, name: {name} }}]\n  authorization: {{ rules: [] }}\n");
    expect(&findings(&at("fils"), &[]), &["5:39 error there is no service `shop/fils` | did you mean `files`?"]);
    expect(
        &findings(&at("invoices"), &[]),
        &[
            "5:39 error there is no service `shop/invoices` | start it first, or say that it is to come with `--allow-unknown-services`",
        ],
    );
    // it is to come, it is away for a moment, or the policy was aimed at it before
    expect(
        &findings_where(&at("invoices"), &[], Unknown::Expected),
        &["5:39 warning there is no service `shop/invoices` | the policy takes effect once a service of this name registers"],
    );
    expect(&findings(&at("asleep"), &[]), &[]);
    let before = stored(policy("shop", "p", "{targetRefs: [{kind: Service, name: invoices}], mtls: {mode: Strict}}"));
    expect(&findings(&at("invoices"), &[before]), &["5:39 warning there is no service `shop/invoices` | the policy"]);
    expect(
        &rules("  selector: { matchLabels: { app: nobody } }\n", "      []\n"),
        &["5:13 warning no workload has these labels now"],
    );
    expect(
        &rules("  targetRefs: [{ kind: Service, name: files }]\n", "      - { action: Deny, to: [{ ports: [9] }] }\n"),
        &["8:39 warning none of these is a port of the services"],
    );
}

#[test]
fn entries_that_can_never_hold_are_refused() {
    for entry in [
        "from: [{ namespaces: [a], notNamespaces: ['*'] }]",
        "from: [{ anonymous: true, principals: ['*'] }]",
        "from: [{ namespaces: [a], serviceAccounts: [b/c] }]",
        "from: [{ namespaces: [a], principals: ['spiffe://td/ns/b/sa/c'] }]",
        "from: [{ ipBlocks: [10.1.0.0/16], notIpBlocks: [10.0.0.0/8] }]",
        "to: [{ notPorts: [5432], methods: [GET], notMethods: [GET, POST] }]",
        "to: [{ notPorts: [5432], paths: ['/a/{x}'], notPaths: ['/a/*'] }]",
        "to: [{ notPorts: [5432], headers: [{name: a}], notHeaders: [{name: A}] }]",
    ] {
        let found = rules("", &format!("      - {{ action: Allow, {entry} }}\n"));
        assert!(
            found.iter().any(|f| f.contains("error this entry of rule `shop/p/rules[0]` can never hold: ")),
            "{entry}: {found:?}"
        );
    }
}

#[test]
fn a_section_that_can_be_set_once_is_refused_a_second_time() {
    let other = stored(policy("shop", "other", "{mtls: {mode: Strict}}"));
    expect(
        &findings("  mtls: { mode: Permissive }\n", std::slice::from_ref(&other)),
        &["5:9 error policy `shop/other` sets `mtls` for the same services | keep the section in one of them"],
    );
    let aimed = "  targetRefs: [{ kind: Service, name: files }]\n  mtls: { mode: Permissive }\n";
    expect(&findings(aimed, &[other]), &[]);
    let by_label = stored(policy("shop", "labels", "{selector: {matchLabels: {app: files}}, mtls: {mode: Strict}}"));
    expect(&findings(aimed, &[by_label]), &["6:9 error policy `shop/labels` sets"]);
    // a policy replaces the stored one of its own name
    expect(&findings("  mtls: { mode: Strict }\n", &[stored(policy("shop", "p", "{mtls: {mode: Permissive}}"))]), &[]);
}

#[test]
fn a_limit_is_set_once_for_a_port() {
    let other = stored(policy("shop", "other", "{limits: {requests: 5, unit: Second, ports: [8080]}}"));
    let second = "  limits: { requests: 9, unit: Minute }\n";
    expect(
        &findings(second, std::slice::from_ref(&other)),
        &["5:11 error policy `shop/other` sets `limits` for the same services | keep the section in one of them"],
    );
    expect(&findings("  limits: { requests: 9, unit: Minute, ports: [5432] }\n", std::slice::from_ref(&other)), &[]);
    let aimed = "  targetRefs: [{ kind: Service, name: files }]\n  limits: { requests: 1, unit: Hour, ports: [8080, 9] }\n";
    expect(&findings(aimed, &[other]), &["6:52 warning 9 is not a port of the services that the policy applies to"]);
}

#[test]
fn pointless_rules_are_named_with_the_rule_that_makes_them_so() {
    let found = rules(
        "",
        "      - { name: wide, action: Allow, from: [{ namespaces: [shop] }] }\n      - { name: narrow, action: Allow, from: [{ serviceAccounts: [shop/web], namespaces: [shop] }], to: [{ ports: [8080] }] }\n      - { name: wall, action: Deny, to: [{ ports: [8080, 5432] }] }\n      - { name: never, action: Allow, from: [{ ipBlocks: [10.0.0.0/8] }], to: [{ ports: [8080] }] }\n      - { name: again, action: Allow, from: [{ namespaces: [shop] }] }\n",
    );
    expect(
        &found,
        &[
            "8:9 warning rule `shop/p/narrow` is shadowed: whatever it holds for is covered by `shop/p/wide`",
            "10:9 warning rule `shop/p/never` is unreachable: whatever it allows is denied by `shop/p/wall`",
            "11:9 warning rule `shop/p/again` says the same as `shop/p/wide`",
        ],
    );
    let base = stored(policy(
        "outrider-system",
        "base",
        "{authorization: {rules: [{name: no-telnet, action: Deny, to: [{ports: [23]}]}]}}",
    ));
    let found = findings(
        "  authorization:\n    rules:\n      - { action: Deny, from: [{ namespaces: [x] }], to: [{ ports: [23] }] }\n",
        &[base],
    );
    assert!(found.iter().any(|f| f.contains("covered by `outrider-system/base/no-telnet`")), "{found:?}");
}

#[test]
fn rules_that_are_wider_than_most_people_mean_are_pointed_out() {
    expect(&rules("", "      - { action: Allow }\n"), &["7:9 warning rule `shop/p/rules[0]` allows every caller everything"]);
    expect(
        &rules("", "      - { action: Allow, from: [{ ipBlocks: [0.0.0.0/0] }] }\n"),
        &["7:9 warning rule `shop/p/rules[0]` allows every caller everything"],
    );
    expect(&rules("", "      - { action: Deny }\n"), &["7:9 warning rule `shop/p/rules[0]` denies every call"]);
    let permissive = rules("  mtls: { mode: Permissive }\n", "      - { action: Allow }\n");
    assert!(permissive.iter().any(|f| f.contains("without any identity")), "{permissive:?}");
}

#[test]
fn ten_thousand_rules_are_examined_in_time_that_does_not_grow_with_their_square() {
    let many: String = (0..10_000).map(|n| format!("      - {{ action: Allow, from: [{{ serviceAccounts: [shop/a{n}] }}], to: [{{ notPorts: [5432], paths: ['/a/{n}'] }}] }}\n")).collect();
    let started = std::time::Instant::now();
    let found = rules("", &many);
    assert_eq!(found, Vec::<String>::new());
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "took {:?}", started.elapsed());
    let one = analyse(&[], &[], &Ground::default());
    assert!(one.iter().all(|d| d.severity == Severity::Warning));
}
