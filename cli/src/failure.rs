//! How a verb ends: an exit code, and for failures one line that says what and one that names the way out.

use std::{io, path::PathBuf, process::ExitCode};

use tonic::{Code, Status};

use crate::admin::AdminError;

/// The exit codes of `outrider`. Scripts rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It is done; with `--wait`, it is in force.
    Done,
    /// It was refused, is invalid, or could not be tried.
    Failed,
    /// The command line makes no sense.
    Usage,
    /// It is done, but not in force everywhere, or nobody knows.
    Lagging,
    /// What a program that was started said.
    Program(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Lagging => 4,
            Exit::Program(code) => code,
        })
    }
}

/// Why a verb could not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Flags that contradict each other, in words.
    #[error("{0}")]
    Usage(String),
    /// The control plane cannot be reached.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The control plane answered with an error.
    #[error("{}", status_text(.0))]
    Answer(Box<Status>),
    /// A file cannot be used.
    #[error("cannot read `{}`: {reason}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said, or what is wrong with it.
        reason: String,
    },
    /// What was asked for is not there.
    #[error("no {kind} `{name}`")]
    NotFound {
        /// What was looked for, for example `policy`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The existing name that is most like it.
        nearest: Option<String>,
    },
    /// Files that hold mistakes, which were shown.
    #[error("{0}")]
    Invalid(String),
    /// A file cannot be written.
    #[error("cannot write `{}`: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Done, but not everywhere.
    #[error("{0}")]
    Lagging(String),
    /// Standard output is full.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// A value cannot be shown as JSON or YAML.
    #[error("cannot render the output: {0}")]
    Render(String),
    /// A store is not as it should be.
    #[error("{0}")]
    Store(String),
    /// The agent beside a program does not start, or stopped.
    #[error("agent: {0}")]
    Agent(String),
    /// The control plane of `outrider up` does not start.
    #[error("control plane: {0}")]
    ControlPlane(String),
    /// The tour met something that is not as it should be.
    #[error("{0}")]
    Tour(String),
    /// The asynchronous runtime does not start.
    #[error("cannot start: {0}")]
    Runtime(io::Error),
}

impl Failure {
    /// What the user can do about it.
    pub(crate) fn help(&self) -> Option<String> {
        match self {
            Self::Usage(_) => Some("see `outrider help` and the verb's `--help`".into()),
            Self::Admin(error) => Some(error.help()),
            Self::Answer(status) => answer_help(status.code()).map(str::to_owned),
            Self::NotFound { nearest: Some(name), .. } => Some(format!("did you mean `{name}`?")),
            Self::Lagging(_) => {
                Some("`outrider get policies` shows where it is in force, `outrider get agents` who is connected".into())
            }
            Self::Agent(_) => Some("`OUTRIDER_LOG=info` shows more".into()),
            Self::ControlPlane(_) => Some("`--state-dir DIR` gives it a place of its own; `OUTRIDER_LOG=info` shows more".into()),
            Self::Tour(_) => Some("run it again with `OUTRIDER_LOG=info`, and report it if it stays".into()),
            Self::NotFound { .. }
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::Invalid(_)
            | Self::Store(_)
            | Self::Output(_)
            | Self::Render(_)
            | Self::Runtime(_) => None,
        }
    }

    /// The exit code that goes with it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Lagging(_) => Exit::Lagging,
            _ => Exit::Failed,
        }
    }
}

impl From<outrider_agent::StartError> for Failure {
    fn from(error: outrider_agent::StartError) -> Self {
        Self::Agent(outrider_runtime::tasks::chain(&error))
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Answer(Box::new(status))
    }
}

fn status_text(status: &Status) -> String {
    match (status.code(), status.message()) {
        (Code::Unavailable | Code::Unknown | Code::Cancelled, message) => {
            format!(
                "the control plane went away during the call: {}",
                if message.is_empty() { "no reason given" } else { message }
            )
        }
        (Code::DeadlineExceeded, _) => "the control plane did not answer in time".into(),
        (Code::Unimplemented, _) => "the control plane does not know this call".into(),
        (code, "") => format!("the control plane refused: {code}"),
        (_, message) => message.to_owned(),
    }
}

fn answer_help(code: Code) -> Option<&'static str> {
    match code {
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => {
            Some("`outrider check` says whether it runs; its log says why it stopped")
        }
        Code::Unimplemented => {
            Some("it is of another version than this program: `outrider check` shows which, bring both to the same")
        }
        Code::PermissionDenied => Some(
            "an admin gives roles (`outrider operator create`); on its own machine the user who runs the control plane may do all",
        ),
        Code::Unauthenticated => Some("`outrider login` gets a certificate"),
        Code::ResourceExhausted => Some("send less at once, for example fewer files"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_the_control_plane_is_shown_as_it_is() {
        let failure = Failure::from(Status::not_found("no policy `shop/ordesr`: did you mean `shop/orders`?"));
        assert_eq!(failure.to_string(), "no policy `shop/ordesr`: did you mean `shop/orders`?");
        assert_eq!(failure.exit(), Exit::Failed);
    }
}
