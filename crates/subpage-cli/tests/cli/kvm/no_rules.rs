//! Policies without a rule: a control run, and rules that come later.

use std::fs;

use super::{Place, Running, assemble, can_run, exit, harmless};

fn place(guest: &[u8]) -> Place {
    let place = Place::new(guest);
    fs::write(place.path("policy.toml"), "version = 1\nrule = []\n").expect("policy");
    place
}

#[test]
fn a_control_run_needs_no_rule() {
    if !can_run() {
        return;
    }
    let (summary, status) = Running::start(&place(&assemble(|code| exit(code, 0))), &[]).end();
    assert_eq!((&summary["ending"], status), (&"exited".into(), Some(0)), "{summary}");
    assert_eq!(summary["rules"], serde_json::json!([]));
}

#[test]
fn rules_may_come_while_the_guest_runs() {
    if !can_run() {
        return;
    }
    let place = place(&harmless());
    let running = Running::start(&place, &[]);
    place.ask(&["add", "late", "0x200800+8"]);
    place.wait_for_writes(3);
    place.ask(&["stop"]);
    let mut lines = running;
    let summary = loop {
        let line = lines.lines.next().expect("a line").expect("text");
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        match value["type"].as_str() {
            Some("summary") => break value,
            Some("denied") => assert_eq!(value["rule"], "late", "{value}"),
            other => assert_eq!(other, Some("dropped"), "{value}"),
        }
    };
    let rule = &summary["rules"][0];
    assert_eq!(rule["name"], "late", "{summary}");
    assert!(rule["denied"].as_u64().expect("a number") > 0, "{summary}");
    assert_eq!(lines.child.wait().expect("ends").code(), Some(3));
}
