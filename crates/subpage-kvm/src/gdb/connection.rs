//! The connection to a debugger: TCP or a Unix socket. What is sent waits until a packet is complete.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

/// How long a debugger may take for what is sent to it at once until it is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a debugger's machine may answer nothing at all.
const DEAD_AFTER: Duration = Duration::from_secs(60);

/// Most bytes that wait to be sent.
const MOST_WAITING: usize = 1 << 16;

/// Either kind of stream.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Ends the connection to a machine that is gone within [`DEAD_AFTER`] or so.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let seconds = u32::try_from(DEAD_AFTER.as_secs()).unwrap_or(u32::MAX);
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &(seconds / 2))?;
    setsockopt(stream, sockopt::TcpKeepInterval, &(seconds / 6))?;
    setsockopt(stream, sockopt::TcpKeepCount, &3)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &(seconds * 1000))?;
    Ok(())
}

impl Stream {
    fn set_timeouts(&self, read: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(read))
            }
            Self::Unix(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(read))
            }
        }
    }

    /// Writes all of it, in [`WRITE_TIMEOUT`] at most.
    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let deadline = Instant::now() + WRITE_TIMEOUT;
        while !bytes.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            let written = match self {
                Self::Tcp(stream) => {
                    stream.set_write_timeout(Some(left))?;
                    stream.write(bytes)
                }
                Self::Unix(stream) => {
                    stream.set_write_timeout(Some(left))?;
                    stream.write(bytes)
                }
            };
            match written {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Unix(stream) => stream.read(bytes),
        }
    }
}

/// A debugger's connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    waiting: Vec<u8>,
    timeout: Duration,
}

impl Connection {
    pub(super) fn new(stream: Stream) -> io::Result<Self> {
        if let Stream::Tcp(stream) = &stream {
            keep_alive(stream)?;
        }
        let timeout = Duration::from_millis(1);
        stream.set_timeouts(timeout)?;
        Ok(Self { stream, waiting: Vec::new(), timeout })
    }

    /// What has come, at most so much; none if nothing has for so long. An error at the end.
    pub(super) fn receive(
        &mut self,
        bytes: &mut [u8],
        at_most: Duration,
    ) -> io::Result<Option<usize>> {
        if at_most != self.timeout {
            self.stream.set_timeouts(at_most)?;
            self.timeout = at_most;
        }
        match self.stream.read(bytes) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => Ok(Some(count)),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// What a packet of the protocol with this text looks like.
fn packet(text: &str) -> String {
    let sum = text.bytes().fold(0_u8, u8::wrapping_add);
    format!("${text}#{sum:02x}")
}

impl Connection {
    /// Answers a packet that nobody has answered.
    pub(super) fn answer(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(format!("+{}", packet(text)).as_bytes())
    }

    /// Has a debugger that waits for the guest to stop show a line.
    pub(super) fn show(&mut self, line: &str) -> io::Result<()> {
        let digits = line.bytes().chain([b'\n']).map(|byte| format!("{byte:02x}"));
        let text: String = std::iter::once("O".to_owned()).chain(digits).collect();
        gdbstub::conn::Connection::flush(self)?;
        self.stream.write_all(packet(&text).as_bytes())
    }
}

impl gdbstub::conn::Connection for Connection {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.write_all(&[byte])
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() > MOST_WAITING { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.stream.write_all(&waiting)
    }
}
