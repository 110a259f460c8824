//! Policies, right and wrong.

use std::fmt::Write;
use std::path::Path;

use proptest::prelude::*;
use subpage_cli::policy::{
    Draft, MAX_POLICY_BYTES, NamedRange, Names, PlacedMistake, Policy, PolicySource,
};

use crate::{assert_golden, golden, plain};

/// What a trace of a small program would bring.
fn regions() -> Names {
    let range = |name: &str, start, length| NamedRange { name: name.to_owned(), start, length };
    Names::new(vec![
        range("program:.data", 0x10_c000, 0x1000),
        range("counters", 0x10_c000, 0x400),
        range("helper_path", 0x10_c800, 0x100),
        range("twin", 0x20_0000, 8),
        range("twin", 0x20_0100, 16),
        range("label", 0x10_d000, 0),
        range("heap", 0x480_0000, 0x100_0000),
    ])
}

fn draft(text: String) -> Draft {
    Draft::parse(PolicySource::from_text(Path::new("policy.toml"), text))
}

fn show(policy: &Policy) -> String {
    let mut text = String::new();
    for rule in &policy.rules {
        let (line, rule) = (rule.line, &rule.rule);
        writeln!(
            text,
            "line {line}: {} {:?} {:#x}..={:#x} owner {} locked {}",
            rule.name,
            rule.action,
            rule.range.first().as_u64(),
            rule.range.last().as_u64(),
            rule.owner.0,
            rule.locked
        )
        .expect("a string");
    }
    text
}

/// Every `golden/policy/*.toml` gives the text of the `.txt` next to it.
#[test]
fn golden_policies() {
    let mut count = 0;
    for entry in std::fs::read_dir(golden("policy")).expect("directory") {
        let path = entry.expect("entry").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        count += 1;
        let name = path.file_name().expect("name").to_str().expect("text");
        let text = std::fs::read_to_string(&path).expect("policy");
        let source = PolicySource::from_text(Path::new(name), text);
        let shown = match Draft::parse(source).resolve(&regions()) {
            Ok(policy) => show(&policy),
            Err(mistakes) => {
                let mut shown = plain(&mistakes.render());
                for PlacedMistake { line, column, mistake, .. } in mistakes.iter() {
                    writeln!(shown, "{name}:{line}:{column}: {}", mistake.message)
                        .expect("a string");
                }
                shown
            }
        };
        assert_golden(&format!("policy/{}", name.replace(".toml", ".txt")), &shown);
    }
    assert!(count >= 8, "only {count} policies found");
}

#[test]
fn every_mistake_of_a_file_is_reported() {
    let mut text = "version = 1\n".to_owned();
    for index in 0..1000 {
        writeln!(text, "[[rule]]\nname = \"r{index}\"\nregion = \"no such thing\"").expect("text");
    }
    let mistakes = draft(text).resolve(&regions()).expect_err("wrong");
    assert_eq!(mistakes.len(), 1000);
    assert!(plain(&mistakes.render()).contains("and 800 more mistakes"));
    let lines: Vec<_> = mistakes.iter().map(|placed| (placed.line, placed.column)).collect();
    assert_eq!(lines[0], (4, 10));
    assert_eq!(lines[999], (3001, 10));
}

#[test]
fn the_limits_of_a_file_hold() {
    let mut text = "version = 1\nrule = [".to_owned();
    text.push_str(&"{},".repeat(100_001));
    text.push(']');
    assert!((text.len() as u64) < MAX_POLICY_BYTES);
    let mistakes = draft(text).resolve(&regions()).expect_err("wrong");
    let too_many = |placed: PlacedMistake<'_>| placed.mistake.message.contains("more than 100,000");
    assert!(mistakes.iter().any(too_many));

    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("long.toml");
    let file = std::fs::File::create(&path).expect("file");
    file.set_len(MAX_POLICY_BYTES + 1).expect("length");
    let error = PolicySource::read(&path).expect_err("too long").to_string();
    assert!(error.contains("longer than 16 MiB"), "{error}");
    std::fs::write(&path, b"version = 1\n# \xff").expect("file");
    let error = PolicySource::read(&path).expect_err("not text").to_string();
    assert!(error.contains("byte 14"), "{error}");
}

/// As many rules as a policy may have, `first` and the numbers behind it as their names.
fn rules(first: usize, count: usize) -> String {
    let mut text = "version = 1\nrule = [\n".to_owned();
    for index in first..first + count {
        writeln!(text, "{{ name = \"r{index}\", range = \"{index}+1\" }},").expect("text");
    }
    text + "]\n"
}

fn files(texts: &[String]) -> Draft {
    let source =
        |(name, text): (&str, &String)| PolicySource::from_text(Path::new(name), text.clone());
    Draft::of(["a.toml", "b.toml", "c.toml"].into_iter().zip(texts).map(source).collect())
}

#[test]
fn a_rule_of_several_files_knows_its_own() {
    let policy = files(&[rules(1, 2), rules(3, 1)]).resolve(&regions()).expect("right");
    let places: Vec<_> = policy.rules.iter().map(subpage_cli::policy::PolicyRule::place).collect();
    assert_eq!(places, ["a.toml:3", "a.toml:4", "b.toml:3"]);
}

