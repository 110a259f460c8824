//! Events for programs and for people.

use std::io;

use subpage::address::{ByteRange, Gpa};
use subpage::rules::{Action, RuleId};
use subpage_cli::events::{Detail, EventWriter, FailedEvent, NoticeEvent, SHOWN_PER_RULE};
use subpage_cli::summary::{EndingKind, LiveSummary};
use subpage_trap::{Address, Event, Record, Verdict};

use crate::runs::{Run, counter, live, quiet, thirty};
use crate::{assert_golden, plain};

fn output(run: &Run, json: bool) -> String {
    let mut bytes = Vec::new();
    let mut events = EventWriter::new(&mut bytes, json, Detail::Normal);
    let all = || -> io::Result<()> {
        events.start(&run.start)?;
        for write in &run.events {
            events.write(write)?;
        }
        events.summary(&run.summary)
    };
    let mut all = all;
    all().expect("memory");
    drop(events);
    String::from_utf8(bytes).expect("text")
}

#[test]
fn golden_text() {
    let runs = [("counter", counter()), ("quiet", quiet()), ("thirty", thirty()), ("live", live())];
    for (name, run) in runs {
        let text = plain(&output(&run, false));
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{name}");
        assert_golden(&format!("events/{name}.txt"), &text);
    }
}

#[test]
fn golden_colours() {
    assert_golden("events/counter.ansi", &output(&counter(), false));
}

#[test]
fn golden_json() {
    let run = counter();
    let text = output(&run, true);
    // JSON is never rate-limited.
    assert_eq!(text.lines().count(), run.events.len() + 2);
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(value["v"], 1);
        assert!(value["type"].is_string());
    }
    let lines: Vec<_> = text.lines().collect();
    let some = [&lines[..4], &lines[lines.len() - 2..]].concat().join("\n");
    assert_golden("events/counter.jsonl", &(some + "\n"));
}

#[test]
fn golden_json_of_a_guest_on_kvm() {
    let text = output(&live(), true);
    assert!(!text.contains('\u{1b}'));
    assert_golden("events/live.jsonl", &text);
}

/// What was denied in all, and what makes that doubtful: the end, and what was lost.
#[test]
fn quiet_text_is_the_verdict_and_what_qualifies_it() {
    let quiet = |mut run: Run, change: &dyn Fn(&mut LiveSummary)| {
        let mut bytes = Vec::new();
        let mut events = EventWriter::new(&mut bytes, false, Detail::Quiet);
        let message = "a page with live page tables".to_owned();
        let notice = NoticeEvent { message, rule_name: None, page: Address(0x10_c000) };
        change(run.summary.live.as_mut().expect("of a guest on KVM"));
        let mut all = || -> io::Result<()> {
            events.start(&run.start)?;
            run.events.iter().try_for_each(|write| events.write(write))?;
            events.notice(&notice)?;
            events.summary(&run.summary)
        };
        all().expect("memory");
        drop(events);
        plain(&String::from_utf8(bytes).expect("text"))
    };
    assert_golden("events/live-quiet.txt", &quiet(live(), &|_| ()));
    let nothing = |live: &mut LiveSummary| {
        live.kind = EndingKind::PoweredOff;
        (live.events_dropped, live.console_dropped, live.notices_dropped) = (0, 0, 0);
    };
    assert_eq!(quiet(live(), &nothing), "3 writes denied\n");
}

/// A guest that cannot continue is kept, and both readers are told where it is.
#[test]
fn a_guest_that_is_kept_is_told() {
    let failed = FailedEvent { message: "rip \u{1b}0x1".to_owned(), control: "/run/s".to_owned() };
    for json in [false, true] {
        let mut bytes = Vec::new();
        EventWriter::new(&mut bytes, json, Detail::Normal).failed(&failed).expect("memory");
        let text = plain(&String::from_utf8(bytes).expect("text"));
        assert!(text.contains("/run/s") && !text.contains('\u{1b}'), "{text}");
        if json {
            let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!((&value["type"], &value["control"]), (&"failed".into(), &"/run/s".into()));
        }
    }
}

/// What comes from KVM has the same form as over the control socket, and as text the same line.
#[test]
fn an_event_of_kvm_is_written_in_both_forms() {
    let written = ByteRange::new(Gpa::new(0x1000), 1).expect("a byte");
    let mut event = Event {
        rule: Some(RuleId(2)),
        bytes: vec![1],
        ..Event::bare(Verdict::AllowedOnce, Action::AllowOnce, written)
    };
    (event.origin.cpl, event.origin.cr3) = (Some(0), Some(0x9000));
    let rule_name = Some("once".to_owned());
    let record = Record { rule_name, ..Record::new(1, 7, event) };
    let written = |json| {
        let mut bytes = Vec::new();
        EventWriter::new(&mut bytes, json, Detail::Normal).write(&record).expect("memory");
        plain(&String::from_utf8(bytes).expect("text"))
    };
    assert_eq!(written(true), serde_json::to_string(&record.line()).expect("JSON") + "\n");
    assert_eq!(
        written(false),
        "allowed once  once   1 byte  at 0x1000  sub-page  0  write 7  vcpu 0 cpl 0  bytes 01 |.|\n"
    );
}

/// Text shows few lines and its totals are those of every event.
#[test]
fn text_is_bounded_and_the_totals_are_not() {
    let run = counter();
    let text = plain(&output(&run, false));
    let whole = text.lines().filter(|line| line.starts_with("denied ")).count();
    assert_eq!(whole as u64, SHOWN_PER_RULE);
    assert!(run.summary.denied() > 100);
    assert!(text.lines().count() < 80);
    let rule = &run.summary.rules[0];
    assert_eq!(rule.checked, rule.allowed + rule.overruled + rule.logged + rule.denied);
}
