//! What a record is as JSON, there and back.

use std::borrow::ToOwned;
use std::vec;

use serde_json::{Value, json};

use super::*;

fn record() -> Record {
    Record {
        seq: 3,
        write: 145,
        rule_name: Some("helper path".to_owned()),
        function: Some(Function { name: "setup".to_owned(), offset: 18 }),
        source: Some(SourceLine { file: "kernel/setup:1.c".to_owned(), line: 42 }),
        call_trace: ["do_setup+0x8", "main+0x1f"]
            .map(|text| text.parse().expect("a place"))
            .to_vec(),
        process: Some(Process { number: 2, name: "server".to_owned() }),
        task: Some(Task { pid: 101, tid: 102, name: "sh".to_owned(), uid: Some(0) }),
        text: Some("mov [rdi],eax".to_owned()),
        event: Event {
            verdict: Verdict::Denied,
            response: Response::Fault,
            rule: Some(RuleId(7)),
            action: Action::Deny,
            origin: Origin {
                vcpu: 1,
                rip: Some(0x40_1234),
                rip_exact: true,
                cr3: Some(0x1000),
                cpl: Some(3),
            },
            when: When::Clock {
                unix: Duration::from_micros(1_764_216_000_123_456),
                since_start: Duration::from_micros(1_250_001),
            },
            gpa: Gpa::new(0x10_e17d),
            gla: Some(0xffff_8000_0010_e17d),
            at: Gpa::new(0x10_e180),
            length: Some(4),
            bytes: vec![0, 0xab, 1, 0xff],
            instruction: [0x89, 0x07].into_iter().collect(),
            during_delivery: true,
            qualification: Some(0x5aa),
            in_software: true,
        },
    }
}

/// What is known of a write in a trace.
fn sparse() -> Record {
    let full = record();
    Record {
        rule_name: None,
        function: None,
        source: None,
        call_trace: vec![],
        process: None,
        task: None,
        text: None,
        event: Event {
            verdict: Verdict::Logged,
            response: Response::Skip,
            rule: None,
            origin: Origin { vcpu: 0, rip: None, rip_exact: true, cr3: None, cpl: None },
            when: When::Unknown,
            gla: None,
            length: None,
            bytes: vec![],
            instruction: [].into_iter().collect(),
            during_delivery: false,
            qualification: None,
            in_software: false,
            ..full.event
        },
        ..full
    }
}

fn value(record: &Record) -> Value {
    serde_json::to_value(record).expect("records are JSON")
}

#[test]
fn a_denied_write() {
    assert_eq!(
        serde_json::to_string(&record().line()).expect("records are JSON"),
        concat!(
            r#"{"v":1,"type":"denied","seq":3,"rule":"helper path","action":"deny","#,
            r#""verdict":"denied","write":145,"gpa":"0x10e17d","length":4,"sub_page":3,"#,
            r#""pc":"0x401234","pc_symbol":"setup","pc_offset":18,"#,
            r#""source":"kernel/setup:1.c:42","call_trace":["do_setup+0x8","main+0x1f"],"#,
            r#""process":2,"process_name":"server","#,
            r#""task":{"pid":101,"tid":102,"name":"sh","uid":0},"#,
            r#""vcpu":1,"rule_id":7,"pc_exact":true,"cpl":3,"cr3":"0x1000","gla":"0xffff80000010e17d","#,
            r#""at":"0x10e180","bytes":"00ab01ff","instruction":"8907","#,
            r#""text":"mov [rdi],eax","time":"2025-11-27T04:00:00.123456Z","since_start":1.250001,"#,
            r#""time_stamp_counter":null,"response":"fault","delivery":true,"#,
            r#""software":true,"qualification":"0x5aa"}"#
        )
    );
}

#[test]
fn what_is_not_known_is_null() {
    let json = value(&sparse());
    for key in [
        "rule",
        "length",
        "pc",
        "pc_symbol",
        "pc_offset",
        "source",
        "call_trace",
        "process",
        "process_name",
        "task",
        "rule_id",
        "cpl",
        "cr3",
        "gla",
        "bytes",
        "instruction",
        "text",
        "time",
        "since_start",
        "time_stamp_counter",
        "response",
        "qualification",
    ] {
        assert_eq!(json[key], Value::Null, "{key}");
    }
}

#[test]
fn the_type_follows_from_the_verdict() {
    for (verdict, kind, word) in [
        (Verdict::Denied, "denied", "denied"),
        (Verdict::Stopped, "denied", "stopped"),
        (Verdict::Logged, "logged", "logged"),
        (Verdict::AllowedOnce, "allowed_once", "allowed_once"),
    ] {
        let mut record = record();
        record.event.verdict = verdict;
        let json = serde_json::to_value(record.line()).expect("JSON");
        assert_eq!((&json["type"], &json["verdict"]), (&json!(kind), &json!(word)));
        assert_eq!(verdict.is_denial(), kind == "denied");
        assert_eq!(json["response"].is_string(), kind == "denied");
    }
}

#[test]
fn a_record_is_read_as_it_was_written() {
    let mut counted = record();
    counted.event.when = When::Counter(u64::MAX);
    let mut extreme = record();
    (extreme.seq, extreme.write) = (u64::MAX, u64::MAX);
    extreme.rule_name = Some("\"\\\u{202e}\n".to_owned());
    (extreme.event.gpa, extreme.event.at) = (Gpa::new(0), Gpa::new((1 << 48) - 1));
    extreme.event.origin.rip = Some(u64::MAX);
    for written in [record(), sparse(), counted, extreme] {
        let read: Record = serde_json::from_value(value(&written)).expect("a record");
        assert_eq!(read, written);
        let line = serde_json::to_string(&written.line()).expect("JSON");
        assert_eq!(serde_json::from_str::<Record>(&line).expect("a record"), written);
    }
    // Every microsecond of a time of today comes through.
    for microseconds in (0..1_000_000).step_by(997) {
        let mut written = record();
        let unix = Duration::from_micros(1_764_216_000_000_000 + microseconds);
        let since_start = Duration::from_micros(1_000_000_000_000 + microseconds);
        written.event.when = When::Clock { unix, since_start };
        let read: Record = serde_json::from_value(value(&written)).expect("a record");
        assert_eq!(read.event.when, written.event.when);
    }
}

#[test]
fn what_is_no_record_is_refused() {
    for (key, wrong) in [
        ("gpa", json!("0xffffffffffffffff")),
        ("at", json!("16")),
        ("gpa", json!("0x+1")),
        ("bytes", json!("0")),
        ("bytes", json!("é")),
        ("bytes", json!("+1")),
        ("instruction", json!("90".repeat(16))),
        ("action", json!("block")),
        ("verdict", json!("allowed")),
        ("time", json!(1_764_216_000)),
        ("time", json!("2025-11-27")),
        ("since_start", json!(-1.0)),
        ("since_start", json!(1e300)),
        ("source", json!("setup.c")),
        ("source", json!("setup.c:+1")),
        ("source", json!("setup.c:4294967296")),
        ("process", json!(65_536)),
        ("call_trace", json!(["setup"])),
        ("call_trace", json!("setup+0x1")),
        ("task", json!({ "pid": -1, "tid": 1, "name": "sh", "uid": null })),
        ("task", json!({ "pid": 1 })),
        ("since_start", json!(1.9e19)),
        ("cpl", json!(256)),
    ] {
        let mut json = value(&record());
        json[key] = wrong.clone();
        assert!(serde_json::from_value::<Record>(json).is_err(), "{key}: {wrong}");
    }
}
