//! Whose the other end of a connection is: a port is open to all users of a machine, a guest to its own.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

/// The user at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum User {
    /// One of this machine.
    Number(u32),
    /// One of another machine, or nobody can tell.
    Unknown,
    /// It has gone already.
    Nobody,
}

/// Whether it may have the guest: the user of this process may, the superuser, and who comes from another
/// machine, since the port was opened for those.
pub(super) fn may_use(user: User) -> bool {
    match user {
        User::Number(number) => number == 0 || number == geteuid().as_raw(),
        User::Unknown => true,
        User::Nobody => false,
    }
}

pub(super) fn user_of_unix(stream: &UnixStream) -> User {
    getsockopt(stream, sockopt::PeerCredentials)
        .map_or(User::Nobody, |peer| User::Number(peer.uid()))
}

/// The user of `peer`, whose connection leads to `own`.
pub(super) fn user_of_tcp(peer: SocketAddr, own: SocketAddr) -> User {
    if !peer.ip().to_canonical().is_loopback() {
        return User::Unknown;
    }
    let table = if peer.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    let Ok(table) = std::fs::read_to_string(table) else { return User::Unknown };
    user_in(&table, peer, own)
}

/// The user of the socket that a table of the kernel has for a connection (Linux, proc_net_tcp.rst).
fn user_in(table: &str, from: SocketAddr, to: SocketAddr) -> User {
    // Others are going, and belong to nobody.
    const ESTABLISHED: &str = "01";
    let (from, to) = (shown(from), shown(to));
    let user = table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        let user = fields.nth(3)?;
        (local == from && remote == to && state == ESTABLISHED).then(|| user.parse().ok())?
    });
    user.map_or(User::Nobody, User::Number)
}

/// An address as the kernel's table has it: words of four bytes in the order of the processor.
fn shown(address: SocketAddr) -> String {
    let bytes = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = bytes.chunks_exact(4).map(|word| {
        let word = u32::from_ne_bytes(word.try_into().expect("four bytes"));
        format!("{word:08X}")
    });
    let address_of: String = words.collect();
    format!("{address_of}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_user_of_a_connection_is_found_in_the_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:04D2 0100007F:C001 01 00000000:00000000 00:00000000 00000000     7        0 1 1\n   1: 0100007F:C001 0100007F:04D2 01 00000000:00000000 00:00000000 00000000  1000        0 1 1\n   2: 0100007F:C002 0100007F:04D2 06 00000000:00000000 00:00000000 00000000     0        0 0 1\n";
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(user_in(table, at(0xc001), at(1234)), User::Number(1000));
        assert_eq!(user_in(table, at(0xc002), at(1234)), User::Nobody, "it has gone");
        assert_eq!(user_in(table, at(0xc003), at(1234)), User::Nobody);
        assert_eq!(
            shown("[::1]:1".parse().expect("an address")),
            "00000000000000000000000001000000:0001"
        );
    }

    #[test]
    fn a_user_may_use_its_own_guests() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // Not every machine has both.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let at = listener.local_addr().expect("an address");
            let client = TcpStream::connect(at).expect("it listens");
            // Kept: a connection that one side has closed is nobody's.
            let (_kept, peer) = listener.accept().expect("somebody");
            let own = geteuid().as_raw();
            assert_eq!(user_of_tcp(peer, at), User::Number(own));
            drop(client);
        }
        assert!(may_use(User::Number(geteuid().as_raw())) && may_use(User::Number(0)));
        assert!(!may_use(User::Number(geteuid().as_raw() + 1)) && !may_use(User::Nobody));
    }
}
