//! Imported policies give the verdicts of Istio, which a small evaluator of its own says, or are refused by name.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may stop at what it did not expect")]

mod support;

use std::sync::Arc;

use outrider_policy::istio::{Imported, Options, Unselected, import};
use outrider_policy::{Diagnostic, Effect, MtlsMode, Protocol, StoredPolicy, Target, compile, manifest};
use serde_json::Value;
use support::Request;
use support::dice::Dice;
use support::istio::{self, World};

fn stored(imported: Imported) -> Vec<StoredPolicy> {
    imported.policies.into_iter().map(|policy| StoredPolicy { policy: Arc::new(policy), revision: 1 }).collect()
}

fn imported(yaml: &str) -> Vec<StoredPolicy> {
    match import(&[("istio.yaml", yaml)], &Options::default()) {
        Ok(imported) => stored(imported),
        Err(diagnostics) => panic!("{diagnostics:#?}\n{yaml}"),
    }
}

fn refused(yaml: &str) -> Vec<Diagnostic> {
    import(&[("istio.yaml", yaml)], &Options::default()).err().unwrap()
}

/// An `AuthorizationPolicy` `shop/p` for `app: orders`.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: p, namespace: shop }}\nspec:\n  \
         selector: {{ matchLabels: {{ app: orders }} }}\n  {}\n",
        spec.replace('\n', "\n  ")
    )
}

fn orders() -> Target {
    support::target()
}

/// Whether the call passes, by the imported policies; the evaluator must say the same.
fn allowed_at(yaml: &str, target: &Target, request: &Request) -> bool {
    let ours = request.decide(&compile(&imported(yaml), target).unwrap()).0 == Effect::Allow;
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).unwrap();
    assert_eq!(ours, istio::allows(&documents, target, request), "{yaml}\n{:?} {:?}", request.call(), request.headers);
    ours
}

fn allowed(spec: &str, request: &Request) -> bool {
    allowed_at(&policy(spec), &orders(), request)
}

#[test]
fn absent_rules_allow_nothing_and_an_empty_rule_allows_everything() {
    let anybody = Request::from("bank/teller");
    for spec in ["{}", "action: ALLOW", "rules: []", "rules: null"] {
        let yaml = policy(&spec.replace("{}", "action: ALLOW"));
        assert!(!allowed_at(&yaml, &orders(), &anybody), "{spec}");
    }
    let empty = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: p, namespace: shop }\nspec: {}\n";
    assert!(!allowed_at(empty, &orders(), &anybody), "`spec: {{}}` is the policy that allows nothing");
    assert!(allowed("rules: [{}]", &anybody));
    assert!(allowed("action: DENY", &anybody), "a deny policy without rules denies nothing");
    assert!(!allowed("action: DENY\nrules: [{}]", &anybody));
    assert!(allowed("action: AUDIT\nrules: [{}]", &anybody), "an audit has no part in the verdict");
}

