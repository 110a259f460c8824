//! Several clients at once.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Stdio};
use std::thread;

use iced_x86::code_asm::{ecx, word_ptr};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{DATA, Place, Running, assemble, can_run};

/// What each of the clients does, so often.
const ROUNDS: u64 = 15;

/// Writes a word of two pages again and again, with a pause in which others get their turn.
fn busy() -> Vec<u8> {
    assemble(|code| {
        let (mut again, mut pause) = (code.create_label(), code.create_label());
        code.set_label(&mut again)?;
        code.mov(word_ptr(DATA + 0x800), 1)?;
        code.mov(word_ptr(DATA + 0x1800), 1)?;
        code.mov(ecx, 500)?;
        code.set_label(&mut pause)?;
        code.pause()?;
        code.dec(ecx)?;
        code.jne(pause)?;
        code.jmp(again)
    })
}

/// A client that watches and has got an event.
struct Watcher {
    child: Child,
    first: Value,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watcher {
    fn new(place: &Place) -> Self {
        let mut command = place.program(&["ctl", "socket", "--json", "watch"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let first = lines.next().expect("an event").expect("text");
        let first = serde_json::from_str(&first).expect("JSON");
        Self { child, first, lines }
    }

    fn signal(&self, signal: Signal) {
        let process = i32::try_from(self.child.id()).expect("a process");
        kill(Pid::from_raw(process), signal).expect("it runs");
    }

    /// Reads to the end: every event is there, or is counted as lost where it is missing.
    fn finish(mut self) -> u64 {
        let number = |line: &Value, key: &str| line[key].as_u64().expect("a number");
        let (mut seq, mut events) = (number(&self.first, "seq"), 1);
        for line in &mut self.lines {
            let line: Value = serde_json::from_str(&line.expect("text")).expect("JSON");
            match line["type"].as_str() {
                Some("logged") => {
                    seq += 1;
                    events += 1;
                    assert_eq!(number(&line, "seq"), seq);
                }
                Some("dropped") => seq += number(&line, "events"),
                other => {
                    assert_eq!(other, Some("end"));
                    break;
                }
            }
        }
        assert!(self.lines.next().is_none(), "nothing follows the end");
        assert_eq!(self.child.wait().expect("ends").code(), Some(0));
        events
    }
}

/// Each sees what it has done itself, at once.
fn set_and_get(place: &Place, gfn: u64) {
    let gfn = format!("{:#x}", gfn * 4096);
    for round in 0..ROUNDS {
        let map = !(1_u32 << round);
        place.ask(&["set", &gfn, &format!("{map:08x}")]);
        assert_eq!(place.ask(&["get", &gfn])["maps"], Value::from([map]));
    }
    place.ask(&["set", &gfn, "ffffffff"]);
}

fn add_and_remove(place: &Place) {
    for round in 0..ROUNDS {
        let name = format!("round {round}");
        let added = place.ask(&["add", &name, "0x300080+128"]);
        assert_eq!(place.ask(&["get", "0x300000"])["maps"], Value::from([!(1_u32 << 1)]));
        place.ask(&["remove", &added["rule"].to_string()]);
        assert_eq!(place.ctl(&["remove", &name]).status.code(), Some(2), "it is gone");
    }
}

/// The guest writes sub-page 16 of its second page, and no other of it.
fn track_and_harvest(place: &Place) {
    for _ in 0..ROUNDS {
        let track = place.ask(&["track", "0x201000+4096"])["track"].to_string();
        let written = loop {
            let harvest = place.ask(&["harvest", &track]);
            if harvest["written"] != Value::Array(Vec::new()) {
                break harvest;
            }
        };
        let page = &written["written"][0];
        assert_eq!((&page["gfn"], &page["sub_pages"]), (&0x201.into(), &(1 << 16).into()));
        place.ask(&["untrack", &track]);
    }
}

#[test]
fn clients_do_not_disturb_each_other() {
    if !can_run() {
        return;
    }
    let place = Place::new(&busy());
    let mut running = Running::start(&place, &[]);
    place.ask(&["add", "word", "0x200800+2", "--action", "log"]);
    let [reads, mut dies, mut sleeps] = [(); 3].map(|()| Watcher::new(&place));
    dies.signal(Signal::SIGKILL);
    sleeps.signal(Signal::SIGSTOP);
    let lines = &mut running.lines;
    let summary = thread::scope(|scope| {
        // Somebody has to read what the program prints, or it waits.
        let printed = scope.spawn(|| lines.map(|line| line.expect("text")).last());
        let watched = scope.spawn(|| reads.finish());
        let clients = [
            scope.spawn(|| set_and_get(&place, 0x310)),
            scope.spawn(|| set_and_get(&place, 0x311)),
            scope.spawn(|| add_and_remove(&place)),
            scope.spawn(|| track_and_harvest(&place)),
        ];
        // What went wrong is told when the guest has ended, for which the others here wait.
        let clients = clients.map(thread::ScopedJoinHandle::join);
        let shown = place.ctl(&["show"]);
        place.ctl(&["stop"]);
        for client in clients {
            client.expect("the client does not fail");
        }
        let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
        let rules: Vec<_> = shown["rules"].as_array().expect("a list").iter().collect();
        let names: Vec<_> = rules.iter().map(|rule| rule["name"].as_str()).collect();
        assert_eq!(names, [Some("helper path"), Some("word")]);
        assert_eq!(shown["trackings"], Value::Array(Vec::new()));
        assert!(watched.join().expect("the watcher does not fail") > 1);
        printed.join().expect("no panic").expect("a summary")
    });
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    assert_eq!((&summary["type"], &summary["ending"]), (&"summary".into(), &"requested".into()));
    assert_eq!(running.child.wait().expect("ends").code(), Some(0));
    for watcher in [&mut dies, &mut sleeps] {
        let _ = watcher.child.kill();
        watcher.child.wait().expect("ends");
    }
}
