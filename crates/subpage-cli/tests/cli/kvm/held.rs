//! Guests that rules or debuggers stop, as the program shows them.

use std::fs;
use std::process::{Command, Output, Stdio};

use iced_x86::code_asm::{bx, word_ptr};
use serde_json::Value;

use super::{CODE, DATA, POLICY, Place, Running, assemble, can_run, exit};

/// A store that a rule stops, and one behind it.
fn stopped() -> Vec<u8> {
    assemble(|code| {
        code.mov(bx, 7_u32)?;
        code.mov(word_ptr(DATA + 0x80), bx)?;
        code.mov(word_ptr(DATA + 0x800), bx)?;
        exit(code, 0)
    })
}

fn place() -> Place {
    let place = Place::new(&stopped());
    fs::write(place.path("policy.toml"), format!("{POLICY}action = \"stop\"\n")).expect("policy");
    place
}

/// Behind the store that is denied.
const BEHIND: u64 = CODE + 4 + 8;

fn rip(registers: &Value) -> u64 {
    let registers = registers["registers"].as_array().expect("a list");
    let rip = registers.iter().find(|register| register["name"] == "rip").expect("it has one");
    rip["value"].as_u64().expect("a number")
}

#[test]
fn a_stopped_guest_is_held_looked_at_and_let_go() {
    if !can_run() {
        return;
    }
    let place = place();
    let mut running = Running::start(&place, &["--on-stop", "wait"]);
    assert_eq!(running.next("denied")["verdict"], "stopped");
    let held = running.next("held");
    assert_eq!(held["message"], "the rule \"helper path\" has stopped processor 0");
    let shown = place.ask(&["show"]);
    assert_eq!((&shown["state"], &shown["held"]), (&"held".into(), &held["message"]));
    assert_eq!(rip(&place.ask(&["registers"])), BEHIND);
    assert_eq!(place.ask(&["read", "0x200080+2"])["bytes"], "0000", "it was denied");
    let stepped = place.ask(&["step"])["rip"].as_u64().expect("a number");
    assert!(stepped > BEHIND);
    assert_eq!(rip(&place.ask(&["registers"])), stepped);
    assert_eq!(place.ask(&["read", "0x200800+2"])["bytes"], "0700", "one more store");
    assert_eq!(place.ask(&["dump", "0x200000+4096", "dumped"])["dumped"], 4096);
    let dumped = fs::read(place.path("dumped")).expect("a file");
    assert_eq!((dumped.len(), &dumped[0x800..0x802]), (4096, &[7, 0][..]));
    assert_eq!(place.ctl(&["dump", "0x200000+1", "dumped"]).status.code(), Some(2));
    place.ask(&["resume"]);
    let (summary, status) = running.end();
    assert_eq!((&summary["rules"][0]["denied"], status), (&1.into(), Some(3)));
}

/// Also where a debugger has it: its attaching loses no stop.
#[test]
fn a_stopped_guest_is_saved_and_goes_on_behind_the_store() {
    if !can_run() {
        return;
    }
    let place = place();
    let mut running = Running::start(&place, &["--on-stop", "save=guest.state"]);
    assert_eq!(running.next("denied")["verdict"], "stopped");
    let (summary, status) = running.end();
    assert_eq!((&summary["ending"], status), (&"stopped".into(), Some(3)));
    let again = ["guard", "--json", "--restore", "guest.state", "--control", "socket"];
    let (summary, status) = Running::of(place.program(&again)).end();
    assert_eq!((&summary["ending"], status), (&"exited".into(), Some(0)), "{summary}");
}

fn gdb(address: &str, commands: &[&str]) -> Option<Output> {
    let start = ["set confirm off", "set architecture i386:x86-64"];
    let target = format!("target remote {address}");
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-nh", "-batch"]).env("HOME", "/nonexistent").stdin(Stdio::null());
    let lines = start.into_iter().chain([target.as_str()]).chain(commands.iter().copied());
    gdb.args(lines.flat_map(|line| ["-ex", line]));
    let output = gdb.output().ok();
    if output.is_none() {
        println!("skipped: there is no gdb");
    }
    output
}

fn said(output: &Output) -> String {
    let streams = [&output.stdout, &output.stderr];
    streams.map(|stream| String::from_utf8_lossy(stream).into_owned()).concat()
}

#[test]
fn gdb_has_the_guest_that_a_rule_has_stopped() {
    if !can_run() {
        return;
    }
    let place = place();
    let mut running = Running::start(&place, &["--on-stop", "gdb", "--gdb", "0"]);
    running.next("denied");
    let held = running.next("held");
    let address = held["gdb"].as_str().expect("where gdb is waited for");
    let Some(output) = gdb(address, &["print/x $rip", "set var *(short*)0x200080 = 9", "continue"])
    else {
        return;
    };
    let said = said(&output);
    assert!(said.contains(&format!("$1 = {BEHIND:#x}")), "{said}");
    assert!(said.contains("exited normally"), "{said}");
    assert_eq!(running.next("debugger")["message"], "a debugger is attached");
    let written = running.next("debugger");
    let write = &written["write"];
    assert_eq!((&write["gpa"], &write["bytes"]), (&"0x200080".into(), &"0900".into()), "{written}");
    assert_eq!((&write["length"], &write["rules"][0]), (&2.into(), &"helper path".into()));
    assert_eq!(rest(&mut running).last().expect("a line")["type"], "summary");
}

/// All lines that are still told.
fn rest(running: &mut Running) -> Vec<Value> {
    let lines = running.lines.by_ref().map(|line| line.expect("text"));
    lines.map(|line| serde_json::from_str(&line).expect("JSON")).collect()
}

#[test]
fn a_guest_waits_for_gdb_before_its_first_instruction() {
    if !can_run() {
        return;
    }
    let place = Place::new(&stopped());
    let mut running = Running::start(&place, &["--gdb", "./gdb"]);
    assert_eq!(place.ask(&["show"])["state"], "held");
    assert_eq!(place.ctl(&["gdb-end"]).status.code(), Some(2), "there is no debugger yet");
    let commands = ["print/x $rip", "watch *(short*)0x200800", "continue", "continue"];
    let Some(output) = gdb(place.path("gdb").to_str().expect("text"), &commands) else { return };
    let said = said(&output);
    assert!(said.contains(&format!("$1 = {CODE:#x}")), "{said}");
    assert!(said.contains("Old value = 0\nNew value = 7"), "{said}");
    assert!(said.contains("exited normally"), "{said}");
    let told = rest(&mut running);
    let has = |kind: &str, key: &str, value: &str| {
        told.iter().any(|line| line["type"] == kind && line[key] == value)
    };
    assert!(has("debugger", "message", "a debugger is attached"), "{told:?}");
    // Between the two stops, the store that the rule denies.
    assert!(has("denied", "verdict", "denied"), "{told:?}");
    assert_eq!(told.last().expect("a line")["type"], "summary");
}
