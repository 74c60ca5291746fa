//! Every example of `docs/policy.md` is what it says it is.
#![expect(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::sync::Arc;

use outrider_policy::{Severity, StoredPolicy, Target, analyse, manifest};

/// The fenced blocks of YAML, each at the line where it stands.
fn examples() -> Vec<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/policy.md")).unwrap();
    let mut examples = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((start, line)) = lines.next() {
        if line == "```yaml" {
            let block: Vec<&str> = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
            examples.push("\n".repeat(start + 1) + &block.join("\n"));
        }
    }
    examples
}

#[test]
fn every_example_reads_and_the_tests_among_them_pass() {
    let (mut policies, mut tests) = (Vec::new(), Vec::new());
    for example in examples() {
        let file = manifest::parse_file("docs/policy.md", &example);
        assert!(file.diagnostics.is_empty(), "{:#?}", file.diagnostics);
        policies.extend(file.policies);
        tests.extend(file.tests);
    }
    assert!(policies.len() >= 6 && !tests.is_empty());
    let services: [Target; 0] = [];
    let errors: Vec<_> = analyse(&policies, &[], &services).into_iter().filter(|d| d.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    // the first policy is the one that the test is about
    let stored = [StoredPolicy { policy: Arc::clone(&policies[0].policy), revision: 1 }];
    for result in tests.iter().flat_map(|test| test.run(&stored)) {
        assert_eq!(result.failure, None, "{}", result.case);
    }
}
