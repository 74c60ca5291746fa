//! Policy tests as files.

mod support;

use std::sync::Arc;

use outrider_policy::{StoredPolicy, manifest};

const FILE: &str = r#"
apiVersion: outrider.dev/v1alpha1
kind: ServicePolicy
metadata: { name: orders, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  authorization:
    rules:
      - { name: web-reads, action: Allow, from: [{ serviceAccounts: [shop/web] }], to: [{ methods: [GET], paths: ["/v1/{**}"] }] }
---
apiVersion: outrider.dev/v1alpha1
kind: PolicyTest
metadata: { name: orders }
spec:
  cases:
    - name: web may read
      given: &call
        source: { identity: "spiffe://mesh.example/ns/shop/sa/web" }
        destination: { service: shop/orders, port: 8080 }
        request: { path: "/v1/orders/7?x=y" }
      expect: { effect: allow, rule: shop/orders/web-reads }
    - name: nobody else may
      given:
        source: { ip: 10.0.0.1 }
        destination: { service: shop/orders, port: 8080, protocol: http }
        request: { method: GET, path: /v1/orders/7, headers: [[x-a, "b"], [x-b, [255, 0]]] }
      expect: { effect: deny }
    - name: a climbing path never reaches a rule
      given: { source: { identity: "spiffe://mesh.example/ns/shop/sa/web" }, destination: { service: shop/orders, port: 8080 }, request: { path: /v1/../admin } }
      expect: { effect: deny, refused: true }
    - name: wrong on purpose
      given: *call
      expect: { effect: deny }
    - name: wrong rule on purpose
      given: *call
      expect: { effect: allow, rule: shop/orders/other }
"#;

#[test]
fn cases_pass_and_fail_with_the_reason() {
    let file = manifest::parse_file("t.yaml", FILE);
    assert!(file.diagnostics.is_empty(), "{:#?}", file.diagnostics);
    let policies: Vec<_> = file.policies.iter().map(|m| StoredPolicy { policy: Arc::clone(&m.policy), revision: 1 }).collect();
    let results = file.tests[0].run(&policies);
    let failures: Vec<_> = results.iter().map(|result| result.failure.as_deref()).collect();
    assert_eq!(
        failures,
        [
            None,
            None,
            None,
            Some("expected deny, got allow by `shop/orders/web-reads`"),
            Some("expected allow by `shop/orders/other`, got it by `shop/orders/web-reads`")
        ]
    );
    let answer = serde_json::to_value(results[1].answer.as_ref().unwrap()).unwrap();
    assert_eq!(answer["nearMisses"][0]["failed"], "the caller has no identity");
}

#[test]
fn mistakes_in_a_test_have_a_position() {
    let file = manifest::parse_file(
        "t.yaml",
        &FILE
            .replace("effect: deny, refused", "effect: deni, refused")
            .replace("service: shop/orders, port: 8080, protocol: http", "service: orders, port: 0"),
    );
    let found: Vec<String> = file.diagnostics.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(
        found[0].contains("`orders` is not of the form `namespace/name`") && found[2].contains("did you mean `deny`?"),
        "{found:#?}"
    );
}

#[test]
fn a_test_is_not_a_policy() {
    let (policies, diagnostics) = manifest::parse("t.yaml", FILE);
    assert_eq!(policies.len(), 1);
    assert_eq!(diagnostics[0].help.as_deref(), Some("run it with `outrider test`"));
}

#[test]
fn a_described_call_reads_from_json() {
    let call = manifest::parse_call("c.json", r#"{"source": {"identity": "spiffe://t/ns/a/sa/b", "ip": "::1"}, "destination": {"service": "a/b", "port": 80, "protocol": "tcp"}}"#).unwrap();
    assert_eq!(call.prepare().unwrap().target().port, 80);
    let wrong = manifest::parse_call("c.json", r#"{"destination": {"service": "a/b", "port": 80}}"#).unwrap_err();
    assert!(wrong[0].message.contains("has no `request`"), "{wrong:?}");
}
