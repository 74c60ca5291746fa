//! How long a decision takes, how long it takes to compile the rules behind it, and what they take of memory.
//!
//! Worlds of 10, 1000 and 10 000 rules, each also with one rule more, whose expression is evaluated for every call. *Hit*:
//! one rule allows. *Miss*: no rule is about the call. *Worst*: large sets of rules share the caller and large ones the path,
//! so that the index has to intersect them. *Dense*: what no index can help with, every rule is about the call and fails at
//! its last condition; it is there to show the cost of one rule.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a benchmark is no library")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use outrider_policy::{Call, Effect, HttpCall, NoHeaders, Protocol, ServicePolicy, SpiffeId, StoredPolicy, Target, compile};

const SIZES: [usize; 3] = [10, 1000, 10_000];

fn target() -> Target {
    Target { service: "shop/orders".parse().unwrap(), labels: [].into(), port: 8080, protocol: Protocol::Http }
}

fn policy(rules: impl Iterator<Item = String>) -> StoredPolicy {
    let rules: Vec<String> = rules.collect();
    let json = format!(
        r#"{{"apiVersion": "outrider.dev/v1alpha1", "kind": "ServicePolicy", "metadata": {{"name": "p", "namespace": "shop"}}, "spec": {{"authorization": {{"rules": [{}]}}}}}}"#,
        rules.join(",")
    );
    StoredPolicy { policy: Arc::new(ServicePolicy::from_json(&json).expect("a policy")), revision: 1 }
}

/// The rules of one world, as JSON, and calls that meet it.
struct World {
    name: &'static str,
    rules: fn(usize) -> Vec<String>,
    /// The caller's account and the path, by the number of rules.
    call: fn(usize) -> (String, String),
    effect: Effect,
}

const WORLDS: [World; 4] = [
    World {
        name: "hit",
        rules: by_caller,
        call: |size| ("shop/web".to_owned() + &half(size), format!("/v1/items{}/7", half(size))),
        effect: Effect::Allow,
    },
    World { name: "miss", rules: by_caller, call: |_| ("bank/stranger".to_owned(), "/other".to_owned()), effect: Effect::Deny },
    World {
        name: "worst",
        rules: grid,
        call: |size| (format!("shop/web{}", side(size) / 2), format!("/v1/items{}/7", side(size) / 2)),
        effect: Effect::Allow,
    },
    World {
        name: "dense",
        rules: by_path,
        call: |size| ("shop/web".to_owned(), format!("/v1/items{}/7", size - 1)),
        effect: Effect::Deny,
    },
];

fn half(size: usize) -> String {
    (size / 2).to_string()
}

fn side(size: usize) -> usize {
    (1..).find(|side| side * side >= size).unwrap_or(size)
}

/// A tenth of the rules are denies.
fn action(n: usize) -> &'static str {
    if n % 10 == 3 { "Deny" } else { "Allow" }
}

/// Each rule is about a caller and a path of its own.
fn by_caller(count: usize) -> Vec<String> {
    let rule = |n| {
        let action = action(n);
        format!(
            r#"{{"name": "r{n}", "action": "{action}", "from": [{{"serviceAccounts": ["shop/web{n}"]}}], "to": [{{"methods": ["GET"], "paths": ["/v1/items{n}/{{id}}"]}}]}}"#
        )
    };
    (0..count).map(rule).collect()
}

/// Callers and paths in a square: many rules share each caller, many each path, one has both.
fn grid(count: usize) -> Vec<String> {
    let side = side(count);
    let rule = |n| {
        let (caller, path) = (n / side, n % side);
        format!(
            r#"{{"name": "r{n}", "action": "Allow", "from": [{{"serviceAccounts": ["shop/web{caller}"]}}], "to": [{{"methods": ["GET"], "paths": ["/v1/items{path}/{{id}}"]}}]}}"#
        )
    };
    (0..side * side).map(rule).collect()
}

/// All rules are about the same caller, method and path, and none holds: no index tells them apart.
fn by_path(count: usize) -> Vec<String> {
    let rule = |n| {
        let action = action(n);
        format!(
            r#"{{"name": "r{n}", "action": "{action}", "from": [{{"namespaces": ["shop"]}}], "to": [{{"methods": ["GET", "PUT"], "paths": ["/v1/*", "/v1/items{n}/{{id}}"], "notPaths": ["/v1/items*"]}}]}}"#
        )
    };
    (0..count).map(rule).collect()
}

