//! Where a debugger reaches a guest.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// Where a debugger reaches a guest: a TCP port, by default for this machine alone, or a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DebuggerAddress {
    /// A port; 0 is one that is free.
    Tcp(SocketAddr),
    /// A socket to create, whose path has a slash.
    Unix(PathBuf),
}

/// A text is no [`DebuggerAddress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "neither a port (1234), nor HOST:PORT with a numeric host, nor the path of a socket with a slash"
)]
pub struct DebuggerAddressError;

impl FromStr for DebuggerAddress {
    type Err = DebuggerAddressError;

    /// `1234`, `:1234`, `127.0.0.1:1234`, `[::1]:1234`, `localhost:1234` or `./path`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        let port = text.strip_prefix("localhost:").or_else(|| text.strip_prefix(':'));
        if let Ok(port) = port.unwrap_or(text).parse() {
            return Ok(Self::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)));
        }
        text.parse().map(Self::Tcp).map_err(|_| DebuggerAddressError)
    }
}

impl fmt::Display for DebuggerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_host_a_port_is_for_this_machine_alone() {
        for (text, address) in [
            ("1234", "127.0.0.1:1234"),
            (":1234", "127.0.0.1:1234"),
            ("localhost:1", "127.0.0.1:1"),
            ("0.0.0.0:1234", "0.0.0.0:1234"),
            ("[::1]:99", "[::1]:99"),
            ("./gdb", "./gdb"),
        ] {
            let parsed: DebuggerAddress = text.parse().expect("an address");
            assert_eq!(parsed.to_string(), address);
        }
        for text in ["", "gdb", "70000", "host:1234", "1234:", "127.0.0.1"] {
            assert_eq!(text.parse::<DebuggerAddress>(), Err(DebuggerAddressError), "{text}");
        }
    }
}
