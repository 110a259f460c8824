//! Options that do not fit the rest of the command line: none is taken and then ignored.

use std::fs;

use crate::place::{Place, status};

/// Runs what is refused, for a reason.
fn refused(place: &Place, arguments: &[&str], reason: &str) {
    let output = place.run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(status(&output), 2, "{arguments:?}: {errors}");
    assert!(errors.contains(reason), "{arguments:?}: {errors}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
}

#[test]
fn a_guest_on_kvm_has_no_processes_of_a_trace() {
    let place = Place::new();
    fs::write(place.path("program"), b"\x7fELF and no more").expect("file");
    let guard = ["guard", "--process", "3"];
    for guest in [&["-p", "policy.toml", "program"][..], &["--restore", "program"]] {
        refused(&place, &[&guard[..], guest].concat(), "`--process` does not fit");
    }
}

#[test]
fn what_a_policy_is_checked_against_is_read() {
    let place = Place::new();
    let list = "ffffffff80200080 D helper_path\n";
    fs::write(place.path("System.map"), list).expect("list");
    fs::write(place.path("program"), "code").expect("file");
    let text = "version = 1\n[[rule]]\nname = \"a\"\nregion = \"helper_path\"\nlength = 8\n";
    place.policy("p.toml", text);
    let check = ["policy", "check", "p.toml"];
    let of = |more: &[&'static str]| [&check[..], more].concat();
    let symbols = ["--symbols", "System.map"];
    assert_eq!(status(&place.run(&of(&symbols))), 0);
    assert_eq!(status(&place.run(&of(&[&symbols[..], &["program"]].concat()))), 0);
    assert_eq!(status(&place.run(&of(&["--process", "0", "server.sptrace"]))), 0);
    for (more, reason) in [
        (&["missing", "--symbols", "System.map"][..], "cannot read the guest missing"),
        (&["server.sptrace", "--symbols", "System.map"], "System.map cannot be read as ELF"),
        (&["--process", "1", "server.sptrace"], "has no process 1"),
        (&["--process", "0", "System.map"], "`--process` does not fit System.map"),
        (&["--process", "0", "--symbols", "System.map"], "`--process` is for a trace"),
        (&["--strict"], "name the guest, or give `--symbols`"),
    ] {
        refused(&place, &of(more), reason);
    }
}

/// Nothing is run in any case.
#[test]
fn a_strict_check_says_what_it_is() {
    let place = Place::new();
    let rule = |name| format!("[[rule]]\nname = \"{name}\"\nregion = \"helper_path\"\n");
    place.policy("p.toml", &format!("version = 1\n{}{}", rule("a"), rule("b")));
    let output = place.run(&["policy", "check", "--strict", "p.toml", "server.sptrace"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(status(&output), 2, "{errors}");
    assert!(errors.contains("\n`--strict` makes warnings errors\n"), "{errors}");
    assert!(!errors.contains("nothing was run"), "{errors}");
}
