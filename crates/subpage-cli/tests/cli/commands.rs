//! The program as it is started: output, errors and exit status.

use std::fmt::Write;
use std::fs;
use std::process::Output;

use crate::assert_golden;
use crate::place::{POLICY, Place, golden, shown, status};

#[test]
fn guard_denies_and_says_so() {
    let place = Place::new();
    let output = place.run(&["guard", "--policy", "policy.toml", "server.sptrace"]);
    assert_eq!(status(&output), 3);
    golden("guard-denied", &output);
}

#[test]
fn guard_gives_every_event_as_json() {
    let place = Place::new();
    let output = place.run(&["guard", "--policy", "policy.toml", "server.sptrace", "--json"]);
    assert_eq!(status(&output), 3);
    golden("guard-json", &output);
    for line in String::from_utf8(output.stdout).expect("text").lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(value["v"], 1);
    }
}

#[test]
fn guard_without_denial_ends_with_0() {
    let place = Place::new();
    place.policy("other.toml", "version = 1\n[[rule]]\nname = \"x\"\nregion = \"helper_args\"\n");
    let output = place.run(&["guard", "--policy", "other.toml", "server.sptrace"]);
    assert_eq!(status(&output), 0);
    golden("guard-clean", &output);
    let text = "version = 1\n[[rule]]\nname = \"x\"\nregion = \"counters\"\naction = \"log\"\n";
    place.policy("log.toml", text);
    let output = place.run(&["guard", "--policy", "log.toml", "server.sptrace"]);
    assert_eq!(status(&output), 0, "what is only logged is not denied");
}

#[test]
fn the_action_decides() {
    let place = Place::new();
    let text = POLICY.to_owned() + "action = \"stop\"\n";
    place.policy("stop.toml", &text);
    golden("guard-stop", &place.run(&["guard", "--policy", "stop.toml", "server.sptrace"]));
    let text = POLICY.to_owned() + "action = \"allow-once\"\n";
    place.policy("once.toml", &text);
    golden("guard-allow-once", &place.run(&["guard", "-p", "once.toml", "server.sptrace"]));
}

#[test]
fn mistakes_of_a_policy_are_shown_where_they_are() {
    let place = Place::new();
    let text = "version = 1\n[[rule]]\nname = \"x\"\nregion = \"helper\"\naction = \"block\"\n\
                [[rule]]\nname = \"y\"\nregion = \"helper_pathh\"\n";
    place.policy("wrong.toml", text);
    let output = place.run(&["guard", "--policy", "wrong.toml", "server.sptrace"]);
    assert_eq!(status(&output), 2);
    golden("policy-mistakes", &output);
    let output = place.run(&["guard", "--json", "--policy", "wrong.toml", "server.sptrace"]);
    golden("policy-mistakes-json", &output);
}

/// A rule that is wrong in another way hides neither use of a name.
#[test]
fn a_name_used_twice_is_told_beside_other_mistakes() {
    let place = Place::new();
    let rule = |range| format!("[[rule]]\nname = \"twice\"\nrange = \"{range}\"\n");
    for (first, second) in [("1..2", "5..1"), ("5..1", "1..2"), ("5..1", "5..1")] {
        place.policy("twice.toml", &format!("version = 1\n{}{}", rule(first), rule(second)));
        let output = place.run(&["guard", "--policy", "twice.toml", "server.sptrace"]);
        assert_eq!(status(&output), 2);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("two rules are called `twice`"), "{errors}");
        assert!(errors.contains("the range is empty"), "{errors}");
    }
}