#[test]
fn every_matcher_and_its_negation_mean_what_they_mean_in_istio() {
    let web = Request::from("shop/web").get("/a/b").with_header("x-tenant", "red");
    let teller = Request::from("bank/teller").at("192.168.1.1").get("/z").with_method("DELETE").with_header("x-tenant", "green");
    for (field, values) in [
        (
            "from: [{ source: { principals: [VALUE] } }]",
            &["mesh.example/ns/shop/sa/web", "mesh.example/ns/shop/*", "\"*/sa/web\""][..],
        ),
        ("from: [{ source: { namespaces: [VALUE] } }]", &["shop", "sh*", "\"*op\""]),
        ("from: [{ source: { serviceAccounts: [VALUE] } }]", &["shop/web", "web"]),
        ("from: [{ source: { ipBlocks: [VALUE] } }]", &["10.0.0.9", "10.0.0.0/8"]),
        ("to: [{ operation: { methods: [VALUE] } }]", &["GET", "G*", "\"*T\""]),
        ("to: [{ operation: { paths: [VALUE] } }]", &["/a/b", "/a/*", "\"*/b\"", "\"/a/{*}\"", "\"/{**}/b\"", "\"/a/{**}\""]),
        ("to: [{ operation: { hosts: [VALUE] } }]", &["orders.shop", "ORDERS.shop", "orders*", "\"*.shop\""]),
        ("to: [{ operation: { ports: [VALUE] } }]", &["\"8080\""]),
        ("when: [{ key: source.principal, values: [VALUE] }]", &["mesh.example/ns/shop/sa/web"]),
        ("when: [{ key: source.namespace, values: [VALUE] }]", &["shop"]),
        ("when: [{ key: source.serviceAccount, values: [VALUE] }]", &["shop/web"]),
        ("when: [{ key: source.ip, values: [VALUE] }]", &["10.0.0.0/8"]),
        ("when: [{ key: destination.port, values: [VALUE] }]", &["\"8080\""]),
        ("when: [{ key: \"request.headers[X-Tenant]\", values: [VALUE] }]", &["red", "re*", "\"*d\"", "red, blue", "blue, r*"]),
    ] {
        for value in values {
            let mut other = teller.clone();
            (other.host, other.port) = ("elsewhere.bank".into(), 9090);
            let rule = field.replace("VALUE", value);
            let negated = negated(&rule);
            for (rule, wanted) in [(&rule, [true, false]), (&negated, [false, true])] {
                for (request, wanted) in [&web, &other].into_iter().zip(wanted) {
                    assert_eq!(allowed(&format!("rules: [{{ {rule} }}]"), request), wanted, "{rule}");
                    assert_eq!(allowed(&format!("action: DENY\nrules: [{{ {rule} }}]"), request), !wanted, "DENY {rule}");
                }
            }
        }
    }
}

/// The `not…` form of a field.
fn negated(rule: &str) -> String {
    let fields = ["principals", "namespaces", "serviceAccounts", "ipBlocks", "methods", "paths", "hosts", "ports", "values"];
    let field = fields.into_iter().find(|field| rule.contains(&format!("{field}:"))).unwrap();
    let (first, rest) = field.split_at(1);
    rule.replace(&format!("{field}:"), &format!("not{}{rest}:", first.to_uppercase()))
}

#[test]
fn presence_asks_for_any_value() {
    let web = Request::from("shop/web").with_header("x-tenant", "");
    let stranger = Request::anonymous();
    for (rule, with, without) in [
        ("from: [{ source: { principals: [\"*\"] } }]", true, false),
        ("from: [{ source: { namespaces: [\"*\"] } }]", true, false),
        ("from: [{ source: { notPrincipals: [\"*\"] } }]", false, true),
        ("to: [{ operation: { paths: [\"*\"], methods: [\"*\"], hosts: [\"*\"] } }]", true, true),
        ("when: [{ key: \"request.headers[x-tenant]\", values: [\"*\"] }]", true, false),
        ("when: [{ key: \"request.headers[x-tenant]\", notValues: [\"*\"] }]", false, true),
    ] {
        let spec = format!("rules: [{{ {rule} }}]");
        assert_eq!((allowed(&spec, &web), allowed(&spec, &stranger)), (with, without), "{rule}");
    }
}

#[test]
fn sources_and_operations_are_alternatives_and_what_stands_in_them_adds_up() {
    let spec = "rules:\n- from: [{ source: { namespaces: [shop], notServiceAccounts: [] } }, { source: { ipBlocks: [192.168.0.0/16] } }]\n  \
                to: [{ operation: { methods: [GET], paths: [/a] } }, { operation: { paths: [/b] } }]\n  \
                when: [{ key: \"request.headers[x]\", values: [\"1\", \"2\"], notValues: [\"2\"] }, { key: source.ip, notValues: [10.0.0.1] }]";
    let call = Request::from("shop/web").get("/a").with_header("x", "1");
    assert!(allowed(spec, &call));
    assert!(!allowed(spec, &call.with_method("PUT")));
    assert!(allowed(spec, &call.clone().get("/b").with_method("PUT")));
    assert!(!allowed(spec, &call.clone().at("10.0.0.1")));
    assert!(!allowed(spec, &Request::from("bank/web").get("/a").with_header("x", "1")));
    assert!(allowed(spec, &Request::from("bank/web").at("192.168.3.4").get("/a").with_header("x", "1")));
    assert!(!allowed(spec, &Request::from("shop/web").get("/a").with_header("x", "2")));
    assert!(!allowed(spec, &Request::from("shop/web").get("/a")));
}

