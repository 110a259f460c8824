//! `subpage top` against a server whose guest is made up, in a terminal and without one.

pub(crate) mod screen;

use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::Value;
use subpage_cli::schema::{SchemaChoice, schema};
use subpage_kvm::control::protocol::{
    HeatPage, HeatSubPage, NewRule, Refusal, Reply, Request, RuleRef, Shown, ShownMaps, ShownRule,
};
use subpage_kvm::control::{RequestHandler, Server};
use subpage_kvm::event::{Broadcast, Subscription};

use self::screen::Screen;
use crate::assert_golden;
use crate::ctl::record;
use crate::schema::all_known;

/// A guest that writes as often as it is asked, and remembers what it is asked for.
#[derive(Default)]
struct Made {
    looks: AtomicU64,
    asked: Mutex<Vec<Request>>,
    removed: Mutex<bool>,
    events: Broadcast,
}

impl Made {
    fn shown(&self) -> Shown {
        let writes = 1000 * self.looks.fetch_add(1, Ordering::SeqCst);
        let rule = |rule, name: &str, start, exits| ShownRule {
            rule,
            new: NewRule {
                name: name.to_owned(),
                start,
                length: 128,
                action: "deny".to_owned(),
                owner: 0,
                locked: false,
            },
            spent: false,
            waits_for: None,
            exits,
            exits_alone: 0,
            checked: 0,
            overruled: 0,
            logged: 0,
            denied: 3,
        };
        let mut rules = vec![rule(7, "helper \u{1b}path", 0x10_e180, writes)];
        if !*self.removed.lock().expect("no panic") {
            rules.push(rule(9, "vectors", 0x20_0000, 0));
        }
        Shown {
            state: "running".to_owned(),
            held: None,
            failure: None,
            cpus: 2,
            memory: 128 << 20,
            rules,
            access_maps: ShownMaps::default(),
            trackings: Vec::new(),
            trapped_pages: 2,
            writes,
        }
    }

    fn heat(&self) -> Reply {
        let writes = 1000 * self.looks.load(Ordering::SeqCst);
        let sub_pages = [(3, 3, 3), (16, writes, 0)]
            .map(|(sub_page, writes, denied)| HeatSubPage { sub_page, writes, denied })
            .to_vec();
        let hottest = vec![HeatPage { gfn: 0x10e, map: !0b1000, writes: writes + 3, sub_pages }];
        Reply::Heat { hottest, counted: 1, omitted: 0 }
    }
}

impl RequestHandler for Made {
    fn perform(&self, request: Request) -> Result<Reply, Refusal> {
        let reply = match &request {
            Request::Show => return Ok(Reply::Shown(Box::new(self.shown()))),
            Request::Heat { .. } => return Ok(self.heat()),
            Request::Arm { .. } => Err(Refusal::new("EPERM", "not \u{1b}this one")),
            Request::Remove { .. } => {
                *self.removed.lock().expect("no panic") = true;
                Ok(Reply::Done {})
            }
            _ => Ok(Reply::Done {}),
        };
        self.asked.lock().expect("no panic").push(request);
        reply
    }

    fn subscribe(&self) -> Subscription {
        let subscription = self.events.subscribe(10);
        for number in 1..=3 {
            self.events.publish(record(number).into());
        }
        subscription
    }
}

struct Place {
    made: Arc<Made>,
    server: Option<Server>,
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let made = Arc::new(Made::default());
        let handler: Arc<dyn RequestHandler> = made.clone();
        let server = Server::listen(&directory.path().join("socket"), handler).expect("a socket");
        Self { made, server: Some(server), directory }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_subpage"));
        command.arg("top").args(arguments).current_dir(&self.directory);
        command.env("NO_COLOR", "1").env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8");
        command.env("XDG_RUNTIME_DIR", self.directory.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().expect("the program starts")
    }

    fn screen(&self, columns: u16, lines: u16) -> Screen {
        Screen::start(&self.command(&["socket", "--interval", "0.1"]), columns, lines)
    }
}

#[test]
fn a_person_looks_and_acts_and_the_terminal_is_given_back() {
    let place = Place::new();
    let mut screen = place.screen(80, 24);
    let shown = screen.wait_for("▸ helper \\u{1b}p… deny");
    assert!(shown.contains("socket  running"), "{shown}");
    screen.wait_for("···×············");
    screen.wait_for("4 at 0x10e17d");
    // What becomes of a request is told whatever is frozen.
    screen.press("f");
    screen.wait_for("view frozen");
    screen.press("a");
    screen.wait_for("not \\u{1b}this one (EPERM)");
    screen.press("f");
    screen.wait_for("socket  running");
    // The second rule, which is asked about and goes.
    screen.press("\u{1b}[Bx");
    screen.wait_for("remove the rule vectors (number 9)?");
    screen.press("y");
    screen.wait_for("vectors is removed");
    let asked = std::mem::take(&mut *place.made.asked.lock().expect("no panic"));
    let [Request::Arm { rules }, Request::Remove { rule: RuleRef::Number(9) }] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!(rules[..], [RuleRef::Number(7)]);
    screen.resize(30, 8);
    screen.wait_until("one part", |shown| !shown.contains("Hottest") && shown.contains("Rules 1"));
    screen.press("\t");
    screen.wait_for("Hottest");
    // The terminal's session has no shell.
    screen.press("\u{1a}");
    screen.wait_for("no shell has started");
    screen.press("q");
    assert_eq!(screen.end().code(), Some(0));
}

