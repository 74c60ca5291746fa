//! `outrider operator`: who may do what from other machines.

use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use outrider_proto::v1::{CreateOperatorRequest, ListOperatorsRequest, RemoveOperatorRequest};
use serde::Serialize;

use crate::{
    args::Socket,
    failure::{Exit, Failure},
    output::{Console, printable},
    view, when,
};

/// Make, list and remove operators.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_long_help = "\
Examples:
  outrider operator create ann --role editor
  outrider operator list
  outrider operator remove ann"
)]
pub(crate) struct Operator {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    /// Looks at everything, changes nothing
    Viewer,
    /// Changes policies too
    Editor,
    /// Gives out identities and rights too
    Admin,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make an operator, or give one another role, and print a one-time login token
    ///
    /// Standard output carries the token alone. Whoever holds it becomes the operator: treat it as a password.
    Create {
        /// Lower-case letters, digits, `-` and `.`
        name: String,
        /// What the operator may do
        #[arg(long, value_enum)]
        role: Role,
        /// How long the token can be used, 60s to 24h
        #[arg(long, value_parser = when::duration, default_value = "10m", value_name = "DURATION")]
        ttl: Duration,
    },
    /// List operators
    List,
    /// Remove an operator: in force at once, open connections end
    Remove {
        /// Its name
        name: String,
    },
}

/// The answer of `operator create`. The shape that programs read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    token: String,
    identity: String,
    expires: Option<Timestamp>,
    /// `host:port` of the operators' port; absent when it is off.
    control_plane: Option<String>,
}

impl Operator {
    /// Runs the verb.
    pub(crate) async fn run(self, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
        let mut admin = socket.connect().await?;
        match self.verb {
            Verb::Create { name, role, ttl } => {
                let role = match role {
                    Role::Viewer => "viewer",
                    Role::Editor => "editor",
                    Role::Admin => "admin",
                };
                let ttl_seconds = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
                let request = CreateOperatorRequest { name, role: role.to_owned(), ttl_seconds };
                let answer = admin.create_operator(request).await?.into_inner();
                let created = Created {
                    token: answer.token,
                    identity: answer.identity,
                    expires: when::from_seconds(answer.expires),
                    control_plane: Some(answer.control_plane).filter(|door| !door.is_empty()),
                };
                told(&created, role, ttl, console)
            }
            Verb::List => {
                let list = admin.list_operators(ListOperatorsRequest {}).await?.into_inner().operators;
                let rows: Vec<view::Operator> = list.into_iter().map(view::Operator::from).collect();
                console.rows(&rows, "no operators: only the local socket is used (`outrider operator create`)")?;
                Ok(Exit::Done)
            }
            Verb::Remove { name } => {
                admin.remove_operator(RemoveOperatorRequest { name: name.clone() }).await?;
                console.remark(&printable(&format!("operator {name} removed: calls are refused and connections end now")));
                Ok(Exit::Done)
            }
        }
    }
}

fn told(created: &Created, role: &str, ttl: Duration, console: &Console) -> Result<Exit, Failure> {
    if !console.is_for_people() {
        console.value(created)?;
        return Ok(Exit::Done);
    }
    console.line(&created.token)?;
    console.remark(&printable(&format!("for {} as {role}, once, within {}", created.identity, when::exact(ttl))));
    match &created.control_plane {
        Some(door) => console.remark(&printable(&format!("use it with: outrider login --control-plane {door} --token TOKEN"))),
        None => console.remark("the operators' port is off: start the control plane with --operators IP:15180"),
    }
    Ok(Exit::Done)
}
