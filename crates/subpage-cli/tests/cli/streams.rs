//! Files and streams that a run reads and writes: what is not replaced, and what becomes of a run whose
//! output goes nowhere.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::place::{POLICY, Place, status};

/// A reader that goes away early is no crash, and the status is that of the whole run.
#[test]
fn a_closed_pipe_is_no_crash() {
    let place = Place::new();
    for arguments in [
        &["guard", "-p", "policy.toml", "server.sptrace", "--json"][..],
        &["completions", "bash"],
        &["check"],
        &["--help"],
    ] {
        let expected = status(&place.run(arguments));
        let (reader, writer) = std::io::pipe().expect("pipe");
        drop(reader);
        let mut command = place.command(arguments);
        let output = command.stdout(writer).stderr(Stdio::piped()).output().expect("starts");
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    }
}

/// A rename over a device would take it from every program of the machine.
#[test]
fn what_is_no_regular_file_is_not_replaced() {
    let place = Place::new();
    let _listener = UnixListener::bind(place.path("socket")).expect("socket");
    fs::write(place.path("text"), " S 601000,8\n").expect("text");
    for arguments in [
        &["record", "-o", "socket", "--from-lackey", "text"][..],
        &["guard", "-p", "policy.toml", "--report", "socket", "server.sptrace"],
    ] {
        let output = place.run(arguments);
        assert_eq!(status(&output), 2, "{arguments:?}");
        assert!(output.stdout.is_empty(), "found out before the run");
        assert!(String::from_utf8_lossy(&output.stderr).contains("name a regular file"));
        let kind = fs::metadata(place.path("socket")).expect("still there").file_type();
        assert!(kind.is_socket(), "{arguments:?}");
    }
}

/// What is read is not written, under whatever name; `-` is no name of a file.
#[test]
fn inputs_are_not_replaced() {
    let place = Place::new();
    std::os::unix::fs::symlink("policy.toml", place.path("symbolic")).expect("a link");
    fs::hard_link(place.path("server.sptrace"), place.path("hard")).expect("a link");
    fs::copy("/bin/true", place.path("program")).expect("a program");
    fs::write(place.path("text"), " S 10,4\n").expect("text");
    let before = |name: &str| fs::read(place.path(name)).expect("a file");
    let guard = ["guard", "-p", "policy.toml", "server.sptrace", "--report"];
    let compile = ["compile", "-p", "policy.toml", "-o"];
    for (arguments, name) in [
        (&[&guard[..], &["policy.toml"]].concat()[..], "policy.toml"),
        (&[&guard[..], &["symbolic"]].concat(), "policy.toml"),
        (&[&guard[..], &["./server.sptrace"]].concat(), "server.sptrace"),
        (&[&guard[..], &["hard"]].concat(), "server.sptrace"),
        (&[&compile[..], &["symbolic"]].concat(), "policy.toml"),
        (&["record", "-o", "text", "--from-lackey", "./text"], "text"),
        (&["record", "-o", "program", "--", "./program"], "program"),
    ] {
        let content = before(name);
        let output = place.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains("it is the same file as"), "{arguments:?}: {errors}");
        assert!(before(name) == content, "{arguments:?}: {name} was replaced");
    }
    for arguments in [
        &[&guard[..], &["-"]].concat()[..],
        &["record", "-o", "-", "--from-lackey", "text"],
        &["compile", "-p", "policy.toml", "-o", "-"],
        &["guard", "-p", "policy.toml", "--control", "-", "guest"],
        &["guard", "-p", "policy.toml", "--initrd", "-", "guest"],
        &["ctl", "-", "show"],
        &["ctl", "socket", "save", "-"],
        &["guard", "-p", "-", "-"],
    ] {
        let output = place.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains("standard"), "{arguments:?}: {errors}");
        assert!(!place.path("-").exists());
    }
}

