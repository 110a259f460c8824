//! Two threads that speak with the guest's process, so that the view waits for nobody.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use subpage_kvm::control::protocol::{Reply, Request};
use subpage_kvm::control::{Client, ClientError};

use super::inbox::{Done, Inbox};
use super::model::{Heat, Link, Look, Tone};

/// Pages that are asked for: all that one answer may have.
const PAGES: u32 = 512;

/// Longest line of a server: 50,000 rules, say.
const MAX_LINE: usize = 32 << 20;

/// Requests of the person that may wait.
const QUEUE: usize = 4;

/// Until a connection that was lost is made again.
const AGAIN: Duration = Duration::from_secs(1);

/// The threads, and the way to them. They end with the process.
pub(super) struct Source {
    pub(super) inbox: Arc<Inbox>,
    asks: SyncSender<(Request, String)>,
}

/// A connection with bounded lines.
pub(super) fn connect(socket: &Path, patience: Duration) -> Result<Client, ClientError> {
    let mut client = Client::connect(socket, patience)?;
    client.limit_lines(MAX_LINE);
    Ok(client)
}

/// A look at the counts.
pub(super) fn look(client: &mut Client, began: Instant) -> Result<Look, ClientError> {
    let Reply::Shown(shown) = client.request(&Request::Show)? else {
        return Err(ClientError::Answer { reason: "it shows no state".to_owned() });
    };
    let heat = match client.request(&Request::Heat { pages: PAGES }) {
        Ok(Reply::Heat { hottest, counted, omitted }) => Some(Heat { hottest, counted, omitted }),
        // An older one.
        Err(ClientError::Refused(_)) => None,
        Ok(_) => return Err(ClientError::Answer { reason: "it has no heat".to_owned() }),
        Err(error) => return Err(error),
    };
    Ok(Look { at: began.elapsed(), shown, heat })
}

impl Source {
    /// Starts the threads. Times are since `began`.
    pub(super) fn start(
        socket: &Path,
        interval: Duration,
        patience: Duration,
        began: Instant,
    ) -> io::Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let (asks, asked) = sync_channel(QUEUE);
        let asker = Asker {
            socket: socket.to_owned(),
            interval,
            patience,
            began,
            inbox: Arc::clone(&inbox),
        };
        thread::Builder::new().name("top asks".to_owned()).spawn(move || asker.run(&asked))?;
        let (socket, events) = (socket.to_owned(), Arc::clone(&inbox));
        thread::Builder::new()
            .name("top watches".to_owned())
            .spawn(move || watch(&socket, patience, &events))?;
        Ok(Self { inbox, asks })
    }

    /// Has the guest's process asked something, and `done` said when it has done it.
    pub(super) fn ask(&self, request: Request, done: String) {
        let text = match self.asks.try_send((request, done)) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => "the guest's process has not answered yet: try again",
            Err(TrySendError::Disconnected(_)) => "the guest's process is there no more",
        };
        self.inbox.done(Done { text: text.to_owned(), tone: Tone::Bad });
    }
}

/// Asks for the counts, again and again, and for what the person wants.
struct Asker {
    socket: PathBuf,
    interval: Duration,
    patience: Duration,
    began: Instant,
    inbox: Arc<Inbox>,
}

impl Asker {
    fn run(&self, asked: &Receiver<(Request, String)>) {
        let mut client = None;
        // Whoever started this has had the first look.
        let mut next = Instant::now() + self.interval;
        loop {
            match asked.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok((request, done)) => {
                    self.perform(&mut client, &request, done);
                    // What it has changed is to be seen at once.
                    next = Instant::now();
                }
                Err(RecvTimeoutError::Timeout) => {
                    if !self.look(&mut client) {
                        return;
                    }
                    next = Instant::now() + self.interval;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn client<'a>(&self, client: &'a mut Option<Client>) -> Result<&'a mut Client, ClientError> {
        if client.is_none() {
            *client = Some(connect(&self.socket, self.patience)?);
        }
        Ok(client.as_mut().expect("just made"))
    }

    /// Whether it makes sense to go on.
    fn look(&self, client: &mut Option<Client>) -> bool {
        let looked = self.client(client).and_then(|client| look(client, self.began));
        match looked {
            Ok(look) => {
                self.inbox.look(look);
                true
            }
            Err(error) => {
                *client = None;
                let gone = is_gone(&error, &self.socket);
                let reason = error.to_string();
                self.inbox.link(if gone { Link::Gone(reason) } else { Link::Troubled(reason) });
                !gone
            }
        }
    }

    fn perform(&self, client: &mut Option<Client>, request: &Request, done: String) {
        let replied = self.client(client).and_then(|client| client.request(request));
        let done = match replied {
            Ok(Reply::Armed { armed }) if armed.is_empty() => {
                Done { text: "no rule waits for that".to_owned(), tone: Tone::Noted }
            }
            Ok(Reply::Stepped { rip }) => {
                Done { text: format!("{done}: at {rip:#x} now"), tone: Tone::Good }
            }
            Ok(_) => Done { text: done, tone: Tone::Good },
            Err(error) => {
                if !matches!(error, ClientError::Refused(_)) {
                    *client = None;
                }
                Done { text: error.to_string(), tone: Tone::Bad }
            }
        };
        self.inbox.done(done);
    }
}

/// Whether no process serves the socket any more.
fn is_gone(error: &ClientError, socket: &Path) -> bool {
    match error {
        ClientError::Connect { cause, .. } => {
            matches!(cause.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound)
        }
        ClientError::Closed | ClientError::Connection(_) => !socket.exists(),
        _ => false,
    }
}

/// Reads the events until the guest ends.
fn watch(socket: &Path, patience: Duration, inbox: &Inbox) {
    let mut is_told = false;
    loop {
        let watched = connect(socket, patience).and_then(Client::watch);
        let error = match watched {
            Err(error) => Some(error),
            Ok(lines) => read(lines, inbox),
        };
        let Some(error) = error else { return };
        if is_gone(&error, socket) {
            return;
        }
        // What is wrong with the connection the other thread tells. Its requests may be answered where
        // one more that watches is refused.
        if matches!(error, ClientError::Refused(_)) && !std::mem::replace(&mut is_told, true) {
            let text = format!("events are not told: {error}");
            inbox.done(Done { text, tone: Tone::Bad });
        }
        thread::sleep(AGAIN);
    }
}

/// Reads lines; an error if they end without the guest's end.
fn read(
    lines: impl Iterator<Item = Result<subpage_kvm::control::WatchLine, ClientError>>,
    inbox: &Inbox,
) -> Option<ClientError> {
    for line in lines {
        match line {
            Ok(line) => inbox.line(line),
            Err(error) => return Some(error),
        }
    }
    None
}