#[test]
fn bad_input_ends_with_2() {
    let place = Place::new();
    fs::write(place.path("text"), "not a trace at all, but text of some length").expect("file");
    let trace = fs::read(place.path("server.sptrace")).expect("trace");
    fs::write(place.path("cut.sptrace"), &trace[..trace.len() - 20]).expect("file");
    fs::write(place.path("program"), b"\x7fELF and no more").expect("file");
    let cases: [(&str, &[&str]); 18] = [
        ("no-policy", &["guard", "--policy", "missing.toml", "server.sptrace"]),
        ("no-trace", &["guard", "--policy", "policy.toml", "missing.sptrace"]),
        ("no-trace-json", &["plan", "missing.sptrace", "--json"]),
        ("not-a-trace", &["guard", "--policy", "policy.toml", "text"]),
        (
            "not-a-trace-for-the-model",
            &["guard", "-p", "policy.toml", "--backend", "model", "text"],
        ),
        ("a-trace-on-kvm", &["guard", "-p", "policy.toml", "--backend", "kvm", "server.sptrace"]),
        ("cpus-of-a-trace", &["guard", "-p", "policy.toml", "--cpus", "2", "server.sptrace"]),
        (
            "timeout-of-the-model",
            &["guard", "-p", "policy.toml", "--backend", "model", "--timeout", "1", "program"],
        ),
        (
            "an-address-for-elf",
            &["guard", "-p", "policy.toml", "--load-address", "0x100000", "program"],
        ),
        ("restore-on-the-model", &["guard", "--restore", "x", "--backend", "model"]),
        ("no-symbols", &["guard", "-p", "policy.toml", "--symbols", "text", "program"]),
        (
            "report-in-no-directory",
            &["guard", "-p", "policy.toml", "--report", "no/r.html", "server.sptrace"],
        ),
        (
            "report-is-a-directory",
            &["guard", "-p", "policy.toml", "--report", ".", "server.sptrace"],
        ),
        ("plan-no-name", &["plan", "server.sptrace", "--range", "helper"]),
        ("plan-one-name-near", &["plan", "server.sptrace", "--range", "countres"]),
        ("plan-no-range", &["plan", "server.sptrace", "--range", "0x1000..x"]),
        ("plan-empty-range", &["plan", "server.sptrace", "--range", "0x1000..0x1000"]),
        ("record-nothing", &["record", "-o", "x.sptrace", "--from-lackey", "text"]),
    ];
    let mut all = String::new();
    for (name, arguments) in cases {
        let output = place.run(arguments);
        assert_eq!(status(&output), 2, "{name}");
        write!(all, "=== {name}: subpage {}\n{}", arguments.join(" "), shown(&output))
            .expect("a string");
    }
    assert_golden("commands/bad-input.txt", &all);
    for arguments in [
        &["guard"][..],
        &["guard", "--policy"],
        &["guard", "--policy", "policy.toml"],
        &["guard", "server.sptrace"],
        &["guard", "--restore", "x", "--policy", "policy.toml"],
        &["guard", "--restore", "x", "server.sptrace"],
        &["guard", "--restore", "x", "--cpus", "1"],
        &["guard", "-p", "policy.toml", "--cpus", "0", "program"],
        &["guard", "-p", "policy.toml", "--cpus", "65", "program"],
        &["guard", "-p", "policy.toml", "--memory", "much", "program"],
        &["guard", "-p", "policy.toml", "--metrics", "nowhere", "program"],
        &["nonsense"],
        &["record", "-o", "x"],
    ] {
        assert_eq!(status(&place.run(arguments)), 2, "{arguments:?}");
    }
    let output = place.run(&["guard", "--policy", "policy.toml", "cut.sptrace"]);
    assert_eq!(status(&output), 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("cut off"));
    assert!(!place.path("x.sptrace").exists());
}

#[test]
fn plan_shows_mixed_pages_and_prices_ranges() {
    let place = Place::new();
    let ranges = ["--range", "helper_path", "--range", "0x10e000..0x10e001"];
    let output = place.run(&[&["plan", "server.sptrace"][..], &ranges].concat());
    assert_eq!(status(&output), 0);
    golden("plan", &output);
    golden("plan-json", &place.run(&[&["plan", "server.sptrace", "--json"][..], &ranges].concat()));
    golden("plan-names", &place.run(&["plan", "server.sptrace", "--names"]));
    golden("plan-names-json", &place.run(&["plan", "server.sptrace", "--names", "--json"]));
    golden("plan-top-0", &place.run(&["plan", "server.sptrace", "--top", "0"]));
}

#[test]
fn help_names_every_exit_status() {
    let place = Place::new();
    golden("help", &place.run(&["--help"]));
    golden("help-guard", &place.run(&["guard", "--help"]));
    assert_eq!(status(&place.run(&["--version"])), 0);
}

#[test]
fn a_report_is_written_and_its_page_is_complete() {
    let place = Place::new();
    let arguments = ["guard", "-p", "policy.toml", "--report", "report.html", "server.sptrace"];
    assert_eq!(status(&place.run(&arguments)), 3);
    let page = fs::read_to_string(place.path("report.html")).expect("report");
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"));
    assert!(page.contains("helper path"));
}

#[test]
fn colours_follow_the_option_and_the_environment() {
    let place = Place::new();
    let arguments = ["guard", "-p", "policy.toml", "server.sptrace"];
    let coloured = |output: Output| output.stdout.contains(&0x1b);
    assert!(!coloured(place.run(&arguments)), "a pipe is no terminal");
    let always = [&arguments[..], &["--color", "always"]].concat();
    assert!(coloured(place.run(&always)));
    let forced = place.command(&arguments).env("CLICOLOR_FORCE", "1").output().expect("starts");
    assert!(coloured(forced));
    let quiet = place.command(&arguments).env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1").output();
    assert!(!coloured(quiet.expect("starts")), "NO_COLOR wins");
    let never = [&arguments[..], &["--color=never"]].concat();
    let never = place.command(&never).env("CLICOLOR_FORCE", "1").output().expect("starts");
    assert!(!coloured(never));
}

