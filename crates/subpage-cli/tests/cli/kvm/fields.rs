//! Fields of a guest on KVM, in its policy and over its control socket.

use std::fs;
use std::path::Path;

use super::{Place, can_run, endless};

fn program() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/debug-info/dwarf5.elf")
}

/// It writes 7 to `table[2].next.flags` and to `table[3].next.flags`, and ends.
#[test]
fn a_field_of_a_guest_is_guarded() {
    if !can_run() {
        return;
    }
    let place = Place::new(&[]);
    fs::copy(program(), place.path("guest")).expect("guest");
    let guard = |rule: &str| {
        fs::write(
            place.path("policy.toml"),
            format!("version = 1\n[[rule]]\nname = \"r\"\n{rule}\n"),
        )
        .expect("policy");
        let run = ["guard", "-p", "policy.toml", "--json", "--timeout", "60", "guest"];
        let output = place.program(&run).output().expect("the program starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text.matches("\"type\":\"denied\"").count(), text, errors)
    };
    for (rule, denied) in [
        ("range = \"table[3].next.flags\"", 1),
        ("region = \"table[2].next\"\noffset = 3", 1),
        ("range = \"table[2]..alias[3].next.flags+1\"", 2),
        ("range = \"table[3].next.high\"", 0),
        ("symbol = \"table[2].next.flags\"\nelf = \"guest\"\naddress = \"physical\"", 1),
    ] {
        let (status, found, text, errors) = guard(rule);
        assert_eq!(
            (status, found),
            (Some(if denied > 0 { 3 } else { 0 }), denied),
            "{rule}: {text}{errors}"
        );
    }
    let (status, _, _, errors) = guard("range = \"table[4].next\"");
    assert!(status == Some(2) && errors.contains("`table` has 4 elements"), "{errors}");
    // Another build's symbols.
    let cpp = program().with_file_name("cpp.elf");
    fs::write(place.path("policy.toml"), "version = 1\nrule = []\n").expect("policy");
    let run = ["guard", "-p", "policy.toml", "--symbols", cpp.to_str().expect("text"), "guest"];
    let output = place.program(&run).output().expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && errors.contains("are of another build"), "{errors}");
}

#[test]
fn ctl_knows_fields() {
    if !can_run() {
        return;
    }
    let place = Place::new(&endless());
    let running = super::Running::start(&place, &[]);
    let program = program();
    let symbols = ["--symbols", program.to_str().expect("text")];
    let ask = |request: &[&str]| place.ask(&[&symbols[..], request].concat());
    ask(&["add", "field", "table[3].next.flags"]);
    let rules = ask(&["show"])["rules"].clone();
    let rules = rules.as_array().expect("a list");
    assert!(
        rules.iter().any(|rule| rule["start"] == 0x20_12e0 && rule["length"] == 4),
        "{rules:?}"
    );
    ask(&["get", "fixed[1]"]);
    let output = place.ctl(&[&symbols[..], &["track", "table[9]"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && errors.contains("4 elements"), "{errors}");
    ask(&["stop"]);
    assert_eq!(running.end().1, Some(0));
}
