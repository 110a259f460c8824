//! Guests on KVM, as the program is started. Skipped where KVM cannot be opened.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use iced_x86::code_asm::{
    CodeAssembler, IcedError, al, dword_ptr, dx, ecx, qword_ptr, rcx, word_ptr,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::assert_golden;

/// Where the guests are loaded.
const CODE: u64 = 0x10_0000;

/// A page with a counter at its start and, behind it, the bytes that the policy guards.
const DATA: u64 = 0x20_0000;

/// The same as the kernel's list of symbols would have it.
const LIST: &str = "ffffffff80100000 T _text\nffffffff80200080 D helper_path\n";

const POLICY: &str =
    "version = 1\n\n[[rule]]\nname = \"helper path\"\nregion = \"helper_path\"\nlength = 128\n";

/// Whether guests can run; says so if not.
fn can_run() -> bool {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &opened {
        println!("skipped: /dev/kvm does not open: {error}");
    }
    opened.is_ok()
}

fn assemble(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut code = CodeAssembler::new(64).expect("64 bits");
    write(&mut code).expect("instructions");
    code.assemble(CODE).expect("code")
}

/// Prints on the serial port.
fn print(code: &mut CodeAssembler, text: &str) -> Result<(), IcedError> {
    code.mov(dx, 0x3f8)?;
    for byte in text.bytes() {
        code.mov(al, u32::from(byte))?;
        code.out(dx, al)?;
    }
    Ok(())
}

/// Ends the guest with a status.
fn exit(code: &mut CodeAssembler, status: u32) -> Result<(), IcedError> {
    code.mov(dx, 0xf4)?;
    code.mov(al, status)?;
    code.out(dx, al)
}

/// Counts to a hundred beside the guarded bytes, then writes over them.
fn exploited() -> Vec<u8> {
    assemble(|code| {
        // Before the write: what comes behind it may overtake the event on its way to the screen.
        print(code, "counting\r\n\u{1b}[31mready\r\n")?;
        let mut again = code.create_label();
        code.mov(ecx, 100)?;
        code.set_label(&mut again)?;
        code.mov(qword_ptr(DATA), rcx)?;
        code.dec(ecx)?;
        code.jne(again)?;
        code.mov(dword_ptr(DATA + 0x80), 0x4141_4141)?;
        exit(code, 7)
    })
}

/// Runs for ever.
fn endless() -> Vec<u8> {
    assemble(|code| {
        let mut again = code.create_label();
        code.set_label(&mut again)?;
        code.pause()?;
        code.jmp(again)
    })
}

/// Writes a word that no rule guards, again and again.
fn harmless() -> Vec<u8> {
    assemble(|code| {
        let mut again = code.create_label();
        code.set_label(&mut again)?;
        code.mov(word_ptr(DATA + 0x800), 1)?;
        code.pause()?;
        code.jmp(again)
    })
}

/// A directory with a guest and a policy for it.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new(guest: &[u8]) -> Self {
        let place = Self { directory: tempfile::tempdir().expect("directory") };
        fs::write(place.path("guest"), guest).expect("guest");
        fs::write(place.path("policy.toml"), POLICY).expect("policy");
        fs::write(place.path("System.map"), LIST).expect("list");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_subpage"));
        command.args(arguments).current_dir(&self.directory).stdin(Stdio::null());
        command.env("NO_COLOR", "1").env("XDG_RUNTIME_DIR", self.directory.path());
        command
    }

    fn guard(&self, more: &[&str]) -> Command {
        let mut command = self.program(&["guard", "-p", "policy.toml", "--load-address"]);
        command.args(["0x100000", "--symbols", "System.map"]);
        if !more.contains(&"--control") {
            command.args(["--control", "socket"]);
        }
        command.args(more).arg("guest");
        command
    }

    fn run(&self, more: &[&str]) -> Output {
        self.guard(more).output().expect("the program starts")
    }

    fn ctl(&self, request: &[&str]) -> Output {
        let arguments = [&["ctl", "socket", "--json"], request].concat();
        self.program(&arguments).output().expect("the program starts")
    }
}

/// A guest that runs, with the lines that are told of it.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(place: &Place, more: &[&str]) -> Self {
        Self::of(place.guard(&[&["--json"], more].concat()))
    }

    fn of(mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let stdout = child.stdout.take().expect("piped");
        let mut running = Self { child, lines: BufReader::new(stdout).lines() };
        assert_eq!(running.next("start")["backend"], "kvm");
        running
    }

    /// The next line, which is of a type.
    fn next(&mut self, kind: &str) -> Value {
        let line = self.lines.next();
        let Some(line) = line else {
            let mut errors = String::new();
            let mut stderr = self.child.stderr.take().expect("piped");
            stderr.read_to_string(&mut errors).expect("text");
            panic!("no `{kind}`: {errors}");
        };
        let value: Value = serde_json::from_str(&line.expect("text")).expect("JSON");
        assert_eq!(value["type"], kind, "{value}");
        value
    }

    /// The summary and the exit status.
    fn end(mut self) -> (Value, Option<i32>) {
        let summary = self.next("summary");
        assert!(self.lines.next().is_none(), "the summary is the last line");
        (summary, self.child.wait().expect("ends").code())
    }
}

