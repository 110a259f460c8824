//! Traces of whole machines: moments, and the names of the kernel's file.

use std::fs;
use std::process::Output;

use serde_json::{Value, json};
use subpage_trace::{Header, Name, NameKind, Names, TraceWriter, Write as TraceWrite};

use crate::place::{Place, status};

const FIRMWARE: u64 = 0xf_1000;
const LOADER: u64 = 0x100_0200;
const KERNEL: u64 = 0xffff_ffff_8100_0000;
const PROGRAM: u64 = 0x40_1000;

/// A page with a path and a table, and the counters between them.
const POLICY: &str = "version = 1\n[[rule]]\nname = \"path\"\nsymbol = \"path\"\naction = \"log\"\n\
                      [[rule]]\nname = \"table\"\nsymbol = \"table\"\naction = \"log\"\narm = \"init\"\n";

/// Writes a trace of the instructions at these addresses, each of which writes the path, the table and the
/// counters. Fills `before` blocks with what the firmware writes first.
fn machine(place: &Place, names: bool, before: u64, pcs: &[u64]) {
    let name = |name: &str, start| Name {
        name: name.to_owned(),
        start,
        length: 128,
        kind: NameKind::Object,
    };
    let names = names.then(|| Names::new([name("path", 0x100_0000), name("table", 0x100_0800)]));
    let names = names.unwrap_or_default();
    let header = Header { is_machine: true, names, ..Header::default() };
    let file = fs::File::create(place.path("boot.sptrace")).expect("file");
    let mut writer = TraceWriter::new(file, &header).expect("header");
    for address in 0..before * 16_384 {
        writer.write(TraceWrite { pc: FIRMWARE, address, size: 1 }).expect("write");
    }
    for &pc in pcs {
        for address in [0x100_0000, 0x100_0800, 0x100_0400] {
            writer.write(TraceWrite { pc, address, size: 8 }).expect("write");
        }
    }
    writer.finish().expect("end");
    place.policy("boot.toml", POLICY);
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn rules_hold_from_the_moments_that_a_machines_trace_shows() {
    let place = Place::new();
    // A moment in the middle of a block, and behind many blocks.
    for before in [0, 3] {
        machine(&place, true, before, &[FIRMWARE, LOADER, KERNEL, 0x9_0000, PROGRAM, KERNEL]);
        let output = place.run(&["guard", "--json", "-p", "boot.toml", "boot.sptrace"]);
        assert_eq!(status(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
        let lines = lines(&output);
        let armed: Vec<_> = lines
            .iter()
            .filter(|line| line["type"] == "armed")
            .map(|line| json!([line["by"], line["rules"], line["write"]]))
            .collect();
        let first = before * 16_384;
        assert_eq!(
            armed,
            [json!(["entry", ["path"], first + 7]), json!(["init", ["table"], first + 13])]
        );
        let summary = lines.last().expect("a summary");
        // Of four instructions from the kernel's entry on, two from the first program on.
        let rule = |at: usize, what: &str| summary["rules"][at][what].as_u64().expect("a number");
        assert_eq!([rule(0, "logged"), rule(1, "logged")], [4, 2]);
        assert_eq!([rule(0, "exits"), rule(0, "exits_alone")], [12, 6]);
        assert_eq!([rule(1, "exits"), rule(1, "exits_alone")], [6, 0]);
        assert_eq!(summary["exits_page"], 12);
        assert_eq!(summary["exits_sub_page"], 6);
    }
    let output = place.run(&["guard", "-p", "boot.toml", "boot.sptrace", "--color", "never"]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.contains("armed  table  by init, from write 49,165 on\n"), "{text}");
}

#[test]
fn a_rule_can_hold_from_the_first_write_of_a_machine() {
    let place = Place::new();
    machine(&place, true, 0, &[FIRMWARE, KERNEL]);
    place.policy("boot.toml", &POLICY.replace("\"init\"", "\"start\""));
    let output = place.run(&["guard", "--json", "-p", "boot.toml", "boot.sptrace"]);
    let lines = lines(&output);
    let rules = &lines.last().expect("a summary")["rules"];
    assert_eq!([&rules[0]["logged"], &rules[1]["logged"]], [1, 2]);
}

#[test]
fn a_rule_that_never_held_is_told() {
    let place = Place::new();
    machine(&place, true, 0, &[FIRMWARE, KERNEL]);
    let told = |arguments: &[&str]| {
        let output =
            place.run(&[&["guard", "-p", "boot.toml", "boot.sptrace"], arguments].concat());
        (status(&output), String::from_utf8(output.stdout).expect("text"))
    };
    let (code, text) = told(&[]);
    assert_eq!(code, 0);
    let never = "the rule `table` (boot.toml:7) never armed: it waited for `init`";
    assert!(text.contains(never), "{text}");
    assert_eq!(told(&["--strict"]).0, 2);
}

#[test]
fn moments_that_no_trace_shows_are_mistakes() {
    let place = Place::new();
    machine(&place, true, 0, &[KERNEL]);
    for moment in ["write", "command"] {
        place.policy("boot.toml", &POLICY.replace("\"init\"", &format!("\"{moment}\"")));
        for command in [&["policy", "check", "boot.toml"][..], &["guard", "-p", "boot.toml"]] {
            let output = place.run(&[command, &["boot.sptrace"]].concat());
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(status(&output), 2, "{text}");
            assert!(text.contains("wait for `entry` or `init`"), "{text}");
        }
    }
    place.policy("boot.toml", POLICY);
    assert_eq!(status(&place.run(&["policy", "check", "boot.toml", "boot.sptrace"])), 0);
}

#[test]
fn a_machines_names_are_those_of_the_kernel() {
    let place = Place::new();
    let map = "ffffffff81000000 D path\nffffffff81000080 d gap\nffffffff81000800 D table\n\
               ffffffff81000880 D end\n";
    fs::write(place.path("System.map"), map).expect("a file");
    let arguments =
        ["guard", "--json", "-p", "boot.toml", "--symbols", "System.map", "boot.sptrace"];
    let plan = ["plan", "--json", "--range", "table", "--symbols", "System.map", "boot.sptrace"];
    let run = |arguments: &[&str]| {
        let output = place.run(arguments);
        (status(&output), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    machine(&place, true, 0, &[FIRMWARE, KERNEL, PROGRAM]);
    for arguments in [&arguments[..], &plan] {
        assert_eq!(run(arguments), (0, String::new()));
    }
    // Such a list does not say how long anything is, and here the trace does not, either.
    machine(&place, false, 0, &[FIRMWARE, KERNEL, PROGRAM]);
    assert!(run(&arguments).1.contains("length unknown"));
    assert_eq!(run(&["plan", "--range", "table+0+8", plan[4], plan[5], plan[6]]).0, 0);
    machine(&place, true, 0, &[FIRMWARE, KERNEL, PROGRAM]);
    // The list of another kernel.
    fs::write(place.path("System.map"), map.replace("800", "900")).expect("a file");
    for arguments in [&arguments[..], &plan] {
        let (code, text) = run(arguments);
        assert_eq!(code, 2, "{text}");
        assert!(text.contains("`table` does not have the place"), "{text}");
    }
}
