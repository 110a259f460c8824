//! Control while the guest runs: requests over a Unix socket.

pub mod protocol;