/// The text without what differs from run to run.
fn without_run(text: &str, place: &Place) -> String {
    let directory = place.directory.path().canonicalize().expect("directory");
    let text = text.replace(directory.to_str().expect("text"), "DIRECTORY");
    let text = text.replace(place.directory.path().to_str().expect("text"), "DIRECTORY");
    // Golden files have no carriage returns.
    let text = text.replace('\r', "");
    let lines = text.split('\n').map(|line| match line.split_once(" in ") {
        Some((before, after)) if line.contains("trapped writes") => {
            let after = after.split_once(" s; ").map_or(after, |(_, after)| after);
            format!("{before} in TIME s; {after}")
        }
        // Whether the program counter was told or found depends on the kernel.
        _ => line.replace("by ~", "by "),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_guest_is_guarded_and_its_console_is_seen() {
    if !can_run() {
        return;
    }
    let place = Place::new(&exploited());
    let output = place.run(&["--report", "report.html"]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_golden("kvm/exploited.txt", &without_run(&text, &place));
    assert_eq!(output.status.code(), Some(3));
    let page = fs::read_to_string(place.path("report.html")).expect("report");
    assert!(page.contains("The run ended: the guest has exited with 7"));
    assert!(!place.path("socket").exists(), "the socket goes with the guest");
}

#[test]
fn events_are_json_and_the_console_goes_elsewhere() {
    if !can_run() {
        return;
    }
    let place = Place::new(&exploited());
    let output = place.run(&["--json", "--trap", "view", "--metrics", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "counting\r\nready\r\n");
    let text = String::from_utf8(output.stdout).expect("text");
    let values: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let kinds: Vec<_> = values.iter().map(|value| value["type"].as_str().expect("text")).collect();
    assert_eq!(kinds, ["start", "denied", "summary"]);
    assert_eq!(values[0]["trap"], "view");
    assert!(values[0]["metrics"].as_str().expect("text").starts_with("http://127.0.0.1:"));
    assert_eq!(values[1]["gpa"], "0x200080");
    assert_eq!(values[1]["bytes"], "41414141");
    let summary = &values[2];
    assert_eq!((&summary["ending"], &summary["exit_code"]), (&"exited".into(), &7.into()));
    assert_eq!((&summary["writes"], &summary["exits_sub_page"]), (&101.into(), &1.into()));
    assert_eq!(summary["rules"][0]["first_denial"]["gpa"], "0x200080");
}

#[test]
fn a_guest_whose_time_is_up_ends_with_4() {
    if !can_run() {
        return;
    }
    let place = Place::new(&endless());
    let (summary, status) = Running::start(&place, &["--timeout", "0.1"]).end();
    assert_eq!((&summary["ending"], status), (&"timed_out".into(), Some(4)));
}

#[test]
fn a_signal_ends_the_guest_and_the_summary_is_printed() {
    if !can_run() {
        return;
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let place = Place::new(&endless());
        let running = Running::start(&place, &[]);
        let process = i32::try_from(running.child.id()).expect("a process");
        kill(Pid::from_raw(process), signal).expect("it runs");
        let (summary, status) = running.end();
        assert_eq!((&summary["ending"], status), (&"interrupted".into(), Some(0)));
    }
}

/// What is added over the socket is in force when the command returns, and in the summary.
#[test]
fn a_running_guest_is_asked_and_changed() {
    if !can_run() {
        return;
    }
    let place = Place::new(&harmless());
    let mut running = Running::start(&place, &[]);
    let shown: Value = serde_json::from_slice(&place.ctl(&["show"]).stdout).expect("JSON");
    assert_eq!(shown["state"], "running");
    assert_eq!(shown["rules"][0]["name"], "helper path");
    let add = ["add", "word", "0x200800+2", "--action", "allow-once"];
    let added: Value = serde_json::from_slice(&place.ctl(&add).stdout).expect("JSON");
    assert_eq!(added["ok"], true, "{added}");
    assert_eq!(running.next("allowed_once")["rule"], "word");
    assert_eq!(running.next("denied")["rule"], "word");
    assert_eq!(place.ctl(&["remove", "word"]).status.code(), Some(0));
    assert_eq!(place.ctl(&["remove", "word"]).status.code(), Some(2), "it is gone");
    assert_eq!(place.ctl(&["stop"]).status.code(), Some(0));
    // Denials that came meanwhile.
    let mut denied = 1;
    let summary = loop {
        let line = running.lines.next().expect("a summary").expect("text");
        let value: Value = serde_json::from_str(&line).expect("JSON");
        match value["type"].as_str() {
            Some("denied") => denied += 1,
            _ => break value,
        }
    };
    assert_eq!(summary["ending"], "requested");
    let rule = &summary["rules"][1];
    assert_eq!((&rule["name"], &rule["line"]), (&"word".into(), &Value::Null));
    let dropped = summary["events_dropped"].as_u64().expect("a number");
    assert_eq!(rule["denied"].as_u64(), Some(denied + dropped));
    assert_eq!(rule["logged"], 1);
    assert_eq!(running.child.wait().expect("ends").code(), Some(3));
}

/// A saved guest goes on where it was, under the rules that it had, those added meanwhile included.
#[test]
fn a_saved_guest_goes_on_under_its_rules() {
    if !can_run() {
        return;
    }
    let place = Place::new(&harmless());
    let running = Running::start(&place, &[]);
    let add = ["add", "nothing here", "0x200900+16", "--action", "stop", "--locked"];
    assert_eq!(place.ctl(&add).status.code(), Some(0));
    let saved = place.ctl(&["save", "guest.state"]);
    assert_eq!(saved.status.code(), Some(0), "{}", String::from_utf8_lossy(&saved.stdout));
    assert_eq!(place.ctl(&["stop"]).status.code(), Some(0));
    running.end();

    let arguments = ["guard", "--json", "--restore", "guest.state", "--control", "socket"];
    let again = Running::of(place.program(&arguments));
    let shown: Value = serde_json::from_slice(&place.ctl(&["show"]).stdout).expect("JSON");
    let rules: Vec<_> = shown["rules"].as_array().expect("a list").iter().collect();
    assert_eq!(rules.len(), 2);
    assert_eq!((&rules[1]["name"], &rules[1]["locked"]), (&"nothing here".into(), &true.into()));
    // The guest runs: it meets a rule that is added now.
    let add = ["add", "word", "0x200800+2", "--action", "stop"];
    assert_eq!(place.ctl(&add).status.code(), Some(0));
    let mut again = again;
    assert_eq!(again.next("denied")["verdict"], "stopped");
    let (summary, status) = again.end();
    assert_eq!((&summary["ending"], status), (&"stopped".into(), Some(3)));
    assert_eq!(summary["guest"], "guest.state");
    assert_eq!(summary["rules"].as_array().expect("a list").len(), 3);

    let mut bytes = fs::read(place.path("guest.state")).expect("the saved guest");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    for damaged in [&bytes[..], &bytes[..middle], b"no saved guest"] {
        fs::write(place.path("damaged"), damaged).expect("file");
        let output = place.program(&["guard", "--restore", "damaged"]).output().expect("starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains("damaged") && output.stdout.is_empty(), "{errors}");
    }
}

/// A triple fault: there is no table of exceptions.
#[test]
fn a_guest_that_fails_is_kept_if_that_is_wanted() {
    if !can_run() {
        return;
    }
    let failing = assemble(CodeAssembler::ud2);
    let place = Place::new(&failing);
    let (summary, status) = Running::start(&place, &[]).end();
    assert_eq!(status, Some(4), "{summary}");
    let failed = ["triple_fault", "failed"].map(Value::from);
    assert!(failed.contains(&summary["ending"]), "{summary}");

    let mut running = Running::start(&place, &["--on-failure", "wait"]);
    let told = running.next("failed");
    assert!(told["control"].as_str().expect("text").ends_with("/socket"));
    let shown: Value = serde_json::from_slice(&place.ctl(&["show"]).stdout).expect("JSON");
    assert_ne!(shown["state"], "running");
    assert_eq!(place.ctl(&["stop"]).status.code(), Some(0));
    let (again, status) = running.end();
    assert_eq!((&again["ending"], status), (&summary["ending"], Some(4)));
}

#[test]
fn bad_input_is_found_before_the_guest_starts() {
    if !can_run() {
        return;
    }
    let place = Place::new(&endless());
    fs::write(place.path("text"), "no socket").expect("file");
    let wrong = |more: &[&str], told: &str| {
        let output = place.run(more);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {errors}");
        assert!(errors.contains(told), "{more:?}: {errors}");
        assert!(output.stdout.is_empty(), "{more:?}");
    };
    wrong(&["--memory", "1M"], "guest memory of 1048576 bytes");
    wrong(&["--memory", "2M"], "the rule `helper path` (line 4 of policy.toml) guards 0x200080");
    wrong(&["--initrd", "missing"], "missing");
    wrong(&["--control", "text"], "exists and is no socket");
    let moved = LIST.replace("80100000 T", "a0100000 T");
    fs::write(place.path("System.map"), moved).expect("list");
    wrong(&[], "this guest is loaded at 0x100000");
    fs::write(place.path("System.map"), "ffffffff80100000 T _text\n").expect("list");
    wrong(&[], "there is no region `helper_path`");
    assert!(!place.path("socket").exists());
}
