//! `outrider certs revoke` and `unrevoke`: whom nobody believes any more, in force everywhere before the command returns.

use std::time::Duration;

use outrider_proto::v1::{RevokeRequest, UnrevokeRequest, WatchRolloutRequest};
use serde::Serialize;

use crate::{
    args::Socket,
    failure::{Exit, Failure},
    output::{Console, Tone, printable},
    progress::{self, Waited},
    view::short_identity,
    when,
};

/// Which certificates, and how long to wait.
#[derive(Debug, clap::Args)]
pub(crate) struct Subject {
    /// Serial number of a certificate; or SPIFFE ID or NAMESPACE/SERVICE-ACCOUNT for every certificate of it, also future ones
    #[arg(value_parser = subject, value_name = "SERIAL|IDENTITY")]
    subject: String,
    /// Return once it is stored, and do not wait for the agents
    #[arg(long)]
    no_wait: bool,
    /// How long to wait; exit code 4 names the agents that lag
    #[arg(long, value_parser = when::duration, default_value = "60s", value_name = "DURATION")]
    timeout: Duration,
}

/// The answer. The shape that programs read.
#[derive(Debug, Serialize)]
struct Answer {
    /// Serial number, or SPIFFE ID.
    subject: String,
    /// Store revision of the change.
    revision: u64,
    /// Absent with `--no-wait`.
    #[serde(skip_serializing_if = "Option::is_none")]
    rollout: Option<Waited>,
}

/// Reads a serial number or an identity. The control plane checks the rest.
fn subject(text: &str) -> Result<String, String> {
    let is_serial = (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_serial { Ok(text.to_owned()) } else { crate::names::identity(text) }
}

impl Subject {
    /// Revokes it for this reason, or undoes that.
    pub(crate) async fn run(self, reason: Option<String>, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
        let mut admin = socket.connect().await?;
        let (answer, done) = match reason {
            Some(reason) => {
                let request = RevokeRequest { subject: self.subject.clone(), reason };
                (admin.revoke(request).await?.into_inner(), "revoked")
            }
            None => {
                let request = UnrevokeRequest { subject: self.subject.clone() };
                (admin.unrevoke(request).await?.into_inner(), "no longer revoked")
            }
        };
        let revision = answer.revision;
        if console.is_for_people() {
            let whose = short_identity(&answer.identity);
            let subject = match answer.subject == answer.identity {
                true => whose,
                false if whose.is_empty() => format!("certificate {}", answer.subject),
                false => format!("certificate {} of {whose}", answer.subject),
            };
            console.line(&format!("{} {done} (revision {revision})", printable(&subject)))?;
        }
        let mut told = Answer { subject: answer.subject, revision, rollout: None };
        if !self.no_wait {
            told.rollout = Some(match admin.watch_rollout(WatchRolloutRequest { revision }).await {
                Ok(steps) => progress::follow(steps.into_inner(), self.timeout, "pushing", console).await,
                Err(_) => Waited::unknown(),
            });
        }
        if !console.is_for_people() {
            console.value(&told)?;
        }
        if let Some(rollout) = &told.rollout {
            rollout.conclude(&format!("revision {revision} is stored"), self.timeout, console)?;
            if console.is_for_people() {
                let agents = match rollout.agents {
                    0 => "no agent is connected".to_owned(),
                    1 => "in force at the one agent connected".to_owned(),
                    several => format!("in force at all {several} agents"),
                };
                console.line(&console.paint(Tone::Good, &agents))?;
            }
        }
        Ok(Exit::Done)
    }
}
