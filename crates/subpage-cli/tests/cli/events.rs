//! Events for programs and for people.

use std::io;

use subpage_cli::events::{EventWriter, SHOWN_PER_RULE};

use crate::runs::{Run, counter, quiet, thirty};
use crate::{assert_golden, plain};

fn output(run: &Run, json: bool) -> String {
    let mut bytes = Vec::new();
    let mut events = EventWriter::new(&mut bytes, json);
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
    for (name, run) in [("counter", counter()), ("quiet", quiet()), ("thirty", thirty())] {
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
    assert_eq!(rule.checked, rule.allowed + rule.logged + rule.denied);
}
