//! Guests on KVM, as the program is started. Skipped where KVM cannot be opened.

mod arming;
mod bad_input;
mod clients;
mod failing;
mod fields;
mod held;
mod input;
mod killed;
mod later;
mod no_rules;
mod runs;
mod saving;
mod stalled;
mod top;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use iced_x86::code_asm::{CodeAssembler, IcedError, al, dx, word_ptr};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Where the guests are loaded.
const CODE: u64 = 0x10_0000;

/// A page with a counter at its start and, behind it, the bytes that the policy guards.
const DATA: u64 = 0x20_0000;

/// The same as the kernel's list of symbols would have it.
const LIST: &str = "ffffffff80100000 T _text\nffffffff80200080 D helper_path\n";

const POLICY: &str =
    "version = 1\n\n[[rule]]\nname = \"helper path\"\nregion = \"helper_path\"\nlength = 128\n";

/// Longer than anything takes that is waited for: what takes longer hangs.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

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

/// Runs forever.
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

    /// The answer to a request that is not refused.
    fn ask(&self, request: &[&str]) -> Value {
        let output = self.ctl(request);
        let answer = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{request:?}: {answer}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Writes that have trapped so far in a guest that runs.
    fn writes(&self) -> u64 {
        let shown = self.ask(&["show"]);
        assert_eq!(shown["state"], "running");
        shown["writes"].as_u64().expect("a number")
    }

    /// Waits until more writes than these have trapped.
    fn wait_for_writes(&self, more_than: u64) {
        let deadline = Instant::now() + LONGEST_WAIT;
        while self.writes() <= more_than {
            assert!(Instant::now() < deadline, "the guest does not continue");
        }
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

    fn signal(&self, signal: Signal) {
        let process = i32::try_from(self.child.id()).expect("a process");
        kill(Pid::from_raw(process), signal).expect("it runs");
    }

    /// The summary and the exit status.
    fn end(mut self) -> (Value, Option<i32>) {
        let summary = self.next("summary");
        assert!(self.lines.next().is_none(), "the summary is the last line");
        (summary, self.child.wait().expect("ends").code())
    }
}

/// A test that fails leaves no guest behind.
impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
