//! Every example of `docs/policy.md` is what it says it is, and decides what `documentation.yaml` says it does.
#![expect(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::collections::BTreeSet;
use std::sync::Arc;

use outrider_policy::manifest::{self, File};
use outrider_policy::path_pattern::PathPattern;
use outrider_policy::{Ground, Severity, StoredPolicy, analyse};

fn page() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/policy.md")).unwrap()
}

/// The fenced blocks of YAML, each at the line where it stands.
fn examples() -> Vec<File> {
    let page = page();
    let mut examples = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((start, line)) = lines.next() {
        if line == "```yaml" {
            let block: Vec<&str> = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
            let file = manifest::parse_file("docs/policy.md", &("\n".repeat(start + 1) + &block.join("\n")));
            assert!(file.diagnostics.is_empty(), "{:#?}", file.diagnostics);
            examples.push(file);
        }
    }
    examples
}

#[test]
fn every_example_would_be_accepted() {
    let policies: Vec<_> = examples().into_iter().flat_map(|file| file.policies).collect();
    assert!(policies.len() >= 6, "only {} examples", policies.len());
    let errors: Vec<_> =
        analyse(&policies, &[], &Ground::default()).into_iter().filter(|d| d.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

/// As `outrider test` runs them, over the policy and the test of one name; the page has a test of its own.
#[test]
fn every_rule_of_every_example_decides_what_its_tests_expect() {
    let beside = manifest::parse_file("documentation.yaml", include_str!("documentation.yaml"));
    assert!(beside.diagnostics.is_empty(), "{:#?}", beside.diagnostics);
    let (mut policies, mut tests) = (Vec::new(), beside.tests);
    for file in examples() {
        policies.extend(file.policies);
        tests.extend(file.tests);
    }
    let mut deciding = BTreeSet::new();
    for test in &tests {
        let of_that_name = policies.iter().filter(|one| one.policy.metadata.name == test.metadata.name);
        let stored: Vec<_> = of_that_name.map(|one| StoredPolicy { policy: Arc::clone(&one.policy), revision: 1 }).collect();
        assert_eq!(stored.len(), 1, "the policy of the test `{}`", test.metadata.name);
        for result in test.run(&stored) {
            assert_eq!(result.failure, None, "{}: {}", result.test, result.case);
            deciding.extend(result.answer.and_then(|answer| answer.rule));
        }
    }
    for manifest in &policies {
        for rule in manifest.policy.rules() {
            let name = format!("{}/{}", manifest.policy.full_name(), rule.name.as_ref().unwrap());
            assert!(deciding.contains(&name), "no case is decided by `{name}`");
        }
    }
}

#[test]
fn the_table_of_path_templates_is_true() {
    let page = page();
    let table =
        page.lines().skip_while(|line| !line.starts_with("| template |")).skip(2).take_while(|line| line.starts_with('|'));
    let mut rows = 0;
    for line in table {
        let quoted = |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
        let cells: Vec<Vec<String>> = line.split('|').map(quoted).collect();
        let [_, templates, yes, no, _] = cells.as_slice() else { continue };
        for pattern in templates.iter().map(|template| PathPattern::new(template).unwrap()) {
            assert!(yes.iter().all(|path| pattern.matches(path)), "{line}");
            assert!(!no.iter().any(|path| pattern.matches(path)), "{line}");
        }
        rows += 1;
    }
    assert!(rows >= 3, "the table is gone");
}
