//! What must hold for any input. Shared by the fuzz targets and by the tests on a stable compiler.

use std::sync::Arc;

use outrider_policy::described::{DescribedCall, DescribedDestination, DescribedRequest, DescribedSource, RawText};
use outrider_policy::path::Forms;
use outrider_policy::when::When;
use outrider_policy::{
    Compiled, Effect, Ground, Protocol, ServicePolicy, StoredPolicy, Target, analyse, compile, host, manifest, path,
};

fn target() -> Target {
    Target { service: "shop/orders".parse().expect("a name"), labels: [].into(), port: 8080, protocol: Protocol::Http }
}

/// Whatever reads as a policy survives JSON, analysis and compilation; whatever does not has a position.
pub fn yaml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = manifest::parse_file("fuzz", text);
    assert!(file.diagnostics.iter().all(|d| d.line > 0 && d.column > 0), "a diagnostic without position: {:?}", file.diagnostics);
    let mut stored = Vec::new();
    for manifest in &file.policies {
        let json = manifest.policy.to_json().expect("a policy is JSON");
        assert_eq!(ServicePolicy::from_json(&json).expect("its own JSON"), *manifest.policy);
        stored.push(StoredPolicy { policy: Arc::clone(&manifest.policy), revision: 1 });
    }
    analyse(&file.policies, &stored, &Ground { services: vec![target()], ..Ground::default() });
    let compiled = compile(&stored, &target()).unwrap_or_else(|problems| Compiled::deny_all(format!("{problems:?}")));
    if stored.is_empty() {
        decide_with(&compiled, b"GET /");
    }
}

const POLICIES: &str = include_str!("../../vectors/headers.json");

/// Any request is decided without a panic, and explained as it was decided.
pub fn decide(data: &[u8]) {
    thread_local! {
        static COMPILED: Vec<Compiled> = policies();
    }
    COMPILED.with(|all| {
        let (choice, request) = data.split_first().map_or((0, data), |(first, rest)| (usize::from(*first), rest));
        if let Some(compiled) = all.get(choice % all.len().max(1)) {
            decide_with(compiled, request);
        }
    });
}

/// The policies of one file of vectors, each set compiled.
fn policies() -> Vec<Compiled> {
    #[derive(serde::Deserialize)]
    struct Group {
        policies: Vec<ServicePolicy>,
    }
    let groups: Vec<Group> = serde_json::from_str(POLICIES).expect("vectors");
    let stored = |group: Group| {
        group.policies.into_iter().map(|policy| StoredPolicy { policy: Arc::new(policy), revision: 1 }).collect::<Vec<_>>()
    };
    groups.into_iter().map(|group| compile(&stored(group), &target()).expect("policies compile")).collect()
}

/// `METHOD PATH HEADER-VALUE HEADER-VALUE…`, by spaces.
fn decide_with(compiled: &Compiled, data: &[u8]) {
    let mut words = data.split(|b| *b == b' ');
    let method = words.next().map(|word| String::from_utf8_lossy(word).into_owned()).unwrap_or_default();
    let path = words.next().map(|word| RawText::Bytes(word.to_vec()));
    let headers = words.map(|word| ("x-role".to_owned(), RawText::Bytes(word.to_vec()))).collect();
    let call = DescribedCall {
        source: DescribedSource::default(),
        destination: DescribedDestination { service: target().service, labels: [].into(), port: 8080, protocol: Protocol::Http },
        request: Some(DescribedRequest { method, host: None, path, headers }),
    };
    let Ok(prepared) = call.prepare() else { return };
    let decision = compiled.decide(&prepared.call());
    let explanation = compiled.explain(&prepared.call());
    assert_eq!(
        (decision.effect, decision.rule.map(|rule| compiled.rule_name(rule).to_owned())),
        (explanation.effect, explanation.rule)
    );
    assert!(decision.effect == Effect::Deny || decision.rule.is_some(), "allowed by no rule");
}

/// A canonical path or host is its own canonical form, and holds nothing that was to be refused.
pub fn path(data: &[u8]) {
    if let Ok(once) = path::canonical(data) {
        assert_eq!(path::canonical(once.as_bytes()).expect("a canonical path is accepted"), once);
        assert!(once.starts_with('/') && !once.contains("//") && once.is_ascii());
        Forms::of(&once).all(|form| {
            assert!(form.starts_with('/') && !form.split('/').any(|segment| matches!(segment, "." | "..")), "{form}");
            true
        });
    }
    if let Ok(once) = host::canonical(data) {
        let again = host::canonical(once.name.as_bytes()).expect("a canonical host is accepted");
        assert_eq!((&again.name, again.port), (&once.name, None));
    }
}

/// Whatever reads as an expression survives its own text.
pub fn when(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(when) = When::new(text) {
        assert_eq!(When::new(&when.to_string()), Ok(when));
    }
}
