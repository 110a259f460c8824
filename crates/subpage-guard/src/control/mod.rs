//! Control while the guest runs: requests over a Unix socket that only its owner may use.
//!
//! `docs/control.md` describes the protocol. No client can hold up the guest: each has a thread of its
//! own, and events reach it through a bounded queue.

pub mod named;
pub mod protocol;

mod client;
mod connection;
mod connections;
mod error;
mod lines;
mod path;
mod server;
mod socket;

pub use client::{Client, Watch, WatchLine};
pub use error::{ClientError, ControlError};
pub use path::default_sockets;
pub use server::{MAX_CLIENTS, RequestHandler, Server};

/// Longest line of a client, in bytes, its end not counted.
pub const MAX_LINE_BYTES: usize = 1 << 20;
