//! `docs/threats.md` names a test for every threat: it is there, and it is a test that runs.

use std::path::Path;

use outrider_tests::Outcome;

/// Whether `text` has a test of this name that is not switched off.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let function = [format!("fn {name}("), format!("async fn {name}(")];
    let Some(at) = lines.iter().position(|line| function.iter().any(|start| line.starts_with(start))) else { return false };
    let attributes: Vec<_> =
        lines.iter().take(at).rev().take_while(|line| line.starts_with("#[") || line.starts_with("//")).collect();
    // a test of the store runs on each kind of it: the macro writes the attribute
    let on_both =
        lines.get(at).is_some_and(|line| line.ends_with("(place) {")) && lines.iter().take(at).any(|line| *line == "on_both! {");
    let is = |word: &str| attributes.iter().any(|line| line.starts_with(word));
    (is("#[test]") || is("#[tokio::test") || on_both) && !is("#[ignore")
}

/// What a page of threats promises and the repository at `root` does not hold: a line for each.
fn unshown(page: &str, root: &Path) -> Vec<String> {
    let mut missing = Vec::new();
    let mut named_before = false;
    for line in page.lines() {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").collect();
        let row = line.starts_with('|') && !line.starts_with("|---");
        let (true, [threat, _, shown]) = (row, cells.as_slice()) else {
            if row {
                missing.push(format!("not three cells: {line}"));
            }
            // A heading or a paragraph begins another table.
            named_before &= line.starts_with('|');
            continue;
        };
        if shown.trim() == "shown by" {
            continue;
        }
        let mut file = None;
        let mut tests = 0;
        for word in shown.split('`').skip(1).step_by(2) {
            if word.contains('/') {
                file = std::fs::read_to_string(root.join(word)).ok();
                if file.is_none() {
                    missing.push(format!("no file `{word}`: {threat}"));
                }
            } else if file.as_ref().is_some_and(|text| has_test(text, word)) {
                tests += 1;
            } else {
                missing.push(format!("no test `{word}`: {threat}"));
            }
        }
        let same = shown.trim().starts_with("the same") && named_before;
        if tests == 0 && !same {
            missing.push(format!("nothing shows it: {threat}"));
        }
        named_before |= tests > 0;
    }
    missing
}

#[test]
fn every_threat_is_answered_by_a_test_that_is_there() -> Outcome {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/threats.md"))?;
    let missing = unshown(&page, &root);
    assert!(missing.is_empty(), "docs/threats.md:\n{}", missing.join("\n"));
    let rows = page.lines().filter(|line| line.starts_with('|')).count();
    assert!(rows > 100, "{rows} rows: is the page still read rightly?");
    Ok(())
}

#[test]
fn a_row_without_its_test_is_found() -> Outcome {
    let dir = tempfile::tempdir()?;
    let code = "#[test]\nfn here() {}\n\nfn helper() {}\n\n#[test]\n#[ignore]\nfn off() {}\n\n// Why.\n#[tokio::test(start_paused = true)]\nasync fn waits() {}\n";
    std::fs::write(dir.path().join("a.rs"), code)?;
    std::fs::create_dir(dir.path().join("b"))?;
    std::fs::write(dir.path().join("b/a.rs"), code)?;
    let page = |shown: &str| format!("## T\n\n| what is tried | what happens | shown by |\n|---|---|---|\n| x | y | {shown} |\n");
    for good in
        ["`b/a.rs` `here`", "`b/a.rs` `here`, `waits`; with more: `b/a.rs` `waits`", "`b/a.rs` `here` |\n| z | y | the same"]
    {
        assert_eq!(unshown(&page(good), dir.path()), Vec::<String>::new(), "{good}");
    }
    for bad in [
        "`b/a.rs` `gone`",
        "`b/a.rs` `helper`",
        "`b/a.rs` `off`",
        "`b/gone.rs` `here`",
        "`b/a.rs`",
        "`here`",
        "by eye",
        "the same",
        "",
    ] {
        assert!(!unshown(&page(bad), dir.path()).is_empty(), "{bad}");
    }
    Ok(())
}
