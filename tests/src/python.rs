//! The Python in which the tests' own packages are installed.

use std::{path::PathBuf, process::Command};

/// A Python script of `tests/python` with these arguments.
///
/// # Panics
/// When the packages were not installed.
pub fn python(script: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(interpreter());
    command.arg(script_path(script)).args(arguments);
    command
}

/// The interpreter that has the packages.
///
/// # Panics
/// When they were not installed.
pub fn interpreter() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    // target/debug/deps/test-123 → target
    let target = test.ancestors().nth(3).expect("tests lie in target/PROFILE/deps");
    let python = target.join("python/bin/python");
    assert!(python.exists(), "`{}` is not there: run `cargo xtask setup`, which installs what the tests need", python.display());
    python
}

/// Where a script lies.
pub fn script_path(script: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("python").join(script)
}