#[test]
fn conditions_on_http_void_an_allow_rule_on_tcp_and_widen_a_deny_rule() {
    let tcp = Request::from("shop/web").opaque();
    let target = Target { protocol: Protocol::Tcp, ..orders() };
    let verdict = |spec: &str| allowed_at(&policy(spec), &target, &tcp);
    assert!(!verdict("rules: [{ to: [{ operation: { methods: [GET] } }] }]"));
    assert!(!verdict("rules: [{ to: [{ operation: { methods: [GET] } }, { operation: { ports: [\"8080\"] } }] }]"));
    assert!(verdict("rules: [{ to: [{ operation: { methods: [GET] } }] }, { to: [{ operation: { ports: [\"8080\"] } }] }]"));
    assert!(!verdict("action: DENY\nrules: [{ to: [{ operation: { methods: [GET], ports: [\"8080\"] } }] }]"));
    assert!(verdict("action: DENY\nrules: [{ to: [{ operation: { methods: [GET], ports: [\"9090\"] } }] }]"));
    assert!(!verdict("action: DENY\nrules: [{ when: [{ key: \"request.headers[x]\", values: [a] }] }]"));
}

#[test]
fn a_caller_without_identity_is_nobody_and_not_somebody_as_in_istio() {
    let stranger = Request::anonymous();
    assert!(!allowed("rules: [{ from: [{ source: { namespaces: [shop] } }] }]", &stranger));
    assert!(allowed("rules: [{ from: [{ source: { notNamespaces: [shop] } }] }]", &stranger));
    assert!(!allowed("rules: [{ from: [{ source: { notNamespaces: [shop], namespaces: [\"*\"] } }] }]", &stranger));
    assert!(!allowed("rules: [{ from: [{ source: { notNamespaces: [shop], ipBlocks: [192.168.0.0/16] } }] }]", &stranger));
    assert!(allowed("action: DENY\nrules: [{ from: [{ source: { namespaces: [shop] } }] }]", &stranger));
    assert!(!allowed("action: DENY\nrules: [{ from: [{ source: { notNamespaces: [shop] } }] }]", &stranger));
}

const TWO: &str = "\
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: { name: deny.deletes, namespace: istio-system, labels: { team: platform } }
spec:
  action: DENY
  rules: [{ to: [{ operation: { methods: [DELETE] } }] }]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: orders, namespace: shop }
