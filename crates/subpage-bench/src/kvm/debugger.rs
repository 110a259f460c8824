//! A debugger that sets watchpoints: packets of gdb's protocol, one after the other, as gdb sends them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// Longer than any answer takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A debugger that is attached.
pub(crate) struct Debugger {
    stream: BufReader<TcpStream>,
}

impl Debugger {
    pub(crate) fn attach(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("a guest that waits");
        stream.set_nodelay(true).expect("an option of TCP");
        stream.set_read_timeout(Some(LIMIT)).expect("an option of sockets");
        let mut debugger = Self { stream: BufReader::new(stream) };
        debugger.send("?");
        debugger.answer();
        debugger
    }

    /// Sends a packet and does not wait for an answer.
    pub(crate) fn send(&mut self, text: &str) {
        let sum = text.bytes().fold(0_u8, u8::wrapping_add);
        let packet = format!("${text}#{sum:02x}");
        self.stream.get_mut().write_all(packet.as_bytes()).expect("a server that reads");
    }

    /// Sends a packet that is to be answered by OK.
    pub(crate) fn ask(&mut self, text: &str) {
        self.send(text);
        let answer = self.answer();
        assert!(answer.ends_with(b"$OK"), "{text}: {}", answer.escape_ascii());
    }

    /// An answer without its sum.
    fn answer(&mut self) -> Vec<u8> {
        let mut answer = Vec::new();
        self.stream.read_until(b'#', &mut answer).expect("an answer");
        answer.pop();
        let mut sum = [0; 2];
        std::io::Read::read_exact(&mut self.stream, &mut sum).expect("its sum");
        answer
    }
}
