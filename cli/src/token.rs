//! `outrider token`: one-time join tokens, by which an agent proves who it is the first time.

use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use outrider_proto::v1::{CreateTokenRequest, RevokeTokensRequest};
use serde::Serialize;

use crate::{
    args::Socket,
    failure::{Exit, Failure},
    names,
    output::{Console, printable},
    when,
};

/// Make join tokens for agents, and take them back.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_long_help = "\
Examples:
  outrider token create --identity shop/files
  TOKEN=$(outrider token create --identity shop/files --service shop/files --ttl 2m)
  outrider token revoke shop/files"
)]
pub(crate) struct Token {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a token that one agent can use once
    ///
    /// Standard output carries the token alone. Whoever holds it becomes the identity: treat it as a password.
    Create {
        /// Who the bearer becomes: SPIFFE ID or NAMESPACE/SERVICE-ACCOUNT
        #[arg(long, value_parser = names::identity)]
        identity: String,
        /// Service the bearer may back, may stand several times [default: the service named like the identity]
        #[arg(long = "service", value_name = "NAMESPACE/NAME", value_parser = names::namespaced)]
        services: Vec<String>,
        /// The bearer only calls, it backs no service
        #[arg(long, conflicts_with = "services")]
        caller_only: bool,
        /// How long it can be used, 60s to 24h
        #[arg(long, value_parser = lifetime, default_value = "10m", value_name = "DURATION")]
        ttl: Duration,
    },
    /// Take back all tokens of an identity that nobody has used
    Revoke {
        /// SPIFFE ID or NAMESPACE/SERVICE-ACCOUNT
        #[arg(value_parser = names::identity)]
        identity: String,
    },
}

/// The answer of `token create`. The shape that programs read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    token: String,
    identity: String,
    expires: Option<Timestamp>,
    /// `host:port` of the control plane as agents reach it.
    control_plane: String,
}

/// The answer of `token revoke`. The shape that programs read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Revoked {
    identity: String,
    /// How many there were.
    revoked: u64,
}

impl Token {
    /// Runs the verb.
    pub(crate) async fn run(self, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
        match self.verb {
            Verb::Create { identity, services, caller_only, ttl } => {
                // The parser keeps it below a day.
                let ttl_seconds = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
                let request = CreateTokenRequest { identity, services, ttl_seconds, caller_only };
                create(request, ttl, socket, console).await
            }
            Verb::Revoke { identity } => revoke(identity, socket, console).await,
        }
    }
}

async fn revoke(identity: String, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
    let answer = socket.connect().await?.revoke_tokens(RevokeTokensRequest { identity }).await?.into_inner();
    let revoked = Revoked { identity: answer.identity, revoked: answer.revoked };
    if console.is_for_people() {
        console.remark(&printable(&format!("{} join tokens for {} are good for nothing now", revoked.revoked, revoked.identity)));
    } else {
        console.value(&revoked)?;
    }
    Ok(Exit::Done)
}

async fn create(request: CreateTokenRequest, ttl: Duration, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
    let answer = socket.connect().await?.create_token(request).await?.into_inner();
    let created = Created {
        token: answer.token,
        identity: answer.identity,
        expires: when::from_seconds(answer.expires),
        control_plane: answer.control_plane,
    };
    if !console.is_for_people() {
        console.value(&created)?;
        return Ok(Exit::Done);
    }
    console.line(&created.token)?;
    console.remark(&printable(&format!("for {}, once, within {}", created.identity, when::exact(ttl))));
    console.remark(&printable(&format!("use it with: --control-plane {} --token TOKEN", created.control_plane)));
    Ok(Exit::Done)
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let ttl = when::duration(text)?;
    if (60..=86_400).contains(&ttl.as_secs()) { Ok(ttl) } else { Err(format!("`{text}` is not between 60s and 24h")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_between_a_minute_and_a_day() {
        assert_eq!(lifetime("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(lifetime("24h"), Ok(Duration::from_secs(86_400)));
        assert!(lifetime("59s").is_err() && lifetime("25h").is_err() && lifetime("forever").is_err());
    }
}
