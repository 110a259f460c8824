//! The tool without the feature `kvm`: it guards traces, and says why it runs no guest.
//!
//! `cargo test -p subpage-cli --no-default-features --test without_kvm`
#![cfg(not(feature = "kvm"))]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(path)
}

fn subpage(arguments: &[&str], files: &[PathBuf]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_subpage"));
    command.args(arguments).args(files).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_trace_is_guarded() {
    let files = [example("counter/policy.toml"), example("counter/counter.sptrace")];
    let output = subpage(&["guard", "--policy"], &files);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("\n1 write denied\n"));
}

#[test]
fn a_guest_is_refused_with_the_reason() {
    let (policy, guest) = (example("kernel/policy.toml"), example("kernel/guest.elf"));
    // A flat file has no name that tells what it is.
    let flat = example("counter/counter.c");
    for (arguments, files) in [
        (&["guard", "--policy"][..], &[policy.clone(), guest.clone()][..]),
        (&["guard", "--cpus", "2", "--policy"], &[policy.clone(), guest.clone()]),
        (&["guard", "--policy"], &[policy.clone(), flat]),
        (&["guard", "--restore"], &[guest]),
    ] {
        let output = subpage(arguments, files);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let told = text(&output.stderr);
        assert!(told.contains("is no trace, and this subpage guards traces only"), "{told}");
        assert!(told.contains("the feature `kvm`"), "{told}");
    }
}

/// What only the other build has is known all the same, and how to get it is said.
#[test]
fn what_the_other_build_has_is_refused_with_the_reason() {
    let files = [example("counter/policy.toml"), example("counter/counter.sptrace")];
    for (arguments, feature) in [
        (&["guard", "--cpu", "-avx", "--policy"][..], "kvm"),
        (&["guard", "--metrics", "9000", "--policy"], "metrics"),
        (&["ctl", "list", "--json"], "kvm"),
        (&["ctl"], "kvm"),
    ] {
        let output = subpage(arguments, if arguments[0] == "ctl" { &[] } else { &files });
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let told = text(&output.stderr);
        assert!(told.contains(&format!("built without the feature `{feature}`")), "{told}");
        assert!(told.contains("build it with cargo's default features"), "{told}");
    }
}

#[test]
fn check_and_help_offer_no_guest() {
    let told = text(&subpage(&["check"], &[]).stdout);
    let kvm = told.lines().find(|line| line.trim_start().starts_with("KVM ")).expect("a line");
    assert!(kvm.contains("no") && kvm.contains("without the feature `kvm`"), "{kvm}");
    let help = text(&subpage(&["guard", "--help"], &[]).stdout);
    assert!(!help.contains("--cpus") && !help.contains("KVM has"), "{help}");
    assert!(help.contains("--policy"), "{help}");
    let commands = text(&subpage(&["--help"], &[]).stdout);
    // The exit statuses name it.
    let is_offered = |name: &str| commands.lines().any(|line| line.trim_start().starts_with(name));
    assert!(is_offered("guard ") && !is_offered("ctl "), "{commands}");
    assert!(!help.contains("--cpu") && !help.contains("--metrics"), "{help}");
}
