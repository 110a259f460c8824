//! `subpage ctl` against a server whose guest is made up.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use subpage::address::{ByteRange, Gpa};
use subpage::rules::{Action, RuleId};
use subpage_kvm::control::protocol::{
    HeatPage, HeatSubPage, NewRule, Refusal, Reply, Request, RuleRef, Shown, ShownMap, ShownMaps,
    ShownRegister, ShownRegisters, ShownRule, ShownTracking, Written,
};
use subpage_kvm::control::{RequestHandler, Server};
use subpage_kvm::event::{Broadcast, Subscription};
use subpage_trap::{Event, Origin, Record, SourceLine, Task, Verdict};

use crate::assert_golden;

/// Answers each request, and remembers it.
struct Made {
    asked: Mutex<Vec<Request>>,
    events: Broadcast,
    /// The events that a new subscriber gets at once.
    first: Vec<Record>,
    capacity: usize,
}

fn rule(rule: u64, name: &str, locked: bool, spent: bool, denied: u64) -> ShownRule {
    let new = NewRule {
        name: name.to_owned(),
        start: 0x10_e180,
        length: 128,
        action: if spent { "allow-once" } else { "deny" }.to_owned(),
        owner: u32::from(spent),
        locked,
    };
    let waits_for = None;
    ShownRule {
        rule,
        new,
        spent,
        waits_for,
        exits: 31_000 + denied,
        exits_alone: 12,
        checked: 1200 + denied,
        overruled: 7,
        logged: 0,
        denied,
    }
}

fn shown() -> Shown {
    Shown {
        held: None,
        state: "failed".to_owned(),
        failure: Some("vcpu 0 at 0x401234: KVM cannot emulate 0f 01 \u{1b}[2J".to_owned()),
        cpus: 2,
        memory: 128 << 20,
        rules: vec![
            rule(1, "helper path", true, false, 9),
            rule(12, "a rule \u{1b}with a long name", false, true, 0),
        ],
        access_maps: ShownMaps {
            pages: 34,
            sub_pages: 40,
            first: vec![ShownMap { gfn: 0x20_0000, map: !0b1011 }],
        },
        trackings: vec![ShownTracking { track: 3, start: u64::MAX, length: u64::MAX }],
        trapped_pages: 1,
        writes: 1_209,
    }
}

fn heat() -> Reply {
    let sub_page = |(sub_page, writes, denied)| HeatSubPage { sub_page, writes, denied };
    let page = |gfn, map, writes, sub_pages: &[_]| {
        let sub_pages = sub_pages.iter().copied().map(sub_page).collect();
        HeatPage { gfn, map, writes, sub_pages }
    };
    let sub_pages = [(0, 9, 0), (3, 19, 19), (16, 1_234_567, 0), (31, 1, 0), (200, 1, 1)];
    let hottest =
        vec![page(0x10e, !0b1000, 1_234_576, &sub_pages), page(u64::MAX, !0, u64::MAX, &[])];
    Reply::Heat { hottest, counted: 3, omitted: 12 }
}

impl RequestHandler for Made {
    fn perform(&self, request: Request) -> Result<Reply, Refusal> {
        let reply = match &request {
            Request::Show => Reply::Shown(Box::new(shown())),
            Request::Heat { .. } => heat(),
            Request::Get { pages, .. } => Reply::Maps {
                maps: [!0, 0, !0b1011_1001].into_iter().cycle().take(*pages as usize).collect(),
            },
            Request::Set { maps, .. } => {
                Reply::Pages { pages: maps.len().try_into().expect("at most 512") }
            }
            Request::Add(_) => Reply::Rule { rule: 13 },
            Request::Track { .. } => Reply::Track { track: 3 },
            Request::Harvest { track: 4 } => Reply::Harvest { written: Vec::new() },
            Request::Harvest { .. } => Reply::Harvest {
                written: vec![
                    Written { gfn: 0x10e, sub_pages: 1 << 31 | 0b1110 },
                    Written { gfn: u64::MAX, sub_pages: !0 },
                ],
            },
            Request::Save { .. } => Reply::Saved { saved: 130 << 20 },
            Request::Remove { rule: RuleRef::Name(name) } => {
                let error = format!("the rule `{name}` is locked; nothing can loosen it");
                return Err(Refusal { code: "EPERM".to_owned(), error });
            }
            Request::Step { .. } => Reply::Stepped { rip: 0x1234 },
            Request::Registers { cpu } => Reply::Registers(ShownRegisters {
                cpu: *cpu,
                registers: [("rip", 0x1234), ("r8", 0)]
                    .map(|(name, value)| ShownRegister { name: name.to_owned(), value })
                    .to_vec(),
            }),
            Request::Read { .. } => Reply::Memory { bytes: "2f73620a".repeat(5) },
            Request::Gdb { .. } => Reply::Gdb { gdb: "127.0.0.1:1234".to_owned() },
            _ => Reply::Done {},
        };
        self.asked.lock().expect("no panic").push(request);
        Ok(reply)
    }

