//! How long a decision takes, and how long it takes to compile the rules behind it.
//!
//! Worlds of 10, 1000 and 10 000 rules. *Hit*: one rule allows. *Miss*: no rule is about the call. *Worst*: every rule is
//! about the caller and the method, so that the path alone tells them apart.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark is no library")]

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

/// Each rule is about a caller of its own, a tenth of them are denies.
fn by_caller(count: usize, when: &str) -> StoredPolicy {
    policy((0..count).map(|n| {
        let action = if n % 10 == 3 { "Deny" } else { "Allow" };
        format!(r#"{{"name": "r{n}", "action": "{action}", "from": [{{"serviceAccounts": ["shop/web{n}"]}}], "to": [{{"methods": ["GET"], "paths": ["/v1/items{n}/{{id}}"]}}]{when}}}"#)
    }))
}

/// All rules are about the same caller and method.
fn by_path(count: usize) -> StoredPolicy {
    policy((0..count).map(|n| {
        let action = if n % 10 == 3 { "Deny" } else { "Allow" };
        format!(r#"{{"name": "r{n}", "action": "{action}", "from": [{{"namespaces": ["shop"]}}], "to": [{{"methods": ["GET", "PUT"], "paths": ["/v1/*", "/v1/items{n}/{{id}}"], "notPaths": ["/v1/items*"]}}]}}"#)
    }))
}

fn call<'a>(source: &'a SpiffeId, path: &'a str) -> Call<'a> {
    let http = HttpCall { method: "GET", host: "orders.shop", path, query: None, headers: &NoHeaders };
    Call { source: Some(source), source_ip: [10, 0, 0, 9].into(), port: 8080, protocol: Protocol::Http, http: Some(http) }
}

fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");
    for size in SIZES {
        let middle = size / 2;
        let source: SpiffeId = format!("spiffe://mesh.example/ns/shop/sa/web{middle}").parse().unwrap();
        let stranger: SpiffeId = "spiffe://mesh.example/ns/bank/sa/stranger".parse().unwrap();
        let path = format!("/v1/items{middle}/7");
        let plain = compile(&[by_caller(size, "")], &target()).unwrap();
        let with_cel =
            compile(&[by_caller(size, r#", "when": "source.namespace == 'shop' && request.method == 'GET'""#)], &target())
                .unwrap();
        let (hit, miss) = (call(&source, &path), call(&stranger, "/other"));
        assert_eq!(
            (plain.decide(&hit).effect, plain.decide(&miss).effect, with_cel.decide(&hit).effect),
            (Effect::Allow, Effect::Deny, Effect::Allow)
        );
        group.bench_with_input(BenchmarkId::new("hit", size), &hit, |bencher, call| {
            bencher.iter(|| plain.decide(black_box(call)))
        });
        group.bench_with_input(BenchmarkId::new("miss", size), &miss, |bencher, call| {
            bencher.iter(|| plain.decide(black_box(call)))
        });
        group.bench_with_input(BenchmarkId::new("hit, one CEL rule", size), &hit, |bencher, call| {
            bencher.iter(|| with_cel.decide(black_box(call)))
        });
        let worst = compile(&[by_path(size)], &target()).unwrap();
        let last = format!("/v1/items{}/7", size - 1);
        let dense = call(&source, &last);
        group.bench_with_input(BenchmarkId::new("every rule survives the index", size), &dense, |bencher, call| {
            bencher.iter(|| worst.decide(black_box(call)))
        });
    }
    group.finish();
}

/// Callers and paths in a grid: a hundred rules share each caller, a hundred each path, one has both.
fn grid(criterion: &mut Criterion) {
    let rules = (0..10_000).map(|n| {
        let (caller, path) = (n / 100, n % 100);
        format!(r#"{{"name": "r{n}", "action": "Allow", "from": [{{"serviceAccounts": ["shop/web{caller}"]}}], "to": [{{"methods": ["GET"], "paths": ["/v1/items{path}/{{id}}"]}}]}}"#)
    });
    let compiled = compile(&[policy(rules)], &target()).unwrap();
    let source: SpiffeId = "spiffe://mesh.example/ns/shop/sa/web50".parse().unwrap();
    let call = call(&source, "/v1/items50/7");
    assert_eq!(compiled.decide(&call).effect, Effect::Allow);
    criterion.bench_function("decide/worst intersection/10000", |bencher| bencher.iter(|| compiled.decide(black_box(&call))));
}

fn compiling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    for size in SIZES {
        let policies = [by_caller(size, "")];
        group.bench_with_input(BenchmarkId::from_parameter(size), &policies, |bencher, policies| {
            bencher.iter(|| compile(black_box(policies), &target()).unwrap())
        });
    }
    group.finish();
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
        ("100 000 rules", format!("{head}{}", "      - { action: Deny, from: [{ namespaces: [a] }] }\n".repeat(100_000))),
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

criterion_group!(benches, decide, grid, compiling, refusing);
criterion_main!(benches);
