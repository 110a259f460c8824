//! What a new user types first: a policy begun, looked at, suggested, run quietly or in full.

use std::fs;

use subpage_trace::{Header, Name, NameKind, Names, TraceWriter, Write as TraceWrite};

use crate::place::{Place, golden, status};

#[test]
fn a_policy_is_begun_and_is_right() {
    let place = Place::new();
    let printed = place.run(&["new", "policy"]);
    assert_eq!(status(&printed), 0);
    assert_eq!(status(&place.run(&["new", "policy", "mine.toml"])), 0);
    assert_eq!(fs::read(place.path("mine.toml")).expect("written"), printed.stdout);
    assert_eq!(status(&place.run(&["policy", "check", "mine.toml", "server.sptrace"])), 0);
    // With every example in force the text is right as well.
    let text = String::from_utf8(printed.stdout).expect("text");
    let all: Vec<_> = text
        .lines()
        .map(|line| {
            let rest = line
                .strip_prefix("# ")
                .filter(|rest| rest.contains("= ") || rest.starts_with("[["));
            rest.filter(|rest| !rest.contains("Subpage")).unwrap_or(line)
        })
        .collect();
    fs::write(place.path("all.toml"), all.join("\n")).expect("writable");
    let output = place.run(&["policy", "check", "all.toml"]);
    assert_eq!(status(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("3 rules"));
    // What is there is left alone.
    fs::write(place.path("mine.toml"), "mine").expect("writable");
    assert_eq!(status(&place.run(&["new", "policy", "mine.toml"])), 2);
    assert_eq!(fs::read(place.path("mine.toml")).expect("still there"), b"mine");
}

#[test]
fn a_policy_is_looked_at_without_a_run() {
    let place = Place::new();
    let text = "version = 1\n[[rule]]\nname = \"a\"\nrange = \"helper_path+8+16\"\n\
                [[rule]]\nname = \"b\"\nrange = \"helper_path+8..0x10e190\"\naction = \"log\"\n";
    place.policy("p.toml", text);
    golden("policy-check", &place.run(&["policy", "check", "p.toml", "server.sptrace"]));
    assert_eq!(status(&place.run(&["policy", "check", "--strict", "p.toml", "server.sptrace"])), 2);
    assert_eq!(status(&place.run(&["policy", "check", "p.toml"])), 0, "only the text");
    place.policy("p.toml", "version = 1\n[[rule]]\nname = \"a\"\nrange = \"helper_pth+8\"\n");
    let output = place.run(&["policy", "check", "p.toml", "server.sptrace"]);
    assert_eq!(status(&output), 2);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("helper_path") && errors.contains("p.toml:4:9"), "{errors}");
    assert_eq!(status(&place.run(&["policy", "check", "missing.toml"])), 2);
}

/// What no name can make right is told without a guest; what names could make right, with it.
#[test]
fn the_form_of_a_place_is_looked_at_without_a_guest() {
    let place = Place::new();
    let check = |range: &str, guest: &[&str]| {
        let text = format!("version = 1\n[[rule]]\nname = \"a\"\nrange = \"{range}\"\n");
        place.policy("p.toml", &text);
        let output = place.run(&[&["policy", "check", "p.toml"], guest].concat());
        (status(&output), String::from_utf8(output.stderr).expect("text"))
    };
    for (range, wrong) in [
        ("", "there is no address and no name"),
        ("0x1000-0x1080", "neither a number nor a name"),
        ("x+y+z+1..2", "an end or a length, not both"),
        ("helper_path+x", "the offset `x` is not a number"),
        ("helper_path+8+0", "the length is 0"),
    ] {
        for guest in [&[][..], &["server.sptrace"]] {
            let (status, errors) = check(range, guest);
            assert_eq!(status, 2, "{range}");
            assert!(errors.contains(wrong) && errors.contains("p.toml:4:9"), "{range}: {errors}");
            assert!(errors.contains("p.toml: 1 mistake,"), "{range}: {errors}");
        }
    }
    for range in ["nowhere", "nowhere+8", "nowhere+8+8", "nowhere..0x10", "a+1..b+2", "0..a"] {
        assert_eq!(check(range, &[]).0, 0, "{range}");
        assert_eq!(check(range, &["server.sptrace"]).0, 2, "{range}");
    }
}

