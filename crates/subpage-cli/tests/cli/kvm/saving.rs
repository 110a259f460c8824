//! Saving a guest, and going on with it.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::process::Command;

use iced_x86::code_asm::{al, dword_ptr, dx, eax, ecx, qword_ptr, rax, rcx};

use super::super::linux::made;
use super::{DATA, Place, Running, assemble, can_run, harmless};

/// Writes after which a guest is saved.
const SAVED: u16 = 1000;

/// Counts in guarded memory and in a register until it receives a byte. Then it writes over the
/// guarded bytes, and exits with 0 if both counts agree, are at least [`SAVED`], and the bytes are as
/// they were, else with 1.
fn counting() -> Vec<u8> {
    assemble(|code| {
        let mut again = code.create_label();
        code.xor(ecx, ecx)?;
        code.set_label(&mut again)?;
        code.inc(qword_ptr(DATA))?;
        code.inc(rcx)?;
        code.mov(dx, 0x3fd)?;
        code.in_(al, dx)?;
        code.test(al, 1)?;
        code.je(again)?;
        code.mov(dword_ptr(DATA + 0x80), 0x4141_4141)?;
        code.xor(rcx, qword_ptr(DATA))?;
        code.or(ecx, dword_ptr(DATA + 0x80))?;
        // All ones if the guest began anew when it was to continue.
        code.mov(rax, qword_ptr(DATA))?;
        code.cmp(rax, i32::from(SAVED))?;
        code.sbb(eax, eax)?;
        code.or(ecx, eax)?;
        code.setne(al)?;
        code.mov(dx, 0xf4)?;
        code.out(dx, al)
    })
}

/// Between two writes of a loop, and under either way to trap; the byte that ends the loop comes only
/// to the one that continues.
/// What the guest was started with is not replaced, whatever it is called.
#[test]
fn a_saved_guest_replaces_no_input() {
    if !can_run() {
        return;
    }
    let place = Place::new(&super::endless());
    let running = Running::start(&place, &[]);
    fs::hard_link(place.path("policy.toml"), place.path("link")).expect("a link");
    for name in ["guest", "policy.toml", "System.map", "link"] {
        let before = fs::read(place.path(name)).expect("a file");
        let output = place.ctl(&["save", name]);
        let answer = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(2), "{answer}");
        assert!(answer.contains("is the same file as"), "{answer}");
        assert_eq!(fs::read(place.path(name)).expect("a file"), before);
    }
    place.ask(&["stop"]);
    assert_eq!(running.end().1, Some(0));
}