#[test]
fn a_signal_ends_it_and_the_terminal_is_given_back() {
    let place = Place::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let screen = place.screen(80, 24);
        screen.wait_for("Rules 2");
        screen.signal(signal);
        assert_eq!(screen.end().signal(), Some(signal as i32), "as if it had not been caught");
    }
}

#[test]
fn a_guest_that_ends_can_still_be_looked_at() {
    let mut place = Place::new();
    let mut screen = place.screen(80, 24);
    screen.wait_for("Rules 2");
    place.server = None;
    screen.wait_for("the guest has ended");
    assert!(screen.text().contains("vectors"));
    screen.press("q");
    assert_eq!(screen.end().code(), Some(0));
}

/// One that sends what nobody can read, and then nothing.
#[test]
fn a_server_that_stalls_is_told_and_the_keys_work() {
    let place = Place::new();
    let listener = UnixListener::bind(place.directory.path().join("odd")).expect("a socket");
    thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
            // The first client is answered once.
            if kept.is_empty() {
                lines.next();
                let shown = serde_json::to_string(&Made::default().shown()).expect("JSON");
                let heat = r#"{"ok":true,"hottest":[],"counted":0,"omitted":0}"#;
                writeln!(&stream, "{{\"ok\":true,{}\n{heat}", &shown[1..]).expect("it reads");
            }
            kept.push(stream);
        }
    });
    let command = place.command(&["odd", "--timeout", "0.2", "--interval", "0.1"]);
    let mut screen = Screen::start(&command, 80, 24);
    screen.wait_for("silent for");
    screen.wait_for("has not answered within 0.2 s");
    screen.press("?");
    screen.wait_for("Keys");
    screen.press("q");
    assert_eq!(screen.end().code(), Some(0));
}

#[test]
fn where_nothing_can_be_drawn_it_says_what_to_do() {
    let place = Place::new();
    let told = |output: &Output| {
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let mut all = told(&place.run(&["socket"]));
    for (name, size) in [("dumb", 80), ("", 20)] {
        let mut command = place.command(&["socket"]);
        let screen = Screen::start(command.env("TERM", name), size, 24);
        let what = if name.is_empty() { "TERM is not set" } else { "(TERM=dumb)" };
        screen.wait_until(what, |shown| shown.replace('\n', "").contains(what));
        assert_eq!(screen.end().code(), Some(2), "{name}");
    }
    all += &told(&place.run(&["nowhere", "--once"]));
    all += &told(&place.run(&["--once"]));
    assert_golden("top/no-terminal.txt", &all);
}

#[test]
fn once_prints_what_there_is_to_see() {
    let place = Place::new();
    let output = place.run(&["socket", "--once", "--interval", "0.1"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(!text.contains('\u{1b}'), "{text:?}");
    // Rates are those of the machine.
    let steady: Vec<_> = text.lines().filter(|line| !line.contains("path  deny")).collect();
    for part in
        ["socket  running", "vectors", "0x10e000", "3 events", "by 0x401234", "hottest page"]
    {
        assert!(steady.iter().any(|line| line.contains(part)), "{part}: {text}");
    }
}

#[test]
fn programs_get_a_line_after_each_interval_until_the_guest_ends() {
    let mut place = Place::new();
    let mut command = place.command(&["socket", "--json", "--interval", "0.1"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let schema = schema(SchemaChoice::Events);
    let mut next = || {
        lines.next().map(|line| {
            let line: Value = serde_json::from_str(&line.expect("text")).expect("JSON");
            all_known(&schema, &line).expect("it fits its schema");
            line
        })
    };
    for _ in 0..2 {
        let line = next().expect("a line");
        assert_eq!((&line["type"], &line["state"]), (&"top".into(), &"running".into()));
        assert!(line["rules"][0]["exits_per_second"].as_f64().expect("a rate") > 0.0, "{line}");
        assert_eq!(line["pages"][0]["denied"][3], 3, "{line}");
    }
    place.server = None;
    let last = std::iter::from_fn(next).last().expect("a last line");
    assert_eq!(last["state"], "ended");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}
