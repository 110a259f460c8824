//! The control socket, over real sockets, with a request handler that has no guest.

mod clients;
mod hostile;
mod stopping;
mod watching;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use subpage::address::{ByteRange, Gpa};
use subpage::rules::{Action, RuleId};
use subpage_guard::control::protocol::{
    Refusal, Reply, Request, Shown, ShownMaps, ShownRegister, ShownRegisters,
};
use subpage_guard::control::{Client, RequestHandler, Server};
use subpage_guard::event::{Broadcast, Subscription};
use subpage_trap::{Event, Record, Verdict};
use tempfile::TempDir;

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Does nothing but remember what it was asked for.
struct Fake {
    events: Broadcast,
    /// Events that wait for a watcher at most.
    capacity: usize,
    asked: Mutex<Vec<Request>>,
    /// `save` waits here twice: when it begins, and before it ends.
    save: Barrier,
}

impl RequestHandler for Fake {
    fn perform(&self, request: Request) -> Result<Reply, Refusal> {
        self.asked.lock().expect("no thread panics with it").push(request.clone());
        match request {
            Request::Show => Ok(Reply::Shown(Box::new(shown()))),
            Request::Heat { pages } => {
                Ok(Reply::Heat { hottest: Vec::new(), counted: pages.into(), omitted: 7 })
            }
            Request::Get { pages, .. } => {
                // More than 512, so that a reply can be large.
                Ok(Reply::Maps { maps: vec![u32::MAX; usize::try_from(pages).expect("64 bits")] })
            }
            Request::Save { .. } => {
                self.save.wait();
                self.save.wait();
                Ok(Reply::Saved { saved: 42 })
            }
            Request::Remove { .. } => Err(Refusal::new("EPERM", "rule 7 is locked")),
            Request::Watch => panic!("the server does this"),
            Request::Set { maps, .. } => {
                Ok(Reply::Pages { pages: u32::try_from(maps.len()).expect("a line is short") })
            }
            Request::Add(_) => Ok(Reply::Rule { rule: 1 }),
            Request::Track { .. } => Ok(Reply::Track { track: 1 }),
            Request::Harvest { .. } => Ok(Reply::Harvest { written: Vec::new() }),
            Request::Arm { rules } => Ok(Reply::Armed { armed: vec![rules.len() as u64] }),
            Request::Step { .. } => Ok(Reply::Stepped { rip: 0x1000 }),
            Request::Registers { cpu } => Ok(Reply::Registers(ShownRegisters {
                cpu,
                registers: vec![ShownRegister { name: "rip".to_owned(), value: 0x1000 }],
            })),
            Request::Read { .. } => Ok(Reply::Memory { bytes: "00ff".to_owned() }),
            Request::Gdb { address } => Ok(Reply::Gdb { gdb: address }),
            Request::Lock { .. }
            | Request::Untrack { .. }
            | Request::Pause
            | Request::Resume
            | Request::GdbEnd
            | Request::Stop => Ok(Reply::Done {}),
        }
    }

    fn subscribe(&self) -> Subscription {
        self.events.subscribe(self.capacity)
    }
}

fn shown() -> Shown {
    Shown {
        held: None,
        state: "running".to_owned(),
        failure: None,
        cpus: 1,
        memory: 1 << 21,
        rules: Vec::new(),
        access_maps: ShownMaps::default(),
        trackings: Vec::new(),
        trapped_pages: 0,
        writes: 0,
    }
}

/// A served socket in a directory of its own.
struct Served {
    server: Option<Server>,
    fake: Arc<Fake>,
    path: PathBuf,
    _directory: TempDir,
}

impl Served {
    fn new() -> Self {
        Self::with_capacity(1000)
    }

    fn with_capacity(capacity: usize) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("guest.sock");
        let fake = Arc::new(Fake {
            events: Broadcast::new(),
            capacity,
            asked: Mutex::default(),
            save: Barrier::new(2),
        });
        let handler: Arc<dyn RequestHandler> = Arc::<Fake>::clone(&fake);
        let server = Server::listen(&path, handler).expect("a fresh directory");
        assert_eq!(server.path(), path);
        Self { server: Some(server), fake, path, _directory: directory }
    }

    fn client(&self) -> Client {
        Client::connect(&self.path, PATIENCE).expect("the server listens")
    }

    fn raw(&self) -> Raw {
        Raw::new(UnixStream::connect(&self.path).expect("the server listens"))
    }

    fn asked(&self) -> Vec<Request> {
        self.fake.asked.lock().expect("no thread panics with it").clone()
    }

    fn publish(&self, seq: u64) {
        self.fake.events.publish(Arc::new(record(seq)));
    }

    /// Waits until so many clients watch.
    fn wait_for_watchers(&self, count: usize) {
        while self.fake.events.subscribers() != count {
            thread::yield_now();
        }
    }
}

/// A client that sends what it likes.
struct Raw {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Raw {
    fn new(stream: UnixStream) -> Self {
        let lines = BufReader::new(stream.try_clone().expect("descriptors are free"));
        Self { stream, lines }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    /// The next line, which has to be a JSON object.
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("the connection is there");
        assert!(line.ends_with('\n'), "half a line: {line:?}");
        let value: Value = serde_json::from_str(&line).expect("a line is JSON");
        assert!(value.is_object(), "{value}");
        value
    }

    fn ask(&mut self, line: &str) -> Value {
        self.send(line.as_bytes());
        self.send(b"\n");
        self.line()
    }

    fn end_of_input(&self) {
        self.stream.shutdown(Shutdown::Write).expect("it is connected");
    }

    /// Everything up to the end. A connection that is closed over bytes that nobody read is reset:
    /// that is an end too.
    fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.lines.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
        rest
    }
}

fn record(seq: u64) -> Record {
    let written = ByteRange::new(Gpa::new(0x2000), 64).expect("bytes");
    let event = Event {
        rule: Some(RuleId(1)),
        bytes: vec![0; 64],
        instruction: [0x90; 15].into(),
        ..Event::bare(Verdict::Logged, Action::Log, written)
    };
    Record { rule_name: Some("counter".to_owned()), ..Record::new(seq, seq, event) }
}
