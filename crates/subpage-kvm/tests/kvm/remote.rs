//! A debugger of ours: packets of gdb's protocol, by which a test does what gdb itself would not.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::guest::Guest;

/// Longer than any answer takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(100);

/// Where a guest waits for debuggers.
pub(crate) fn listen(guest: &Guest) -> String {
    guest.vm.wait_for_debuggers(&"0".parse().unwrap()).unwrap().to_string()
}

/// A connection.
pub(crate) struct Remote(TcpStream);

impl Remote {
    pub(crate) fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Self(stream)
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        // A server that has gone is seen by what it says.
        let _ = self.0.write_all(bytes);
    }

    /// Sends a packet and does not wait for an answer.
    pub(crate) fn send(&mut self, text: &str) {
        let sum = text.bytes().fold(0_u8, u8::wrapping_add);
        self.send_bytes(format!("${text}#{sum:02x}").as_bytes());
    }

    fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        match self.0.read(&mut byte) {
            Ok(1) => Some(byte[0]),
            Ok(_) => None,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("nothing comes: {error}"),
        }
    }

    /// The text of the next packet; none at the end.
    pub(crate) fn receive(&mut self) -> Option<String> {
        while self.byte()? != b'$' {}
        let mut text = String::new();
        loop {
            match self.byte()? {
                b'#' => break,
                // The last character again, so often.
                b'*' => {
                    let times = usize::from(self.byte()? - 29);
                    let last = text.chars().last().expect("something to repeat");
                    text.extend(std::iter::repeat_n(last, times));
                }
                byte => text.push(char::from(byte)),
            }
        }
        self.byte().and(self.byte())?;
        Some(text)
    }

    /// Sends a packet and gives the answer.
    pub(crate) fn ask(&mut self, text: &str) -> String {
        self.send(text);
        self.receive().unwrap_or_else(|| panic!("no answer to {text}"))
    }

    /// A word of linear memory.
    pub(crate) fn word(&mut self, at: u64) -> u64 {
        let digits = self.ask(&format!("m{at:x},8"));
        u64::from_str_radix(&digits, 16).expect("eight bytes").swap_bytes()
    }

    /// Sends nothing more, and waits until the server has hung up; false if it says something first.
    pub(crate) fn hang_up(mut self) -> bool {
        let _ = self.0.shutdown(Shutdown::Write);
        self.byte().is_none()
    }
}
