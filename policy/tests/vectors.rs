//! Runs `vectors/*.json`: decisions as data, which agents, documentation and fuzzers read too.
#![expect(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::path::PathBuf;
use std::sync::Arc;

use outrider_policy::testcase::TestCase;
use outrider_policy::{ServicePolicy, StoredPolicy};
use serde::Deserialize;

/// Policies and what must come of calls under them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    about: String,
    policies: Vec<ServicePolicy>,
    cases: Vec<TestCase>,
}

fn files() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    files
}

#[test]
fn every_vector_is_decided_as_it_says() {
    let (mut count, mut failures) = (0, Vec::new());
    for file in files() {
        let groups: Vec<Group> = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        for Group { about, policies, cases } in groups {
            let policies: Vec<StoredPolicy> =
                policies.into_iter().map(|policy| StoredPolicy { policy: Arc::new(policy), revision: 1 }).collect();
            for case in cases {
                count += 1;
                let failure = match case.given.answer(&policies) {
                    Ok(answer) => case.expect.unlike(&answer),
                    Err(problem) => Some(problem.to_string()),
                };
                failures.extend(
                    failure.map(|failure| format!("{}: {about}: {}: {failure}", file.file_stem().unwrap().display(), case.name)),
                );
            }
        }
    }
    assert!(failures.is_empty(), "{} of {count} vectors differ:\n{}", failures.len(), failures.join("\n"));
    assert!(count >= 400, "only {count} vectors");
}
