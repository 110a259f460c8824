//! `subpage ctl list`, where the servers are played.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::Value;
use subpage_cli::schema::{SchemaChoice, schema};
use subpage_kvm::control::protocol::{Refusal, Reply, Request, Shown, ShownMaps};
use subpage_kvm::control::{RequestHandler, Server};
use subpage_kvm::event::{Broadcast, Subscription};

use crate::schema::all_known;

/// Longer than it takes to ask: what takes longer waits for something that does not come.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Guests that answer when all of them have been asked.
struct Guests {
    asked: Mutex<usize>,
    one_more: Condvar,
    count: usize,
}

impl Guests {
    fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { asked: Mutex::new(0), one_more: Condvar::new(), count })
    }
}

impl RequestHandler for Guests {
    fn perform(&self, request: Request) -> Result<Reply, Refusal> {
        assert_eq!(request, Request::Show);
        let mut asked = self.asked.lock().expect("no panic");
        *asked += 1;
        self.one_more.notify_all();
        let waiting = |asked: &mut usize| *asked < self.count;
        drop(self.one_more.wait_timeout_while(asked, LONGEST_WAIT, waiting).expect("no panic"));
        Ok(Reply::Shown(Box::new(Shown {
            held: None,
            state: "run\u{1b}ning".to_owned(),
            failure: None,
            cpus: 2,
            memory: 128 << 20,
            rules: Vec::new(),
            trackings: Vec::new(),
            access_maps: ShownMaps::default(),
            trapped_pages: 0,
            writes: 1234,
        })))
    }

    fn subscribe(&self) -> Subscription {
        Broadcast::default().subscribe(1)
    }
}

/// A directory for the sockets of a user.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("directory"));
        std::fs::create_dir(place.sockets()).expect("directory");
        place
    }

    fn sockets(&self) -> PathBuf {
        self.0.path().join("subpage")
    }

    fn serve(&self, name: &str, guests: &Arc<Guests>) -> Server {
        let handler: Arc<dyn RequestHandler> = guests.clone();
        Server::listen(&self.sockets().join(name), handler).expect("a socket")
    }

    fn list(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_subpage"));
        command.args(["ctl", "list"]).args(arguments).stdin(Stdio::null());
        command.env("NO_COLOR", "1").env("XDG_RUNTIME_DIR", self.0.path());
        let output = command.output().expect("starts");
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// The lines of the guests here: others of this user may run.
    fn lines(&self, arguments: &[&str]) -> Vec<String> {
        let text = String::from_utf8(self.list(arguments).stdout).expect("text");
        let directory = self.sockets();
        let here = |line: &&str| line.contains(directory.to_str().expect("text"));
        let name = |line: &str| line.replace(directory.to_str().expect("text"), "DIRECTORY");
        text.lines().filter(here).map(name).collect()
    }
}

/// A process that is stopped is one that runs: its socket takes connections.
#[test]
fn a_guest_that_does_not_answer_is_listed() {
    let place = Place::new();
    let guests = Guests::new(1);
    let _server = place.serve("1.sock", &guests);
    let _silent = UnixListener::bind(place.sockets().join("2.sock")).expect("a socket");
    drop(UnixListener::bind(place.sockets().join("3.sock")).expect("a socket that is left"));
    let words = |line: &String| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let rows: Vec<_> = place.lines(&["--timeout", "0.5"]).iter().map(words).collect();
    assert_eq!(
        rows,
        [
            "DIRECTORY/1.sock run\\u{1b}ning 2 128 MiB 0 1,234",
            "DIRECTORY/2.sock does not answer – – – –"
        ]
    );
    let lines = place.lines(&["--timeout", "0.5", "--json"]);
    let values: Vec<Value> =
        lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let control = schema(SchemaChoice::Control);
    for (value, socket) in values.iter().zip(["DIRECTORY/1.sock", "DIRECTORY/2.sock"]) {
        assert_eq!((&value["v"], &value["type"]), (&1.into(), &"guest".into()));
        assert_eq!(value["socket"], socket);
        assert!(all_known(&control, value).is_some(), "{value}");
    }
    let [answers, silent] = &values[..] else { panic!("{values:?}") };
    assert_eq!((&answers["state"], &answers["error"]), (&"run\u{1b}ning".into(), &Value::Null));
    assert_eq!(silent["state"], Value::Null);
    let error = silent["error"].as_str().expect("a reason");
    assert!(error.contains("has not answered within 0.5 s"), "{error}");
}

/// None waits for another: each here answers when all have been asked.
#[test]
fn guests_are_asked_at_the_same_time() {
    let place = Place::new();
    let guests = Guests::new(5);
    let servers: Vec<_> =
        (1..=5).map(|number| place.serve(&format!("{number}.sock"), &guests)).collect();
    let rows = place.lines(&["--timeout", "5"]);
    assert_eq!(rows.len(), servers.len());
    assert!(rows.iter().all(|row| row.contains("ning")), "{rows:?}");
}