    fn subscribe(&self) -> Subscription {
        let subscription = self.events.subscribe(self.capacity);
        for event in &self.first {
            self.events.publish(event.clone().into());
        }
        subscription
    }
}

pub(crate) fn record(seq: u64) -> Record {
    let written = ByteRange::new(Gpa::new(0x10_e17d), 4).expect("four bytes");
    let (verdict, action) =
        if seq == 2 { (Verdict::Logged, Action::Log) } else { (Verdict::Denied, Action::Deny) };
    let event = Event {
        rule: (seq != 3).then_some(RuleId(7)),
        origin: Origin {
            vcpu: 1,
            rip: Some(0x40_1234),
            rip_exact: seq == 1,
            cr3: Some(0x1000),
            cpl: Some(3),
        },
        gla: Some(0xffff_8000_0010_e17d),
        at: Gpa::new(0x10_e180),
        bytes: vec![0, 0xab, b'a', 0xff],
        instruction: [0x89, 7].into_iter().collect(),
        ..Event::bare(verdict, action, written)
    };
    Record {
        rule_name: (seq != 3).then(|| "helper path".to_owned()),
        source: (seq == 1).then(|| SourceLine { file: "init/main.c".to_owned(), line: 7 }),
        call_trace: ["vfs_write+0xc7", "ksys_write+0x6b"]
            .iter()
            .filter(|_| seq == 1)
            .map(|text| text.parse().expect("a place"))
            .collect(),
        task: (seq == 1).then(|| Task { pid: 17, tid: 18, name: "sh".to_owned(), uid: Some(0) }),
        text: Some("mov [rdi],eax".to_owned()),
        ..Record::new(seq, 1_000 + seq, event)
    }
}

/// A served socket.
struct Place {
    made: Arc<Made>,
    /// Ends before its directory is removed.
    _server: Server,
    directory: tempfile::TempDir,
}

