//! Rules about the wire: it is a contract, so it says what it means.

use std::{fs, path::Path};

use anyhow::Context as _;

use super::{Findings, files};

/// Checks every `.proto` file of the tree.
pub(super) fn check(root: &Path, findings: &mut Findings) -> anyhow::Result<()> {
    for path in files::walk(root, "proto")? {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        check_file(&files::place(root, &path), &text, findings);
    }
    Ok(())
}

/// Services, calls, messages and enums need a comment above them, numbers a unit or a meaning. The messages of a call are
/// explained by the comment of the call.
fn check_file(place: &str, text: &str, findings: &mut Findings) {
    let named_by_calls: Vec<&str> = text.lines().filter(|line| line.trim_start().starts_with("rpc ")).flat_map(words).collect();
    let mut above = "";
    let mut silent = 0;
    for (index, line) in text.lines().enumerate() {
        // An enum inside of a message is explained by the message.
        let is_nested_enum = line.starts_with(' ') && line.trim_start().starts_with("enum ");
        let line = line.trim();
        let is_commented = above.starts_with("//") || line.contains(" //");
        above = line;
        if is_commented || is_nested_enum {
            continue;
        }
        let mut parts = words(line);
        match (parts.next(), parts.next()) {
            (Some("message"), Some(name)) if named_by_calls.contains(&name) => {}
            (Some("service" | "rpc" | "message" | "enum"), Some(name)) if !line.ends_with(';') || line.starts_with("rpc ") => {
                findings.error(
                    "proto",
                    &format!("{place}:{}", index + 1),
                    &format!("`{name}` has no comment: say what it is for"),
                );
            }
            _ if is_field(line) => silent += 1,
            _ => {}
        }
    }
    if silent > 0 {
        findings.warning("proto", place, &format!("{silent} fields without a comment: fine where the name says it all"));
    }
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').filter(|word| !word.is_empty())
}

fn is_field(line: &str) -> bool {
    let is_number = |text: &str| text.trim().trim_end_matches(';').parse::<u32>().is_ok();
    line.ends_with(';')
        && !line.starts_with("//")
        && line.split_once('=').is_some_and(|(left, right)| left.trim().contains(' ') && is_number(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Findings {
        let mut findings = Findings::default();
        check_file("a.proto", text, &mut findings);
        findings
    }

    #[test]
    fn what_has_no_comment_is_named_with_its_line() {
        let found =
            findings("// Does things.\nservice S {\n  rpc Do(DoRequest) returns (DoResponse);\n}\n\nmessage Thing {\n}\n");
        assert_eq!(found.errors.len(), 2, "{found:?}");
        assert!(found.errors[0].starts_with("[proto] a.proto:3: `Do`") && found.errors[1].contains("a.proto:6: `Thing`"));
    }

    #[test]
    fn the_messages_of_a_commented_call_need_none() {
        let text = "// S.\nservice S {\n  // Does.\n  rpc Do(DoRequest) returns (stream DoResponse);\n}\nmessage DoRequest {\n  uint32 a = 1;\n}\nmessage DoResponse {}\n";
        let found = findings(text);
        assert!(found.errors.is_empty(), "{found:?}");
        assert_eq!(found.warnings.len(), 1);
    }
}