spec:
  selector: { matchLabels: { app: orders } }
  rules: [{ from: [{ source: { principals: [\"mesh.example/ns/shop/sa/web\"] } }] }]
";

#[test]
fn workloads_that_no_allow_policy_selects_are_open_as_in_istio() {
    let elsewhere = Target { labels: [("app".to_owned(), "files".to_owned())].into(), ..orders() };
    let bank = Target { service: "bank/ledger".parse().unwrap(), ..orders() };
    let stranger = Request::from("bank/teller");
    assert!(!allowed_at(TWO, &orders(), &stranger), "an allow policy selects it");
    assert!(allowed_at(TWO, &orders(), &Request::from("shop/web")));
    for open in [&elsewhere, &bank] {
        assert!(allowed_at(TWO, open, &stranger), "{open:?}");
        assert!(!allowed_at(TWO, open, &stranger.with_method("DELETE")), "{open:?}");
    }
    let policies = imported(TWO);
    assert_eq!(policies[0].policy.full_name(), "outrider-system/deny-deletes");
    assert_eq!(policies[0].policy.metadata.labels["team"], "platform");
}

#[test]
fn workloads_that_no_policy_selects_are_closed_and_that_is_said_unless_they_are_opened_on_purpose() {
    let only = TWO.split("---\n").nth(1).unwrap();
    let elsewhere = Target { service: "bank/ledger".parse().unwrap(), ..orders() };
    let stranger = Request::from("bank/teller");
    let closed = import(&[("i.yaml", only)], &Options::default()).unwrap();
    assert!(closed.notes.iter().any(|note| note.message.contains("in Istio they are open")), "{:#?}", closed.notes);
    let verdict = |imported: Imported, target: &Target| stranger.decide(&compile(&stored(imported), target).unwrap()).0;
    assert_eq!(verdict(closed, &elsewhere), Effect::Deny);
    let options = Options { unselected: Unselected::Allowed, ..Options::default() };
    let open = import(&[("i.yaml", only)], &options).unwrap();
    assert_eq!(open.policies.last().unwrap().full_name(), "outrider-system/istio-unselected");
    assert_eq!(verdict(open.clone(), &elsewhere), Effect::Allow);
    assert_eq!(verdict(open, &orders()), Effect::Deny, "an allow policy selects it");
}

#[test]
fn a_target_reference_names_a_service() {
    let yaml = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: p, namespace: shop }\nspec:\n  \
                targetRefs: [{ group: \"\", kind: Service, name: orders }]\n  rules: [{}]\n";
    let spec = imported(yaml)[0].policy.spec.clone();
    assert_eq!((spec.target_refs.len(), spec.target_refs[0].name.as_str()), (1, "orders"));
}

#[test]
fn principals_of_cluster_local_can_be_those_of_another_trust_domain() {
    let yaml = policy(
        "rules: [{ from: [{ source: { principals: [cluster.local/ns/shop/sa/web, \"cluster.local/ns/a/*\", other/ns/b/sa/c] } }] }]",
    );
    let principals = |options: &Options| -> Vec<String> {
        let imported = import(&[("i.yaml", yaml.as_str())], options).unwrap();
        imported.policies[0].rules()[0].from[0].principals.iter().map(ToString::to_string).collect()
    };
    let kept = ["spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/a/*", "spiffe://other/ns/b/sa/c"];
    assert_eq!(principals(&Options::default()), kept);
    let options = Options { trust_domain: Some("mesh.internal".parse().unwrap()), ..Options::default() };
    let moved = ["spiffe://mesh.internal/ns/shop/sa/web", "spiffe://mesh.internal/ns/a/*", "spiffe://other/ns/b/sa/c"];
    assert_eq!(principals(&options), moved);
}

#[test]
fn lists_as_kubectl_prints_them_are_read_and_other_kinds_are_left_out() {
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: security.istio.io/v1\n  kind: AuthorizationPolicy\n  metadata:\n    \
                name: p\n    namespace: shop\n    uid: x\n    creationTimestamp: \"2024-01-01T00:00:00Z\"\n  spec: {}\n  status: {}\n\
                - { apiVersion: apps/v1, kind: Deployment, metadata: { name: d } }\n";
    let imported = import(&[("i.yaml", list)], &Options::default()).unwrap();
    assert_eq!(imported.policies.len(), 1);
    assert!(imported.notes.iter().any(|note| note.message.contains("`apps/v1 Deployment` is left out")), "{:#?}", imported.notes);
}

#[test]
fn what_cannot_be_kept_is_refused_by_name_and_place() {
    for (spec, expected) in [
        ("action: CUSTOM\nprovider: { name: x }\nrules: [{}]", "6:3: error: `spec.action` cannot be kept"),
        ("action: allow", "6:3: error: `spec.action` is not valid in Istio"),
        (
            "rules: [{ from: [{ source: { requestPrincipals: [\"*\"] } }] }]",
            "6:32: error: `spec.rules[0].from[0].source.requestPrincipals` cannot be kept: tokens",
        ),
        (
            "rules: [{ from: [{ source: { notRemoteIpBlocks: [10.0.0.1] } }] }]",
            "`spec.rules[0].from[0].source.notRemoteIpBlocks` cannot be kept: addresses",
        ),
        (
            "rules: [{ from: [{ source: { principals: [Shop/web] } }] }]",
            "6:45: error: `spec.rules[0].from[0].source.principals[0]` cannot be kept",
        ),
        (
            "rules: [{ from: [{ source: { namespaces: [\"a*b\"] } }] }]",
            "`spec.rules[0].from[0].source.namespaces[0]` cannot be kept",
        ),
        ("rules: [{ from: [{ source: { serviceAccounts: [\"shop/*\"] } }] }]", "serviceAccounts[0]` is not valid in Istio"),
        ("rules: [{ from: [{ source: { serviceAccounts: [shop/a], namespaces: [shop] } }] }]", "excludes `principals`"),
        ("rules: [{ from: [{ source: {} }] }]", "`spec.rules[0].from[0].source` is not valid in Istio: it says nothing"),
        ("rules: [{ from: [{}] }]", "the field `source` is missing"),
        ("rules: [{ from: [] }]", "`spec.rules[0].from` is not valid in Istio: an empty list"),
        ("rules: [{ from: [{ source: { ipBlocks: [10.0.0.0/33] } }] }]", "source.ipBlocks[0]` cannot be kept"),
        ("rules: [{ to: [{ operation: { hosts: [\"a.b:80\"] } }] }]", "operation.hosts[0]` cannot be kept"),
        ("rules: [{ to: [{ operation: { hosts: [\"a.b:*\"] } }] }]", "operation.hosts[0]` cannot be kept"),
        ("rules: [{ to: [{ operation: { ports: [\"0\"] } }] }]", "operation.ports[0]` cannot be kept"),
        (
            "rules: [{ to: [{ operation: { ports: [80] } }] }]",
            "operation.ports[0]` is not valid in Istio: expected a text, found a number",
        ),
        ("rules: [{ to: [{ operation: { paths: [\"/a/{id}\"] } }] }]", "operation.paths[0]` cannot be kept"),
        ("rules: [{ to: [{ operation: { paths: [\"/a*b\"] } }] }]", "operation.paths[0]` cannot be kept"),
        (
            "rules: [{ to: [{ operation: { path: [/a] } }] }]",
            "`spec.rules[0].to[0].operation.path` cannot be kept: it is not known (help: did you mean `paths`?)",
        ),
        (
            "rules: [{ when: [{ key: remote.ip, values: [10.0.0.1] }] }]",
            "`spec.rules[0].when[0].key` cannot be kept: `remote.ip`",
        ),
        ("rules: [{ when: [{ key: destination.ip, values: [10.0.0.1] }] }]", "`destination.ip`"),
        ("rules: [{ when: [{ key: connection.sni, values: [a] }] }]", "`connection.sni`"),
        ("rules: [{ when: [{ key: \"request.auth.claims[iss]\", values: [a] }] }]", "`request.auth.claims[iss]`: tokens"),
        ("rules: [{ when: [{ key: experimental.envoy.filters.a, values: [a] }] }]", "a filter of Envoy"),
        ("rules: [{ when: [{ key: source.user, values: [a] }] }]", "`source.user`: it is not known"),
        ("rules: [{ when: [{ key: \"request.headers[:path]\", values: [a] }] }]", "`spec.rules[0].when[0].key` cannot be kept"),
        ("rules: [{ when: [{ key: \"request.headers[host]\", notValues: [a] }] }]", "notValues[0]` cannot be kept"),
        ("rules: [{ when: [{ key: source.ip }] }]", "neither `values` nor `notValues`"),
        (
            "rules: [{ from: [{ source: { namespaces: [\"a*\"] } }], when: [{ key: source.namespace, values: [\"*b\"] }] }]",
            "`spec.rules[0].when[0]` cannot be kept: a beginning",
        ),
        ("rules: { }", "`spec.rules` is not valid in Istio: expected a list, found a mapping"),
        (
            "targetRefs: [{ group: gateway.networking.k8s.io, kind: Gateway, name: g }]",
            "`selector`, `targetRef` and `targetRefs` exclude each other",
        ),
        ("mtls: {}", "`spec.mtls` cannot be kept: it is not known"),
    ] {
        let found: Vec<String> = refused(&policy(spec)).iter().map(ToString::to_string).collect();
        assert!(
            found.iter().any(|line| line.starts_with("istio.yaml:") && line.contains(expected)),
            "{spec}: no `{expected}` in {found:#?}"
        );
    }
}

#[test]
fn documents_that_cannot_be_kept_are_refused() {
    let head = |kind: &str, more: &str| {
        format!("apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{ name: p, namespace: shop }}\n{more}")
    };
    for (yaml, expected) in [
        (head("RequestAuthentication", ""), "2:1: error: `kind` cannot be kept: tokens"),
        (head("Other", ""), "2:1: error: `kind` cannot be kept"),
        (head("AuthorizationPolicy", "").replace("io/v1", "io/v1alpha1"), "1:1: error: `apiVersion` cannot be kept"),
        (head("AuthorizationPolicy", "").replace("name: p", "name: A_b"), "`metadata` cannot be kept"),
        (
            head("AuthorizationPolicy", "").replace("namespace: shop", "namespace: outrider-system"),
            "`metadata.namespace` cannot be kept",
        ),
        (
            head("AuthorizationPolicy", "").replace("namespace: shop", "annotations: { istio.io/dry-run: \"true\" }"),
            "dry-run` cannot be kept",
        ),
        (
            head("AuthorizationPolicy", "spec: { targetRefs: [{ kind: Gateway, name: g }] }"),
            "`spec.targetRefs[0].kind` cannot be kept",
        ),
        (
            head("AuthorizationPolicy", "spec: { targetRef: { kind: Service, name: g, namespace: x } }"),
            "`spec.targetRef.namespace` cannot be kept",
        ),
        (head("AuthorizationPolicy", "spec: { selector: { matchLabels: { app: \"*\" } } }"), "matchLabels[app]` is not valid"),
        (head("AuthorizationPolicy", "spec: {"), "not YAML"),
        (head("PeerAuthentication", "spec: { mtls: { mode: DISABLE } }"), "4:17: error: `spec.mtls.mode` cannot be kept"),
        (head("PeerAuthentication", "spec: { portLevelMtls: { 80: { mode: STRICT } } }"), "`spec.portLevelMtls` is not valid"),
        (
            head("PeerAuthentication", "spec: { selector: { matchLabels: { a: b } }, portLevelMtls: { 80: { mode: DISABLE } } }"),
            "portLevelMtls[80].mode` cannot be kept",
        ),
        (format!("{}---\n{}", head("PeerAuthentication", ""), head("PeerAuthentication", "")), "may select the same workloads"),
    ] {
        let found: Vec<String> = refused(&yaml).iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|line| line.contains(expected)), "{yaml}: no `{expected}` in {found:#?}");
    }
}

#[test]
fn modes_of_mtls_are_inherited_as_in_istio() {
    let yaml = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default, namespace: istio-system }
spec: { mtls: { mode: STRICT } }
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default, namespace: shop }
spec: { mtls: { mode: PERMISSIVE } }
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: ports, namespace: shop }
spec:
  selector: { matchLabels: { app: orders } }
  portLevelMtls: { 8080: { mode: STRICT }, 9090: { mode: UNSET } }
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: nothing, namespace: bank }
spec: { mtls: { mode: UNSET } }
";
    let policies = imported(yaml);
    let mode = |service: &str, app: &str, port: u16| {
        let labels = [("app".to_owned(), app.to_owned())].into();
        let target = Target { service: service.parse().unwrap(), labels, port, protocol: Protocol::Http };
        compile(&policies, &target).unwrap().mtls_mode()
    };
    assert_eq!(mode("shop/orders", "orders", 8080), MtlsMode::Strict);
    assert_eq!(mode("shop/orders", "orders", 9090), MtlsMode::Permissive);
    assert_eq!(mode("shop/orders", "orders", 7070), MtlsMode::Permissive);
    assert_eq!(mode("shop/files", "files", 8080), MtlsMode::Permissive);
    assert_eq!(mode("bank/ledger", "ledger", 8080), MtlsMode::Strict);
    let alone = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: w, namespace: shop }\n\
                 spec: { selector: { matchLabels: { app: orders } }, portLevelMtls: { 80: { mode: STRICT } } }\n";
    let spec = imported(alone)[0].policy.spec.clone();
    assert_eq!(spec.mtls.unwrap().mode, MtlsMode::Permissive, "what nobody sets is permissive in Istio");
    let notes = import(&[("i.yaml", alone)], &Options::default()).unwrap().notes;
    assert!(notes.iter().any(|note| note.message.contains("Istio would let plaintext in")), "{notes:#?}");
}