impl Place {
    fn new(first: Vec<Record>, capacity: usize) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let made = Made { asked: Mutex::default(), events: Broadcast::default(), first, capacity };
        let made = Arc::new(made);
        let handler: Arc<dyn RequestHandler> = made.clone();
        let server = Server::listen(&directory.path().join("socket"), handler).expect("a socket");
        Self { made, _server: server, directory }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_subpage"));
        command.arg("ctl").args(arguments).current_dir(&self.directory).stdin(Stdio::null());
        command.env("NO_COLOR", "1");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    fn asked(&self) -> Vec<Request> {
        std::mem::take(&mut self.made.asked.lock().expect("no panic"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

fn shown_output(output: &Output) -> String {
    format!(
        "{}--- stderr\n{}--- status {}\n",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        output.status.code().expect("not killed")
    )
}

const REQUESTS: [&[&str]; 23] = [
    &["show"],
    &["heat", "2"],
    &["get", "0x10e180"],
    &["get", "0x10e000", "3"],
    &["set", "0x10e000", "fffffff7", "0xFF"],
    &["add", "helper path", "0x10e180..0x10e200"],
    &["add", "x", "0x10e180+1", "--action", "allow-once", "--owner", "7", "--locked"],
    &["remove", "13"],
    &["remove", "helper \u{1b}path"],
    &["lock", "helper path"],
    &["track", "0x1000+4096"],
    &["harvest", "3"],
    &["harvest", "4"],
    &["untrack", "3"],
    &["save", "/nowhere/guest.save"],
    &["pause"],
    &["step", "1"],
    &["registers", "1"],
    &["read", "0x1000+20"],
    &["gdb", "1234"],
    &["gdb-end"],
    &["resume"],
    &["stop"],
];

#[test]
fn every_request_has_a_reply_for_people_and_for_programs() {
    let place = Place::new(Vec::new(), 1);
    for (name, json) in [("text", false), ("json", true)] {
        let mut all = String::new();
        for request in REQUESTS {
            let mut arguments = [&["socket"], request].concat();
            if json {
                arguments.push("--json");
            }
            let output = place.run(&arguments);
            let refused = request.starts_with(&["remove", "helper \u{1b}path"]);
            assert_eq!(output.status.code(), Some(if refused { 2 } else { 0 }), "{request:?}");
            let words = request.join(" ").replace('\u{1b}', "ESC");
            write!(all, "=== {words}\n{}", shown_output(&output)).expect("a string");
            if json {
                let text = String::from_utf8(output.stdout).expect("text");
                let value: serde_json::Value = serde_json::from_str(&text).expect("one object");
                assert_eq!(value["ok"], !refused, "{text}");
            }
        }
        assert!(!all.contains('\u{1b}'), "{all:?}");
        assert_golden(&format!("ctl/{name}.txt"), &all);
        let asked = place.asked();
        assert_eq!(asked.len(), REQUESTS.len() - 1);
        assert_eq!(asked[1], Request::Heat { pages: 2 });
        assert_eq!(asked[2], Request::Get { gfn: 0x10e, pages: 1 });
        assert_eq!(asked[4], Request::Set { gfn: 0x10e, maps: vec![0xffff_fff7, 0xff] });
        assert_eq!(
            asked[6],
            Request::Add(NewRule {
                name: "x".to_owned(),
                start: 0x10_e180,
                length: 1,
                action: "allow-once".to_owned(),
                owner: 7,
                locked: true,
            })
        );
        assert_eq!(asked[7], Request::Remove { rule: RuleRef::Number(13) });
        assert_eq!(asked[8], Request::Lock { rule: RuleRef::Name("helper path".to_owned()) });
    }
}

/// The guest's process may have another working directory.
#[test]
fn the_path_of_a_saved_guest_is_absolute() {
    let place = Place::new(Vec::new(), 1);
    assert_eq!(place.run(&["socket", "save", "guest.save"]).status.code(), Some(0));
    let path = place.path("guest.save").canonicalize();
    assert!(path.is_err(), "the made-up server writes nothing");
    let directory = place.directory.path().canonicalize().expect("directory");
    let [Request::Save { path }] = &place.asked()[..] else { panic!("one request") };
    assert!(path.ends_with("/guest.save") && path.starts_with('/'), "{path}");
    let parent = PathBuf::from(path).parent().expect("one").canonicalize().expect("there");
    assert_eq!(parent, directory);
}

#[test]
fn watching_prints_every_event_until_the_guest_ends() {
    for (name, json) in [("watch", false), ("watch-json", true)] {
        let place = Place::new((1..=3).map(record).collect(), 2);
        let mut arguments = vec!["socket", "watch"];
        if json {
            arguments.push("--json");
        }
        let mut command = place.command(&arguments);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut text = String::new();
        // Two events that the queue holds, and the news of the third: then the guest ends.
        for _ in 0..2 {
            text += &lines.next().expect("a line").expect("text");
            text.push('\n');
        }
        place.made.events.close();
        for line in lines {
            text += &line.expect("text");
            text.push('\n');
        }
        let output = child.wait_with_output().expect("ends");
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert_golden(&format!("ctl/{name}.txt"), &text);
    }
}

/// What is lost is told and does not count. The server has more to say and does not end.
#[test]
fn watching_ends_after_as_many_events_as_were_asked_for() {
    let place = Place::new(Vec::new(), 1);
    let event = |seq: u64, rule: &str, action: Action| {
        let mut record = record(seq);
        (record.rule_name, record.event.action) = (Some(rule.to_owned()), action);
        serde_json::to_string(&record.line()).expect("JSON")
    };
    let dropped = "{\"v\":1,\"type\":\"dropped\",\"events\":7}".to_owned();
    let lines = [
        event(1, "path", Action::Deny),
        event(2, "other", Action::Deny),
        dropped,
        event(3, "path", Action::Stop),
        event(4, "path", Action::Deny),
        event(5, "path", Action::Deny),
    ];
    let listener = UnixListener::bind(place.path("played")).expect("a socket");
    for (filter, printed) in [
        (&["--rule", "path", "--count", "2"][..], &[0, 2, 3][..]),
        (&["--action", "deny", "--count", "3"], &[0, 1, 2, 4]),
        (&["--rule", "path", "--action", "stop", "--count", "1"], &[2, 3]),
    ] {
        let mut command = place.command(&[&["played", "watch", "--json"], filter].concat());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let (mut client, _) = listener.accept().expect("a client");
        let mut request = String::new();
        let mut reader = BufReader::new(client.try_clone().expect("descriptors are free"));
        reader.read_line(&mut request).expect("a request");
        assert_eq!(request, "{\"op\":\"watch\"}\n");
        let all = lines.join("\n");
        // It may have gone before the last line.
        let _ = client.write_all(format!("{{\"ok\":true}}\n{all}\n").as_bytes());
        // One that does not end by itself reads all of them, and the end.
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("a time");
        let _ = reader.read_line(&mut request);
        drop((client, reader));
        let output = child.wait_with_output().expect("ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{filter:?}: {errors}");
        let text = String::from_utf8(output.stdout).expect("text");
        let printed: Vec<_> = printed.iter().map(|index: &usize| &lines[*index]).collect();
        assert_eq!(text.lines().collect::<Vec<_>>(), printed, "{filter:?}");
    }
}

#[test]
fn bad_input_ends_with_2() {
    let place = Place::new(Vec::new(), 1);
    let mut all = String::new();
    let cases: [&[&str]; 9] = [
        &["nowhere", "show"],
        &["nowhere", "show", "--json"],
        &["socket", "get", "0x10e000", "513"],
        &["socket", "get", "0x1000000000000"],
        &["socket", "set", "0x10e000", "1ffffffff"],
        &["socket", "add", "x", "0x2000..0x1000"],
        &["socket", "add", "x", "0x1000", "--action", "deny"],
        &["socket", "add", "x", "0x1000+1", "--action", "block"],
        &["socket", "harvest", "x"],
    ];
    for arguments in cases {
        let output = place.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let words = arguments.join(" ");
        write!(all, "=== {words}\n{}", shown_output(&output)).expect("a string");
    }
    assert_eq!(place.asked(), []);
    assert_golden("ctl/bad-input.txt", &all);
    assert_eq!(place.run(&["socket"]).status.code(), Some(2), "no request is named");
    assert_eq!(place.run(&["socket", "set", "1"]).status.code(), Some(2), "no map is given");
}

/// A process that is stopped does not keep those who ask it for ever.
#[test]
fn a_server_that_says_nothing_is_given_up() {
    let place = Place::new(Vec::new(), 1);
    let _silent = UnixListener::bind(place.path("silent")).expect("a socket");
    for request in ["show", "watch", "stop"] {
        let output = place.run(&["silent", "--timeout", "0.05", request]);
        assert_eq!(output.status.code(), Some(2), "{request}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("has not answered within 0.05 s"), "{text}");
    }
}

/// A reader that goes away ends `watch`, though the guest runs on.
#[test]
fn watching_ends_when_nobody_reads() {
    let place = Place::new((1..=3).map(record).collect(), 10);
    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    let mut command = place.command(&["socket", "watch"]);
    let output = command.stdout(writer).stderr(Stdio::piped()).output().expect("starts");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
