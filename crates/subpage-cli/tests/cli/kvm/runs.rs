//! Runs from start to end, and what is seen of them.

use std::fs;

use iced_x86::code_asm::{dword_ptr, ecx, qword_ptr, rcx};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{DATA, Place, Running, assemble, can_run, endless, exit, harmless, print};
use crate::assert_golden;

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
        // The last column is a rate.
        _ if line.starts_with("helper path ") && !line.contains(" deny ") => without_rate(line),
        // Whether the program counter was told or found depends on the kernel.
        _ => without_time(&line.replace("by ~", "by ")),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A row of the table of costs without the exits a second at its end.
fn without_rate(line: &str) -> String {
    let Some((before, rate)) = line.rsplit_once(' ') else { return line.to_owned() };
    assert!(rate.replace(',', "").parse::<f64>().is_ok_and(|rate| rate > 0.0), "{line}");
    format!("{}  RATE", before.trim_end())
}

/// An event's line without the time.
fn without_time(line: &str) -> String {
    let time = line.split_once("  after ");
    match time.and_then(|(before, after)| Some((before, after.split_once(" s  ")?.1))) {
        Some((before, after)) => format!("{before}  after TIME s  {after}"),
        None => line.to_owned(),
    }
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

/// In a file of its own the console has no marks; events and table are the same as ever.
#[test]
fn a_console_goes_where_it_is_sent() {
    if !can_run() {
        return;
    }
    let place = Place::new(&exploited());
    for (console, expected) in [("console.txt", Some("counting\nready\n")), ("none", None)] {
        let output = place.run(&["--console", console]);
        assert_eq!(output.status.code(), Some(3));
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(text.contains("denied") && !text.contains("guest|"), "{text}");
        assert!(!text.contains("counting") && output.stderr.is_empty(), "{text}");
        let console = fs::read_to_string(place.path(console)).ok();
        assert_eq!(console.as_deref(), expected);
    }
    let output = place.run(&["--console", "policy.toml"]);
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("cannot write the console policy.toml"), "{message}");
    assert!(fs::metadata(place.path("policy.toml")).expect("it is there").len() > 0);
}

