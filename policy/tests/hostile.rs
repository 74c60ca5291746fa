//! Texts that are made to cost much or to confuse: refused at once, at the place where they are.
//!
//! What bounds the cost is checked before the work: sizes before parsing, numbers before compiling. The clock is only a last
//! resort here, generous enough for a busy machine and a build without optimisation; `cargo xtask bench policy` measures.

use std::time::{Duration, Instant};

use outrider_policy::istio::{self, Options};
use outrider_policy::manifest::{MAX_BYTES, parse, parse_call};
use outrider_policy::{Diagnostic, Ground, ServicePolicy, Severity, analyse};

const PATIENCE: Duration = Duration::from_secs(2);

const HEAD: &str = "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: { name: p, namespace: shop }\nspec:\n  authorization:\n    rules:\n";

fn with_rules(rules: &str) -> String {
    format!("{HEAD}{rules}")
}

fn with_regex(regex: &str) -> String {
    with_rules(&format!("      - {{ action: Allow, to: [{{ headers: [{{ name: a, regex: '{regex}' }}] }}] }}\n"))
}

fn with_when(when: &str) -> String {
    with_rules(&format!("      - {{ action: Allow, when: '{when}' }}\n"))
}

/// Nine times nine times … the same, in a few lines.
fn bomb(levels: u8, leaf: &str) -> String {
    (0..levels).fold(format!("a: &a [{}]\n", [leaf; 9].join(", ")), |text, level| {
        let (own, before) = (char::from(b'b' + level), char::from(b'a' + level));
        text + &format!("{own}: &{own} [{}]\n", vec![format!("*{before}"); 9].join(", "))
    })
}

/// What is wrong with `yaml`, told in time.
fn told(what: &str, yaml: &str) -> Vec<Diagnostic> {
    let started = Instant::now();
    let (_, diagnostics) = parse("p.yaml", yaml);
    assert!(started.elapsed() < PATIENCE, "{what} took {:?}", started.elapsed());
    assert!(diagnostics.iter().any(|one| one.severity == Severity::Error), "{what} was accepted");
    assert!(diagnostics.len() <= 301, "{what}: {} diagnostics", diagnostics.len());
    assert!(diagnostics.iter().all(|one| one.message.len() < 400), "{what}: {diagnostics:?}");
    diagnostics
}

