//! `outrider context`: which control plane the verbs go to.

use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    contexts::Contexts,
    failure::{Exit, Failure},
    output::{Console, Tone},
    table::{Cell, Row},
    when,
};

/// List, choose and remove the control planes that this user logged in to.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_long_help = "\
Examples:
  outrider context list
  outrider context use ann@mesh.example
  outrider --context ann@mesh.example get policies"
)]
pub(crate) struct Choice {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List them
    List,
    /// Use one from now on
    Use {
        /// Its name, or `local` for the control plane on this machine
        name: String,
    },
    /// Forget one, with its key
    Remove {
        /// Its name
        name: String,
    },
}

/// A context as programs read it: no key.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Known {
    name: String,
    current: bool,
    control_plane: String,
    identity: String,
    role: String,
    expires: Option<Timestamp>,
}

impl Row for Known {
    const COLUMNS: &'static [&'static str] = &["CONTEXT", "CURRENT", "CONTROL PLANE", "IDENTITY", "ROLE", "EXPIRES"];

    fn cells(&self, now: Timestamp) -> Vec<Cell> {
        vec![
            self.name.as_str().into(),
            if self.current { "yes" } else { "" }.into(),
            self.control_plane.as_str().into(),
            self.identity.as_str().into(),
            self.role.as_str().into(),
            Cell::new(Tone::Quiet, when::relative(self.expires, now)),
        ]
    }
}

impl Choice {
    /// Runs the verb.
    pub(crate) fn run(self, console: &Console) -> Result<Exit, Failure> {
        let path = Contexts::path()?;
        let mut contexts = Contexts::read(&path)?;
        match self.verb {
            Verb::List => {
                let current = contexts.current;
                let known = |(name, context): (String, crate::contexts::Context)| Known {
                    current: current.as_deref() == Some(&name),
                    name,
                    control_plane: context.control_plane,
                    identity: context.identity,
                    role: context.role,
                    expires: when::from_seconds(context.expires),
                };
                let rows: Vec<Known> = contexts.contexts.into_iter().map(known).collect();
                console.rows(&rows, "no contexts: the control plane on this machine is used (`outrider login` adds one)")?;
            }
            Verb::Use { name } if name == "local" => {
                contexts.current = None;
                contexts.write(&path)?;
            }
            Verb::Use { name } => {
                contexts.find(&name)?;
                contexts.current = Some(name);
                contexts.write(&path)?;
            }
            Verb::Remove { name } => {
                contexts.find(&name)?;
                contexts.contexts.remove(&name);
                contexts.current = contexts.current.filter(|current| *current != name);
                contexts.write(&path)?;
            }
        }
        Ok(Exit::Done)
    }
}
