//! The other end: what `subpage ctl` does.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Map, Value};

use super::connection::send_line;
use super::error::ClientError;
use super::lines::{Line, Lines};
use super::protocol::{Refusal, Reply, Request};

/// Longest line of a server, in bytes: enough for a harvest of 100 GiB of written pages.
const MAX_REPLY_BYTES: usize = 1 << 30;

/// A connection to a guest's control socket.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    lines: Lines<UnixStream>,
}

impl Client {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let connect = || {
            let stream = UnixStream::connect(path)?;
            Ok((stream.try_clone()?, stream))
        };
        let (reading, stream) =
            connect().map_err(|cause| ClientError::Connect { path: path.to_owned(), cause })?;
        Ok(Self { stream, lines: Lines::new(reading, MAX_REPLY_BYTES) })
    }

    /// Sends a request and waits for its answer, however long it takes.
    ///
    /// After an error other than [`ClientError::Refused`] the connection is of no more use; neither
    /// is it after [`Request::Watch`], for which there is [`watch`](Self::watch).
    pub fn request(&mut self, request: &Request) -> Result<Reply, ClientError> {
        // A server that refuses the connection itself has said so and closed it: that is to be read,
        // although nothing can be written.
        let sent = send_line(&self.stream, request);
        let fields = match (sent, self.answer()) {
            (Err(cause), Err(ClientError::Closed)) => return Err(ClientError::Connection(cause)),
            (_, answer) => answer?,
        };
        request.reply(fields).map_err(|mistake| ClientError::Answer { reason: mistake.to_string() })
    }

    /// Every event from now on.
    pub fn watch(mut self) -> Result<Watch, ClientError> {
        self.request(&Request::Watch)?;
        Ok(Watch { lines: self.lines, ended: false })
    }

    /// The fields of the next answer.
    fn answer(&mut self) -> Result<Map<String, Value>, ClientError> {
        let mut fields = next_object(&mut self.lines)?.1;
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
    lines: Lines<UnixStream>,
    ended: bool,
}

impl Iterator for Watch {
    type Item = Result<WatchLine, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = next_object(&mut self.lines).map(|(text, object)| WatchLine { text, object });
        self.ended = match &next {
            Ok(line) => line.object.get("type").is_some_and(|kind| kind == "end"),
            Err(_) => true,
        };
        Some(next)
    }
}

fn next_object(lines: &mut Lines<UnixStream>) -> Result<(String, Map<String, Value>), ClientError> {
    let line = match lines.next() {
        Ok(Line::Whole(line)) => line,
        Ok(Line::TooLong) => {
            return Err(ClientError::Answer { reason: "it sent an endless line".to_owned() });
        }
        Ok(Line::End) => return Err(ClientError::Closed),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            return Err(ClientError::Closed);
        }
        Err(error) => return Err(ClientError::Connection(error)),
    };
    let text = String::from_utf8(line.to_vec())
        .map_err(|mistake| ClientError::Answer { reason: mistake.to_string() })?;
    let object = serde_json::from_str(&text)
        .map_err(|mistake| ClientError::Answer { reason: mistake.to_string() })?;
    Ok((text, object))
}
