//! `subpage record` of programs: which tool records, and what is told.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::place::{Place, status};

/// Debian's Valgrind: a script that runs another file beside it.
const VALGRIND: [&str; 2] = ["/usr/bin/valgrind", "/usr/bin/valgrind.bin"];

/// Without a compiler lackey records, and that is said, in both forms.
#[test]
fn needs_valgrind_lackey_takes_the_place_of_the_tool_that_cannot_be_built() {
    let place = Place::new();
    let programs = place.path("programs");
    fs::create_dir(&programs).expect("a folder");
    for file in VALGRIND.map(Path::new).iter().filter(|file| file.exists()) {
        symlink(file, programs.join(file.file_name().expect("a name"))).expect("a link");
    }
    if !programs.join("valgrind").exists() {
        println!("skipped: Valgrind is not where Debian has it");
        return;
    }
    let record = |options: &[&str]| {
        let arguments = [&["record", "-o", "t.sptrace"], options, &["--", "/bin/true"]].concat();
        let mut command = place.command(&arguments);
        command.env("PATH", &programs).env("XDG_CACHE_HOME", place.path("cache"));
        let output = command.output().expect("it runs");
        let text = String::from_utf8(output.stderr.clone()).expect("UTF-8");
        (status(&output), text)
    };
    let (code, text) = record(&[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("note: recording with Valgrind's lackey"), "{text}");
    assert!(text.contains(", by lackey"), "{text}");
    let (code, text) = record(&["--json"]);
    assert_eq!(code, 0, "{text}");
    let line: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!((&line["type"], &line["tool"]), (&"recorded".into(), &"lackey".into()));
    assert!(line["tool_reason"].is_string() && line["whole"].is_null(), "{line}");
    assert!(line["writes"].as_u64().is_some_and(|writes| writes > 0), "{line}");
    for option in ["--tool=own", "--kernel-writes"] {
        let (code, text) = record(&[option]);
        assert_eq!(code, 2, "{option}: {text}");
        assert!(text.contains("own tool is needed and cannot be used"), "{text}");
    }
    let (code, text) = record(&["--tool=lackey"]);
    assert_eq!(code, 0, "{text}");
    assert!(!text.contains("note: recording with"), "it was asked for: {text}");
}

/// Where everybody of a group may write to new files, our own tool is built and used none the less.
#[test]
fn needs_valgrind_the_tool_is_nobody_elses_whatever_the_umask() {
    let place = Place::new();
    for _ in 0..2 {
        let inner = place.command(&["record", "--json", "-o", "t.sptrace", "--", "/bin/true"]);
        let mut command = Command::new("sh");
        command.args(["-c", r#"umask 002; exec "$0" "$@""#]).arg(inner.get_program());
        command.args(inner.get_args()).current_dir(inner.get_current_dir().expect("a folder"));
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let output = command.env("XDG_CACHE_HOME", place.path("cache")).output().expect("it runs");
        let text = String::from_utf8(output.stderr).expect("UTF-8");
        let line: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
        // Where it cannot be built, that has another reason.
        let reason = line["tool_reason"].as_str().unwrap_or_default();
        assert!(line["tool"] == "own" || !reason.is_empty(), "{line}");
        assert!(!reason.contains("others than this user"), "{line}");
    }
}

/// Without room for more, what was recorded is kept.
#[test]
fn a_full_disk_ends_the_trace_and_is_told() {
    use std::fmt::Write as _;

    let place = Place::new();
    let mut text = String::new();
    for number in 0..200_000_u64 {
        let address = (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20) & !7;
        write!(text, "I  0040{:04x},3\n S {address:x},8\n", number % 65_536).expect("memory");
    }
    fs::write(place.path("text"), text).expect("a file");
    // The signal would end it where the system has no room for more; 512 bytes each.
    let limited = "trap '' XFSZ; ulimit -f 400; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", limited, "sh", env!("CARGO_BIN_EXE_subpage"), "record", "--json"]);
    command.args(["--from-lackey", "text", "-o", "t.sptrace"]).current_dir(place.path("."));
    let output = command.output().expect("it runs");
    let told = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(status(&output), 4, "{told}");
    let line: Value = serde_json::from_str(told.lines().last().expect("a line")).expect("JSON");
    assert_eq!(line["full"], true);
    let writes = line["writes"].as_u64().expect("a number");
    assert!((16_384..200_000).contains(&writes), "{line}");
    let plan = place.run(&["plan", "--json", "t.sptrace"]);
    assert_eq!(status(&plan), 0, "{}", String::from_utf8_lossy(&plan.stderr));
    let plan = String::from_utf8(plan.stdout).expect("UTF-8");
    let plan: Value = serde_json::from_str(plan.lines().last().expect("a line")).expect("JSON");
    assert_eq!(plan["writes"], writes);
}
