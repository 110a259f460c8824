//! Whether who has come is a debugger: its first packet says so. Until then the guest knows nothing of it.

use std::time::{Duration, Instant};

use super::connection::Connection;

/// How long the first packet may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long is listened at once.
const LISTEN: Duration = Duration::from_millis(50);

/// Bytes that the first packet may have, with what comes with it.
pub(super) const MOST_BYTES: usize = 4096;

/// What bytes say of their sender.
#[derive(Debug, PartialEq, Eq)]
enum Sender {
    /// They have a whole packet.
    Debugger,
    /// They may become one.
    Unknown,
    /// They never will.
    Other,
}

/// What has come begins with acknowledgements, if anything, and then a packet: `$TEXT#` and two digits of the
/// sum of TEXT.
fn sender(bytes: &[u8]) -> Sender {
    let Some(start) = bytes.iter().position(|byte| !matches!(byte, b'+' | b'-')) else {
        return Sender::Unknown;
    };
    let Some(text) = bytes[start..].strip_prefix(b"$") else { return Sender::Other };
    let Some(end) = text.iter().position(|byte| *byte == b'#') else {
        let is_text = text.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b'$');
        return if is_text { Sender::Unknown } else { Sender::Other };
    };
    let Some(digits) = text.get(end + 1..end + 3) else { return Sender::Unknown };
    let sum = text[..end].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let told = std::str::from_utf8(digits).ok().and_then(|it| u8::from_str_radix(it, 16).ok());
    if end > 0 && told == Some(sum) { Sender::Debugger } else { Sender::Other }
}

/// The bytes with a debugger's first packet; none if it is no debugger, or `has_ended` first.
pub(super) fn greeting(
    connection: &mut Connection,
    has_ended: impl Fn() -> bool,
) -> Option<Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = Vec::with_capacity(MOST_BYTES);
    while bytes.len() < MOST_BYTES && Instant::now() < deadline && !has_ended() {
        let mut buffer = [0; MOST_BYTES];
        let room = MOST_BYTES - bytes.len();
        if let Some(count) = connection.receive(&mut buffer[..room], LISTEN).ok()? {
            bytes.extend_from_slice(&buffer[..count]);
        }
        match sender(&bytes) {
            Sender::Debugger => return Some(bytes),
            Sender::Unknown => {}
            Sender::Other => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debugger_is_who_sends_a_packet_first() {
        for bytes in [&b"$?#3f"[..], b"+$?#3f", b"+$?#3f$g#67", b"-+$g#67\xff"] {
            assert_eq!(sender(bytes), Sender::Debugger, "{}", bytes.escape_ascii());
        }
        for bytes in [&b""[..], b"+", b"$", b"+$?", b"$?#", b"$?#3"] {
            assert_eq!(sender(bytes), Sender::Unknown, "{}", bytes.escape_ascii());
        }
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01",
            b"$?#40",
            b"$k#00",
            b"$#00",
            b"$?#zz",
            b"$a$?#3f",
            b"$\xff",
            b"\x03",
            b" $?#3f",
        ] {
            assert_eq!(sender(bytes), Sender::Other, "{}", bytes.escape_ascii());
        }
    }
}
