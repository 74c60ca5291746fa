//! What works without a control plane: policies, calls and tests from files.

use std::path::PathBuf;

use crate::fake::{Ran, golden, outrider};

pub(crate) const POLICY: &str = "\
apiVersion: outrider.dev/v1alpha1
kind: ServicePolicy
metadata: { name: orders, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  authorization:
    rules:
      - name: web-reads
        action: Allow
        from: [{ serviceAccounts: [shop/web] }]
        to: [{ methods: [GET], paths: [\"/v1/orders/{id}\"] }]
";

const CALL: &str = r#"{
  "source": { "identity": "spiffe://mesh.internal/ns/shop/sa/web" },
  "destination": { "service": "shop/orders", "port": 80, "protocol": "http" },
  "request": { "method": "POST", "path": "/v1/orders/7", "headers": [["x-tenant", "acme"]] }
}"#;

const TEST: &str = "\
apiVersion: outrider.dev/v1alpha1
kind: PolicyTest
metadata: { name: orders }
spec:
  cases:
    - name: the shop front reads orders
      given:
        source: { identity: spiffe://mesh.internal/ns/shop/sa/web }
        destination: { service: shop/orders, port: 80 }
        request: { method: GET, path: /v1/orders/7 }
      expect: { effect: allow, rule: shop/orders/web-reads }
    - name: nobody else does
      given:
        destination: { service: shop/orders, port: 80 }
        request: { method: GET, path: /v1/orders/7 }
      expect: { effect: EXPECTED }
";

/// A directory with files, and the program in it.
struct Files(tempfile::TempDir);

impl Files {
    fn with(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Self(directory)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Runs with `./` before a word standing for the directory, and shows its path as `./`.
    async fn outrider(&self, words: &[&str]) -> Ran {
        let words: Vec<String> =
            words.iter().map(|word| word.strip_prefix("./").map_or((*word).to_owned(), |name| self.path(name))).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        // No control plane is needed: there is none.
        let mut ran = outrider(PathBuf::from("/nonexistent/admin.sock"), &words, "").await;
        let shown = |text: &str| text.replace(&format!("{}/", self.0.path().display()), "./");
        (ran.out, ran.err) = (shown(&ran.out), shown(&ran.err));
        ran
    }
}

#[tokio::test]
async fn explain_decides_a_call_from_files() {
    let files = Files::with(&[("p.yaml", POLICY), ("call.json", CALL), ("get.json", &CALL.replace("POST", "GET"))]);
    let ran = files.outrider(&["explain", "-f", "./p.yaml", "--call", "./call.json", "-o", "json"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    golden("explain-files.json", &ran.out);
    let ran = files.outrider(&["explain", "-f", "./p.yaml", "--call", "./get.json"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "allow  by shop/orders/web-reads\n"));
}

#[tokio::test]
async fn a_request_that_agents_refuse_is_explained_as_that() {
    let files = Files::with(&[("p.yaml", POLICY), ("call.json", &CALL.replace("/v1/orders/7", "/v1/../orders"))]);
    let ran = files.outrider(&["explain", "-f", "./p.yaml", "--call", "./call.json"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.starts_with("deny  the request is refused: "), "{ran:?}");
}

#[tokio::test]
async fn mistakes_in_files_are_shown_with_their_place() {
    let files = Files::with(&[
        ("p.yaml", &POLICY.replace("action", "actoin")),
        ("call.json", &CALL.replace("method", "methods")),
        ("good.yaml", POLICY),
    ]);
    let ran = files.outrider(&["explain", "-f", "./p.yaml", "--call", "./call.json"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.contains("actoin") && ran.err.contains("./p.yaml:9:9"), "{}", ran.err);
    let ran = files.outrider(&["explain", "-f", "./good.yaml", "--call", "./call.json"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.contains("methods") && ran.err.contains("./call.json:4"), "{}", ran.err);
    let ran = files.outrider(&["explain", "-f", "./good.yaml", "-f", "./good.yaml", "--call", "./call.json"]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("policy `shop/orders` is also in"), "{}", ran.err);
}

#[tokio::test]
async fn test_passes_when_every_case_comes_out_as_expected() {
    let files =
        Files::with(&[("policies/orders.yaml", POLICY), ("policies/tests/orders.yaml", &TEST.replace("EXPECTED", "deny"))]);
    let ran = files.outrider(&["test", "./policies", "--junit", "./report.xml"]).await;
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "2 passed, 0 failed\n", ""));
    let report = std::fs::read_to_string(files.path("report.xml")).unwrap();
    assert!(report.contains("<testsuites name=\"outrider test\" tests=\"2\" failures=\"0\">"), "{report}");
}

#[tokio::test]
async fn test_fails_when_a_case_does_not_and_says_why() {
    let files = Files::with(&[("both.yaml", &format!("{POLICY}---\n{}", TEST.replace("EXPECTED", "allow")))]);
    let ran = files.outrider(&["test", "./both.yaml", "--junit", "./report.xml"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    golden("test-failed.txt", &ran.out);
    let report = std::fs::read_to_string(files.path("report.xml")).unwrap();
    assert!(report.contains("failures=\"1\"") && report.contains("<failure message=\"expected allow, got deny"), "{report}");
    golden("test-failed.json", &files.outrider(&["test", "./both.yaml", "-o", "json"]).await.out);
}

#[tokio::test]
async fn nothing_to_test_is_a_failure() {
    let files = Files::with(&[("p.yaml", POLICY)]);
    let ran = files.outrider(&["test", "./p.yaml"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: there is no `PolicyTest` in these files\n"));
}
