//! A directory with a trace and a policy, and the program that is started in it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use subpage_trace::{Header, Name, NameKind, Names, TraceWriter, Write as TraceWrite};

use crate::assert_golden;

/// A directory with a small trace and a policy for it.
pub(crate) struct Place {
    directory: tempfile::TempDir,
}

pub(crate) const POLICY: &str =
    "version = 1\n\n[[rule]]\nname = \"helper path\"\nregion = \"helper_path\"\n";

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().expect("directory") };
        let name = |name: &str, start, length| Name {
            name: name.to_owned(),
            start,
            length,
            kind: NameKind::Object,
        };
        let names = Names::new([
            name("counters", 0x10_e000, 384),
            name("helper_path", 0x10_e180, 128),
            name("helper_args", 0x10_e280, 128),
        ]);
        let header = Header { command: vec!["./server".to_owned()], names, ..Header::default() };
        let file = fs::File::create(place.path("server.sptrace")).expect("file");
        let mut writer = TraceWriter::new(file, &header).expect("header");
        for index in 0..1000_u64 {
            let address = 0x10_e000 + index % 48 * 8;
            writer.write(TraceWrite { pc: 0x40_1000, address, size: 8 }).expect("write");
            if index % 100 == 42 {
                let address = 0x10_e17c + index / 100;
                writer.write(TraceWrite { pc: 0x40_1234, address, size: 4 }).expect("write");
            }
        }
        writer.finish().expect("end");
        fs::write(place.path("policy.toml"), POLICY).expect("policy");
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn policy(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("policy");
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_subpage"));
        command.args(arguments).current_dir(&self.directory).stdin(Stdio::null());
        // The caller's terminal has no part in this.
        for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS"] {
            command.env_remove(variable);
        }
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }
}

/// What a run printed and its status, with the measured time taken out.
pub(crate) fn shown(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    let mut text = String::new();
    for line in out.lines() {
        text += &without_time(line);
        text.push('\n');
    }
    text + &format!("--- stderr\n{err}--- status {}\n", status(output))
}

/// The line with the machine's name and the time of the start made the same for every run.
fn without_header(line: &str) -> String {
    [
        ("\"host\":", ",\"command\"", "\"HOST\""),
        ("\"started\":", ",\"guest\"", "\"2026-11-27T09:00:00.500000Z\""),
    ]
    .into_iter()
    .fold(line.to_owned(), |line, (before, after, instead)| {
        let cut = line.split_once(before).and_then(|(start, rest)| {
            let (_, end) = rest.split_once(after)?;
            Some(format!("{start}{before}{instead}{after}{end}"))
        });
        cut.unwrap_or(line)
    })
}

/// The line with `in 0.01 s;` or `"elapsed_seconds":0.01` made the same for every run.
fn without_time(line: &str) -> String {
    let line = &without_header(line);
    for (before, after) in [(" in ", " s; "), ("\"elapsed_seconds\":", "}")] {
        let cut = line.split_once(before).and_then(|(start, rest)| {
            let (time, end) = rest.split_once(after)?;
            time.parse::<f64>().ok()?;
            Some(format!("{start}{before}TIME{after}{end}"))
        });
        if let Some(cut) = cut {
            return cut;
        }
    }
    line.to_owned()
}

pub(crate) fn status(output: &Output) -> i32 {
    output.status.code().expect("not killed")
}

pub(crate) fn golden(name: &str, output: &Output) {
    assert_golden(&format!("commands/{name}.txt"), &shown(output));
}
