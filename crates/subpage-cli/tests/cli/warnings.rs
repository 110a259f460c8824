//! What would otherwise be wrong in silence.

use std::fs;

use subpage_trace::{Header, Name, NameKind, Names, Process, TraceWriter, Write as TraceWrite};

use crate::place::{Place, golden, status};

/// Rules in the place of those of the trace `server.sptrace`.
fn policy(rules: &[(&str, &str, &str)]) -> String {
    let rule = |(name, place, action): &(&str, &str, &str)| {
        format!("[[rule]]\nname = \"{name}\"\n{place}\naction = \"{action}\"\n")
    };
    rules.iter().map(rule).fold("version = 1\n".to_owned(), |all, rule| all + &rule)
}

/// A rule at a place that nothing names and nothing wrote, and one that never decides.
#[test]
fn a_rule_that_guards_nothing_is_told() {
    let place = Place::new();
    let rules = policy(&[
        ("path", "region = \"helper_path\"", "log"),
        ("elsewhere", "range = \"0x4010..0x4050\"", "deny"),
        ("twice", "region = \"helper_path\"\nlength = 8", "log"),
        // Not written, and it is known to be there.
        ("args", "region = \"helper_args\"", "deny"),
        // Written, and it has no name.
        ("tail", "range = \"0x10e17e..0x10e180\"", "log"),
    ]);
    place.policy("p.toml", &rules);
    let guard = ["guard", "-p", "p.toml", "server.sptrace"];
    let output = place.run(&guard);
    assert_eq!(status(&output), 0);
    golden("guard-warnings", &output);
    let output = place.run(&[&guard[..], &["--json", "--report", "r.html"]].concat());
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let told = |kind: &str| {
        let one = |line: &&serde_json::Value| line["type"] == "warning" && line["warning"] == kind;
        lines.iter().filter(one).map(|line| line["rule"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(told("rule_overruled"), ["twice"]);
    assert_eq!(told("rule_unmet"), ["elsewhere"]);
    assert_eq!(lines.last().expect("a summary")["warnings"].as_array().map(Vec::len), Some(2));
    let page = fs::read_to_string(place.path("r.html")).expect("the report");
    assert!(page.contains("never decides") && page.contains("may guard nothing"));
}

/// People see the first of many, a program all of them.
#[test]
fn many_warnings_are_counted() {
    let place = Place::new();
    let rule = |index: usize, start: usize| {
        format!("[[rule]]\nname = \"r{index}\"\nrange = \"{start:#x}+8\"\naction = \"log\"\n")
    };
    // Each of the second half never decides, and none is met.
    let text: String = (0..100).map(|index| rule(index, 0x4000 + index % 50 * 8)).collect();
    place.policy("one.toml", "version = 1\nrule = []\n");
    place.policy("p.toml", &("version = 1\n".to_owned() + &text));
    let run = |arguments: &[&str]| {
        let files = ["-p", "one.toml", "-p", "p.toml", "server.sptrace"];
        let output = place.run(&[&["guard"], arguments, &files].concat());
        let text = [&output.stdout[..], &output.stderr].concat();
        (status(&output), String::from_utf8(text).expect("text"))
    };
    let count = |text: &str, part: &str| text.lines().filter(|line| line.contains(part)).count();
    for more in [&[][..], &["-q"]] {
        let (_, text) = run(&[more, &["--report", "r.html"]].concat());
        assert_eq!((count(&text, "never decides"), count(&text, "may guard nothing")), (20, 20));
        assert_eq!(count(&text, "… and 30 more rules of this kind; `subpage guard --json`"), 1);
        assert_eq!(count(&text, "… and 80 more rules of this kind; `subpage guard --json`"), 1);
        assert_eq!(count(&text, "the rule `r50` (p.toml:203) never decides"), 1, "{text}");
        let page = fs::read_to_string(place.path("r.html")).expect("the report");
        assert_eq!(page.matches("Warning: ").count(), 40);
        assert!(page.contains("… and 80 more rules of this kind"));
    }
    let (_, text) = run(&["-v"]);
    assert_eq!((count(&text, "never decides"), count(&text, "may guard nothing")), (50, 100));
    let (_, text) = run(&["--json"]);
    let warnings = "\"type\":\"warning\"";
    assert_eq!(count(&text, warnings), 150);
    let of_file = format!("{warnings},\"warning\":\"rule_overruled\"");
    assert_eq!(count(&text, &of_file), 50);
    assert!(text.contains("\"file\":\"p.toml\",\"line\":203"));
    let (status, text) = run(&["--strict"]);
    assert_eq!((status, count(&text, "never decides")), (2, 20));
    assert_eq!(count(&text, "… and 30 more rules of this kind"), 1);
    assert!(text.ends_with("nothing was run: `--strict` makes warnings errors\n"), "{text}");
}

#[test]
fn strict_makes_warnings_errors() {
    let place = Place::new();
    let run = |rules: &[(&str, &str, &str)]| {
        place.policy("p.toml", &policy(rules));
        place.run(&["guard", "--strict", "--json", "-p", "p.toml", "server.sptrace"])
    };
    let log = ("path", "region = \"helper_path\"", "log");
    assert_eq!(status(&run(&[log])), 0);
    // Known before: nothing is run.
    let output = run(&[log, ("twice", "region = \"helper_path\"", "log")]);
    assert_eq!(status(&output), 2);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("{\"v\":1,\"type\":\"error\"") && text.lines().count() == 1, "{text}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing was run"));
    // Known at the end only.
    let nowhere = ("nowhere", "range = \"0x4010..0x4050\"", "deny");
    let output = run(&[log, nowhere]);
    assert_eq!(status(&output), 2);
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"type\":\"summary\""));
    // What was denied comes first.
    assert_eq!(status(&run(&[("path", "region = \"helper_path\"", "deny"), nowhere])), 3);
}