/// Names of another guest would be wrong.
#[test]
fn a_restored_guest_takes_names_from_nothing_but_its_own_kernel() {
    if !can_run() {
        return;
    }
    let place = Place::new(&super::endless());
    let running = Running::start(&place, &[]);
    place.ask(&["save", "guest.state"]);
    place.ask(&["stop"]);
    assert_eq!(running.end().1, Some(0));
    let kernel = made::vmlinux(&made::symbols(true), made::DEBIAN_6_1);
    fs::write(place.path("vmlinux"), kernel).expect("a kernel");
    for (file, message) in [
        ("System.map", "neither the image of a Linux kernel nor an ELF file"),
        ("vmlinux", "(6.1.0-test) is not the one in the saved guest's memory"),
    ] {
        let output = place
            .program(&["guard", "--restore", "guest.state", "--symbols", file, "--timeout", "1"])
            .output()
            .expect("the program starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(message), "{errors}");
    }
}

#[test]
fn a_guest_saved_in_mid_flight_loses_no_write() {
    if !can_run() {
        return;
    }
    for (saved_under, goes_on_under) in [("slots", "mprotect"), ("mprotect", "slots")] {
        let place = Place::new(&counting());
        fs::write(place.path("byte"), "x").expect("file");
        let running = Running::start(&place, &["--trap", saved_under]);
        place.wait_for_writes(SAVED.into());
        place.ask(&["save", "guest.state"]);
        let saved_at = place.writes();
        place.wait_for_writes(saved_at);
        place.ask(&["stop"]);
        let (summary, status) = running.end();
        assert_eq!((&summary["ending"], status), (&"requested".into(), Some(0)));

        let arguments = [
            "guard",
            "--json",
            "--restore",
            "guest.state",
            "--trap",
            goes_on_under,
            "--input",
            "byte",
        ];
        let mut again = Running::of(place.program(&arguments));
        let denied = again.next("denied");
        assert_eq!((&denied["rule"], &denied["gpa"]), (&"helper path".into(), &"0x200080".into()));
        let (summary, status) = again.end();
        assert_eq!((&summary["exit_code"], status), (&0.into(), Some(3)), "{summary}");
    }
}

/// Also after many failed saves the older file is what it was.
#[test]
fn a_full_disk_during_save_costs_nothing() {
    if !can_run() {
        return;
    }
    let place = Place::new(&harmless());
    let full = place.path("full");
    fs::create_dir(&full).expect("directory");
    // Only this guest's process sees the small disk, so nothing has to be unmounted.
    let mount = "mount -t tmpfs -o size=1m tmpfs full && exec \"$0\" \"$@\"";
    let inside = |program: &Command| {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", mount]).arg(program.get_program());
        command.args(program.get_args()).current_dir(place.directory.path());
        for (key, value) in program.get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        command
    };
    match inside(&Command::new("true")).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let errors = String::from_utf8_lossy(&output.stderr);
            return println!("skipped: no small disk can be had: {}", errors.trim());
        }
        Err(error) => return println!("skipped: `unshare` cannot be started: {error}"),
    }
    let running = Running::of(inside(&place.guard(&["--json"])));
    place.ask(&["save", "full/guest.state"]);
    let seen = |name: &str| {
        let root = format!("/proc/{}/root", running.child.id());
        format!("{root}{}", full.join(name).display())
    };
    let whole = fs::read(seen("guest.state")).expect("the saved guest");
    let mut filler = File::create(seen("filler")).expect("file");
    let error = loop {
        if let Err(error) = filler.write_all(&[1; 4096]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    for _ in 0..3 {
        let refused = place.ctl(&["save", "full/guest.state"]);
        assert_eq!(refused.status.code(), Some(2));
        let answer: serde_json::Value = serde_json::from_slice(&refused.stdout).expect("JSON");
        assert_eq!(answer["code"], "EIO");
        let told = answer["error"].as_str().expect("text");
        for part in ["full/guest.state", "No space left on device", "is untouched"] {
            assert!(told.contains(part), "{told}");
        }
        assert!(fs::read(seen("guest.state")).expect("the older file") == whole);
        assert_eq!(fs::read_dir(seen("")).expect("directory").count(), 2, "no part is left");
    }
    let before = place.writes();
    place.wait_for_writes(before);
    fs::remove_file(seen("filler")).expect("it is there");
    drop(filler);
    place.ask(&["save", "full/guest.state"]);
    place.ask(&["stop"]);
    assert_eq!(running.end().1, Some(0));
}

/// A saved guest continues where it was, under the rules that it had, those added meanwhile included.
#[test]
fn a_saved_guest_goes_on_under_its_rules() {
    if !can_run() {
        return;
    }
    let place = Place::new(&harmless());
    let running = Running::start(&place, &[]);
    let add = ["add", "nothing here", "0x200900+16", "--action", "stop", "--locked"];
    place.ask(&add);
    place.ask(&["save", "guest.state"]);
    place.ask(&["stop"]);
    running.end();

    let arguments = ["guard", "--json", "--restore", "guest.state", "--control", "socket"];
    let mut again = Running::of(place.program(&arguments));
    let shown = place.ask(&["show"]);
    let rules: Vec<_> = shown["rules"].as_array().expect("a list").iter().collect();
    assert_eq!(rules.len(), 2);
    assert_eq!((&rules[1]["name"], &rules[1]["locked"]), (&"nothing here".into(), &true.into()));
    // The guest runs: it meets a rule that is added now.
    let add = ["add", "word", "0x200800+2", "--action", "stop"];
    place.ask(&add);
    assert_eq!(again.next("denied")["verdict"], "stopped");
    let (summary, status) = again.end();
    assert_eq!((&summary["ending"], status), (&"stopped".into(), Some(3)));
    assert_eq!(summary["guest"], "guest.state");
    assert_eq!(summary["rules"].as_array().expect("a list").len(), 3);

    let mut bytes = fs::read(place.path("guest.state")).expect("the saved guest");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    for damaged in [&bytes[..], &bytes[..middle], b"no saved guest"] {
        fs::write(place.path("damaged"), damaged).expect("file");
        let output = place.program(&["guard", "--restore", "damaged"]).output().expect("starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains("damaged") && output.stdout.is_empty(), "{errors}");
    }
}
