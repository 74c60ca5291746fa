//! Short spellings of policies and calls for tests.
#![expect(dead_code, reason = "every test file takes what it needs")]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may stop at what it did not expect")]
#![expect(unreachable_pub, reason = "a module of tests")]

pub mod dice;
pub mod istio;
pub mod reference;

use std::net::IpAddr;
use std::sync::Arc;

use outrider_policy::{
    Call, Compiled, Effect, HttpCall, Protocol, ServicePolicy, SpiffeId, StoredPolicy, Target, compile, manifest,
};

pub fn target() -> Target {
    Target {
        service: "shop/orders".parse().unwrap(),
        labels: [("app".to_owned(), "orders".to_owned())].into(),
        port: 8080,
        protocol: Protocol::Http,
    }
}

pub fn policy(namespace: &str, name: &str, spec: &str) -> ServicePolicy {
    let yaml = format!(
        "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: {{ name: {name}, namespace: {namespace} }}\nspec: {spec}\n"
    );
    let (manifests, diagnostics) = manifest::parse("test.yaml", &yaml);
    assert!(diagnostics.is_empty(), "{diagnostics:#?}\n{yaml}");
    ServicePolicy::clone(&manifests[0].policy)
}

/// A policy `shop/orders` with these rules.
pub fn with_rules(rules: &str) -> ServicePolicy {
    let rules: String = rules.lines().map(|line| format!("      {line}\n")).collect();
    policy("shop", "orders", &format!("\n  authorization:\n    rules:\n{rules}"))
}

pub fn stored(policy: ServicePolicy) -> StoredPolicy {
    StoredPolicy { policy: Arc::new(policy), revision: 7 }
}

pub fn compiled(rules: &str) -> Compiled {
    compile(&[stored(with_rules(rules))], &target()).unwrap()
}

#[derive(Clone)]
pub struct Request {
    pub source: Option<SpiffeId>,
    pub ip: IpAddr,
    pub port: u16,
    pub method: String,
    pub host: String,
    pub path: String,
    pub headers: Vec<(String, Vec<u8>)>,
    pub protocol: Protocol,
}

impl Request {
    pub fn from(account: &str) -> Self {
        let (namespace, name) = account.split_once('/').unwrap();
        let mut request = Self::anonymous();
        request.source = Some(format!("spiffe://mesh.example/ns/{namespace}/sa/{name}").parse().unwrap());
        request
    }

    pub fn anonymous() -> Self {
        Self {
            source: None,
            ip: "10.0.0.9".parse().unwrap(),
            port: 8080,
            method: "GET".into(),
            host: "orders.shop".into(),
            path: "/".into(),
            headers: Vec::new(),
            protocol: Protocol::Http,
        }
    }

    pub fn get(mut self, path: &str) -> Self {
        self.path = path.into();
        self
    }

    pub fn at(mut self, ip: &str) -> Self {
        self.ip = ip.parse().unwrap();
        self
    }

    pub fn with_method(&self, method: &str) -> Self {
        Self { method: method.into(), ..self.clone() }
    }

    pub fn with_header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.into(), value.as_ref().to_vec()));
        self
    }

    pub fn opaque(mut self) -> Self {
        self.protocol = Protocol::Tcp;
        self
    }

    pub fn call(&self) -> Call<'_> {
        let http = HttpCall { method: &self.method, host: &self.host, path: &self.path, query: None, headers: &self.headers };
        Call {
            source: self.source.as_ref(),
            source_ip: self.ip,
            port: self.port,
            protocol: self.protocol,
            http: self.protocol.is_http().then_some(http),
        }
    }

    pub fn decide(&self, compiled: &Compiled) -> (Effect, Option<String>) {
        let decision = compiled.decide(&self.call());
        (decision.effect, decision.rule.map(|rule| compiled.rule_name(rule).to_owned()))
    }
}
