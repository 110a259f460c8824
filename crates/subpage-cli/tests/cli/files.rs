//! What is told of files: those that would be replaced, those that are no guest, those that are no TOML.

use std::fs;

use crate::place::{Place, status};

/// A file is replaced by one of its own kind, or where it is empty; nothing else is lost.
#[test]
fn a_file_of_another_kind_is_not_replaced() {
    let place = Place::new();
    let rule = "version = 1\n[[rule]]\nname = \"a\"\nrange = \"0x1000..0x1080\"\n";
    place.policy("p.toml", rule);
    fs::write(place.path("lackey"), " S 10e180,8\n").expect("writable");
    let ways: [&[&str]; 3] = [
        &["record", "--from-lackey", "lackey", "-o"],
        &["compile", "--policy", "p.toml", "-o"],
        &["guard", "--policy", "p.toml", "server.sptrace", "--report"],
    ];
    for way in ways {
        let run = |file: &str| place.run(&[way, &[file]].concat());
        fs::write(place.path("mine"), "the only copy").expect("writable");
        let output = run("mine");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(status(&output), 2, "{way:?}: {errors}");
        assert!(errors.contains("mine: the file that is there is something else"), "{errors}");
        assert_eq!(fs::read(place.path("mine")).expect("still there"), b"the only copy");
        fs::write(place.path("empty"), "").expect("writable");
        for _ in 0..2 {
            let output = run("empty");
            assert_eq!(status(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
        }
        fs::remove_file(place.path("empty")).expect("written");
    }
}

/// The name that a file has while it is written means nothing to anybody.
#[test]
fn no_error_tells_a_temporary_name() {
    let place = Place::new();
    place.policy("p.toml", "version = 1\nrule = []\n");
    fs::write(place.path("lackey"), " S 10e180,8\n").expect("writable");
    for arguments in [
        &["man", "nowhere"][..],
        &["record", "--from-lackey", "lackey", "-o", "nowhere/x"],
        &["guard", "--policy", "p.toml", "server.sptrace", "--report", "nowhere/x"],
    ] {
        let output = place.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(status(&output), 2, "{arguments:?}: {errors}");
        assert!(errors.contains("nowhere") && !errors.contains("nowhere/."), "{errors}");
    }
}

#[test]
fn what_is_no_trace_is_named_to_whoever_asks_for_the_model() {
    let place = Place::new();
    place.policy("p.toml", "version = 1\nrule = []\n");
    fs::write(place.path("program"), b"\x7fELF and more").expect("writable");
    let output = place.run(&["guard", "--backend", "model", "-p", "p.toml", "program"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(status(&output), 2);
    assert!(errors.contains("`--backend model` does not fit program"), "{errors}");
    assert!(errors.contains("`subpage record`"), "{errors}");
}

/// One mistake of the text is one mistake.
#[test]
fn a_bracket_that_is_missing_is_one_mistake() {
    let place = Place::new();
    for (text, mistakes) in [
        ("version = 1\n[[rule]\nname = \"a\"\nrange = \"0x1000+8\"\n", 1),
        ("version = 1\n[rule]]\nname = \"a\"\nrange = \"0x1000+8\"\n", 1),
        ("version = 1\n[[rule]]\nname = \"a\nrange = \"0x1000+8\"\n", 1),
        ("version = 1\n[[rule]]\nname = a\nrange = \"0x1000+8\"\n", 1),
        // Right TOML, and wrong.
        ("version = 1\n[rule]\nname = \"a\"\nrange = \"0x1000+8\"\n", 1),
    ] {
        place.policy("p.toml", text);
        let output = place.run(&["policy", "check", "p.toml"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(status(&output), 2, "{text}");
        assert!(errors.contains(&format!("p.toml: {mistakes} mistake")), "{text}{errors}");
    }
}

/// What a run would refuse of the guest itself comes first, and `policy check` refuses it too.
#[test]
fn a_policy_is_checked_for_a_guest_that_can_be_one() {
    let place = Place::new();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/kernel/guest.elf");
    let policy = |rule: &str| {
        place.policy("p.toml", &format!("version = 1\n[[rule]]\nname = \"a\"\n{rule}\n"));
    };
    let refused = |arguments: &[&str], told: &str| {
        let output = place.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(status(&output), 2, "{arguments:?}: {errors}");
        assert!(errors.contains(told), "{arguments:?}: {errors}");
    };
    // This very test is a program of the system, not a guest.
    let program = std::env::current_exe().expect("a path");
    let program = program.to_str().expect("text");
    for rule in ["region = \"nowhere\"", "range = \"0x200000+8\""] {
        policy(rule);
        refused(&["policy", "check", "p.toml", program], "executable at fixed addresses");
    }
    policy("region = \"nowhere\"");
    refused(&["guard", "-p", "p.toml", program], "executable at fixed addresses");
    refused(&["policy", "check", "p.toml", example], "there is no region `nowhere`");
    policy("region = \"modprobe_path\"\narm = \"init\"");
    refused(&["policy", "check", "p.toml", example], "cannot arm at `init`");
    policy("region = \"modprobe_path\"\narm = \"command\"");
    assert_eq!(status(&place.run(&["policy", "check", "p.toml", example])), 0);
}
