//! `cargo xtask lint`: style as a test with a name for each rule.

mod crates;
mod files;
mod protos;

use std::path::Path;

use anyhow::bail;

use crate::command;

/// Check formatting, clippy and the rules of the house.
#[derive(Debug, clap::Args)]
pub(crate) struct Lint {
    /// Only the rules of the house: no compiler is run
    #[arg(long)]
    house_only: bool,
}

/// What rules found.
#[derive(Debug, Default)]
struct Findings {
    errors: Vec<String>,
    warnings: Vec<String>,
}

impl Findings {
    /// Something that must change.
    fn error(&mut self, rule: &str, place: &str, what: &str) {
        self.errors.push(format!("[{rule}] {place}: {what}"));
    }

    /// Something to look at again.
    fn warning(&mut self, rule: &str, place: &str, what: &str) {
        self.warnings.push(format!("[{rule}] {place}: {what}"));
    }
}

impl Lint {
    /// Runs all checks, and fails when one of them does. The rules of the house come first: they take no time.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        house(&command::root())?;
        if self.house_only {
            return Ok(());
        }
        command::run(command::cargo().args(["fmt", "--all", "--", "--check"]))?;
        command::run(command::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
        deny()
    }
}

fn house(root: &Path) -> anyhow::Result<()> {
    let mut findings = Findings::default();
    files::check(root, &mut findings)?;
    protos::check(root, &mut findings)?;
    crates::check(root, &mut findings)?;
    for warning in &findings.warnings {
        crate::say(&format!("warning: {warning}"));
    }
    for error in &findings.errors {
        crate::say(&format!("error: {error}"));
    }
    if !findings.errors.is_empty() {
        bail!("{} of the house's rules broken", findings.errors.len());
    }
    crate::say("the rules of the house are kept");
    Ok(())
}

fn deny() -> anyhow::Result<()> {
    if !command::exists("cargo-deny") {
        crate::say("skipped: cargo-deny is not installed, so licences and sources were not checked (`cargo install cargo-deny`)");
        return Ok(());
    }
    // Advisories need a clone of their database: a job of its own, where there is one.
    command::run(command::cargo().args(["deny", "--log-level", "error", "check", "bans", "licenses", "sources"]))
}
