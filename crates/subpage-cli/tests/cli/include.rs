//! Policies of several files: those that a file includes, and those of `compile` and `policy check`.

use std::fmt::Write;
use std::fs;

use subpage_cli::policy::{Draft, Names, PolicySource};

use crate::place::{Place, status};
use crate::{assert_golden, plain};

fn rule(name: &str, start: u64) -> String {
    format!("[[rule]]\nname = \"{name}\"\nrange = \"{start:#x}+8\"\n")
}

/// What the policy that begins with `name` gives: its rules with their places, or its mistakes.
fn resolve(place: &Place, names: &[&str]) -> Result<Vec<String>, String> {
    let paths: Vec<_> = names.iter().map(|name| place.path(name)).collect();
    let draft = Draft::read(&paths).expect("files");
    let directory = place.path("").display().to_string();
    match draft.resolve(&Names::default()) {
        Ok(policy) => Ok(policy
            .rules
            .iter()
            .map(|it| format!("{} {}", it.rule.name, it.place().replace(&directory, "")))
            .collect()),
        Err(mistakes) => Err(plain(&mistakes.render()).replace(&directory, "")),
    }
}

#[test]
fn rules_of_included_files_come_first() {
    let place = Place::new();
    fs::create_dir(place.path("sub")).expect("directory");
    place.policy("sub/inner.toml", &format!("version = 1\n{}", rule("inner", 0x1000)));
    let list = "ffffffff80200080 D path\n";
    fs::write(place.path("sub/System.map"), list).expect("list");
    // Its own paths count from its own directory.
    let by_map = "[[rule]]\nname = \"map\"\nsymbol = \"path\"\nmap = \"System.map\"\nlength = 8\n";
    place.policy(
        "sub/middle.toml",
        &format!("version = 1\ninclude = [\"inner.toml\"]\n{}{by_map}", rule("middle", 0x2000)),
    );
    place.policy("only.toml", "version = 1\ninclude = [\"sub/middle.toml\"]\n");
    place.policy(
        "top.toml",
        &format!(
            "version = 1\ninclude = [\"only.toml\", \"sub/inner.toml\"]\n{}",
            rule("top", 0x3000)
        ),
    );
    let all = [
        "inner sub/inner.toml:3",
        "middle sub/middle.toml:4",
        "map sub/middle.toml:7",
        "top top.toml:4",
    ];
    assert_eq!(resolve(&place, &["top.toml"]).as_deref(), Ok(&all.map(str::to_owned)[..]));
    // What was included already counts once, in any order.
    assert_eq!(resolve(&place, &["top.toml", "sub/middle.toml"]).map(|it| it.len()), Ok(4));
    assert_eq!(resolve(&place, &["sub/middle.toml", "top.toml"]).map(|it| it.len()), Ok(4));
}

#[test]
fn mistakes_of_included_files_are_shown() {
    let place = Place::new();
    fs::create_dir(place.path("folder")).expect("directory");
    let include = |name: &str, list: &str, rules: &str| {
        place.policy(name, &format!("version = 1\ninclude = {list}\n{rules}"));
    };
    include("circle-a.toml", "[\"circle-b.toml\"]", &rule("a", 0x1000));
    include("circle-b.toml", "[\"./circle-a.toml\"]", &rule("b", 0x2000));
    include("self.toml", "[\"self.toml\"]", "");
    include("types.toml", "[1, \"\", \"folder\", \"missing.toml\", \"-\"]", "");
    include("text.toml", "\"inner.toml\"", "");
    include("inner.toml", "[]", &format!("{}action = \"block\"\n", rule("one", 0x1000)));
    include(
        "outer.toml",
        "[\"inner.toml\"]",
        &format!("{}{}", rule("one", 0x3000), rule("two", 0x3000)),
    );
    let mut all = String::new();
    for name in ["circle-a.toml", "self.toml", "types.toml", "text.toml", "outer.toml"] {
        write!(all, "=== {name}\n{}", resolve(&place, &[name]).expect_err(name)).expect("a string");
    }
    assert_golden("policy/include.out", &all);
}

