//! `outrider completions`: scripts for shells.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::{
    args::Args,
    failure::{Exit, Failure},
    output::Console,
};

/// Print a completion script for a shell.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  source <(outrider completions bash)
  outrider completions zsh > \"${fpath[1]}/_outrider\"
  outrider completions fish > ~/.config/fish/completions/outrider.fish")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    /// Runs the verb.
    pub(crate) fn run(self, console: &Console) -> Result<Exit, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Args::command(), "outrider", &mut script);
        console.write(&String::from_utf8_lossy(&script))?;
        Ok(Exit::Done)
    }
}
