//! Rules that come into force while the guest runs, and how a panic of its kernel is told.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use iced_x86::code_asm::{al, byte_ptr, dx};
use subpage_kvm::control::Client;

use super::{DATA, Place, Running, assemble, can_run, endless, exit, print};

/// A policy whose rule waits for a moment.
fn waits_for(place: &Place, moment: &str) {
    let policy = format!("{}arm = \"{moment}\"\n", super::POLICY);
    fs::write(place.path("policy.toml"), policy).expect("policy");
}

/// Writes to guarded bytes before and after the port.
fn arming() -> Vec<u8> {
    assemble(|code| {
        code.mov(byte_ptr(DATA + 0x80), 1)?;
        code.mov(dx, 0xf5)?;
        code.out(dx, al)?;
        code.mov(byte_ptr(DATA + 0x81), 1)?;
        exit(code, 0)
    })
}

#[test]
fn a_write_of_the_guest_arms_rules_and_is_told() {
    if !can_run() {
        return;
    }
    let place = Place::new(&arming());
    waits_for(&place, "write");
    let mut running = Running::start(&place, &[]);
    assert_eq!(running.next("armed")["by"], "write");
    assert_eq!(running.next("denied")["gpa"], "0x200081");
    let (summary, status) = running.end();
    assert_eq!((&summary["rules"][0]["checked"], status), (&1.into(), Some(3)), "{summary}");
    assert_eq!(summary["warnings"], serde_json::json!([]));
}

#[test]
fn a_rule_that_never_armed_is_a_warning_and_strictly_an_error() {
    if !can_run() {
        return;
    }
    let place = Place::new(&arming());
    waits_for(&place, "command");
    let output = place.run(&[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("armed by `subpage ctl arm`"), "{text}");
    assert!(text.contains("the rule `helper path` never armed"), "{text}");
    assert_eq!(place.run(&["--strict"]).status.code(), Some(2));
    waits_for(&place, "start");
    assert_eq!(place.run(&[]).status.code(), Some(3), "it would have denied both");
}

#[test]
fn a_command_arms() {
    if !can_run() {
        return;
    }
    let place = Place::new(&endless());
    waits_for(&place, "command");
    let mut running = Running::start(&place, &[]);
    let rule = |place: &Place| place.ask(&["show"])["rules"][0].clone();
    assert_eq!(rule(&place)["waits_for"], "command");
    let mut watch = Client::connect(&place.path("socket"), super::LONGEST_WAIT)
        .expect("it listens")
        .watch()
        .expect("yes");
    assert_eq!(place.ask(&["arm"])["armed"], serde_json::json!([rule(&place)["rule"]]));
    assert_eq!(place.ask(&["arm", "helper path"])["armed"], serde_json::json!([]));
    assert_eq!(rule(&place)["waits_for"], serde_json::Value::Null);
    let armed = running.next("armed");
    assert_eq!((&armed["rules"][0], &armed["by"]), (&"helper path".into(), &"command".into()));
    let told = watch.next().expect("it goes on").expect("a line");
    assert_eq!(serde_json::Value::Object(told.object), armed, "to watchers as well");
    place.ask(&["stop"]);
    assert_eq!(running.end().1, Some(0));
}

#[test]
fn a_watch_for_a_rule_that_is_not_there_says_so() {
    if !can_run() {
        return;
    }
    let place = Place::new(&endless());
    let running = Running::start(&place, &[]);
    let mut command = place.program(&["ctl", "socket", "watch", "--rule", "nosuch"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let told = lines.next().expect("it says so before it waits").expect("text");
    assert!(told.contains("no rule has the name nosuch now"), "{told}");
    place.ask(&["stop"]);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    running.end();
}

#[test]
fn a_panic_is_told_with_the_last_lines_of_the_console() {
    if !can_run() {
        return;
    }
    let place = Place::new(&assemble(|code| {
        print(code, "[    1.5] Kernel panic - not syncing: why\r\nCall Trace:\r\n")?;
        code.mov(dx, 0xcf9)?;
        code.mov(al, 6)?;
        code.out(dx, al)?;
        code.hlt()
    }));
    let (summary, status) = Running::start(&place, &[]).end();
    assert_eq!((&summary["ending"], status), (&"panicked".into(), Some(4)), "{summary}");
    let console = ["[    1.5] Kernel panic - not syncing: why", "Call Trace:"];
    assert_eq!(summary["panic_console"], serde_json::json!(console));
    let output = place.run(&["--console", "none"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("Call Trace:"), "nobody has seen the console: {text}");
    let output = place.run(&["--quiet"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("the guest's kernel has panicked (why)"), "{text}");
    assert!(text.contains("Call Trace:"), "nobody has seen the console: {text}");
    let output = place.run(&[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.matches("Call Trace:").count(), 1, "on the console: {text}");
}