#[test]
fn includes_have_limits() {
    let place = Place::new();
    for depth in 0..10 {
        let text = format!("version = 1\ninclude = [\"{}.toml\"]\n", depth + 1);
        place.policy(&format!("{depth}.toml"), &text);
    }
    place.policy("10.toml", "version = 1\nrule = []\n");
    assert!(resolve(&place, &["2.toml"]).is_ok());
    let wrong = resolve(&place, &["1.toml"]).expect_err("too deep");
    assert!(
        wrong.contains("more than 8 files include one another") && wrong.contains("9.toml:2:12"),
        "{wrong}"
    );
    // Many files, each with nothing in it.
    let mut list = String::new();
    for number in 0..1001 {
        place.policy(&format!("many-{number}.toml"), "version = 1\nrule = []\n");
        write!(list, "\"many-{number}.toml\",").expect("a string");
    }
    place.policy("many.toml", &format!("version = 1\ninclude = [{list}]\n"));
    let wrong = resolve(&place, &["many.toml"]).expect_err("too many");
    assert!(wrong.contains("more than 1000 files"), "{wrong}");
    // Two of 9 MiB: each may be read, and both are too long.
    let long = format!("version = 1\nrule = []\n#{}\n", "x".repeat(9 << 20));
    place.policy("long-1.toml", &long);
    place.policy("long-2.toml", &long);
    place.policy("long.toml", "version = 1\ninclude = [\"long-1.toml\", \"long-2.toml\"]\n");
    assert!(resolve(&place, &["long-1.toml"]).is_ok());
    for names in [&["long.toml"][..], &["long-1.toml", "long-2.toml"]] {
        let wrong = resolve(&place, names).expect_err("too long");
        assert!(wrong.contains("longer than 16 MiB together"), "{names:?}");
    }
    // Rules and names are counted over all.
    let one = |it: usize| format!("{{ name = \"r{it}\", range = \"{it}+1\" }},\n");
    let rules = |first: usize, count: usize| {
        let rules: String = (first..first + count).map(one).collect();
        format!("rule = [\n{rules}]\n")
    };
    place.policy("half.toml", &format!("version = 1\n{}", rules(0, 60_000)));
    let whole = format!("version = 1\ninclude = [\"half.toml\"]\n{}", rules(60_000, 40_001));
    place.policy("whole.toml", &whole);
    let wrong = resolve(&place, &["whole.toml"]).expect_err("too many");
    assert!(wrong.contains("more than 100,000 rules"), "{wrong}");
}

/// A text that is in no file may include files, and twice the same text is two.
#[test]
fn a_text_without_a_file_may_include_files() {
    let place = Place::new();
    place.policy("inner.toml", &format!("version = 1\n{}", rule("inner", 0x1000)));
    let text = "version = 1\ninclude = [\"inner.toml\"]\n".to_owned();
    let source = PolicySource::from_text(&place.path("nowhere.toml"), text);
    let policy = Draft::of(vec![source.clone(), source]).resolve(&Names::default()).expect("right");
    assert_eq!(policy.rules.len(), 1);
}

/// `compile` and `policy check` take several files as `guard` does; none of them is written.
#[test]
fn every_command_takes_several_files() {
    let place = Place::new();
    place.policy("a.toml", &format!("version = 1\n{}", rule("a", 0x10_e000)));
    place.policy(
        "b.toml",
        &format!("version = 1\ninclude = [\"c.toml\"]\n{}", rule("b", 0x10_e008)),
    );
    place.policy("c.toml", &format!("version = 1\n{}", rule("c", 0x10_e010)));
    let files = ["-p", "a.toml", "--policy", "b.toml"];
    let run = |command: &[&str], more: &[&str]| place.run(&[command, &files, more].concat());
    let output = run(&["policy", "check"], &["server.sptrace"]);
    assert_eq!(status(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    assert_golden("commands/policy-check-several.txt", &String::from_utf8_lossy(&output.stdout));
    assert_eq!(status(&run(&["policy", "check"], &[])), 0);
    let output = run(&["compile"], &["-o", "policy.bin"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("3 rules"));
    assert_eq!(status(&run(&["guard"], &["server.sptrace"])), 3);
    for (command, more) in [
        (&["policy", "check"][..], &["server.sptrace", "another"][..]),
        (&["policy", "check", "-p", "-"], &["-p", "-"]),
        (&["compile", "-p", "-"], &["-p", "-", "-o", "policy.bin"]),
        // A file that is included is not replaced.
        (&["compile"], &["-o", "c.toml"]),
        (&["guard", "--report", "c.toml"], &["server.sptrace"]),
    ] {
        let output = run(command, more);
        assert_eq!(status(&output), 2, "{command:?} {more:?}");
    }
    assert!(fs::read_to_string(place.path("c.toml")).expect("text").starts_with("version"));
}

/// A file that cannot be read is read once, and told of once, however often it is included.
#[test]
fn an_included_file_that_fails_is_read_once() {
    let place = Place::new();
    fs::write(place.path("bytes.toml"), b"\xff").expect("file");
    place.policy("one.toml", "version = 1\ninclude = [\"bytes.toml\"]\n");
    place.policy(
        "top.toml",
        "version = 1\ninclude = [\"bytes.toml\", \"one.toml\", \"bytes.toml\"]\n",
    );
    let mistakes = resolve(&place, &["top.toml"]).expect_err("not text");
    assert_eq!(mistakes.matches("is not UTF-8").count(), 1, "{mistakes}");
}