/// A rule that is about every call, so that its expression is evaluated for each.
const CEL: &str = r#"{"name": "cel", "action": "Deny", "when": "source.namespace == 'nobody' || request.method == 'PATCH'"}"#;

fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");
    for size in SIZES {
        for World { name, rules, call, effect } in &WORLDS {
            let (account, path) = call(size);
            let (namespace, account) = account.split_once('/').unwrap();
            let source: SpiffeId = format!("spiffe://mesh.example/ns/{namespace}/sa/{account}").parse().unwrap();
            let http = HttpCall { method: "GET", host: "orders.shop", path: &path, query: None, headers: &NoHeaders };
            let ip = [10, 0, 0, 9].into();
            let call = Call { source: Some(&source), source_ip: ip, port: 8080, protocol: Protocol::Http, http: Some(http) };
            for (suffix, more) in [("", None), ("-cel", Some(CEL.to_owned()))] {
                // in a policy of its own: one policy has at most 10 000 rules
                let policies: Vec<_> = std::iter::once(rules(size))
                    .chain(more.map(|rule| vec![rule]))
                    .map(|rules| policy(rules.into_iter()))
                    .collect();
                let compiled = compile(&policies, &target()).unwrap();
                assert_eq!(compiled.decide(&call).effect, *effect, "{name} {size}");
                let id = BenchmarkId::new(format!("{name}{suffix}"), size);
                group.bench_with_input(id, &call, |bencher, call| bencher.iter(|| compiled.decide(black_box(call))));
            }
        }
    }
    group.finish();
}

fn compiling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    for size in SIZES {
        let policies = [policy(by_caller(size).into_iter())];
        group.bench_with_input(BenchmarkId::from_parameter(size), &policies, |bencher, policies| {
            bencher.iter(|| compile(black_box(policies), &target()).unwrap())
        });
    }
    group.finish();
}

/// Prints what policies and their index take of this process's memory, as it grows with copies of them.
///
/// `cargo xtask bench policy` reads these lines.
fn memory(_: &mut Criterion) {
    const COPIES: u64 = 16;
    let resident = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    for size in SIZES {
        // pages that earlier benches gave back would be taken again without showing
        let before = resident();
        let policies: Vec<StoredPolicy> = (0..COPIES).map(|_| policy(by_caller(size).into_iter())).collect();
        let read = resident();
        let compiled: Vec<_> = policies.iter().map(|one| compile(std::slice::from_ref(one), &target()).unwrap()).collect();
        let indexed = resident();
        println!(
            "memory {size} policy {} index {}",
            (read.saturating_sub(before)) * 1024 / COPIES,
            (indexed.saturating_sub(read)) * 1024 / COPIES
        );
        black_box((policies, compiled));
    }
}

/// Texts that are made to cost much, and must be refused at once.
fn refusing(criterion: &mut Criterion) {
    let head = "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: { name: p, namespace: shop }\nspec:\n  authorization:\n    rules:\n";
    let rule =
        |regex: &str| format!("{head}      - {{ action: Allow, to: [{{ headers: [{{ name: a, regex: '{regex}' }}] }}] }}\n");
    let bomb = (0..9).fold("a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, n| {
        let (own, before) = (char::from(b'b' + n), char::from(b'a' + n));
        text + &format!("{own}: &{own} [{}]\n", vec![format!("*{before}"); 9].join(", "))
    });
    let mut group = criterion.benchmark_group("refuse");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    for (what, text) in [
        ("100 000 rules", format!("{head}{}", "      - action: Deny\n".repeat(100_000))),
        ("regex of 1 MB", rule(&"a".repeat(1_000_000))),
        ("regex (a{1000}){1000}", rule("(a{1000}){1000}")),
        ("nesting of 10 000", "[".repeat(10_000)),
        ("alias bomb", bomb),
        ("4 MiB of comments", "# x\n".repeat(1 << 20)),
    ] {
        assert!(!outrider_policy::manifest::parse("p.yaml", &text).1.is_empty() || what.ends_with("comments"));
        group.bench_function(what, |bencher| bencher.iter(|| outrider_policy::manifest::parse("p.yaml", black_box(&text))));
    }
    group.finish();
}

criterion_group!(benches, memory, decide, compiling, refusing);
criterion_main!(benches);
