//! Rules about source files: size, names, and attributes that hide things.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::Findings;

/// A file that is longer has grown a second noun.
const MOST_LINES: usize = 600;

/// From here on one looks again, tests aside.
const LOOK_AGAIN: usize = 300;

/// Pages tell a whole path: who reads one must be able to see it at once.
const PAGES: [&str; 4] =
    ["agent/src/inbound.rs", "agent/src/outbound.rs", "control-plane/src/issue.rs", "control-plane/src/publish.rs"];

/// Lines of a page.
const MOST_LINES_OF_A_PAGE: usize = 150;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 6] = ["manager", "handler", "util", "common", "helper", "inner"];

/// Checks every Rust file of the tree.
pub(super) fn check(root: &Path, findings: &mut Findings) -> anyhow::Result<()> {
    for path in walk(root, "rs")? {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        check_file(&place(root, &path), &text, findings);
    }
    Ok(())
}

/// A path as the reader of a message knows it.
pub(super) fn place(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

/// All files of a kind, without build output and hidden directories, in order.
pub(super) fn walk(root: &Path, extension: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type()?.is_dir() {
                if name != "target" && !name.as_encoded_bytes().starts_with(b".") {
                    waiting.push(path);
                }
            } else if path.extension().is_some_and(|kind| kind == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn check_file(place: &str, text: &str, findings: &mut Findings) {
    let lines = text.lines().count();
    if lines > MOST_LINES {
        findings.error("size", place, &format!("{lines} lines, at most {MOST_LINES}: give its second noun a file of its own"));
    } else if !is_test(place) {
        let code = lines_before_tests(text);
        if code > LOOK_AGAIN {
            findings.warning("size", place, &format!("{code} lines without its tests: look again from {LOOK_AGAIN}"));
        }
    }
    if PAGES.contains(&place) && lines > MOST_LINES_OF_A_PAGE {
        findings.error(
            "page",
            place,
            &format!("{lines} lines, at most {MOST_LINES_OF_A_PAGE}: it tells the path, stages do the work"),
        );
    }
    let stem = Path::new(place).file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    if let Some(word) = stem.split(['_', '-']).find(|word| EMPTY_NAMES.contains(&word.trim_end_matches('s'))) {
        findings.error("name", place, &format!("`{word}` says nothing about what is inside: name the thing"));
    }
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.starts_with("#[allow(") || line.starts_with("#![allow(") {
            let place = format!("{place}:{}", index + 1);
            findings.error("allow", &place, "write `#[expect(…, reason = \"…\")]`: it says why, and goes away by itself");
        }
    }
}

fn is_test(place: &str) -> bool {
    let parts = Path::new(place).iter();
    parts.map(|part| part.to_string_lossy()).any(|part| part == "tests" || part == "tests.rs" || part == "benches")
}

fn lines_before_tests(text: &str) -> usize {
    let end = text.lines().position(|line| line.trim() == "#[cfg(test)]");
    end.unwrap_or_else(|| text.lines().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(place: &str, text: &str) -> Vec<String> {
        let mut findings = Findings::default();
        check_file(place, text, &mut findings);
        findings.errors
    }

    #[test]
    fn long_files_and_pages_are_refused() {
        assert!(errors("agent/src/a.rs", &"x\n".repeat(600)).is_empty());
        assert!(errors("agent/src/a.rs", &"x\n".repeat(601))[0].contains("[size] agent/src/a.rs: 601 lines"));
        assert!(errors("agent/src/inbound.rs", &"x\n".repeat(151))[0].starts_with("[page]"));
    }

    #[test]
    fn names_that_say_nothing_are_refused() {
        for place in ["a/src/session_manager.rs", "a/src/utils.rs", "a/src/helpers.rs", "a/src/Common.rs"] {
            assert_eq!(errors(place, "").len(), 1, "{place}");
        }
        assert!(errors("a/src/commonplace.rs", "").is_empty());
    }

    #[test]
    fn allow_is_refused_with_its_line() {
        let attribute = format!("fn a() {{}}\n    #[{}(dead_code)]\n", "allow");
        assert!(errors("a/src/b.rs", &attribute)[0].starts_with("[allow] a/src/b.rs:2"));
    }

    #[test]
    fn tests_do_not_count_as_code() {
        let mut findings = Findings::default();
        check_file("a/src/b.rs", &format!("{}#[cfg(test)]\n{}", "x\n".repeat(300), "y\n".repeat(200)), &mut findings);
        assert!(findings.warnings.is_empty() && findings.errors.is_empty());
        check_file("a/src/b.rs", &"x\n".repeat(301), &mut findings);
        assert_eq!(findings.warnings.len(), 1);
    }
}
