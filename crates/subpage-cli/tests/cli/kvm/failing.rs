//! Guests that cannot continue.

use iced_x86::code_asm::{CodeAssembler, dword_ptr};
use serde_json::Value;

use super::{DATA, Place, Running, assemble, can_run, exit};

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
    let shown = place.ask(&["show"]);
    assert_eq!((&shown["state"], &shown["failure"]), (&"failed".into(), &told["message"]));
    place.ask(&["stop"]);
    let (again, status) = running.end();
    assert_eq!((&again["ending"], status), (&summary["ending"], Some(4)));
}

/// An instruction that some KVMs cannot emulate: everything can be asked and kept as it is then.
#[test]
fn an_emulation_failure_inside_kvm_can_be_looked_at() {
    if !can_run() {
        return;
    }
    let place = Place::new(&assemble(|code| {
        code.mov(dword_ptr(DATA + 0x100), 7)?;
        code.fld1()?;
        exit(code, 0)
    }));
    let mut running = Running::start(&place, &["--on-failure", "wait"]);
    let line = running.lines.next().expect("a line").expect("text");
    let told: Value = serde_json::from_str(&line).expect("JSON");
    if told["type"] == "summary" {
        assert_eq!(told["ending"], "exited");
        return println!("skipped: this KVM carries out `fld1`");
    }
    assert_eq!(told["type"], "failed");
    let message = told["message"].as_str().expect("text");
    for part in ["processor 0", "rip 0x10000b", "instruction d9 e8"] {
        assert!(message.contains(part), "{message}");
    }
    let shown = place.ask(&["show"]);
    assert_eq!((&shown["state"], &shown["failure"]), (&"failed".into(), &told["message"]));
    assert_eq!(place.ask(&["get", "0x200000"])["maps"], Value::from([!(1_u32 << 1)]));
    place.ask(&["add", "more", "0x200100+4"]);
    assert_eq!(place.ask(&["get", "0x200000"])["maps"], Value::from([!(0b11_u32 << 1)]));
    place.ask(&["save", "guest.state"]);
    place.ask(&["stop"]);
    let (summary, status) = running.end();
    assert_eq!(
        (&summary["ending"], &summary["ending_message"]),
        (&"failed".into(), &told["message"])
    );
    assert_eq!(status, Some(4));

    // What was saved is the guest before that instruction.
    let arguments = ["guard", "--json", "--restore", "guest.state", "--control", "socket"];
    let (again, status) = Running::of(place.program(&arguments)).end();
    assert_eq!((&again["ending_message"], status), (&told["message"], Some(4)));
    assert_eq!(again["rules"][1]["name"], "more");
}
