//! `outrider-agent capture print | install | check | remove`.

use std::{fmt::Display, io::Write as _, path::PathBuf, process::ExitCode};

use outrider_runtime::config::layered;

use super::{Nft, NftError, Rules, nft::State, rules::TABLE};

/// Rules are missing or different.
const DIFFERENT: u8 = 1;
/// The settings are wrong.
const USAGE: u8 = 2;
/// The rules are in force, but others may redirect connections before them.
const CONTESTED: u8 = 3;
/// It cannot be told, or not be done.
const UNKNOWN: u8 = 4;

/// Rules of the kernel that redirect connections of programs to the agent.
#[derive(Clone, Debug, clap::Args)]
pub struct CaptureCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Verb {
    /// Print the rules as `nft -f` reads them
    Print(Chosen),
    /// Put them in force, all at once; those of an earlier call are replaced
    Install(Chosen),
    /// Compare what is in force with them: 0 the same, 1 missing or different, 3 others may redirect first, 4 cannot tell
    Check(Chosen),
    /// Take them out of force; nothing of them stays
    Remove,
}

#[derive(Clone, Debug, clap::Args)]
struct Chosen {
    /// YAML file of these settings: the same names as the flags
    #[arg(long, env = "OUTRIDER_CAPTURE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    rules: Rules,
}

impl Chosen {
    fn rules(self) -> Result<Rules, String> {
        let rules = layered(self.config.as_deref(), self.rules).map_err(|error| error.to_string())?;
        rules.check().map_err(|problems| problems.join("\n")).map(|()| rules)
    }
}

impl CaptureCommand {
    /// Runs the verb.
    pub fn run(self) -> ExitCode {
        let chosen = match self.verb {
            Verb::Remove => return remove(),
            Verb::Print(ref chosen) | Verb::Install(ref chosen) | Verb::Check(ref chosen) => chosen.clone(),
        };
        let rules = match chosen.rules() {
            Ok(rules) => rules,
            Err(problems) => return complain(USAGE, problems),
        };
        match self.verb {
            Verb::Install(_) => install(&rules),
            Verb::Check(_) => check(&rules),
            Verb::Print(_) | Verb::Remove => {
                say(rules.table(TABLE, false).trim_end());
                ExitCode::SUCCESS
            }
        }
    }
}

fn install(rules: &Rules) -> ExitCode {
    match Nft.install(rules) {
        Ok(()) => {
            say(format_args!("capture rules are in force (table `inet {TABLE}`)"));
            ExitCode::SUCCESS
        }
        Err(error) => complain(UNKNOWN, error),
    }
}

fn remove() -> ExitCode {
    match Nft.remove() {
        Ok(true) => say("capture rules are removed"),
        Ok(false) => say("there were no capture rules"),
        Err(error) => return complain(UNKNOWN, error),
    }
    ExitCode::SUCCESS
}

fn check(rules: &Rules) -> ExitCode {
    match compare(rules) {
        Ok(code) => code,
        Err(error) => complain(UNKNOWN, error),
    }
}

fn compare(rules: &Rules) -> Result<ExitCode, NftError> {
    let way_out = "run `outrider-agent capture install` with the same settings";
    match Nft.state(rules)? {
        State::Absent => {
            say(format_args!("missing: there is no table `inet {TABLE}`, nothing is captured: {way_out}"));
            return Ok(ExitCode::from(DIFFERENT));
        }
        State::Different { missing, foreign } => {
            for line in missing {
                say(format_args!("missing: {line}"));
            }
            for line in foreign {
                say(format_args!("foreign: {line}"));
            }
            say(format_args!("the rules in force are not these: {way_out}"));
            return Ok(ExitCode::from(DIFFERENT));
        }
        State::InForce => say(format_args!("capture rules are in force (table `inet {TABLE}`)")),
    }
    let rivals = Nft.rivals()?;
    for rival in &rivals {
        say(format_args!("contested: {rival} may redirect connections before the agent gets them: remove it, or its rules"));
    }
    Ok(if rivals.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(CONTESTED) })
}

fn say(text: impl Display) {
    // Nobody reads it any more when this fails.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn complain(code: u8, text: impl Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "outrider-agent: {text}");
    ExitCode::from(code)
}