/// What an earlier run has left goes when a guest starts, and not before.
#[test]
fn a_start_that_fails_leaves_the_console_of_the_last_run() {
    if !can_run() {
        return;
    }
    let place = Place::new(&exploited());
    let console = || fs::read_to_string(place.path("log.txt")).expect("it is there");
    let earlier = "an earlier run, which printed more than this one does\n";
    fs::write(place.path("log.txt"), earlier).expect("file");
    fs::write(place.path("text"), "no socket").expect("file");
    for wrong in [&["--memory", "1M"][..], &["--control", "text"], &["--input", "missing"]] {
        let output = place.run(&[&["--console", "log.txt"], wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert_eq!(console(), earlier, "{wrong:?}");
    }
    assert_eq!(place.run(&["--console", "log.txt"]).status.code(), Some(3));
    assert_eq!(console(), "counting\nready\n");
}

/// A guest that is saved over a file that is being written would take it away.
#[test]
fn a_saved_guest_does_not_replace_what_is_written() {
    if !can_run() {
        return;
    }
    let place = Place::new(&endless());
    let running = Running::start(&place, &["--console", "log.txt", "--report", "report.html"]);
    for file in ["log.txt", "report.html", "socket"] {
        let output = place.ctl(&["save", file]);
        assert_eq!(output.status.code(), Some(2), "{file}");
        let answer = String::from_utf8_lossy(&output.stdout);
        assert!(answer.contains("is the same file as"), "{answer}");
    }
    place.ask(&["stop"]);
    assert_eq!(running.end().1, Some(0));
}

/// Without a file for it the console is nowhere: it would be most of what is printed.
#[test]
fn a_quiet_run_prints_its_end_alone() {
    if !can_run() {
        return;
    }
    let place = Place::new(&exploited());
    for more in [&["-q"][..], &["--quiet", "--console", "console.txt"]] {
        let output = place.run(more);
        assert_eq!(output.status.code(), Some(3));
        let text = String::from_utf8(output.stdout).expect("text");
        assert_eq!(text, "the guest has exited with 7\n1 write denied\n");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
    let console = fs::read_to_string(place.path("console.txt")).expect("it was asked for");
    assert_eq!(console, "counting\nready\n");
}

#[test]
fn events_are_json_and_the_console_goes_elsewhere() {
    if !can_run() {
        return;
    }
    let place = Place::new(&exploited());
    // By its former name.
    let output = place.run(&["--json", "--trap", "view", "--metrics", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "guest| counting\nguest| ready\n");
    let text = String::from_utf8(output.stdout).expect("text");
    let values: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let kinds: Vec<_> = values.iter().map(|value| value["type"].as_str().expect("text")).collect();
    assert_eq!(kinds, ["start", "denied", "summary"]);
    assert_eq!(values[0]["trap"], "mprotect");
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
        running.signal(signal);
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
    let shown = place.ask(&["show"]);
    assert_eq!(shown["state"], "running");
    assert_eq!(shown["rules"][0]["name"], "helper path");
    place.ask(&["add", "word", "0x200800+2", "--action", "allow-once"]);
    assert_eq!(running.next("allowed_once")["rule"], "word");
    assert_eq!(running.next("denied")["rule"], "word");
    place.ask(&["remove", "word"]);
    assert_eq!(place.ctl(&["remove", "word"]).status.code(), Some(2), "it is gone");
    place.ask(&["stop"]);
    // Denials that came meanwhile.
    let mut denied = 1;
    let summary = loop {
        let line = running.lines.next().expect("a summary").expect("text");
        let value: Value = serde_json::from_str(&line).expect("JSON");
        match value["type"].as_str() {
            Some("denied") => denied += 1,
            Some("dropped") => {}
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

/// Functions and source lines are named where the guest's code is that of the file, and left out where
/// it is not.
#[test]
fn events_name_the_function_and_the_line_that_wrote() {
    if !can_run() {
        return;
    }
    let place = Place::new(&[]);
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/kernel/guest.elf");
    let image = fs::read(example).expect("the example");
    fs::write(place.path("guest"), &image).expect("guest");
    let policy = "version = 1\n[[rule]]\nname = \"path\"\nregion = \"modprobe_path\"\n";
    fs::write(place.path("policy.toml"), policy).expect("policy");
    // Another build: the instruction of the second denied write, at file offset 0x194, differs.
    let mut other = image;
    other[0x194] ^= 1;
    fs::write(place.path("other"), other).expect("symbols");
    let setrlimit = |offset: u64, line: &str| {
        [Value::from("setrlimit"), Value::from(offset), Value::from(line)]
    };
    let null = [const { Value::Null }; 3];
    for (symbols, second) in [("guest", setrlimit(0x24, "kernel.c:106")), ("other", null)] {
        let arguments = ["guard", "--json", "-p", "policy.toml", "--symbols", symbols, "guest"];
        let output = place.program(&arguments).output().expect("the program starts");
        assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        let lines = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        let denied: Vec<_> = lines
            .filter(|value: &Value| value["type"] == "denied")
            .map(|value| ["pc_symbol", "pc_offset", "source"].map(|key| value[key].clone()))
            .collect();
        assert_eq!(denied, [setrlimit(0x12, "kernel.c:105"), second], "{symbols}");
    }
    let arguments = ["guard", "-p", "policy.toml", "--report", "r.html", "guest"];
    let output = place.program(&arguments).output().expect("the program starts");
    let text = String::from_utf8(output.stdout).expect("text");
    let report = fs::read_to_string(place.path("r.html")).expect("a report");
    // What the first one would have stored, little-endian as in memory.
    let bytes = "2f 74 6d 70 2f 65 76 69 |/tmp/evi|";
    for shown in ["in setrlimit+0x12 at kernel.c:105", bytes] {
        assert!(text.contains(shown), "{shown}: {text}");
        assert!(report.contains(shown), "{shown}");
    }
}

/// Its own word for failure is one, where nothing was denied.
#[test]
fn a_guest_that_says_it_failed_ends_with_4() {
    if !can_run() {
        return;
    }
    for (code, expected) in [(7, 4), (0, 0)] {
        let place = Place::new(&assemble(|guest| exit(guest, code)));
        let (summary, status) = Running::start(&place, &[]).end();
        assert_eq!((&summary["exit_code"], status), (&code.into(), Some(expected)));
    }
}

/// By the place where its socket is made, and by the names of its memory.
#[test]
fn a_guest_is_found_and_asked_by_names() {
    if !can_run() {
        return;
    }
    let place = Place::new(&endless());
    let guard = ["guard", "-p", "policy.toml", "--load-address", "0x100000", "--json"];
    let guard = [&guard[..], &["--symbols", "System.map", "guest"]].concat();
    // Other guests of this user may run.
    let list = |arguments: &[&str]| {
        let output = place.program(&[&["ctl", "list"][..], arguments].concat()).output();
        let text = String::from_utf8(output.expect("starts").stdout).expect("text");
        let own = place.directory.path().to_str().expect("text");
        text.lines().filter(|line| line.contains(own)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(list(&[]), [""; 0]);
    let running = Running::of(place.program(&guard));
    let [found] = &list(&["--json"])[..] else { panic!("one guest") };
    let found: Value = serde_json::from_str(found).expect("JSON");
    assert_eq!(found["state"], "running");
    let socket = found["socket"].as_str().expect("a path");
    let [row] = &list(&[])[..] else { panic!("one guest") };
    assert!(row.starts_with(socket), "{row}");
    let ask = |request: &[&str]| {
        let names = ["ctl", socket, "--json", "--symbols", "System.map"];
        place.program(&[&names[..], request].concat()).output().expect("starts")
    };
    let maps: Value = serde_json::from_slice(&ask(&["get", "helper_path"]).stdout).expect("JSON");
    assert_eq!(maps["maps"], Value::from([!(1_u32 << 1)]));
    assert_eq!(ask(&["add", "more", "helper_path+0x80+128"]).status.code(), Some(0));
    let maps: Value = serde_json::from_slice(&ask(&["get", "0x200000"]).stdout).expect("JSON");
    assert_eq!(maps["maps"], Value::from([!(0b11_u32 << 1)]));
    for wrong in [&["set", "helper_path", "ffffffff"][..], &["track", "helper_pth+0+8"]] {
        assert_eq!(ask(wrong).status.code(), Some(2), "{wrong:?}");
    }
    assert_eq!(ask(&["stop"]).status.code(), Some(0));
    drop(running);
    let output = place.program(&["ctl", "socket"]).output().expect("starts");
    assert_eq!(output.status.code(), Some(2), "nothing is asked");
}
