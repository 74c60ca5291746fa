//! The `nft` command: puts a table in force as a whole or not at all, and tells what is in force.

use std::{
    io::{self, Write as _},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use super::{Rules, rules::TABLE};

/// Where the expected rules are spelled by the kernel, without being in force, to compare them with those that are.
const SCRATCH: &str = "outrider_check";

/// The rules cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// No program.
    #[error("cannot run `nft`: {0}: install nftables (Debian package `nftables`)")]
    Missing(io::Error),
    /// The kernel or its keeper says no.
    #[error("`nft` may not: {0}: run this as root, or with the capability NET_ADMIN")]
    NotPermitted(String),
    /// Something else.
    #[error("`nft` says: {0}")]
    Failed(String),
}

/// What is in force, compared with what should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Exactly the rules.
    InForce,
    /// None of ours.
    Absent,
    /// A table of our name with other rules: lines that are missing, and lines too much.
    Different {
        /// Lines that should be there.
        missing: Vec<String>,
        /// Lines that should not.
        foreign: Vec<String>,
    },
}

/// The `nft` of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nft;

impl Nft {
    /// Puts the rules in force in one step; what was there of ours is replaced in the same one.
    ///
    /// # Errors
    /// When the kernel does not take them. Then everything is as before.
    pub fn install(self, rules: &Rules) -> Result<(), NftError> {
        self.run(&["-f", "-"], &format!("{}{}", fresh(TABLE), rules.table(TABLE, false))).map(drop)
    }

    /// Takes them out of force; whether there were any.
    ///
    /// # Errors
    /// When the kernel does not let them go.
    pub fn remove(self) -> Result<bool, NftError> {
        let tables = self.tables()?;
        for name in [TABLE, SCRATCH] {
            if tables.iter().any(|table| table == name) {
                self.run(&["-f", "-"], &format!("delete table inet {name}\n"))?;
            }
        }
        Ok(tables.iter().any(|table| table == TABLE))
    }

    /// Compares what is in force with the rules.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn state(self, rules: &Rules) -> Result<State, NftError> {
        if !self.tables()?.iter().any(|table| table == TABLE) {
            return Ok(State::Absent);
        }
        // The kernel and nft have their own spelling: let them spell the expected rules too, in a table that does nothing.
        self.run(&["-f", "-"], &format!("{}{}", fresh(SCRATCH), rules.table(SCRATCH, true)))?;
        let expected = self.list(SCRATCH);
        self.run(&["-f", "-"], &format!("delete table inet {SCRATCH}\n"))?;
        let (expected, found) = (expected?, self.list(TABLE)?);
        if expected == found {
            return Ok(State::InForce);
        }
        Ok(State::Different { missing: without(&expected, &found), foreign: without(&found, &expected) })
    }

    /// Chains of others that may redirect connections too.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn rivals(self) -> Result<Vec<String>, NftError> {
        let mut rivals: Vec<String> = items(&self.run(&["-j", "list", "chains"], "")?, "chain")
            .iter()
            .filter(|chain| is(chain, "type", "nat") && (is(chain, "hook", "output") || is(chain, "hook", "prerouting")))
            .filter(|chain| !(is(chain, "family", "inet") && is(chain, "table", TABLE)))
            .map(|chain| {
                let word = |key: &str| chain.get(key).and_then(Value::as_str).unwrap_or("?").to_owned();
                format!("chain `{}` of table `{} {}`", word("name"), word("family"), word("table"))
            })
            .collect();
        for family in ["ip", "ip6"] {
            let names = std::fs::read_to_string(format!("/proc/net/{family}_tables_names")).unwrap_or_default();
            if names.lines().any(|name| name == "nat") {
                rivals.push(format!("the legacy {family}tables table `nat`"));
            }
        }
        Ok(rivals)
    }

    fn tables(self) -> Result<Vec<String>, NftError> {
        let tables = items(&self.run(&["-j", "list", "tables"], "")?, "table");
        let ours = tables.iter().filter(|table| is(table, "family", "inet"));
        Ok(ours.filter_map(|table| table.get("name")?.as_str().map(ToOwned::to_owned)).collect())
    }

    /// The lines of a table, without its name.
    fn list(self, name: &str) -> Result<Vec<String>, NftError> {
        let text = self.run(&["-nn", "-s", "list", "table", "inet", name], "")?;
        let lines = text.lines().map(|line| line.trim().to_owned());
        let is_content = |line: &String| !line.is_empty() && line != "flags dormant" && !line.starts_with("table inet ");
        Ok(lines.filter(is_content).collect())
    }

    fn run(self, arguments: &[&str], script: &str) -> Result<String, NftError> {
        let mut nft = Command::new("nft")
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(NftError::Missing)?;
        if let Some(mut input) = nft.stdin.take() {
            // It may have ended before it read everything; its exit code tells.
            let _ = input.write_all(script.as_bytes());
        }
        let Output { status, stdout, stderr } = nft.wait_with_output().map_err(NftError::Missing)?;
        if status.success() {
            return Ok(String::from_utf8_lossy(&stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&stderr).trim().to_owned();
        Err(if said.contains("Operation not permitted") { NftError::NotPermitted(said) } else { NftError::Failed(said) })
    }
}

/// A table of this name is there and empty, whatever was there before.
fn fresh(name: &str) -> String {
    format!("table inet {name} {{\n}}\ndelete table inet {name}\n")
}

/// Lines of `these` that `those` lack, as often as they lack them.
fn without(these: &[String], those: &[String]) -> Vec<String> {
    let mut left: Vec<&String> = those.iter().collect();
    let mut missing = Vec::new();
    for line in these {
        match left.iter().position(|other| *other == line) {
            Some(at) => drop(left.swap_remove(at)),
            None => missing.push(line.clone()),
        }
    }
    missing
}

/// Objects of one kind in nft's JSON.
fn items(json: &str, kind: &str) -> Vec<Value> {
    let parsed: Value = serde_json::from_str(json).unwrap_or_default();
    let all = parsed.get("nftables").and_then(Value::as_array).cloned().unwrap_or_default();
    all.iter().filter_map(|item| item.get(kind).cloned()).collect()
}

fn is(object: &Value, key: &str, value: &str) -> bool {
    object.get(key).and_then(Value::as_str) == Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_compared_as_often_as_they_stand_there() {
        let lines = |text: &str| text.split(' ').map(ToOwned::to_owned).collect::<Vec<_>>();
        assert_eq!(without(&lines("a b b c"), &lines("b c d")), lines("a b"));
        assert!(without(&lines("a b"), &lines("b a")).is_empty());
    }

    #[test]
    fn what_nft_says_in_json_is_found_by_kind() {
        let json = r#"{"nftables":[{"metainfo":{}},{"table":{"family":"inet","name":"outrider"}},{"chain":{"name":"x"}}]}"#;
        assert_eq!(items(json, "table").len(), 1);
        assert!(is(&items(json, "table")[0], "name", "outrider"));
        assert!(items("no json", "table").is_empty());
    }
}
