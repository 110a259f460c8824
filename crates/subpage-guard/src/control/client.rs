//! The other end: what `subpage ctl` does.

use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{SockFlag, UnixAddr, connect};
use serde_json::{Map, Value};

use super::connection::send_line;
use super::error::ClientError;
use super::lines::{Line, Lines};
use super::protocol::{Refusal, Reply, Request};
use super::socket::new_socket;

/// Longest line of a server, in bytes: enough for a harvest of 100 GiB of written pages.
const MAX_REPLY_BYTES: usize = 1 << 30;

/// Until a server whose queue of connections is full is tried again.
const RETRY: Duration = Duration::from_millis(10);

/// A connection to a guest's control socket.
#[derive(Debug)]
pub struct Client {
    lines: Lines<Patient>,
    patience: Duration,
}

impl Client {
    /// Connects to the socket at `path`. The server has `patience` to take the connection, and then
    /// for each answer.
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, ClientError> {
        let stream = connect_within(path, patience)?;
        let stream = Patient { stream, deadline: None };
        Ok(Self { lines: Lines::new(stream, MAX_REPLY_BYTES), patience })
    }

    /// Takes a line of the server that is longer than so many bytes for a fault, in place of 1 GiB.
    pub fn limit_lines(&mut self, bytes: usize) {
        self.lines.limit(bytes);
    }

    /// Sends a request and waits for its answer.
    ///
    /// After an error other than [`ClientError::Refused`] the connection is of no more use; neither
    /// is it after [`Request::Watch`], for which there is [`watch`](Self::watch).
    pub fn request(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.lines.input_mut().deadline = Instant::now().checked_add(self.patience);
        // A server that refuses the connection itself has said so and closed it: that is to be read,
        // although nothing can be written.
        let sent = self.send(request);
        let fields = match (sent, self.answer()) {
            (Err(cause), Err(ClientError::Closed)) => return Err(ClientError::Connection(cause)),
            (_, answer) => answer?,
        };
        request.reply(fields).map_err(|mistake| ClientError::Answer { reason: mistake.to_string() })
    }

    /// Every event from now on.
    pub fn watch(mut self) -> Result<Watch, ClientError> {
        self.request(&Request::Watch)?;
        // The next event may be hours away; that the process has ended is seen at once.
        self.lines.input_mut().deadline = None;
        Ok(Watch { lines: self.lines, ended: false })
    }

    fn send(&mut self, request: &Request) -> io::Result<()> {
        let stream = &self.lines.input_mut().stream;
        stream.set_write_timeout(Some(self.patience))?;
        send_line(stream, request)
    }

    /// The fields of the next answer.
    fn answer(&mut self) -> Result<Map<String, Value>, ClientError> {
        let mut fields = next_object(&mut self.lines, self.patience)?.1;
        match fields.remove("ok") {
            Some(Value::Bool(true)) => Ok(fields),
            Some(Value::Bool(false)) => {
                let refusal: Refusal = serde_json::from_value(Value::Object(fields))
                    .map_err(|mistake| ClientError::Answer { reason: mistake.to_string() })?;
                Err(ClientError::Refused(refusal))
            }
            _ => Err(ClientError::Answer { reason: "no `ok` in the answer".to_owned() }),
        }
    }
}

/// A line of a watched connection.
#[derive(Debug, Clone, PartialEq)]
pub struct WatchLine {
    /// As it came, without its end.
    pub text: String,
    /// What it says: an event (`docs/events.md`), `dropped` or `end`.
    pub object: Map<String, Value>,
}

/// The lines of a watched connection, up to and including the one of type `end`. An error is the last
/// item. Each waits for as long as it takes.
#[derive(Debug)]
pub struct Watch {
    lines: Lines<Patient>,
    ended: bool,
}

impl Iterator for Watch {
    type Item = Result<WatchLine, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = next_object(&mut self.lines, Duration::MAX)
            .map(|(text, object)| WatchLine { text, object });
        self.ended = match &next {
            Ok(line) => line.object.get("type").is_some_and(|kind| kind == "end"),
            Err(_) => true,
        };
        Some(next)
    }
}

/// A connection that is read up to a moment, however the bytes drip.
#[derive(Debug)]
struct Patient {
    stream: UnixStream,
    deadline: Option<Instant>,
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(left)?;
        self.stream.read(buffer)
    }
}

/// A connection, as soon as the server has room for one.
fn connect_within(path: &Path, patience: Duration) -> Result<UnixStream, ClientError> {
    let failed = |cause| ClientError::Connect { path: path.to_owned(), cause };
    let address = UnixAddr::new(path).map_err(|error| failed(error.into()))?;
    // One that blocks waits forever for a server that takes no connections.
    let socket = new_socket(SockFlag::SOCK_NONBLOCK).map_err(failed)?;
    let deadline = Instant::now().checked_add(patience);
    loop {
        match connect(socket.as_raw_fd(), &address) {
            Ok(()) => break,
            Err(Errno::EAGAIN) if deadline.is_some_and(|at| Instant::now() >= at) => {
                return Err(ClientError::Silent { patience });
            }
            Err(Errno::EAGAIN | Errno::EINTR) => thread::sleep(RETRY),
            Err(error) => return Err(failed(error.into())),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).map_err(failed)?;
    Ok(stream)
}

fn next_object(
    lines: &mut Lines<Patient>,
    patience: Duration,
) -> Result<(String, Map<String, Value>), ClientError> {
    let line = match lines.next() {
        Ok(Line::Whole(line)) => line,
        Ok(Line::TooLong) => {
            return Err(ClientError::Answer { reason: "it sent an endless line".to_owned() });
        }
        Ok(Line::End) => return Err(ClientError::Closed),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {
            return Err(ClientError::Closed);
        }
        // A read that runs into its timeout would block.
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {
            return Err(ClientError::Silent { patience });
        }
        Err(error) => return Err(ClientError::Connection(error)),
    };
    let text = String::from_utf8(line.to_vec())
        .map_err(|mistake| ClientError::Answer { reason: mistake.to_string() })?;
    let object = serde_json::from_str(&text)
        .map_err(|mistake| ClientError::Answer { reason: mistake.to_string() })?;
    Ok((text, object))
}
