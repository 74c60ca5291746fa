//! `outrider ca`: the certificate authority, looked at and changed without a failed request.

use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use outrider_proto::v1::{GetCaRotationRequest, RotateCaRequest, StatusRequest};
use serde::Serialize;

use crate::{
    args::Socket,
    failure::{Exit, Failure},
    output::{Console, Tone},
    progress,
    view::{CertificateAuthority, Rotation},
    when,
};

/// Look at the certificate authority and change the trust anchor.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_long_help = "\
Examples:
  outrider ca status
  outrider ca rotate
  outrider ca rotate --step
  outrider ca rotate --abort"
)]
pub(crate) struct Ca {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show roots and issuing CAs, and how far a change of the trust anchor is
    Status,
    /// Change the trust anchor: prepare, distribute, issue, prove, retire
    ///
    /// Every phase waits until agents prove that the next one is safe. The control plane goes on by itself: the command may be
    /// interrupted, and follows on when it is called again.
    Rotate {
        /// Only to the next phase
        #[arg(long)]
        step: bool,
        /// Take it back; possible until leaves are issued from the new root
        #[arg(long, conflicts_with_all = ["step", "skip_away"])]
        abort: bool,
        /// Do not wait for holders of valid certificates that are not connected, nor for unused join tokens that name the old root:
        /// whoever comes back after the end needs a new token
        #[arg(long)]
        skip_away: bool,
        /// How long to follow; exit code 4 names whoever is waited for, and the rotation goes on
        #[arg(long, value_parser = when::duration, default_value = "2h", value_name = "DURATION")]
        timeout: Duration,
    },
}

/// The answer of `ca status`. The shape that programs read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    certificate_authorities: Vec<CertificateAuthority>,
    /// `null` when there never was one.
    rotation: Option<Rotation>,
}

impl Ca {
    /// Runs the verb.
    pub(crate) async fn run(self, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
        match self.verb {
            Verb::Status => status(socket, console).await,
            Verb::Rotate { step, abort, skip_away, timeout } => {
                rotate(RotateCaRequest { step, abort, skip_away }, timeout, socket, console).await
            }
        }
    }
}

async fn status(socket: &Socket, console: &Console) -> Result<Exit, Failure> {
    let mut admin = socket.connect().await?;
    let status = admin.status(StatusRequest {}).await?.into_inner();
    let rotation = Rotation::read(admin.get_ca_rotation(GetCaRotationRequest {}).await?.into_inner());
    let authorities = status.certificate_authorities.into_iter().map(CertificateAuthority::from).collect();
    let status = Status { certificate_authorities: authorities, rotation };
    if !console.is_for_people() {
        console.value(&status)?;
        return Ok(Exit::Done);
    }
    console.table(&status.certificate_authorities)?;
    if let Some(rotation) = &status.rotation {
        console.line("")?;
        tell(rotation, console)?;
    }
    Ok(Exit::Done)
}

fn tell(rotation: &Rotation, console: &Console) -> Result<(), Failure> {
    let now = Timestamp::now();
    let tone = if rotation.is_over() { Tone::Good } else { Tone::Warn };
    let phase = console.paint(tone, rotation.phase);
    let since = when::relative(rotation.phase_started, now);
    console.line(&format!("rotation: {phase} ({since}): {}", rotation.meaning()))?;
    if !rotation.is_over() {
        let goal = if rotation.goal == rotation.phase { "stops here" } else { "goes on by itself" };
        console.line(&format!("{} of {} followed, {goal}", rotation.done, rotation.agents))?;
    }
    for other in &rotation.waiting {
        console.line(&console.paint(Tone::Warn, &format!("waiting: {other}")))?;
    }
    if !rotation.laggards.is_empty() {
        console.table(&rotation.laggards)?;
    }
    if !rotation.skipped.is_empty() {
        console.line(&console.paint(Tone::Warn, "not waited for (--skip-away):"))?;
        console.table(&rotation.skipped)?;
    }
    Ok(())
}

async fn rotate(request: RotateCaRequest, timeout: Duration, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
    let steps = socket.connect().await?.rotate_ca(request).await?.into_inner();
    let (last, timed_out) = progress::rotation(steps, timeout, console).await?;
    let Some(last) = last else {
        return Err(Failure::Lagging(
            "the control plane stopped telling how far the rotation is: see `outrider ca status`".into(),
        ));
    };
    if console.is_for_people() {
        tell(&last, console)?;
    } else {
        console.value(&last)?;
    }
    if last.reached {
        return Ok(Exit::Done);
    }
    let phase = last.phase;
    Err(Failure::Lagging(match timed_out {
        true => format!("the rotation is still {phase} after {}: it goes on, see `outrider ca status`", when::exact(timeout)),
        false => format!("the rotation is {phase}, and the control plane stopped telling: it goes on, see `outrider ca status`"),
    }))
}
