//! What can go wrong with the control socket, on either side.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::protocol::Refusal;

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The system has room for shorter paths only.
    #[error(
        "the path of the control socket, {}, has {} bytes, and a socket's may have 107: give a \
         shorter one",
        path.display(), path.as_os_str().len()
    )]
    PathTooLong {
        /// What was asked for.
        path: PathBuf,
    },
    /// Another process serves it.
    #[error("the control socket {} belongs to a running process: give another path", path.display())]
    InUse {
        /// What was asked for.
        path: PathBuf,
    },
    /// The file that would be its lock is somebody else's, and is left alone.
    #[error(
        "{} exists and is not a lock of a control socket: remove it, or give another path for the \
         socket",
        path.display()
    )]
    NotALock {
        /// The file.
        path: PathBuf,
    },
    /// There is something else, which is not removed.
    #[error("{} exists and is no socket: remove it, or give another path", path.display())]
    NotASocket {
        /// What was asked for.
        path: PathBuf,
    },
    /// Others could exchange the socket.
    #[error(
        "the directory {} is not only yours: remove it, or give the path of the control socket",
        path.display()
    )]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {doing} {}: {cause}", path.display())]
    System {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// Why a request got no answer that it asked for.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody serves the socket.
    #[error("cannot reach a guest through {}: {cause}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The server said no; nothing has changed.
    #[error("{0}")]
    Refused(Refusal),
    /// The server went away before it answered. Whether the request was done is not known.
    #[error("the guest's process closed the connection; it may have ended")]
    Closed,
    /// The server did not answer in time. Whether the request was done, or will be, is not known.
    #[error(
        "the guest's process has not answered within {} s: it may be stopped, or busy; whether it does \
         what was asked for is not known",
        patience.as_secs_f64()
    )]
    Silent {
        /// How long it had.
        patience: Duration,
    },
    /// The connection broke. Whether the request was done is not known.
    #[error("cannot talk to the guest's process: {0}")]
    Connection(io::Error),
    /// What came is no answer to the request.
    #[error("cannot understand the guest's process: {reason}; is it of another version?")]
    Answer {
        /// What is wrong with it.
        reason: String,
    },
}
