//! One client: its requests one after the other, or the events.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use serde::Serialize;
use subpage_trap::{Armed, VERSION};

use super::MAX_LINE_BYTES;
use super::connections::{Activity, Place};
use super::lines::{Line, Lines};
use super::protocol::{Refusal, Reply, ReplyLine, Request};
use super::server::{GRACE, RequestHandler};
use crate::event::{Received, Subscription};

/// A client that was let in.
pub(super) struct Connection<'a> {
    pub(super) stream: Arc<UnixStream>,
    pub(super) place: Place<'a>,
    pub(super) handler: &'a dyn RequestHandler,
}

impl Connection<'_> {
    /// Serves the client until it goes, does not read, or the server stops.
    pub(super) fn serve(self) {
        // What fails here is the connection, and there is nobody left to tell.
        let _ = self.answer_all();
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn answer_all(&self) -> io::Result<()> {
        let mut lines = Lines::new(&*self.stream, MAX_LINE_BYTES);
        loop {
            let line = match lines.next()? {
                Line::Whole(line) => line,
                Line::TooLong => {
                    let error = format!("a line may have {MAX_LINE_BYTES} bytes, yours is longer");
                    send_refusal(&self.stream, &Refusal::new("EINVAL", error));
                    return Ok(());
                }
                Line::End => return Ok(()),
            };
            let answered = match Request::parse(line) {
                Ok(Request::Watch) => {
                    self.watch();
                    return Ok(());
                }
                Ok(request) => {
                    if !self.place.set(Activity::Performing) {
                        return Ok(());
                    }
                    self.handler.perform(request)
                }
                Err(refusal) => Err(refusal),
            };
            let goes_on = self.place.set(Activity::Talking);
            if !goes_on {
                self.stream.set_write_timeout(Some(GRACE))?;
            }
            match answered {
                Ok(reply) => send_line(&self.stream, &ReplyLine::done(reply))?,
                Err(refusal) => send_line(&self.stream, &ReplyLine::refused(refusal))?,
            }
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// Sends events until the client goes or there are no more. A second thread writes them: this one
    /// sees that the client has gone also while there is nothing to write.
    fn watch(&self) {
        let subscription = Arc::new(self.handler.subscribe());
        if !self.place.set(Activity::Watching(Arc::clone(&subscription))) {
            return;
        }
        thread::scope(|scope| {
            let writer = thread::Builder::new().name("control watch".to_owned());
            let spawned = writer.spawn_scoped(scope, || {
                let _ = send_events(&self.stream, &subscription);
                let _ = self.stream.shutdown(Shutdown::Both);
            });
            match spawned {
                Ok(_) => wait_for_hangup(&self.stream),
                Err(cause) => {
                    let error = format!("cannot start a thread for the events: {cause}");
                    send_refusal(&self.stream, &Refusal::new("ENOMEM", error));
                }
            }
            subscription.end();
        });
    }
}

/// Returns when the connection is closed, by the other end or by us. A client that only has nothing
/// more to say (it shut down its writing half, as with its standard input at an end) stays.
fn wait_for_hangup(stream: &UnixStream) {
    // POLLHUP needs not be asked for, and nothing else is of interest.
    let mut connection = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    while poll(&mut connection, PollTimeout::NONE) == Err(Errno::EINTR) {}
}

/// A line among the events that is none.
#[derive(Serialize)]
struct Note {
    v: u32,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<u64>,
}

impl Note {
    const fn new(kind: &'static str, events: Option<u64>) -> Self {
        Self { v: VERSION, r#type: kind, events }
    }
}

fn send_events(stream: &UnixStream, subscription: &Subscription) -> io::Result<()> {
    send_line(stream, &ReplyLine::done(Reply::Done {}))?;
    loop {
        match subscription.next(None) {
            Some(Received::Event(record)) => send_line(stream, &record.line())?,
            Some(Received::Armed(arming)) => send_line(stream, &Armed::from(&*arming).line())?,
            Some(Received::Dropped(events)) => {
                send_line(stream, &Note::new("dropped", Some(events)))?;
            }
            Some(Received::Closed) | None => {
                return send_line(stream, &Note::new("end", None));
            }
        }
    }
}

/// Tells a client no, if it can still be told.
pub(super) fn send_refusal(stream: &UnixStream, refusal: &Refusal) {
    let _ = send_line(stream, &ReplyLine::refused(refusal));
}

/// Writes an object and the end of a line. An error if the other end is gone, or does not read for as
/// long as the stream's write timeout says.
pub(super) fn send_line(stream: &UnixStream, object: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(object)?;
    line.push(b'\n');
    let mut left = line.as_slice();
    while !left.is_empty() {
        // A peer that is gone must be an error, not a signal, whatever the process does with SIGPIPE.
        match send(stream.as_raw_fd(), left, MsgFlags::MSG_NOSIGNAL) {
            Ok(sent) => left = left.get(sent..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
