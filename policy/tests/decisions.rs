//! What policies mean, promise by promise.

mod support;

use outrider_policy::{Effect, Problem, compile};
use support::{Request, compiled, policy, stored, target};

const RULES: &str = "
- name: web-reads
  action: Allow
  from: [{ serviceAccounts: [shop/web] }]
  to: [{ methods: [GET], paths: ['/v1/orders/{id}'] }]
- name: no-secrets
  action: Deny
  to: [{ paths: ['/v1/orders/secret'] }]
- name: watch-web
  action: Audit
  from: [{ namespaces: [shop] }]
";

#[test]
fn deny_beats_allow_and_what_no_rule_allows_is_denied() {
    let compiled = compiled(RULES);
    let web = Request::from("shop/web").get("/v1/orders/7");
    assert_eq!(web.decide(&compiled), (Effect::Allow, Some("shop/orders/web-reads".into())));
    assert_eq!(
        Request::from("shop/web").get("/v1/orders/secret").decide(&compiled),
        (Effect::Deny, Some("shop/orders/no-secrets".into()))
    );
    assert_eq!(Request::from("shop/other").get("/v1/orders/7").decide(&compiled), (Effect::Deny, None));
    assert_eq!(web.with_method("POST").decide(&compiled), (Effect::Deny, None));
    let decision = compiled.decide(&web.call());
    assert_eq!(decision.audited.iter().map(|rule| compiled.rule_name(rule)).collect::<Vec<_>>(), ["shop/orders/watch-web"]);
    assert_eq!(decision.revision, 7);
}

#[test]
fn no_policy_and_no_rules_deny_everything_and_an_empty_rule_matches_everything() {
    let call = Request::from("shop/web").get("/");
    assert_eq!(call.decide(&compile(&[], &target()).unwrap()).0, Effect::Deny);
    assert_eq!(call.decide(&compiled("[]")).0, Effect::Deny);
    assert_eq!(call.decide(&compiled("[{action: Allow}]")).0, Effect::Allow);
    assert_eq!(Request::anonymous().get("/").decide(&compiled("[{action: Allow}]")).0, Effect::Allow);
    assert_eq!(call.decide(&outrider_policy::Compiled::deny_all("snapshot unreadable")).0, Effect::Deny);
}

#[test]
fn an_anonymous_caller_passes_by_no_identity_rule_and_by_no_negated_one() {
    for field in [
        "principals: ['*']",
        "namespaces: [shop]",
        "serviceAccounts: [shop/web]",
        "trustDomains: ['*']",
        "notPrincipals: ['spiffe://x/*']",
        "notNamespaces: [x]",
        "notServiceAccounts: [x/y]",
        "notTrustDomains: [x]",
        "anonymous: false",
    ] {
        let compiled = compiled(&format!("[{{action: Allow, from: [{{ {field} }}]}}]"));
        assert_eq!(Request::anonymous().get("/").decide(&compiled).0, Effect::Deny, "{field}");
        assert_eq!(Request::from("shop/web").get("/").decide(&compiled).0, Effect::Allow, "{field}");
    }
    for field in ["notPrincipals: ['spiffe://x/*']", "notNamespaces: [x]", "notServiceAccounts: [x/y]", "notTrustDomains: [x]"] {
        let compiled = compiled(&format!("[{{action: Allow}}, {{action: Deny, from: [{{ {field} }}]}}]"));
        assert_eq!(
            Request::anonymous().get("/").decide(&compiled).0,
            Effect::Deny,
            "a stranger passes where only {field} is excepted"
        );
    }
}

#[test]
fn parameters_in_a_path_neither_hide_it_from_a_deny_nor_lend_it_to_an_allow() {
    let deny = compiled("[{action: Allow}, {action: Deny, to: [{paths: ['/admin', '/admin/{**}']}]}]");
    let allow = compiled("[{action: Allow, to: [{paths: ['/public/{**}', '/admin']}]}]");
    for path in ["/admin;x=y", "/admin;/a", "/admin;x=y/a", "/admin/a;b"] {
        assert_eq!(Request::from("shop/web").get(path).decide(&deny).0, Effect::Deny, "{path}");
    }
    assert_eq!(Request::from("shop/web").get("/admin;x=y").decide(&allow).0, Effect::Deny);
    assert_eq!(Request::from("shop/web").get("/public/a;x=y").decide(&allow).0, Effect::Allow);
}

#[test]
fn on_an_opaque_port_a_deny_on_http_denies_and_an_allow_on_http_does_not_allow() {
    let call = Request::from("shop/web").opaque();
    assert_eq!(call.decide(&compiled("[{action: Allow, to: [{methods: [GET]}]}]")).0, Effect::Deny);
    assert_eq!(call.decide(&compiled("[{action: Allow, from: [{namespaces: [shop]}]}]")).0, Effect::Allow);
    assert_eq!(call.decide(&compiled("[{action: Allow}, {action: Deny, to: [{notMethods: [GET]}]}]")).0, Effect::Deny);
}