/// The limit is one of the policy, and so are its names.
#[test]
fn the_files_of_a_policy_share_its_limit_and_its_names() {
    let shown = |texts: &[String]| -> Vec<String> {
        let mistakes = match files(texts).resolve(&regions()) {
            Ok(policy) => panic!("{} rules are taken", policy.rules.len()),
            Err(mistakes) => mistakes,
        };
        let one = |it: PlacedMistake<'_>| {
            let (file, mistake) = (it.source.path().display(), it.mistake);
            format!("{file}:{}: {} ({})", it.line, mistake.message, mistake.label)
        };
        mistakes.iter().map(one).collect()
    };
    assert!(files(&[rules(1, 60_000), rules(60_001, 40_000)]).resolve(&regions()).is_ok());
    // Told once, where it is reached.
    assert_eq!(
        shown(&[rules(1, 60_000), rules(60_001, 40_002), rules(200_000, 1)]),
        ["b.toml:40003: the policy has more than 100,000 rules (the first too many)"]
    );
    assert_eq!(
        shown(&[rules(1, 3), rules(5, 2), rules(3, 3)]),
        [
            "c.toml:3: two rules are called `r3` (already in a.toml:5)",
            "c.toml:5: two rules are called `r5` (already in b.toml:3)",
        ]
    );
}

/// One run shows the mistakes of all files, of their texts and of their names.
#[test]
fn the_mistakes_of_all_files_are_shown() {
    let rule =
        |name: &str, rest: &str| format!("version = 1\n[[rule]]\nname = \"{name}\"\n{rest}\n");
    let texts = [
        rule("a", "region = \"nowhere\""),
        rule("b", "region = \"heap\""),
        rule("c", "region = \"heap\"\naction = \"block\""),
    ];
    let mistakes = files(&texts).resolve(&regions()).expect_err("wrong");
    let rendered = plain(&mistakes.render());
    assert!(rendered.contains("a.toml:4:10") && rendered.contains("c.toml:5:10"), "{rendered}");
    assert!(rendered.ends_with("a.toml, c.toml: 2 mistakes, nothing was run\n"), "{rendered}");
    // Of the text alone as well.
    let mistakes = files(&texts).mistakes().expect_err("wrong");
    let places: Vec<_> =
        mistakes.iter().map(|it| (it.source.path().to_owned(), it.line, it.column)).collect();
    assert_eq!(places, [("c.toml".into(), 5, 10)]);
    assert_eq!(files(&texts).name(), "a.toml, b.toml, c.toml");
}

#[test]
fn deep_nesting_is_a_mistake_not_a_stack_overflow() {
    for text in ["[".repeat(500_000), "a.".repeat(500_000), "{a=".repeat(300_000)] {
        assert!(draft(format!("rule = {text}")).resolve(&regions()).is_err());
        assert!(draft(text).resolve(&regions()).is_err());
    }
}

/// A change of a policy's bytes.
#[derive(Debug, Clone)]
enum Mutation {
    Delete { at: usize, count: usize },
    Insert { at: usize, text: String },
    Swap { at: usize, with: usize },
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let token = prop_oneof![
        Just("[[rule]]\n".to_owned()),
        Just("\"".to_owned()),
        Just("\n".to_owned()),
        Just("= 0xffffffffffffffff\n".to_owned()),
        Just("..".to_owned()),
        Just("'''".to_owned()),
        Just("{ start = ".to_owned()),
        Just("\u{1b}[2J\u{202e}".to_owned()),
        "\\PC{0,3}",
        "[a-z0-9=\\[\\]{}.,\"#\\n -]{0,8}",
    ];
    prop_oneof![
        (any::<usize>(), 1..40_usize).prop_map(|(at, count)| Mutation::Delete { at, count }),
        (any::<usize>(), token).prop_map(|(at, text)| Mutation::Insert { at, text }),
        (any::<usize>(), any::<usize>()).prop_map(|(at, with)| Mutation::Swap { at, with }),
    ]
}

fn mutate(text: &str, mutations: Vec<Mutation>) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    for mutation in mutations {
        let length = characters.len();
        match mutation {
            Mutation::Delete { at, count } if length > 0 => {
                let at = at % length;
                characters.drain(at..(at + count).min(length));
            }
            Mutation::Insert { at, text } => {
                let at = at % (length + 1);
                characters.splice(at..at, text.chars());
            }
            Mutation::Swap { at, with } if length > 0 => {
                characters.swap(at % length, with % length);
            }
            _ => {}
        }
    }
    characters.into_iter().collect()
}

proptest! {
    /// A damaged policy is a policy or a list of mistakes with places in the text; never a panic.
    #[test]
    fn damaged_policies_never_panic(mutations in prop::collection::vec(mutation(), 1..12)) {
        let valid = include_str!("../golden/policy/valid.toml");
        let text = mutate(valid, mutations);
        let lines = text.split('\n').count();
        if let Err(mistakes) = draft(text).resolve(&regions()) {
            let rendered = plain(&mistakes.render());
            prop_assert!(rendered.chars().all(|c| c == '\n' || !c.is_control()), "{rendered:?}");
            for PlacedMistake { line, column, .. } in mistakes.iter() {
                prop_assert!(line >= 1 && line <= lines && column >= 1);
            }
        }
    }
}