#[test]
fn each_hostile_text_is_refused_where_it_is_hostile() {
    let nested = |left: &str, right: &str| format!("{}connection.mtls{}", left.repeat(10_000), right.repeat(10_000));
    let levels = |left: &str, right: &str| format!("{}connection.mtls{}", left.repeat(400), right.repeat(400));
    let chain = format!("{}connection.mtls", "!connection.mtls || ".repeat(45));
    let mut wrong = Vec::new();
    for (what, yaml, expected) in [
        ("a file of 100 MB", " ".repeat(100_000_000), "1:1: error: the file has 100000000 bytes, at most 4194304 are read"),
        ("100 MB of rules", with_rules(&"      - action: Deny\n".repeat(5_000_000)), "1:1: error: the file has 105"),
        (
            "a regular expression of 1 MB",
            with_regex(&"a".repeat(1_000_000)),
            "7:43: error: a text to compare with has at most 1024",
        ),
        ("a regular expression of 2 kB", with_regex(&"a".repeat(2000)), "7:43: error: a text to compare with has at most 1024"),
        ("(a{1000}){1000}", with_regex("(a{1000}){1000}"), "7:43: error: the regular expression is refused: it compiles to more"),
        ("(a{100}){100}", with_regex("(a{100}){100}"), "7:43: error: the regular expression is refused: it compiles to more"),
        (
            "groups in groups",
            with_regex(&format!("{}a{}", "(".repeat(400), ")".repeat(400))),
            "7:43: error: the regular expression is refused",
        ),
        ("an open group", with_regex("("), "7:43: error: the regular expression is refused"),
        ("a group that closes another", with_regex("a)|(b"), "7:43: error: the regular expression is refused"),
        ("10 000 lists in each other", "[".repeat(10_000), "1:"),
        ("10 000 lists in a policy", with_rules(&format!("      - {{ action: {}", "[".repeat(10_000))), "7:"),
        ("10 000 mappings in each other", "{a: ".repeat(10_000), "1:"),
        (
            "10 000 levels of indentation",
            (0..2500).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect(),
            "25:25: error: not YAML",
        ),
        ("10 000 brackets in CEL", with_when(&nested("(", ")")), "7:32: error: an expression has at most 1024 bytes"),
        ("400 brackets in CEL", with_when(&levels("(", ")")), "7:32: error: "),
        (
            "conditions in conditions in CEL",
            with_when(&format!("{}true{}", "true ? (".repeat(60), ") : true".repeat(60))),
            "7:32: error: ",
        ),
        ("a long chain in CEL", with_when(&format!("{chain} || 1")), "7:32: error: "),
        ("CEL of 1 MB", with_when(&"a".repeat(1_000_000)), "7:32: error: an expression has at most 1024 bytes"),
        ("a loop in CEL", with_when("[1, 2].all(x, x == 1)"), "7:32: error: "),
        (
            "a costly pattern in CEL",
            with_when("request.path.matches(\"(a{1000}){1000}\")"),
            "7:32: error: the regular expression is refused",
        ),
        (
            "100 000 rules",
            with_rules(&"      - action: Deny\n".repeat(100_000)),
            "10007:9: error: a list has at most 10000 entries",
        ),
        (
            "two rules of one name",
            with_rules("      - { name: a, action: Deny }\n      - { name: a, action: Allow }\n"),
            "8:9: error: two rules of the name `a`, the first in line 7",
        ),
        (
            "one policy twice",
            format!("{HEAD}      []\n").replace("rules:\n      []", "rules: []").repeat(2).replacen(
                "rules: []\napi",
                "rules: []\n---\napi",
                1,
            ),
            "8:1: error: policy `shop/p` is written twice, first in line 1",
        ),
        (
            "one field twice",
            with_rules("      - { action: Deny, action: Allow }\n"),
            "7:25: error: `action` is written twice, first in line 7",
        ),
        (
            "an unknown action",
            with_rules("      - { action: Alow }\n"),
            "7:19: error: `Alow` is not one of `Allow`, `Deny`, `Audit` (help: did you mean `Allow`?)",
        ),
        (
            "an unknown mode",
            format!("{}spec: {{ mtls: {{ mode: Disable }} }}\n", HEAD.split("spec").next().unwrap_or_default()),
            "4:23: error: `Disable` is not one of",
        ),
        ("an alias bomb", bomb(9, "x"), "6:32: error: more than 600000 values"),
        ("an alias of itself", "a: &a [*a]".to_owned(), "1:8: error: an alias stands within the node that it repeats"),
        ("an alias of nothing", "a: *b".to_owned(), "1:"),
        ("a mapping of 10 000 fields", (0..10_000).map(|n| format!("f{n}: 1\n")).collect(), "257:"),
        ("5000 documents", "---\na: 1\n".repeat(5000), "2001:1: error: more than 1000 documents"),
        ("a binary file", "\0\u{1}\u{2}".to_owned(), "1:"),
        ("a tag", with_rules("      - !!python/object { action: Deny }\n"), "7:"),
    ] {
        let found: Vec<String> = told(what, &yaml).iter().map(|one| one.to_string()).collect();
        let expected = format!("p.yaml:{expected}");
        if !found.iter().any(|line| line.starts_with(&expected)) {
            wrong.push(format!("{what}: no `{expected}` in {:?}", found.first()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn many_expressions_are_counted_before_one_is_compiled() {
    let regex = with_rules(&"      - { action: Deny, to: [{ headers: [{ name: a, regex: '(a{50}){50}' }] }] }\n".repeat(9_000));
    assert_eq!(told("9000 costly patterns", &regex)[0].line, 33);
    let when = format!("      - {{ action: Deny, when: '{}connection.mtls' }}\n", "connection.mtls || ".repeat(50));
    assert_eq!(told("4000 long conditions", &with_rules(&when.repeat(4_000)))[0].line, 74);
    // few bytes, many expressions
    let again = format!(
        "{HEAD}      - &r {{ action: Deny, to: [{{ headers: [{}] }}] }}\n{}",
        ["{ name: a, regex: '[a-z]{900}' }"; 9].join(", "),
        "      - *r\n".repeat(9_000)
    );
    assert!(told("expressions by alias", &again)[0].message.contains("the expressions of the file"));
    // as many as people write
    let uuid = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}";
    let rule = format!(
        "      - {{ action: Allow, to: [{{ headers: [{{ name: a, regex: '{uuid}' }}] }}], when: 'source.namespace == \"a\"' }}\n"
    );
    assert!(parse("p.yaml", &with_rules(&rule.repeat(300))).1.is_empty());
}

#[test]
fn the_other_readers_have_the_same_bounds() {
    let started = Instant::now();
    let large = " ".repeat(MAX_BYTES + 1);
    assert_eq!(parse_call("c.json", &large).expect_err("too large")[0].line, 1);
    assert!(parse_call("c.json", &"[".repeat(10_000)).is_err());
    for hostile in [large, "[".repeat(10_000), bomb(9, "x"), "---\na: 1\n".repeat(5000), "{a: ".repeat(10_000)] {
        let refused = istio::import(&[("i.yaml", &hostile)], &Options::default()).expect_err("hostile");
        assert!(refused.iter().all(|one| one.line > 0), "{:?}", refused.first());
    }
    // what comes over the wire is JSON, and bounded by its own type
    assert!(ServicePolicy::from_json(&"[".repeat(100_000)).is_err());
    assert!(ServicePolicy::from_json(&format!("{}1{}", "{\"spec\":".repeat(100_000), "}".repeat(100_000))).is_err());
    assert!(started.elapsed() < PATIENCE * 2, "took {:?}", started.elapsed());
}

#[test]
fn ten_thousand_rules_are_analysed_in_time() {
    let rules: String = (0..10_000)
        .map(|n| format!("      - {{ action: Allow, from: [{{ namespaces: [n{n}] }}], to: [{{ paths: [/p{n}] }}] }}\n"))
        .collect();
    let (policies, diagnostics) = parse("p.yaml", &with_rules(&rules));
    assert!(diagnostics.is_empty(), "{:?}", diagnostics.first());
    let started = Instant::now();
    assert!(analyse(&policies, &[], &Ground::default()).len() <= 100);
    assert!(started.elapsed() < PATIENCE, "took {:?}", started.elapsed());
}
