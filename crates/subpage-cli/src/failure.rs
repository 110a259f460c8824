//! How a command ends.

use std::error::Error;
use std::fmt;
use std::io;
use std::process::ExitCode;

use crate::events::{ErrorEvent, WarningEvent};
use crate::policy::Mistakes;

/// The exit status of a command that ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Nothing was denied and everything worked.
    Clean = 0,
    /// Something is wrong with this program or its output.
    Internal = 1,
    /// Something is wrong with what it was given; or something was doubtful under `--strict`.
    BadInput = 2,
    /// At least one write was denied.
    Denied = 3,
    /// The guest failed, ended itself with a status other than 0, or took too long; or a recording stops
    /// before the end of its program.
    GuestFailed = 4,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// Why a command could not do its work.
#[derive(Debug)]
pub enum Failure {
    /// The policy has mistakes.
    Policy(Box<Mistakes>),
    /// `--strict` was given, and something may make the run mean less than it seems to.
    Strict {
        /// What.
        warnings: Vec<WarningEvent>,
        /// Something would have been run.
        before_a_run: bool,
    },
    /// What the command was given is not usable.
    Input(String),
    /// Standard output takes no more, as on a full disk; the reason.
    Output(String),
    /// A thread or a stream of this program does not work, or this program is wrong.
    Internal(String),
}

impl Failure {
    /// Bad input, with all its causes; `what` says where.
    pub fn input(what: impl fmt::Display, error: &(dyn Error + 'static)) -> Self {
        Self::Input(format!("{what}: {}", with_causes(error)))
    }

    /// Bad input whose message says where.
    pub fn bad(error: &(dyn Error + 'static)) -> Self {
        Self::Input(with_causes(error))
    }

    /// The exit status.
    pub fn status(&self) -> Status {
        match self {
            Self::Policy(_) | Self::Strict { .. } | Self::Input(_) => Status::BadInput,
            Self::Output(_) | Self::Internal(_) => Status::Internal,
        }
    }

    /// As an event, where it is not several.
    pub fn event(&self) -> Option<ErrorEvent> {
        match self {
            // Nobody could read the second there.
            Self::Policy(_) | Self::Strict { .. } | Self::Output(_) => None,
            Self::Input(message) | Self::Internal(message) => Some(ErrorEvent::new(message)),
        }
    }
}

/// Output that cannot be written.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Internal(format!("cannot write the output: {error}"))
    }
}

fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // Some errors repeat their cause in their own message.
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}
