//! Nobody reads what the program prints.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeReader, pipe};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Instant;

use iced_x86::code_asm::{al, dword_ptr, dx, ecx, word_ptr};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{DATA, LONGEST_WAIT, Place, assemble, can_run};

/// Lines that are more than a pipe holds.
const LINES: u64 = 1500;

/// Prints without end, and after each line writes a word that no rule guards.
fn talks() -> Vec<u8> {
    assemble(|code| {
        let (mut again, mut line) = (code.create_label(), code.create_label());
        code.mov(dx, 0x3f8)?;
        code.set_label(&mut again)?;
        code.mov(word_ptr(DATA + 0x800), 1)?;
        code.mov(ecx, 70)?;
        code.mov(al, u32::from(b'A'))?;
        code.set_label(&mut line)?;
        code.out(dx, al)?;
        code.dec(ecx)?;
        code.jne(line)?;
        code.mov(al, u32::from(b'\n'))?;
        code.out(dx, al)?;
        code.jmp(again)
    })
}

/// Makes a write that is denied, again and again.
fn attacks() -> Vec<u8> {
    assemble(|code| {
        let mut again = code.create_label();
        code.set_label(&mut again)?;
        code.mov(dword_ptr(DATA + 0x80), 1)?;
        code.jmp(again)
    })
}

/// The program, with a pipe as its standard output that nobody reads.
struct Stalled {
    child: Child,
    reader: PipeReader,
}

impl Stalled {
    fn start(place: &Place, more: &[&str]) -> Self {
        let (reader, writer) = pipe().expect("a pipe");
        let errors = File::create(place.path("errors")).expect("a file");
        let child = place.guard(more).stdout(writer).stderr(errors).spawn().expect("starts");
        let deadline = Instant::now() + LONGEST_WAIT;
        while !place.path("socket").exists() {
            assert!(Instant::now() < deadline, "no socket");
            thread::yield_now();
        }
        Self { child, reader }
    }

    /// Its status, though nobody reads.
    fn end(&mut self, place: &Place) -> Option<i32> {
        let deadline = Instant::now() + LONGEST_WAIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(std::time::Duration::from_millis(5));
        };
        assert!(!place.path("socket").exists(), "the socket goes with the guest");
        assert!(!place.path("socket.lock").exists(), "and its lock");
        status.code()
    }
}

/// A test that fails leaves no guest behind.
impl Drop for Stalled {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_time_limit_ends_it() {
    if !can_run() {
        return;
    }
    for (guest, more, status) in
        [(talks(), &[][..], 4), (attacks(), &["--json"], 3), (attacks(), &[], 3)]
    {
        let place = Place::new(&guest);
        let report = ["--timeout", "3", "--report", "report.html"];
        let mut stalled = Stalled::start(&place, &[&report[..], more].concat());
        assert_eq!(stalled.end(&place), Some(status));
        let page = fs::read_to_string(place.path("report.html")).expect("a report");
        assert!(page.contains("time limit reached"));
    }
}

#[test]
fn the_first_signal_ends_it() {
    if !can_run() {
        return;
    }
    for (guest, more, writes) in [(talks(), &[][..], LINES), (attacks(), &["--json"], 20_000)] {
        let place = Place::new(&guest);
        let mut stalled = Stalled::start(&place, more);
        place.wait_for_writes(writes);
        let process = i32::try_from(stalled.child.id()).expect("a process");
        kill(Pid::from_raw(process), Signal::SIGTERM).expect("it runs");
        assert!(matches!(stalled.end(&place), Some(0 | 3)));
    }
}

#[test]
fn requests_are_answered() {
    if !can_run() {
        return;
    }
    for (guest, more, writes) in [(talks(), &[][..], LINES), (attacks(), &["--json"], 20_000)] {
        let place = Place::new(&guest);
        let mut stalled = Stalled::start(&place, more);
        place.wait_for_writes(writes);
        let added = place.ask(&["add", "more", "0x300080+128"])["rule"].to_string();
        place.ask(&["remove", &added]);
        let track = place.ask(&["track", "0x201000+4096"])["track"].to_string();
        place.ask(&["untrack", &track]);
        place.ask(&["save", "guest.state"]);
        place.ask(&["stop"]);
        assert!(matches!(stalled.end(&place), Some(0 | 3)));
    }
}

/// Once somebody reads, every event is there, or is counted as lost where it is missing.
#[test]
fn what_is_lost_is_told() {
    if !can_run() {
        return;
    }
    let place = Place::new(&attacks());
    let mut stalled = Stalled::start(&place, &["--json"]);
    // More than wait for this program to print them.
    place.wait_for_writes(90_000);
    let reader = stalled.reader.try_clone().expect("descriptors are free");
    let reading = thread::spawn(move || {
        let (mut denied, mut lost, mut seq, mut summary) = (0, 0, 0, Value::Null);
        for line in BufReader::new(reader).lines() {
            let line: Value = serde_json::from_str(&line.expect("text")).expect("JSON");
            match line["type"].as_str() {
                Some("denied") => {
                    denied += 1;
                    seq += 1;
                    assert_eq!(line["seq"], seq);
                }
                Some("dropped") => {
                    let events = line["events"].as_u64().expect("a number");
                    lost += events;
                    seq += events;
                }
                Some("summary") => summary = line,
                other => assert_eq!(other, Some("start")),
            }
            if summary != Value::Null {
                break;
            }
        }
        (denied, lost, summary)
    });
    place.wait_for_writes(95_000);
    place.ask(&["stop"]);
    assert_eq!(stalled.end(&place), Some(3));
    let (denied, lost, summary) = reading.join().expect("no panic");
    assert!(lost > 0 && denied > 0, "{denied} {lost}");
    assert_eq!(summary["events_dropped"], lost);
    assert_eq!(summary["rules"][0]["denied"], denied + lost);
}

/// The guest continues, its end is told, and the report is written.
#[test]
fn a_full_disk_is_told() {
    if !can_run() {
        return;
    }
    let place = Place::new(&attacks());
    let full = File::options().write(true).open("/dev/full").expect("every Linux has it");
    let mut command = place.guard(&["--json", "--timeout", "0.5", "--report", "report.html"]);
    let output = command.stdout(full).stderr(Stdio::piped()).output().expect("starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("note: cannot write to standard output: No space left"), "{errors}");
    assert!(errors.contains("error: cannot write to standard output: No space left"), "{errors}");
    assert!(place.path("report.html").exists());
}
