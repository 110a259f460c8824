//! A small VMM that knows nothing of this library, with it and its guest's memory guarded.
//!
//! The VMM is this program once more (`vmm::child`), started with the library loaded before the C library.
//! It needs `/dev/kvm`; without it the tests say so and pass.

mod guest;
mod qemu;
mod run;
mod vmm;

use run::{Rule, Run};

/// A guarded quarter of a sub-page, in the middle of its page.
const SECRET: Rule =
    Rule { name: "secret", start: guest::DATA + 0x100, length: 32, action: "deny" };

/// Stores of the guest `stores` that it denies.
const DENIED: u64 = 4;

/// Other bytes of that page.
const TOGGLED: Rule =
    Rule { name: "toggled", start: guest::DATA + 0x800, length: 128, action: "deny" };

/// At both privilege levels, stores to guarded bytes have no effect, all others do.
#[test]
fn stores_of_the_guest() {
    for cpl in [0, 3] {
        for memory in ["private", "shared"] {
            let Some(run) = Run::start("stores", cpl, memory, &[SECRET], "judged") else { return };
            let ended = run.end();
            let context = format!("CPL {cpl}, {memory}: {ended:?}");
            assert_eq!(ended.byte(0xff), 0x11, "before the rule: {context}");
            assert_eq!(ended.byte(0x100), 0, "its first byte: {context}");
            assert_eq!(ended.byte(0x11f), 0, "its last byte: {context}");
            assert_eq!(ended.byte(0x120), 0x22, "behind it, in the same sub-page: {context}");
            assert_eq!(ended.byte(0x0f9), 0, "a store of which one byte is guarded: {context}");
            assert_eq!(ended.word(0xffc), 0x3333_3333_3333_3333, "across a page end: {context}");
            assert_eq!(ended.byte(0x140), 0x44, "a string: {context}");
            assert_eq!(ended.byte(0x15f), 0x44, "a string's end: {context}");
            assert_eq!(ended.word(0x180), 0x5555_5555_5555_5555, "vectors: {context}");
            assert_eq!(ended.denied, DENIED, "{context}");
        }
    }
}

/// Two processors count in a guarded page while rules come and go: not one count is lost.
#[test]
fn locked_counts_of_two_processors() {
    for cpl in [0, 3] {
        let Some(mut run) = Run::start("count", cpl, "private", &[], "judged") else { return };
        run.toggle(&TOGGLED);
        let ended = run.end();
        assert_eq!(ended.word(0), 2 * guest::COUNTS, "CPL {cpl}: {ended:?}");
    }
}

/// What the VMM copies and reads into guarded bytes is denied byte by byte, and the VMM goes on.
#[test]
fn devices() {
    for memory in ["private", "shared"] {
        let Some(run) = Run::start("device", 3, memory, &[SECRET], "judged") else { return };
        let ended = run.end();
        let context = format!("{memory}: {ended:?}");
        assert_eq!(ended.bytes(0xf0..0x100), [0x77; 16], "copied before: {context}");
        assert_eq!(ended.bytes(0x100..0x120), [0; 32], "guarded: {context}");
        assert_eq!(ended.bytes(0x120..0x140), [0x77; 32], "copied behind: {context}");
        assert_eq!(ended.bytes(0x140..0x180), [0x66; 64], "read from a file: {context}");
        assert_eq!(ended.bytes(0x1000..0x1010), [0x66; 16], "in the next page: {context}");
        assert_eq!(ended.bytes(0x400..0x440), [0x88; 64], "by a string instruction: {context}");
        assert!(ended.denied >= 2, "{context}");
    }
}

/// What a file is read into over two rules, of which the first of the policy lies behind: every byte that is
/// not guarded arrives.
#[test]
fn a_device_over_two_rules() {
    let rules = [TOGGLED, SECRET];
    let Some(run) = Run::start("page", 3, "private", &rules, "judged") else { return };
    let ended = run.end();
    for at in 0..0x1000 {
        let guarded = (0x100..0x120).contains(&at) || (0x800..0x880).contains(&at);
        assert_eq!(ended.byte(at), if guarded { 0 } else { 0x66 }, "byte {at:#x}");
    }
    assert_eq!(ended.denied, 2, "{ended:?}");
}

/// A device meets a rule that stops: no processor enters the guest again.
#[test]
fn a_stop_by_a_device() {
    let rule = Rule { action: "stop", ..SECRET };
    let Some(run) = Run::start("stop", 3, "private", &[rule], "judged") else { return };
    let ended = run.end();
    assert_eq!(ended.other, "stopped", "{ended:?}");
    assert_eq!((ended.byte(0x100), ended.byte(0x1000)), (0, 0), "{ended:?}");
}

/// Memory that a slot shows when rules are in force already, and that is mapped anew then.
#[test]
fn a_late_slot() {
    let Some(run) = Run::start("late", 3, "private", &[SECRET], "judged") else { return };
    let ended = run.end();
    assert_eq!(ended.other, "late 77", "{ended:?}");
}

/// Private memory that is a file's: what nobody has touched before the slot is made is there all the same.
#[test]
fn a_private_file() {
    let Some(run) = Run::start("stores", 3, "file", &[SECRET], "judged") else { return };
    let ended = run.end();
    assert_eq!(ended.bytes(0x1f00..0x1f10), [0x99; 16], "of the file: {ended:?}");
    assert_eq!((ended.byte(0x100), ended.byte(0x120)), (0x99, 0x22), "{ended:?}");
}

/// A machine that the VMM reaches by a copy of its descriptor.
#[test]
fn a_copied_descriptor() {
    let Some(run) = Run::start("cloned", 3, "private", &[SECRET], "judged") else { return };
    let ended = run.end();
    assert_eq!((ended.byte(0x100), ended.byte(0x120)), (0, 0x22), "{ended:?}");
}

/// A copy of a machine's descriptor that the library does not see being made: the VMM is ended.
#[test]
fn an_unknown_descriptor() {
    let Some((status, said)) = run::refused("unknown") else { return };
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("has not seen being made or copied"), "{said}");
}

/// Devices that are trusted write what they want; the guest does not.
#[test]
fn trusted_devices() {
    let Some(run) = Run::start("device", 3, "private", &[SECRET], "trusted") else { return };
    let ended = run.end();
    assert_eq!(ended.bytes(0x100..0x120), [0x66; 32], "{ended:?}");
    let Some(run) = Run::start("stores", 3, "private", &[SECRET], "trusted") else { return };
    let ended = run.end();
    assert_eq!(
        (ended.byte(0x100), ended.byte(0x120), ended.denied),
        (0, 0x22, DENIED),
        "{ended:?}"
    );
}

/// A page that was written here for the guest is in KVM's log.
#[test]
fn a_log_has_what_was_written_here() {
    let Some(run) = Run::start("log", 3, "private", &[SECRET], "judged") else { return };
    let ended = run.end();
    assert_eq!(ended.byte(0x120), 0x22, "{ended:?}");
    assert_eq!(ended.other, "logged 1 then 0", "{ended:?}");
}

/// Memory that a slot shows once more is guarded under both addresses.
#[test]
fn a_second_name() {
    let Some(run) = Run::start("alias", 3, "private", &[SECRET], "judged") else { return };
    let ended = run.end();
    assert_eq!((ended.byte(0x100), ended.byte(0x120)), (0, 0x22), "{ended:?}");
    assert_eq!(ended.denied, 1, "{ended:?}");
}

/// A program without a machine is as it was.
#[test]
fn a_program_without_a_machine() {
    let output = run::preloaded("/bin/echo", &["hello"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
