//! Starting the VMM with the library, and what came of it.

use std::io::{BufReader, Write as _};
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll as poll_for};
use subpage_guard::control::Client;
use subpage_guard::control::protocol::{NewRule, Reply, Request, RuleRef, Shown};

/// A rule.
#[derive(Clone, Copy)]
pub(crate) struct Rule {
    pub(crate) name: &'static str,
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) action: &'static str,
}

impl Rule {
    fn asked(&self) -> NewRule {
        NewRule {
            name: self.name.to_owned(),
            start: self.start,
            length: self.length,
            action: self.action.to_owned(),
            owner: 0,
            locked: false,
        }
    }
}

/// A VMM that runs.
pub(crate) struct Run {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    client: Client,
    _directory: tempfile::TempDir,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Ended {
    data: Vec<u8>,
    /// Writes that rules denied.
    pub(crate) denied: u64,
    /// What else the VMM found out.
    pub(crate) other: String,
}

impl Ended {
    pub(crate) fn byte(&self, at: usize) -> u8 {
        self.data[at]
    }

    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.data[range]
    }

    pub(crate) fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.data[at..at + 8].try_into().expect("eight bytes"))
    }
}

/// The library, as Cargo has built it beside this program.
pub(crate) fn library() -> PathBuf {
    let own = std::env::current_exe().expect("a program");
    let deps = own.parent().expect("a directory");
    let name = "libsubpage_interpose.so";
    let places = [deps.join(name), deps.parent().expect("a directory").join(name)];
    places.into_iter().find(|path| path.exists()).expect("the library was built with its tests")
}

/// A program with the library, and a configuration without rules.
pub(crate) fn preloaded(program: &str, arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().expect("a directory");
    let configuration = configure(directory.path(), &[], "judged");
    Command::new(program)
        .args(arguments)
        .env("LD_PRELOAD", library())
        .env("SUBPAGE_RUN", configuration)
        .output()
        .expect("a program")
}

pub(crate) fn configure(directory: &Path, rules: &[Rule], devices: &str) -> PathBuf {
    let path = directory.join("run.json");
    let rules: Vec<NewRule> = rules.iter().map(Rule::asked).collect();
    let text = serde_json::json!({
        "rules": rules,
        "devices": devices,
        "socket": directory.join("socket"),
    });
    std::fs::write(&path, text.to_string()).expect("a file");
    path
}

/// The VMM with a guest; none without KVM.
fn command(guest: &str, cpl: u8, memory: &str) -> Option<Command> {
    if let Err(error) = std::fs::File::open("/dev/kvm") {
        eprintln!("skipped: /dev/kvm cannot be opened: {error}");
        return None;
    }
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    command
        .args(["--exact", "vmm::child", "--ignored", "--nocapture"])
        .env("LD_PRELOAD", library())
        .envs([("VMM_GUEST", guest), ("VMM_CPL", &cpl.to_string()), ("VMM_MEMORY", memory)]);
    Some(command)
}

/// A VMM that the library ends: its status, and what was said; none without KVM.
pub(crate) fn refused(guest: &str) -> Option<(ExitStatus, String)> {
    let directory = tempfile::tempdir().expect("a directory");
    let output = command(guest, 3, "private")?
        .env("SUBPAGE_RUN", configure(directory.path(), &[], "judged"))
        .stdin(Stdio::null())
        .output()
        .expect("this program");
    Some((output.status, String::from_utf8_lossy(&output.stderr).into_owned()))
}

impl Run {
    /// Starts the VMM with a guest; none without KVM.
    pub(crate) fn start(
        guest: &str,
        cpl: u8,
        memory: &str,
        rules: &[Rule],
        devices: &str,
    ) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let mut child = command(guest, cpl, memory)?
            .env("SUBPAGE_RUN", configure(directory.path(), rules, devices))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
        let _ = until(&mut lines, "VMM ready");
        let client = Client::connect(&directory.path().join("socket"), Duration::from_secs(30));
        let client = client.expect("the library has made a socket");
        let mut run = Self { child, lines, client, _directory: directory };
        run.go_on();
        Some(run)
    }

    fn go_on(&mut self) {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        stdin.write_all(b"\n").expect("the VMM waits");
    }

    /// Adds and removes a rule again and again until the guest is done.
    pub(crate) fn toggle(&mut self, rule: &Rule) {
        let mut times = 0;
        // The guest is done when the VMM has said so; until then its lines are empty.
        while self.lines.buffer().is_empty() && !self.has_lines() {
            let added = self.client.request(&Request::Add(rule.asked()));
            let Ok(Reply::Rule { rule }) = added else { panic!("{added:?}") };
            std::thread::sleep(Duration::from_micros(150));
            let removed = self.client.request(&Request::Remove { rule: RuleRef::Number(rule) });
            assert!(removed.is_ok(), "{removed:?}");
            std::thread::sleep(Duration::from_micros(150));
            times += 1;
        }
        // How many, the load of this machine decides.
        assert!(times > 0, "the guest was done before the first change");
    }

    fn has_lines(&self) -> bool {
        let mut poll = [PollFd::new(self.lines.get_ref().as_fd(), PollFlags::POLLIN)];
        poll_for(&mut poll, PollTimeout::ZERO).expect("a pipe") != 0
    }

    /// Waits for the guest to be done.
    pub(crate) fn end(mut self) -> Ended {
        let other = until(&mut self.lines, "VMM other");
        let data = until(&mut self.lines, "VMM data");
        let digits = data.trim().as_bytes().chunks_exact(2);
        let data = digits.map(|digits| {
            let digits = std::str::from_utf8(digits).expect("digits");
            u8::from_str_radix(digits, 16).expect("digits")
        });
        let data = data.collect();
        let shown = self.show();
        self.go_on();
        let status = self.child.wait().expect("a process");
        assert!(status.success(), "{status}");
        let denied = shown.rules.iter().map(|rule| rule.denied).sum();
        Ended { data, denied, other: other.trim().to_owned() }
    }

    fn show(&mut self) -> Shown {
        match self.client.request(&Request::Show) {
            Ok(Reply::Shown(shown)) => *shown,
            other => panic!("{other:?}"),
        }
    }
}

/// The rest of the line that begins with these words.
fn until(lines: &mut impl std::io::BufRead, words: &str) -> String {
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        let read = lines.read_line(&mut line).expect("text");
        assert_ne!(read, 0, "the VMM has ended before `{words}`: {seen}");
        assert!(!line.contains("VMM failed"), "{seen}{line}");
        // The test harness may have begun the line.
        if let Some(at) = line.find(words) {
            return line[at + words.len()..].to_owned();
        }
        seen += &line;
    }
}