#[test]
fn a_connect_has_no_path_so_path_rules_deny_it() {
    let call = Request::from("shop/web").get("").with_method("CONNECT");
    assert_eq!(call.decide(&compiled("[{action: Allow, to: [{paths: ['*']}]}]")).0, Effect::Deny);
    assert_eq!(call.decide(&compiled("[{action: Allow}, {action: Deny, to: [{paths: ['/admin']}]}]")).0, Effect::Deny);
    assert_eq!(call.decide(&compiled("[{action: Allow, to: [{methods: [CONNECT]}]}]")).0, Effect::Allow);
}

#[test]
fn a_mapped_address_is_the_address_it_maps() {
    let compiled = compiled("[{action: Allow, from: [{ipBlocks: [10.0.0.0/8]}]}]");
    assert_eq!(Request::from("shop/web").at("::ffff:10.1.2.3").get("/").decide(&compiled).0, Effect::Allow);
    assert_eq!(Request::from("shop/web").at("fd00::1").get("/").decide(&compiled).0, Effect::Deny);
}

#[test]
fn policies_reach_what_they_are_aimed_at_and_no_further() {
    let t = target();
    for (namespace, spec, applies) in [
        ("shop", "{}", true),
        ("other", "{}", false),
        ("outrider-system", "{}", true),
        ("shop", "{targetRefs: [{kind: Service, name: orders}]}", true),
        ("shop", "{targetRefs: [{kind: Service, name: files}]}", false),
        ("other", "{targetRefs: [{kind: Service, name: orders}]}", false),
        ("outrider-system", "{targetRefs: [{kind: Service, name: orders}]}", false),
        ("shop", "{selector: {matchLabels: {app: orders}}}", true),
        ("shop", "{selector: {matchLabels: {app: orders, tier: x}}}", false),
        ("outrider-system", "{selector: {matchLabels: {app: orders}}}", true),
    ] {
        assert_eq!(policy(namespace, "p", spec).applies_to(&t), applies, "{namespace} {spec}");
    }
}

#[test]
fn the_most_closely_aimed_policy_sets_the_mtls_mode() {
    let mesh = stored(policy("outrider-system", "base", "{mtls: {mode: Permissive}}"));
    let home = stored(policy("shop", "home", "{mtls: {mode: Strict}}"));
    let port = stored(policy(
        "shop",
        "port",
        "{targetRefs: [{kind: Service, name: orders}], mtls: {mode: Strict, ports: {8080: Permissive}}}",
    ));
    let mode = |policies: &[_]| compile(policies, &target()).unwrap().mtls_mode().to_string();
    assert_eq!(mode(&[]), "Strict");
    assert_eq!(mode(std::slice::from_ref(&mesh)), "Permissive");
    assert_eq!(mode(&[mesh.clone(), home.clone()]), "Strict");
    assert_eq!(mode(&[port, home, mesh]), "Permissive");
}

#[test]
fn an_explanation_names_the_first_failing_condition_of_the_nearest_rules() {
    let compiled = compiled(RULES);
    let explanation = compiled.explain(&Request::from("shop/web").get("/v1/orders/7").with_method("POST").call());
    assert_eq!((explanation.effect, explanation.rule, explanation.revision), (Effect::Deny, None, 7));
    let nearest = &explanation.near_misses[0];
    assert_eq!(
        (nearest.rule.as_str(), nearest.held, nearest.failed.as_str()),
        ("shop/orders/web-reads", 2, "method `POST` is not `GET`")
    );
    assert_eq!(explanation.near_misses[1].failed, "path `/v1/orders/7` is not `/v1/orders/secret`");
    let stranger = compiled.explain(&Request::anonymous().get("/v1/orders/7").call());
    assert!(stranger.near_misses.iter().any(|miss| miss.failed == "the caller has no identity"), "{stranger:?}");
}

#[test]
fn rules_that_cannot_be_told_apart_do_not_compile() {
    let twice = policy("shop", "p", "{authorization: {rules: [{name: a, action: Allow}, {name: b, action: Deny}]}}");
    let mut twice = twice;
    let rules = &mut twice.spec.authorization.as_mut().unwrap().rules;
    rules[1].name = rules[0].name.clone();
    assert_eq!(
        compile(&[stored(twice)], &target()).unwrap_err(),
        [Problem::DuplicateRule { policy: "shop/p".into(), rule: "a".into() }]
    );
}

#[test]
fn headers_that_rules_read_are_known() {
    let compiled = compiled(
        "[{action: Allow, to: [{headers: [{name: X-B}], notHeaders: [{name: x-a}]}, {headers: [{name: x-b, exact: c}]}]}]",
    );
    assert_eq!(compiled.headers_read().iter().map(|name| &**name).collect::<Vec<_>>(), ["x-a", "x-b"]);
}
