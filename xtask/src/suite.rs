//! `cargo xtask test`: everything the tests need, then all of them.

use crate::{command, setup};

/// Set up, build the binaries and run all tests.
#[derive(Debug, clap::Args)]
pub(crate) struct Suite {
    /// Arguments for `cargo test`, for example `-p outrider-policy` or `-- --nocapture`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Suite {
    /// Runs them. Their output goes to the terminal as it comes.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        setup::run()?;
        // Scenarios drive the real binaries, which `cargo test` builds only for a package's own tests.
        command::run(command::cargo().args(["build", "--workspace", "--bins"]))?;
        let mut test = command::cargo();
        // One run shows every failure.
        test.args(["test", "--no-fail-fast"]);
        if !self.arguments.iter().any(|word| word == "-p" || word == "--package" || word.starts_with("--package=")) {
            test.arg("--workspace");
        }
        command::run(test.args(self.arguments))
    }
}
