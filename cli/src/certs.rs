//! `outrider certs`: certificates, listed, renewed and revoked.

use std::time::Duration;

use clap::Subcommand;
use outrider_proto::v1::{ListCertificatesRequest, ListRevocationsRequest, RotateCertificatesRequest};

use crate::{
    args::Socket,
    failure::{Exit, Failure},
    names,
    output::{Console, Tone},
    progress, revoke,
    view::{Certificate, Revocation},
    when,
};

/// List, rotate and revoke certificates.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_long_help = "\
Examples:
  outrider certs list --all
  outrider certs rotate
  outrider certs rotate shop/orders --timeout 10s
  outrider certs revoke shop/web --reason 'laptop stolen'
  outrider certs list --revoked"
)]
pub(crate) struct Certs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the certificates that agents hold
    List {
        /// Also those that were replaced but have not expired
        #[arg(long)]
        all: bool,
        /// What is revoked instead
        #[arg(long, conflicts_with = "all")]
        revoked: bool,
    },
    /// Ask agents for a new key and certificate now, and wait until they have it
    Rotate {
        /// SPIFFE ID or NAMESPACE/SERVICE-ACCOUNT; every connected agent when absent
        #[arg(value_parser = names::identity)]
        identity: Option<String>,
        /// How long to wait; exit code 4 names the agents that lag
        #[arg(long, value_parser = when::duration, default_value = "60s", value_name = "DURATION")]
        timeout: Duration,
    },
    /// Let nobody believe a certificate, or an identity, any more: its connections end, and it is not renewed
    Revoke {
        #[command(flatten)]
        subject: revoke::Subject,
        /// Why, for other operators and the records of agents
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Undo a revocation
    Unrevoke {
        #[command(flatten)]
        subject: revoke::Subject,
    },
}

impl Certs {
    /// Runs the verb.
    pub(crate) async fn run(self, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
        match self.verb {
            Verb::List { revoked: true, .. } => revoked(socket, console).await,
            Verb::List { all, .. } => list(all, socket, console).await,
            Verb::Rotate { identity, timeout } => rotate(identity, timeout, socket, console).await,
            Verb::Revoke { subject, reason } => subject.run(Some(reason), socket, console).await,
            Verb::Unrevoke { subject } => subject.run(None, socket, console).await,
        }
    }
}

async fn list(all: bool, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
    let list = socket.connect().await?.list_certificates(ListCertificatesRequest { all }).await?.into_inner();
    let rows: Vec<Certificate> = list.certificates.into_iter().map(Certificate::from).collect();
    console.rows(&rows, "no certificates are valid")?;
    Ok(Exit::Done)
}

async fn revoked(socket: &Socket, console: &Console) -> Result<Exit, Failure> {
    let list = socket.connect().await?.list_revocations(ListRevocationsRequest {}).await?.into_inner();
    let rows: Vec<Revocation> = list.revocations.into_iter().map(Revocation::from).collect();
    console.rows(&rows, "nothing is revoked")?;
    Ok(Exit::Done)
}

async fn rotate(identity: Option<String>, timeout: Duration, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
    let request = RotateCertificatesRequest { identity: identity.unwrap_or_default() };
    let steps = socket.connect().await?.rotate_certificates(request).await?.into_inner();
    let rotated = progress::follow(steps, timeout, "rotating", console).await;
    if !console.is_for_people() {
        console.value(&rotated)?;
    }
    rotated.conclude("renewal was asked for", timeout, console)?;
    if console.is_for_people() {
        let told = match rotated.agents {
            0 => "no connected agent holds such a certificate".to_owned(),
            1 => "1 agent has a new certificate".to_owned(),
            several => format!("all {several} agents have a new certificate"),
        };
        console.line(&console.paint(Tone::Good, &told))?;
    }
    Ok(Exit::Done)
}