/// What is suggested is a policy, and the trace that it comes from keeps it.
#[test]
fn a_plan_suggests_a_policy() {
    let place = Place::new();
    let output = place.run(&["plan", "server.sptrace", "--suggest"]);
    assert_eq!(status(&output), 0);
    golden("plan-suggest", &output);
    fs::write(place.path("suggested.toml"), &output.stdout).expect("writable");
    let output = place.run(&["guard", "--strict", "-p", "suggested.toml", "server.sptrace"]);
    assert_eq!(status(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
}

/// A section has cold parts next to the counters in it, and a rule for it would cover those as well.
#[test]
fn what_has_a_hot_part_is_not_suggested() {
    let place = Place::new();
    let name = |name: &str, start, length, kind| Name { name: name.into(), start, length, kind };
    let names = Names::new([
        name("counters", 0x10_e000, 384, NameKind::Object),
        name("helper_path", 0x10_e180, 128, NameKind::Object),
        // Cold in the first page, and hot in the second.
        name("table", 0x10_ef80, 4096, NameKind::Object),
        name("server:.data", 0x10_d000, 0x3000, NameKind::Section),
    ]);
    let file = fs::File::create(place.path("section.sptrace")).expect("file");
    let header = Header { command: vec!["./server".into()], names, ..Header::default() };
    let mut writer = TraceWriter::new(file, &header).expect("header");
    for index in 0..5000_u64 {
        let address = 0x10_e000 + index % 48 * 8;
        writer.write(TraceWrite { pc: 0x40_1000, address, size: 8 }).expect("a write");
        if index % 5 == 0 {
            let address = if index % 1000 == 0 { 0x10_e180 } else { 0x10_f008 };
            writer.write(TraceWrite { pc: 0x40_1000, address, size: 8 }).expect("a write");
        }
    }
    writer.finish().expect("the end");
    let mixed = |top: &str| {
        let output = place.run(&["plan", "section.sptrace", "--top", top]);
        let text = String::from_utf8(output.stdout).expect("text");
        let line = text.lines().find(|line| line.starts_with("pages that mix"));
        line.expect("pages that mix").to_owned()
    };
    assert_eq!(mixed("2"), "pages that mix hot and cold sub-pages  2");
    assert_eq!(mixed("1"), "pages that mix hot and cold sub-pages  2; 1 shown (--top N)");
    let output = place.run(&["plan", "section.sptrace", "--suggest"]);
    assert_eq!(status(&output), 0);
    let text = String::from_utf8(output.stdout).expect("text");
    let rules: Vec<_> = text.lines().filter(|line| line.starts_with("region")).collect();
    assert_eq!(rules, ["region = \"helper_path\""]);
    place.policy("suggested.toml", &text);
    let output = place.run(&["guard", "--json", "-p", "suggested.toml", "section.sptrace"]);
    let text = String::from_utf8(output.stdout).expect("text");
    let summary: serde_json::Value =
        serde_json::from_str(text.lines().last().expect("a summary")).expect("JSON");
    assert_eq!((&summary["exits_page"], &summary["exits_sub_page"]), (&5005.into(), &5.into()));
}

#[test]
fn nothing_to_suggest_is_a_policy_too() {
    let place = Place::new();
    let file = fs::File::create(place.path("hot.sptrace")).expect("file");
    let writer = TraceWriter::new(file, &Header::default()).expect("header");
    writer.finish().expect("the end");
    let output = place.run(&["plan", "hot.sptrace", "--suggest"]);
    assert_eq!(status(&output), 0);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.contains("nothing to suggest"), "{text}");
    place.policy("suggested.toml", &text);
    assert_eq!(status(&place.run(&["policy", "check", "suggested.toml", "hot.sptrace"])), 0);
}

/// What `guard` refuses, `policy check` refuses.
#[test]
fn a_moment_that_a_trace_does_not_have_is_a_mistake() {
    let place = Place::new();
    let text = "version = 1\n[[rule]]\nname = \"c\"\nregion = \"counters\"\naction = \"log\"\narm = \"init\"\n";
    place.policy("arms.toml", text);
    for command in [&["policy", "check", "arms.toml"][..], &["guard", "-p", "arms.toml"]] {
        let output = place.run(&[command, &["server.sptrace"]].concat());
        let told = String::from_utf8(output.stderr.clone()).expect("text");
        assert_eq!(status(&output), 2, "{told}");
        assert!(told.contains("waits for a moment that this trace does not have"), "{told}");
    }
}

#[test]
fn people_choose_how_much_they_read() {
    let place = Place::new();
    let many = "version = 1\n[[rule]]\nname = \"c\"\nregion = \"counters\"\naction = \"log\"\n";
    place.policy("many.toml", many);
    let lines = |extra: &[&str]| {
        let output =
            place.run(&[&["guard", "-p", "many.toml", "server.sptrace"][..], extra].concat());
        String::from_utf8(output.stdout)
            .expect("text")
            .lines()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(lines(&["-q"]), ["nothing denied"]);
    let events = |lines: &[String]| lines.iter().filter(|l| l.starts_with("logged")).count();
    assert_eq!(events(&lines(&[])), 20);
    assert_eq!(events(&lines(&["-v"])), 1004);
    for wrong in [["-q", "-v"], ["-q", "--json"], ["-v", "--json"]] {
        let output =
            place.run(&[&["guard", "-p", "many.toml", "server.sptrace"][..], &wrong].concat());
        assert_eq!(status(&output), 2, "{wrong:?}");
    }
}