/// A kernel that moves itself is not where its symbols say. One without a payload that could be unpacked
/// runs its own loader.
#[test]
fn a_kernel_that_may_move_is_told() {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        println!("skipped: /dev/kvm cannot be opened");
        return;
    }
    let place = Place::new();
    let mut image = vec![0; 0x700];
    for (at, bytes) in [
        // One sector of setup, and the units of 16 bytes behind it.
        (0x1f1, &[1][..]),
        (0x1f4, &[0x30]),
        (0x1fe, &[0x55, 0xaa, 0xeb, 0x66]),
        (0x202, b"HdrS\x0c\x02"),
        // Loaded high; a 64-bit entry.
        (0x211, &[1]),
        (0x22c, &0x7fff_ffff_u32.to_le_bytes()),
        (0x236, &[1]),
        (0x238, &255_u32.to_le_bytes()),
        (0x258, &0x100_0000_u64.to_le_bytes()),
        (0x260, &0x8_0000_u32.to_le_bytes()),
        // mov al, 0; mov dx, 0xf4; out dx, al
        (0x600, &[0xb0, 0, 0x66, 0xba, 0xf4, 0, 0xee]),
    ] {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    fs::write(place.path("bzImage"), image).expect("file");
    fs::write(place.path("System.map"), "ffffffff81000000 T _text\n").expect("list");
    let of_symbol =
        "version = 1\n[[rule]]\nname = \"x\"\nregion = \"_text\"\nlength = 1\narm = \"start\"\n";
    place.policy("symbol.toml", of_symbol);
    place.policy("range.toml", "version = 1\n[[rule]]\nname = \"x\"\nrange = \"1..2\"\n");
    let told = |policy, line: &str| {
        let symbols = ["--symbols", "System.map", "--cmdline", line];
        let arguments = [&["guard", "--strict", "-p", policy][..], &symbols].concat();
        let output = place.run(&[&arguments[..], &["bzImage"]].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let told = text.contains("nokaslr");
        assert_eq!(status(&output), if told { 2 } else { 0 }, "{text}");
        told
    };
    assert!(told("symbol.toml", "console=ttyS0"));
    assert!(told("symbol.toml", "nokaslrx"));
    assert!(!told("symbol.toml", "console=ttyS0 nokaslr"));
    assert!(!told("range.toml", "console=ttyS0"));
    // When such a kernel is entered is not known.
    let entry = "version = 1\n[[rule]]\nname = \"x\"\nrange = \"1..2\"\narm = \"entry\"\n";
    place.policy("entry.toml", entry);
    let output = place.run(&["guard", "-p", "entry.toml", "bzImage"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(status(&output), 2);
    assert!(text.contains("cannot arm at `entry`"), "{text}");
}

#[test]
fn lackeys_text_becomes_a_trace() {
    let place = Place::new();
    let text = "==1== Lackey\nI  00401000,4\n S 1ffeffe7e0,8\nI  00401004,3\n M 0010e180,4\n";
    fs::write(place.path("text"), text).expect("text");
    let output = place.run(&["record", "-o", "t.sptrace", "--from-lackey", "text"]);
    assert_eq!(status(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.is_empty(), "standard output is the recorded program's");
    let output = place.run(&["plan", "t.sptrace", "--range", "0x10e180..0x10e200", "--json"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"exits_sub_page\":1"));
}

/// What was recorded is kept, and that it is not all is a failure.
#[test]
fn a_recording_that_stops_early_is_a_failure() {
    let place = Place::new();
    let text =
        "==1== Lackey\nI  00401000,4\n S 1ffeffe7e0,8\n\nhost stacktrace:\n==1==    at 0x5: ???\n";
    fs::write(place.path("text"), text).expect("text");
    let output = place.run(&["record", "-o", "t.sptrace", "--from-lackey", "text"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(status(&output), 4, "{errors}");
    assert!(
        errors.contains("1 write") && errors.contains("before the end of the program"),
        "{errors}"
    );
    assert!(place.path("t.sptrace").exists());
}

/// Rules of several files are one policy, and names are told apart by all of them.
#[test]
fn several_files_are_one_policy() {
    let place = Place::new();
    let rule = |name: &str, region: &str| {
        format!("version = 1\n[[rule]]\nname = \"{name}\"\nregion = \"{region}\"\n")
    };
    place.policy("a.toml", &rule("args", "helper_args"));
    place.policy("b.toml", &rule("path", "helper_path"));
    let output = place.run(&["guard", "-p", "a.toml", "-p", "b.toml", "server.sptrace"]);
    assert_eq!(status(&output), 3);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("with 2 rules of a.toml, b.toml") && text.contains("denied        path"));
    place.policy("b.toml", &rule("args", "helper_path"));
    let output = place.run(&["guard", "-p", "a.toml", "-p", "b.toml", "server.sptrace"]);
    assert_eq!(status(&output), 2);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("two rules are called `args`") && errors.contains("already in a.toml"));
    let output = place.run(&["guard", "-p", "-", "-p", "-", "server.sptrace"]);
    assert_eq!(status(&output), 2);
}

/// What a run without protection shows, and what it costs: nothing.
#[test]
fn a_policy_without_rules_is_a_control_run() {
    let place = Place::new();
    place.policy("none.toml", "version = 1\nrule = []\n");
    let output = place.run(&["guard", "-p", "none.toml", "server.sptrace", "--report", "r.html"]);
    assert_eq!(status(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1,010 writes"));
    place.policy("none.toml", "version = 1\n");
    let output = place.run(&["guard", "-p", "none.toml", "server.sptrace"]);
    assert_eq!(status(&output), 2, "forgotten rules are a mistake");
    assert!(String::from_utf8_lossy(&output.stderr).contains("rule = []"));
}