/// Three processes at the same addresses: before an exec, a child, and after the exec.
#[test]
fn each_process_has_its_place_in_the_trace() {
    let place = Place::new();
    let name = |start| Name { name: "c".into(), start, length: 64, kind: NameKind::Object };
    let process = |pid, parent, command: &str, names| Process {
        pid,
        parent,
        command: command.to_owned(),
        names: Names::new(names),
        ..Process::default()
    };
    let header = Header {
        command: vec!["env".into(), "prog".into()],
        names: Names::new([name(0x3000)]),
        processes: vec![
            process(7, None, "env prog", vec![]),
            process(8, Some(0), "\u{1b}child", vec![name(0x1000)]),
            process(7, Some(0), "prog", vec![]),
        ],
        main: 2,
        ..Header::default()
    };
    let file = fs::File::create(place.path("three.sptrace")).expect("file");
    let mut writer = TraceWriter::new(file, &header).expect("header");
    for (process, address, times) in [(0, 0x3000, 5), (1, 0x1008, 40), (2, 0x2000, 7)] {
        writer.set_process(process);
        for _ in 0..times {
            writer.write(TraceWrite { pc: 0x40_1000, address, size: 8 }).expect("a write");
        }
    }
    writer.finish().expect("the end");
    golden("plan-processes", &place.run(&["plan", "three.sptrace", "--processes"]));
    golden("plan-processes-json", &place.run(&["plan", "three.sptrace", "--processes", "--json"]));
    place.policy("c.toml", &policy(&[("c", "region = \"c\"", "deny")]));
    // The first process wrote there before it became another program.
    let output = place.run(&["guard", "-p", "c.toml", "three.sptrace"]);
    assert_eq!(status(&output), 0);
    let text = String::from_utf8_lossy(&output.stdout);
    let warned = "only process 2 of this trace was put before the rules, not the 45 writes of other \
                  processes";
    assert!(text.contains(warned), "{text}");
    // It is a doubt, unless somebody chose.
    let strict = ["guard", "--strict", "-p", "c.toml", "three.sptrace"];
    assert_eq!(status(&place.run(&strict)), 2);
    let output = place.run(&[&strict[..], &["--process", "2"]].concat());
    assert_eq!(status(&output), 0);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("warning"));
    let output = place.run(&["guard", "-p", "c.toml", "--process", "1", "three.sptrace"]);
    assert_eq!(status(&output), 3);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("40 writes denied"));
    assert!(text.contains("  process 1 \\u{1b}child\n"), "{text}");
    let json = ["guard", "-p", "c.toml", "--process", "1", "--json", "three.sptrace"];
    golden("guard-process-json", &place.run(&json));
    let output = place.run(&["guard", "-p", "c.toml", "--process", "3", "three.sptrace"]);
    assert_eq!(status(&output), 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("numbered from 0"));
    let output = place.run(&["plan", "three.sptrace", "--process", "0", "--json"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"writes\":5,"));
}

/// The rule would lie at the file's own addresses, which the recorded process did not have.
#[test]
fn a_position_independent_file_needs_its_bias() {
    let place = Place::new();
    // The test program itself is one, and has symbols.
    let program = std::env::current_exe().expect("a program");
    let data = fs::read(&program).expect("a program");
    if data[16] != 3 {
        println!("skipped: this program is not position-independent");
        return;
    }
    let guard = |extra: &str| {
        let program = program.display();
        let place_of = format!("symbol = \"main\"\nelf = \"{program}\"\n{extra}");
        place.policy("pie.toml", &policy(&[("main", &place_of, "deny")]));
        place.run(&["guard", "-p", "pie.toml", "server.sptrace"])
    };
    let output = guard("");
    assert_eq!(status(&output), 2);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("position-independent") && errors.contains("bias = 0"), "{errors}");
    assert_eq!(status(&guard("bias = 0")), 0);
}
