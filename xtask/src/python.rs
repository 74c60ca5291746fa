//! Python packages that the tests need, in an environment of their own below `target`.

use std::{path::Path, process::Command};

use anyhow::Context as _;

use crate::command;

/// The environment, below the workspace.
const PLACE: &str = "target/python";
/// What is installed, at exactly these versions.
const PACKAGES: [&str; 1] = ["spiffe==0.3.2"];

/// Makes the environment unless it is there and whole. `install` gets system packages.
///
/// # Errors
/// When Python or the packages cannot be had.
pub(crate) fn ready(install: impl Fn(&[&str]) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let python = Path::new(PLACE).join("bin/python");
    let stamp = Path::new(PLACE).join("packages");
    if python.exists() && std::fs::read_to_string(&stamp).is_ok_and(|found| found == PACKAGES.join("\n")) {
        return Ok(());
    }
    let make = || command::output(Command::new("python3").args(["-m", "venv", "--clear", PLACE]));
    if !command::exists("python3") || make().is_err() {
        install(&["python3", "python3-venv"])?;
        make().context("python3 makes no environment")?;
    }
    crate::say(&format!("installing {} from the Python package index", PACKAGES.join(", ")));
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES);
    command::output(&mut pip).context("pip could not install what the tests need")?;
    std::fs::write(&stamp, PACKAGES.join("\n")).context("the environment cannot be written")
}
