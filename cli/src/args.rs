//! The command line: global flags, and one variant for each verb.

use std::{env, path::PathBuf};

use clap::{Parser, Subcommand};

use crate::{
    admin::{self, Admin},
    apply, ca, certs, check, completions, context,
    contexts::Contexts,
    delete, explain,
    failure::{Exit, Failure},
    get, import, login, operator,
    output::{Console, Format},
    remote, replay, rollback, run, store, test, tied, token, up,
};

/// Outrider, a zero-trust mesh: an agent beside every service, mutual TLS, and a policy for every request.
#[derive(Debug, Parser)]
#[command(name = "outrider", version, propagate_version = true, arg_required_else_help = true, after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// Socket of the control plane [default: $XDG_STATE_HOME/outrider/control-plane/admin.sock, else below
    /// ~/.local/state]
    #[arg(long, global = true, env = "OUTRIDER_ADMIN_SOCKET", hide_env_values = true, value_name = "PATH")]
    admin_socket: Option<PathBuf>,
    /// Control plane that this user logged in to, by the name of its context [default: the one in use, else the socket]
    #[arg(long, global = true, env = "OUTRIDER_CONTEXT", value_name = "NAME")]
    context: Option<String>,
    /// Tables for people, or JSON and YAML with stable fields for programs
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done; with --wait: in force at every agent concerned
  1  refused, invalid, not found, or the control plane cannot be reached
  2  wrong usage
  3  something cannot be imported; its field and place are named
  4  done, but not (or not known to be) in force everywhere within the timeout; the agents that lag are named";

#[derive(Debug, Subcommand)]
enum Command {
    /// Check policies, store them in one transaction and push them to the agents
    Apply(apply::Apply),
    /// Delete policies
    Delete(delete::Delete),
    /// Show which recorded requests a change of policies would decide otherwise
    Replay(replay::Replay),
    /// Put the policies back to what they were
    Rollback(rollback::Rollback),
    /// List policies, revisions, services, agents, decisions, certificates or the audit log
    Get(get::Get),
    /// Say what the policies decide for a call, and why
    Explain(explain::Explain),
    /// Run policy tests
    Test(test::Test),
    /// Turn policies of another mesh into policies of Outrider
    Import(import::Import),
    /// List, rotate and revoke certificates
    Certs(certs::Certs),
    /// Look at the certificate authority and change the trust anchor
    Ca(ca::Ca),
    /// Make join tokens for agents
    Token(token::Token),
    /// Make, list and remove operators
    Operator(operator::Operator),
    /// Log in to a control plane on another machine
    Login(login::Login),
    /// List, choose and remove contexts
    Context(context::Choice),
    /// Move the store of a control plane to another database
    Store(store::Store),
    /// Look over the control plane, its agents and their certificates
    Check(check::Check),
    /// Run a whole mesh on this machine and show what it does
    Up(up::Up),
    /// Start a program with an agent beside it
    Run(run::Run),
    #[command(hide = true)]
    Tied(tied::Tied),
    /// Print a completion script for a shell
    Completions(completions::Completions),
}

impl Args {
    /// Runs the verb.
    pub(crate) async fn run(self, console: &Console) -> Result<Exit, Failure> {
        let socket = Socket { named: self.admin_socket, context: self.context };
        match self.command {
            Command::Apply(verb) => verb.run(&socket, console).await,
            Command::Delete(verb) => verb.run(&socket, console).await,
            Command::Replay(verb) => verb.run(&socket, console).await,
            Command::Rollback(verb) => verb.run(&socket, console).await,
            Command::Get(verb) => verb.run(&socket, console).await,
            Command::Explain(verb) => verb.run(&socket, console).await,
            Command::Test(verb) => verb.run(console),
            Command::Import(verb) => verb.run(console),
            Command::Certs(verb) => verb.run(&socket, console).await,
            Command::Ca(verb) => verb.run(&socket, console).await,
            Command::Token(verb) => verb.run(&socket, console).await,
            Command::Operator(verb) => verb.run(&socket, console).await,
            Command::Login(verb) => verb.run(&socket, console).await,
            Command::Context(verb) => verb.run(console),
            Command::Store(verb) => verb.run(console).await,
            Command::Check(verb) => verb.run(&socket, console).await,
            Command::Up(verb) => verb.run(&socket, console).await,
            Command::Run(verb) => verb.run(&socket, console).await,
            Command::Tied(verb) => verb.run(),
            Command::Completions(verb) => verb.run(console),
        }
    }
}

/// The way to the control plane, as far as the user said.
#[derive(Clone, Debug)]
pub(crate) struct Socket {
    /// The admin socket.
    named: Option<PathBuf>,
    /// A context.
    context: Option<String>,
}

impl Socket {
    /// The path that was named, or the default one.
    pub(crate) fn path(&self) -> Result<PathBuf, Failure> {
        if let Some(named) = &self.named {
            return Ok(named.clone());
        }
        Ok(self.state_home()?.join("control-plane/admin.sock"))
    }

    /// Where control plane and agents of this user keep what they keep.
    pub(crate) fn state_home(&self) -> Result<PathBuf, Failure> {
        let home = state_home(env::var_os("XDG_STATE_HOME").map(PathBuf::from), env::var_os("HOME").map(PathBuf::from));
        Ok(home.ok_or(admin::AdminError::NoHome)?.join("outrider"))
    }

    /// The context that was named.
    pub(crate) fn context(&self) -> Option<&str> {
        self.context.as_deref()
    }

    /// Connects to the control plane: of the context that was named, at the socket that was named, of the context in use, or on
    /// this machine.
    pub(crate) async fn connect(&self) -> Result<Admin, Failure> {
        let chosen = match (&self.context, &self.named) {
            (Some(context), _) => Some((Contexts::path()?, context.clone())),
            (None, Some(_)) => None,
            (None, None) => match Contexts::path() {
                Ok(path) => Contexts::read(&path)?.current.map(|current| (path, current)),
                Err(_) => None,
            },
        };
        if let Some((path, name)) = chosen {
            return remote::connect(&path, &name).await;
        }
        Ok(admin::connect(&self.path()?).await?)
    }
}

/// The user's state directory by the XDG base directory specification, which says to ignore relative paths.
fn state_home(xdg: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    xdg.filter(|path| path.is_absolute()).or_else(|| home.filter(|path| path.is_absolute()).map(|home| home.join(".local/state")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_state_directory_follows_xdg_and_falls_back_to_home() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(state_home(path("/state"), path("/home/a")), path("/state"));
        assert_eq!(state_home(path("relative"), path("/home/a")), path("/home/a/.local/state"));
        assert_eq!(state_home(None, path("/home/a")), path("/home/a/.local/state"));
        assert_eq!(state_home(None, None), None);
    }

    #[test]
    fn global_flags_stand_before_or_after_the_verb() {
        for line in ["outrider -o json get agents", "outrider get agents -o json"] {
            assert_eq!(Args::try_parse_from(line.split(' ')).unwrap().output, Format::Json, "{line}");
        }
    }

    #[test]
    fn every_verb_shows_an_example() {
        let mut lacking = Vec::new();
        for verb in Args::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            if !verb.clone().render_long_help().to_string().contains("Example") {
                lacking.push(verb.get_name().to_owned());
            }
        }
        assert!(lacking.is_empty(), "no example in the help of {lacking:?}");
    }
}