/// Of two files that are written one would be lost, also where neither is there yet.
#[test]
fn outputs_are_files_of_their_own() {
    let place = Place::new();
    fs::write(place.path("program"), b"\x7fELF and no more").expect("file");
    fs::write(place.path("there"), "older").expect("file");
    fs::create_dir(place.path("folder")).expect("a folder");
    std::os::unix::fs::symlink("folder", place.path("way")).expect("a link");
    std::os::unix::fs::symlink("way/new", place.path("link")).expect("a link");
    fs::hard_link(place.path("there"), place.path("hard")).expect("a link");
    let guard = ["guard", "-p", "policy.toml", "program"];
    let refused = |place: &Place, files: &[&str], named: &str| {
        let mut command = place.command(&[&guard[..], files].concat());
        let stdout = fs::File::options().append(true).open(place.path("there")).expect("file");
        let output = command.stdout(stdout).stderr(Stdio::piped()).output().expect("starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{files:?}: {errors}");
        assert!(errors.contains(&format!("{named} name the same file")), "{files:?}: {errors}");
        assert_eq!(fs::read(place.path("there")).expect("it stays"), b"older");
        assert!(!place.path("folder/new").exists() && !place.path("same.out").exists());
    };
    let (report, console, control) = ("`--report`", "`--console`", "`--control`");
    for (files, named) in [
        (&["--console", "same.out", "--report", "same.out"][..], [report, console]),
        (&["--console", "./same.out", "--report", "folder/../same.out"], [report, console]),
        (&["--console", "link", "--report", "folder/new"], [report, console]),
        (&["--report", "same.out", "--control", "same.out"], [report, control]),
        (&["--console", "same.out", "--control", "same.out"], [console, control]),
        (&["--console", "hard"], [console, "standard output"]),
        (&["--report", "there"], [report, "standard output"]),
    ] {
        refused(&place, files, &named.join(" and "));
    }
    // What is read and not there yet is not made either.
    let output = place.run(&[&guard[..], &["--console", "new", "--initrd", "./new"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("it is the same file as ./new, which is read"), "{errors}");
    assert!(!place.path("new").exists());
}

#[test]
fn a_dash_is_standard_input() {
    let place = Place::new();
    let stdin = |name: &str| fs::File::open(place.path(name)).expect("a file");
    let whole = place.run(&["guard", "--json", "-p", "policy.toml", "server.sptrace"]);
    let lines = |output: &Output| String::from_utf8_lossy(&output.stdout).lines().count();
    for (arguments, name) in [
        (&["guard", "--json", "-p", "-", "server.sptrace"][..], "policy.toml"),
        (&["guard", "--json", "-p", "policy.toml", "-"], "server.sptrace"),
    ] {
        let output = place.command(arguments).stdin(stdin(name)).output().expect("starts");
        assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(lines(&output), lines(&whole));
    }
}

/// The work is done all the same, and the message says what is full.
#[test]
fn a_full_disk_is_an_error_and_the_report_is_written() {
    let place = Place::new();
    let arguments = ["guard", "-p", "policy.toml", "--report", "r.html", "server.sptrace"];
    for arguments in
        [&arguments[..], &["check"], &["--help"], &["--version"], &["plan", "server.sptrace"]]
    {
        let full = fs::File::options().write(true).open("/dev/full").expect("every Linux has it");
        let mut command = place.command(arguments);
        let output = command.stdout(full).stderr(Stdio::piped()).output().expect("starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.starts_with("error: cannot write to standard output: No space"), "{errors}");
    }
    assert!(fs::read_to_string(place.path("r.html")).expect("the report").contains("helper path"));
}

/// A trace has no guest that waits, so its output waits for its reader; a signal ends that.
#[test]
fn a_signal_ends_a_trace_that_nobody_reads() {
    use std::os::unix::process::ExitStatusExt;
    let place = Place::new();
    place.policy("log.toml", &POLICY.replace("helper_path\"", "counters\"\naction = \"log\""));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = place.command(&["guard", "--json", "-p", "log.toml", "server.sptrace"]);
    let mut child = command.stdout(writer).spawn().expect("starts");
    // The pipe is full when it holds what this gives it; 1,000 events are more.
    thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().expect("a child").is_none(), "it waits");
    kill(Pid::from_raw(child.id().try_into().expect("a process")), Signal::SIGTERM).expect("runs");
    assert_eq!(child.wait().expect("ends").signal(), Some(15));
    drop(reader);
}
