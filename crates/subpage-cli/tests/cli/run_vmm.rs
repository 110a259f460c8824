//! `subpage run`, as far as it needs no VMM: what it refuses before anything is started, and a program that is
//! none.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::place::Place;

/// An ELF64 header and nothing behind it: no program header asks for a dynamic linker.
fn static_program() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    // ET_EXEC, x86-64; program headers of 56 bytes, of which there is none.
    (file[16], file[18], file[54]) = (2, 62, 56);
    file
}

#[test]
fn what_takes_no_library_is_not_started() {
    let place = Place::new();
    fs::write(place.path("vmm"), static_program()).expect("a file");
    fs::set_permissions(place.path("vmm"), fs::Permissions::from_mode(0o755)).expect("own file");
    let refused = |arguments: &[&str]| {
        let output = place.run(&[&["run"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).expect("text")
    };
    let told = refused(&["--", "./vmm", "-m", "64"]);
    assert!(told.contains("./vmm is linked statically"), "{told}");
    assert!(told.contains("nothing was started"), "{told}");
    fs::set_permissions(place.path("vmm"), fs::Permissions::from_mode(0o4755)).expect("own file");
    assert!(refused(&["./vmm"]).contains("set-user-ID"), "rights of another user");
    assert!(refused(&["no-such-vmm"]).contains("no program no-such-vmm in PATH"), "no program");
    place.policy(
        "later.toml",
        "version = 1\n[[rule]]\nname = \"x\"\nrange = \"0x1000 + 8\"\narm = \"init\"\n",
    );
    let told = refused(&["-p", "later.toml", "./vmm"]);
    assert!(told.contains("cannot arm at `init` in a guest of another VMM"), "{told}");
}

/// A program that makes no machine: that nothing was guarded is said, and fails, whatever its status.
#[test]
fn a_program_without_a_machine() {
    let place = Place::new();
    for status in ["0", "3"] {
        let output = place.run(&["run", "--", "sh", "-c", &format!("exit {status}")]);
        let told = String::from_utf8_lossy(&output.stderr);
        if told.contains("no libsubpage_interpose.so in") {
            eprintln!("skipped: {told}");
            return;
        }
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(told.contains(&format!("exit status: {status}")), "{told}");
        assert!(told.contains("nothing was guarded"), "{told}");
    }
}