#[test]
fn twenty_thousand_random_verdicts_are_those_of_istio() {
    let (mut verdicts, mut sets) = ([0usize; 2], 0);
    for seed in 0..1500u64 {
        let mut dice = Dice::new(seed + 77_000);
        let documents = World::documents(&mut dice);
        let yaml: String = documents.iter().map(|document| format!("---\n{document}\n")).collect();
        let options = Options { unselected: Unselected::Allowed, ..Options::default() };
        let policies = match import(&[("random", yaml.as_str())], &options) {
            Ok(imported) => stored(imported),
            // two beginnings and ends on one thing are the only thing that this world cannot have kept
            Err(refused) if refused.iter().all(|one| one.message.contains("no single pattern")) => {
                continue;
            }
            Err(refused) => panic!("seed {seed}: {refused:#?}"),
        };
        sets += 1;
        for _ in 0..20 {
            let (target, request) = World::call(&mut dice);
            let ours = request.decide(&compile(&policies, &target).unwrap());
            let theirs = istio::allows(&documents, &target, &request);
            assert_eq!(
                ours.0 == Effect::Allow,
                theirs,
                "seed {seed}, by {:?}: {target:?} {:?} {:?}\n{}\n{}",
                ours.1,
                request.call(),
                request.headers,
                serde_json::to_string_pretty(&documents).unwrap(),
                policies.iter().map(|one| one.policy.to_json().unwrap()).collect::<Vec<_>>().join("\n")
            );
            verdicts[usize::from(theirs)] += 1;
            // a request of several readings is never let further than in Istio
            let mut ambiguous = request.clone();
            ambiguous.path.push_str(";v=1");
            let ours = ambiguous.decide(&compile(&policies, &target).unwrap()).0 == Effect::Allow;
            assert!(!ours || istio::allows(&documents, &target, &ambiguous), "seed {seed}: {:?}", ambiguous.call());
        }
    }
    assert!(sets > 1000 && verdicts.iter().sum::<usize>() >= 20_000, "{sets} {verdicts:?}");
    assert!(verdicts.iter().all(|count| *count > 4_000), "the world is lopsided: {verdicts:?}");
}

#[test]
fn what_is_printed_reads_back_as_yaml_and_json() {
    for seed in 0..100u64 {
        let documents = World::documents(&mut Dice::new(seed + 5));
        let yaml: String = documents.iter().map(|document| format!("---\n{document}\n")).collect();
        let Ok(imported) = import(&[("random", yaml.as_str())], &Options::default()) else { continue };
        for policy in imported.policies {
            let yaml = serde_saphyr::to_string(&policy).unwrap();
            let (manifests, diagnostics) = manifest::parse("p.yaml", &yaml);
            assert!(diagnostics.is_empty(), "{diagnostics:#?}\n{yaml}");
            assert_eq!(*manifests[0].policy, policy);
        }
    }
}
