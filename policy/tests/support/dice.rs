//! Random policies and calls from a small world, so that they meet often. The same seed gives the same ones.

use serde_json::{Map, Value, json};

use super::Request;

pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }

    pub fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    pub fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }

    fn some(&mut self, choices: &[&str]) -> Value {
        let count = 1 + self.below(3);
        (0..count).map(|_| Value::from(self.pick(choices))).collect()
    }

    fn maybe(&mut self, object: &mut Map<String, Value>, chances: usize, field: &str, choices: &[&str]) {
        if self.one_in(chances) {
            let value = self.some(choices);
            object.insert(field.to_owned(), value);
        }
    }

    pub fn policy(&mut self, name: &str, rules: usize) -> Value {
        let rules: Vec<Value> = (0..rules).map(|n| self.rule(n)).collect();
        json!({"apiVersion": "outrider.dev/v1alpha1", "kind": "ServicePolicy", "metadata": {"name": name, "namespace": "shop"}, "spec": {"authorization": {"rules": rules}}})
    }

    pub fn rule(&mut self, number: usize) -> Value {
        let action = if self.one_in(5) { "Deny" } else { "Allow" };
        let mut rule = json!({"name": format!("r{number:05}"), "action": action});
        if !self.one_in(4) {
            rule["from"] = (0..=self.below(2)).map(|_| self.source()).collect();
        }
        if !self.one_in(4) {
            rule["to"] = (0..=self.below(2)).map(|_| self.operation()).collect();
        }
        if self.one_in(6) {
            rule["when"] = self
                .pick(&[
                    "connection.mtls",
                    "source.namespace == 'shop'",
                    "destination.port == 8080 || request.method == 'PUT'",
                    "!has(request.headers.role)",
                ])
                .into();
        }
        rule
    }

    fn source(&mut self) -> Value {
        let mut entry = Map::new();
        let principals = [
            "spiffe://mesh.example/ns/shop/sa/web",
            "spiffe://mesh.example/ns/shop/sa/api",
            "spiffe://other.example/*",
            "*/sa/web",
            "*",
            "spiffe://mesh.example/odd/id",
        ];
        self.maybe(&mut entry, 5, "principals", &principals);
        self.maybe(&mut entry, 12, "notPrincipals", &principals);
        self.maybe(&mut entry, 4, "namespaces", &["shop", "bank", "sh*", "*nk", "*"]);
        self.maybe(&mut entry, 12, "notNamespaces", &["shop", "bank", "sh*"]);
        self.maybe(&mut entry, 4, "serviceAccounts", &["shop/web", "shop/api", "bank/web", "bank/*", "*/web"]);
        self.maybe(&mut entry, 12, "notServiceAccounts", &["shop/web", "shop/*"]);
        self.maybe(&mut entry, 10, "trustDomains", &["mesh.example", "other.example", "*.example"]);
        self.maybe(&mut entry, 12, "notTrustDomains", &["mesh.example", "other.example"]);
        self.maybe(&mut entry, 8, "ipBlocks", &["10.0.0.0/8", "10.0.0.9", "192.168.0.0/16", "0.0.0.0/0"]);
        self.maybe(&mut entry, 12, "notIpBlocks", &["10.0.0.0/8", "10.0.0.9"]);
        if self.one_in(15) {
            entry.insert("anonymous".into(), self.one_in(2).into());
        }
        entry.into()
    }

    fn operation(&mut self) -> Value {
        let mut entry = Map::new();
        let paths = [
            "/",
            "/a",
            "/a/b",
            "/a/*",
            "/a*",
            "*b",
            "*",
            "/a/{x}",
            "/{x}/b",
            "/a/{**}",
            "/{**}",
            "/a/{x}/c",
            "/{x=**}/c",
            "/a/{r=**}/c",
            "/b/",
            "/a!b",
            "/{x}",
        ];
        self.maybe(&mut entry, 2, "paths", &paths);
        self.maybe(&mut entry, 8, "notPaths", &paths);
        self.maybe(&mut entry, 3, "methods", &["GET", "PUT", "POST", "P*", "*"]);
        self.maybe(&mut entry, 10, "notMethods", &["GET", "PUT"]);
        self.maybe(&mut entry, 6, "hosts", &["orders.shop", "files.shop", "*.shop", "or*"]);
        self.maybe(&mut entry, 12, "notHosts", &["orders.shop", "*.bank"]);
        for (chances, field) in [(6, "ports"), (12, "notPorts")] {
            if self.one_in(chances) {
                entry.insert(field.into(), if self.one_in(2) { json!([8080]) } else { json!([9090, 80]) });
            }
        }
        for (chances, field) in [(5, "headers"), (9, "notHeaders")] {
            if self.one_in(chances) {
                let mut header = json!({"name": self.pick(&["role", "Role", "tenant"])});
                match self.below(7) {
                    0 => header["present"] = true.into(),
                    1 => header["present"] = false.into(),
                    2 => header["prefix"] = "ad".into(),
                    3 => header["suffix"] = "r".into(),
                    4 => header["contains"] = "se".into(),
                    5 => header["oneOf"] = json!(["user", "admin"]),
                    _ => header["exact"] = self.pick(&["admin", "user", "user,admin"]).into(),
                }
                entry.insert(field.into(), json!([header]));
            }
        }
        entry.into()
    }

    pub fn request(&mut self) -> Request {
        let mut request = Request::anonymous();
        request.source = match self.below(7) {
            0 => None,
            1 => Some("spiffe://mesh.example/odd/id"),
            2 => Some("spiffe://other.example/ns/shop/sa/web"),
            3 => Some("spiffe://mesh.example/ns/bank/sa/web"),
            4 => Some("spiffe://mesh.example/ns/shop/sa/api"),
            _ => Some("spiffe://mesh.example/ns/shop/sa/web"),
        }
        .map(|id| id.parse().unwrap());
        request.ip = self.pick(&["10.0.0.9", "10.1.2.3", "192.168.1.1", "8.8.8.8"]).parse().unwrap();
        request.port = if self.one_in(3) { 9090 } else { 8080 };
        request.method = self.pick(&["GET", "GET", "PUT", "POST", "DELETE"]).into();
        request.host = self.pick(&["orders.shop", "files.shop", "x.bank", ""]).into();
        request.path = self
            .pick(&[
                "/", "/a", "/a/b", "/a/b/c", "/a/c", "/b/", "/b", "/a;x", "/a;x/b;y", "/a%21b", "/ab", "/a/b%3Bq", "/x/y/c", "",
                "/a/", "/z%3Bz",
            ])
            .into();
        for _ in 0..self.below(3) {
            let value = self.pick(&["admin", "user", "user,admin", "admin, admin", " admin ", "", "USER"]);
            request = request.with_header(self.pick(&["role", "role", "tenant"]), value);
        }
        if self.one_in(12) { request.opaque() } else { request }
    }
}
