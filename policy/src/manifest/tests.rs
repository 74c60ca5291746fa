use super::*;
use std::time::{Duration, Instant};

const GOOD: &str = r#"
apiVersion: outrider.dev/v1alpha1
kind: ServicePolicy
metadata: { name: orders, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  mtls: { mode: Permissive, ports: { 8080: Strict } }
  authorization:
    rules:
      - name: web-reads
        action: Allow
        from: [{ serviceAccounts: [shop/web], notIpBlocks: [10.0.0.1, "fd00::/8"] }]
        to:
          - methods: [GET]
            paths: ["/v1/orders/{id}"]
            headers: [{ name: X-Tenant, regex: "[a-z]+" }]
      - action: Deny
        to: [{ ports: [9090] }]
"#;

fn errors(yaml: &str) -> Vec<String> {
    let (manifests, diagnostics) = parse("p.yaml", yaml);
    assert!(manifests.is_empty(), "{yaml} was accepted");
    assert!(!diagnostics.is_empty(), "{yaml} was refused without a word");
    diagnostics.iter().map(ToString::to_string).collect()
}

#[test]
fn a_policy_reads_the_same_from_yaml_and_from_its_own_json() {
    let (manifests, diagnostics) = parse("p.yaml", GOOD);
    assert_eq!(diagnostics, []);
    let policy = &manifests[0].policy;
    let json = policy.to_json().unwrap();
    assert_eq!(ServicePolicy::from_json(&json).unwrap(), **policy);
    let (again, diagnostics) = parse("p.json", &json);
    assert_eq!(diagnostics, []);
    assert_eq!(again[0].policy, *policy);
    assert_eq!(manifests[0].rule_position(1), Position { line: 17, column: 9 });
}

#[test]
fn every_mistake_is_reported_with_its_position_and_the_nearest_name() {
    let yaml = r#"apiVersion: outrider.dev/v1alpha1
kind: ServicePolicy
metadata: { name: Orders, namespace: shop }
spec:
  authorisation: {}
  authorization:
    rules:
      - actoin: Allow
        from: [{ principals: ["shop/web"] }]
        to: [{ path: ["/a"], ports: [0], methods: GET, paths: ["/a/../b"] }]
      - action: allow
        from: []
"#;
    let errors = errors(yaml);
    for expected in [
        "p.yaml:3:19: error: `Orders` is not a name",
        "p.yaml:5:3: error: unknown field `authorisation` (help: did you mean `authorization`?)",
        "p.yaml:8:9: error: unknown field `actoin` (help: did you mean `action`?)",
        "p.yaml:8:9: error: the field `action` is missing",
        "p.yaml:9:31: error: `shop/web` can never match: a principal is `spiffe://",
        "p.yaml:10:16: error: unknown field `path` (help: did you mean `paths`?)",
        "p.yaml:10:38: error: `0` is not a whole number from 1 to 65535",
        "p.yaml:10:51: error: expected a list, found a text (help: write `[…]` around a single value)",
        "p.yaml:10:64: error: `/a/../b` can never match: requests with `.` and `..` segments are refused before any rule",
        "p.yaml:11:17: error: `allow` is not one of `Allow`, `Deny`, `Audit` (help: did you mean `Allow`?)",
        "p.yaml:12:15: error: an empty list matches nothing (help: leave the field out to match everything)",
    ] {
        assert!(errors.iter().any(|error| error.starts_with(expected)), "no `{expected}` in {errors:#?}");
    }
    assert_eq!(errors.len(), 11, "{errors:#?}");
}

#[test]
fn conditions_on_what_no_rule_ever_sees_are_refused_with_their_way_out() {
    let operation =
        |text: &str| {
            errors(&GOOD.replace(
                "      - action: Deny\n        to: [{ ports: [9090] }]",
                &format!("      - action: Deny\n        {text}"),
            ))
        };
    for (text, expected) in [
        (
            "to: [{ headers: [{ name: Upgrade, exact: websocket }] }]",
            "p.yaml:18:26: error: no rule ever sees `upgrade`: it ends at each agent and reaches no program; use `methods` and `paths`",
        ),
        (
            "to: [{ notHeaders: [{ name: content-length }] }]",
            "p.yaml:18:29: error: no rule ever sees `content-length`: the agent reads",
        ),
        (
            "to: [{ headers: [{ name: x-forwarded-client-cert, present: false }] }]",
            "p.yaml:18:26: error: no rule ever sees `x-forwarded-client-cert`: a caller's own is dropped; use `from`",
        ),
        (
            "to: [{ headers: [{ name: X-Original-URL, prefix: /admin }] }]",
            "p.yaml:18:26: error: no rule ever sees `x-original-url`",
        ),
        (
            "to: [{ headers: [{ name: x_role, exact: admin }] }]",
            "p.yaml:18:26: error: `x_role` can never match: requests with `_`",
        ),
        ("when: 'has(request.headers.te)'", "p.yaml:18:15: error: no rule ever sees `te`"),
        ("when: '\"Upgrade\" in request.headers'", "p.yaml:18:15: error: no rule ever sees `upgrade`"),
        ("when: 'request.headers[\"x-envoy-peer\"] == \"a\"'", "p.yaml:18:15: error: no rule ever sees `x-envoy-peer`"),
        (
            "when: 'request.headers[\"traceparent\"] != \"\"'",
            "p.yaml:18:15: error: no rule ever sees `traceparent`: agents write it",
        ),
        (
            "to: [{ methods: [get] }]",
            "p.yaml:18:26: error: `get` can never match: requests with a method in small letters are refused: write capitals, such as `GET`",
        ),
        ("to: [{ methods: [GET, \"pro*\"] }]", "p.yaml:18:31: error: `pro*` can never match"),
        ("to: [{ notMethods: [\"*ost\"] }]", "p.yaml:18:29: error: `*ost` can never match"),
    ] {
        let errors = operation(text);
        assert!(errors.len() == 1 && errors[0].starts_with(expected), "{text}: {errors:#?}");
    }
}

#[test]
fn what_an_older_version_stored_is_read_and_known_to_be_out_of_reach() {
    let good = parse("p.yaml", GOOD).0[0].policy.to_json().unwrap();
    assert_eq!(ServicePolicy::from_json(&good).unwrap().out_of_reach(), None);
    for (from, to, problem) in [
        ("\"x-tenant\"", "\"upgrade\"", "no rule ever sees `upgrade`"),
        ("\"x-tenant\"", "\"x_role\"", "`x_role` can never match"),
        ("[\"GET\"]", "[\"get\"]", "`get` can never match"),
        ("\"action\":\"Deny\"", "\"action\":\"Deny\",\"when\":\"has(request.headers.te)\"", "no rule ever sees `te`"),
    ] {
        assert!(good.contains(from), "{from} in {good}");
        let stored = ServicePolicy::from_json(&good.replacen(from, to, 1)).unwrap();
        assert!(stored.out_of_reach().is_some_and(|found| found.starts_with(problem)), "{to}: {:?}", stored.out_of_reach());
    }
}

#[test]
fn a_tab_is_reported_where_it_stands() {
    for (from, to, line, column) in [
        ("  authorization:", "\tauthorization:", 8, 1),
        ("    rules:", "  \trules:", 9, 3),
        ("        action: Allow", "      \taction: Allow", 11, 7),
    ] {
        let errors = errors(&GOOD.replacen(from, to, 1));
        let expected = format!("p.yaml:{line}:{column}: error: not YAML: ");
        assert!(errors[0].starts_with(&expected) && errors[0].ends_with("(help: indent with spaces)"), "{to:?}: {errors:?}");
    }
}

#[test]
fn a_bad_document_does_not_hide_the_mistakes_of_the_next() {
    let yaml = format!(
        "{GOOD}---\nkind: Policy\n---\n{}---\napiVersion: v1\nkind: ServicePolicy\nmetadata: {{name: a}}\nspec: {{}}\n",
        GOOD.replace("name: orders, n", "name: other, n")
    );
    let (manifests, diagnostics) = parse("p.yaml", &yaml);
    assert_eq!(manifests.len(), 2);
    let messages: Vec<&str> = diagnostics.iter().map(|d| d.message.as_str()).collect();
    assert!(messages.contains(&"`Policy` is not `ServicePolicy`"), "{messages:?}");
    assert!(messages.contains(&"`v1` is not `outrider.dev/v1alpha1`"), "{messages:?}");
    assert!(messages.contains(&"the field `namespace` is missing"), "{messages:?}");
}

#[test]
fn duplicates_are_refused() {
    let (manifests, diagnostics) = parse("p.yaml", &format!("{GOOD}---{GOOD}"));
    assert_eq!(manifests.len(), 1);
    assert!(diagnostics[0].message.starts_with("policy `shop/orders` is written twice, first in line 2"), "{diagnostics:?}");
    let rules = errors(&GOOD.replace("      - action: Deny", "      - name: web-reads\n        action: Deny"));
    assert!(rules[0].contains("two rules of the name `web-reads`"), "{rules:?}");
    let keys = errors(&GOOD.replace("kind: ServicePolicy", "kind: ServicePolicy\nkind: ServicePolicy"));
    assert!(keys[0].contains("`kind` is written twice"), "{keys:?}");
}

#[test]
fn a_limit_is_read_whole_or_not_at_all() {
    let text = |limits: &str| GOOD.replacen("spec:\n", &format!("spec:\n  limits: {limits}\n"), 1);
    let with = |limits: &str| errors(&text(limits));
    let whole = text("{ requests: 5, unit: Second, burst: 2, key: Source, ports: [80] }");
    assert_eq!(parse("p.yaml", &whole).1, []);
    for (limits, message) in [
        ("{ requests: 5 }", "the field `unit` is missing"),
        ("{ requests: 0, unit: Second }", "`0` is not a whole number from 1 to 1000000"),
        ("{ requests: 5, unit: second }", "`second` is not one of `Second`, `Minute`, `Hour`"),
        ("{ requests: 5, unit: Second, keys: Source }", "unknown field `keys`"),
        ("{ requests: 5, unit: Second, key: Header }", "`Header` is not one of `Port`, `Source`"),
        ("{ requests: 5, unit: Second, ports: [] }", "an empty list"),
        ("5", "expected a mapping, found"),
    ] {
        assert!(with(limits).iter().any(|found| found.contains(message)), "{limits}: {:?}", with(limits));
    }
}

#[test]
fn hostile_texts_are_refused_within_their_bounds() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
    let rules = format!("{}{}", GOOD, "      - action: Deny\n".repeat(100_000));
    let blocks: String = (0..10_000).map(|depth| format!("{}a:\n", " ".repeat(depth.min(400)))).collect();
    for (what, yaml) in [
        ("an alias bomb", bomb.to_owned()),
        ("nesting", "[".repeat(10_000)),
        ("nested blocks", blocks),
        ("nested mappings", "{a: ".repeat(10_000)),
        ("100 000 rules", rules),
        ("a regular expression of 1 MB", GOOD.replace("[a-z]+", &"a".repeat(1_000_000))),
        ("a file of 5 MB", " ".repeat(5_000_000)),
        ("an alias of itself", "a: &a [*a]".to_owned()),
        ("a binary file", "\0\u{1}\u{2}".to_owned()),
        ("many documents", "---\na: 1\n".repeat(5000)),
        ("a text", "hello".to_owned()),
        ("a list", "[1, 2]".to_owned()),
    ] {
        let started = Instant::now();
        let (manifests, diagnostics) = parse("p.yaml", &yaml);
        assert!(manifests.is_empty() && !diagnostics.is_empty(), "{what} was accepted");
        assert!(
            diagnostics.iter().all(|d| d.line > 0 && d.column > 0 && d.message.len() < 400),
            "{what}: {:?}",
            diagnostics.first()
        );
        // the bound that matters is 100 ms of a release build; this build is not optimised
        assert!(started.elapsed() < Duration::from_secs(2), "{what} took {:?}", started.elapsed());
    }
}

#[test]
fn a_file_without_documents_is_empty_not_wrong() {
    assert!(matches!(parse("p.yaml", "# nothing\n---\n"), (m, d) if m.is_empty() && d.is_empty()));
}
