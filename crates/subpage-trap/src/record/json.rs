//! Records as JSON objects, in the form of `docs/events.md`.

use std::borrow::Cow;
use std::string::{String, ToString};
use std::time::Duration;
use std::vec::Vec;

use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use subpage::address::Gpa;
use subpage::rules::{Action, RuleId};

use super::{Function, Process, Record, SourceLine, Task, Timestamp};
use crate::{Address, Digits, Event, INSTRUCTION_BYTES, Origin, Response, Verdict, When};

/// Version of the description of events: the value of `v` in every line.
pub const VERSION: u32 = 1;

/// A write that met a rule or an access map.
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(super) struct Object<'a> {
    seq: u64,
    rule: Option<Cow<'a, str>>,
    #[serde(with = "word_of_action")]
    #[cfg_attr(feature = "schema", schemars(with = "super::schema::ActionWord"))]
    action: Action,
    verdict: Verdict,
    write: u64,
    gpa: Address,
    length: Option<u64>,
    /// Follows from `at`.
    #[serde(skip_deserializing)]
    sub_page: u8,
    pc: Option<Address>,
    pc_symbol: Option<Cow<'a, str>>,
    pc_offset: Option<u64>,
    source: Option<Cow<'a, str>>,
    call_trace: Option<Vec<Cow<'a, str>>>,
    process: Option<u16>,
    process_name: Option<Cow<'a, str>>,
    task: Option<ShownTask<'a>>,
    vcpu: u32,
    rule_id: Option<u64>,
    pc_exact: bool,
    cpl: Option<u8>,
    cr3: Option<Address>,
    gla: Option<Address>,
    at: Address,
    bytes: Option<Bytes<'a>>,
    instruction: Option<Bytes<'a>>,
    text: Option<Cow<'a, str>>,
    time: Option<Timestamp>,
    since_start: Option<Seconds>,
    time_stamp_counter: Option<Address>,
    response: Option<Becomes>,
    delivery: bool,
    software: bool,
    qualification: Option<Address>,
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(super) struct Line<'a> {
    v: u32,
    #[cfg_attr(feature = "schema", schemars(with = "super::schema::LineType"))]
    r#type: &'static str,
    #[serde(flatten)]
    record: Object<'a>,
}

/// A task of the guest's kernel.
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Task"))]
pub(super) struct ShownTask<'a> {
    pid: u32,
    tid: u32,
    name: Cow<'a, str>,
    uid: Option<u32>,
}

/// What becomes of an instruction whose write was denied.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(super) enum Becomes {
    Skip,
    Fault,
}

impl Record {
    /// The record as a line by itself: an object with the fields `v` and `type` in front.
    pub fn line(&self) -> impl Serialize + '_ {
        let r#type = match self.event.verdict {
            Verdict::Denied | Verdict::Stopped => "denied",
            Verdict::Logged => "logged",
            Verdict::AllowedOnce => "allowed_once",
        };
        Line { v: VERSION, r#type, record: self.object() }
    }

    fn object(&self) -> Object<'_> {
        let (event, origin) = (&self.event, &self.event.origin);
        let (time, since_start, counter) = match event.when {
            When::Unknown => (None, None, None),
            When::Clock { unix, since_start } => {
                (Timestamp::from_unix(unix), Some(Seconds::of(since_start)), None)
            }
            When::Counter(counter) => (None, None, Some(counter)),
        };
        Object {
            seq: self.seq,
            rule: self.rule_name.as_deref().map(Cow::from),
            action: event.action,
            verdict: event.verdict,
            write: self.write,
            gpa: Address(event.gpa.as_u64()),
            length: event.length,
            sub_page: event.sub_page().index(),
            pc: origin.rip.map(Address),
            pc_symbol: self.function.as_ref().map(|function| Cow::from(&*function.name)),
            pc_offset: self.function.as_ref().map(|function| function.offset),
            source: self.source.as_ref().map(|source| source.to_string().into()),
            call_trace: (!self.call_trace.is_empty())
                .then(|| self.call_trace.iter().map(|call| call.to_string().into()).collect()),
            process: self.process.as_ref().map(|process| process.number),
            process_name: self.process.as_ref().map(|process| Cow::from(&*process.name)),
            task: self.task.as_ref().map(|task| ShownTask {
                pid: task.pid,
                tid: task.tid,
                name: Cow::from(&*task.name),
                uid: task.uid,
            }),
            vcpu: origin.vcpu,
            rule_id: event.rule.map(|rule| rule.0),
            pc_exact: origin.rip_exact,
            cpl: origin.cpl,
            cr3: origin.cr3.map(Address),
            gla: event.gla.map(Address),
            at: Address(event.at.as_u64()),
            bytes: Bytes::known(&event.bytes),
            instruction: Bytes::known(&event.instruction),
            text: self.text.as_deref().map(Cow::from),
            time,
            since_start,
            time_stamp_counter: counter.map(Address),
            response: event.verdict.is_denial().then_some(match event.response {
                Response::Skip => Becomes::Skip,
                Response::Fault => Becomes::Fault,
            }),
            delivery: event.during_delivery,
            software: event.in_software,
            qualification: event.qualification.map(Address),
        }
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Object::deserialize(deserializer)?;
        let gpa = |address: Address| {
            Gpa::try_new(address.0).map_err(|_| {
                D::Error::invalid_value(Unexpected::Unsigned(address.0), &"an address of memory")
            })
        };
        let instruction = object.instruction.unwrap_or_default().0;
        if instruction.len() > INSTRUCTION_BYTES {
            return Err(D::Error::invalid_length(instruction.len(), &"an instruction's bytes"));
        }
        let when = match (object.time, object.since_start, object.time_stamp_counter) {
            (Some(unix), Some(since_start), _) => {
                When::Clock { unix: unix.unix(), since_start: since_start.time()? }
            }
            (_, _, Some(counter)) => When::Counter(counter.0),
            _ => When::Unknown,
        };
        let function = object.pc_symbol.map(|name| Function {
            name: name.into_owned(),
            offset: object.pc_offset.unwrap_or_default(),
        });
        let source = object.source.map(|text| {
            text.parse::<SourceLine>().map_err(|()| {
                D::Error::invalid_value(Unexpected::Str(&text), &"a file and a line as fork.c:7")
            })
        });
        let call_trace = object.call_trace.unwrap_or_default().into_iter().map(|text| {
            text.parse::<Function>().map_err(|()| {
                D::Error::invalid_value(Unexpected::Str(&text), &"a place as setup+0x12")
            })
        });
        let call_trace = call_trace.collect::<Result<_, _>>()?;
        let task = object.task.map(|task| Task {
            pid: task.pid,
            tid: task.tid,
            name: task.name.into_owned(),
            uid: task.uid,
        });
        let process = object.process.map(|number| Process {
            number,
            name: object.process_name.map(Cow::into_owned).unwrap_or_default(),
        });
        Ok(Self {
            seq: object.seq,
            write: object.write,
            rule_name: object.rule.map(Cow::into_owned),
            function,
            source: source.transpose()?,
            call_trace,
            process,
            task,
            text: object.text.map(Cow::into_owned),
            event: Event {
                verdict: object.verdict,
                response: match object.response {
                    None | Some(Becomes::Skip) => Response::Skip,
                    Some(Becomes::Fault) => Response::Fault,
                },
                rule: object.rule_id.map(RuleId),
                action: object.action,
                origin: Origin {
                    vcpu: object.vcpu,
                    rip: object.pc.map(|pc| pc.0),
                    rip_exact: object.pc_exact,
                    cr3: object.cr3.map(|cr3| cr3.0),
                    cpl: object.cpl,
                },
                when,
                gpa: gpa(object.gpa)?,
                gla: object.gla.map(|gla| gla.0),
                at: gpa(object.at)?,
                length: object.length,
                bytes: object.bytes.unwrap_or_default().0.into_owned(),
                instruction: instruction.iter().copied().collect(),
                during_delivery: object.delivery,
                qualification: object.qualification.map(|qualification| qualification.0),
                in_software: object.software,
            },
        })
    }
}

/// Bytes as [`Digits`].
#[derive(Default)]
pub(super) struct Bytes<'a>(Cow<'a, [u8]>);

impl<'a> Bytes<'a> {
    /// `None` where there are none.
    fn known(bytes: &'a [u8]) -> Option<Self> {
        (!bytes.is_empty()).then_some(Self(Cow::Borrowed(bytes)))
    }
}

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Digits(&self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Bytes<'_> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |digit: &u8| char::from(*digit).to_digit(16);
        let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
            [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
            _ => None,
        });
        let bytes: Option<Vec<u8>> = pairs.collect();
        let wrong = || D::Error::invalid_value(Unexpected::Str(&text), &"two digits a byte");
        Ok(Self(Cow::Owned(bytes.ok_or_else(wrong)?)))
    }
}

/// A stretch of time as a number of seconds, to the microsecond.
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(super) struct Seconds(f64);

impl Seconds {
    fn of(time: Duration) -> Self {
        let whole = Duration::new(time.as_secs(), time.subsec_micros() * 1000);
        Self(whole.as_secs_f64())
    }

    fn time<E: Error>(&self) -> Result<Duration, E> {
        // Numbers are binary: the nearest microsecond is the one that was written.
        let time = Duration::try_from_secs_f64(self.0).map_err(E::custom)?;
        let microseconds = (time.subsec_nanos() + 500) / 1000;
        Duration::from_secs(time.as_secs())
            .checked_add(Duration::from_micros(microseconds.into()))
            .ok_or_else(|| E::custom("the time is too far away"))
    }
}

/// Actions as words.
mod word_of_action {
    use std::string::String;

    use serde::de::{Error, Unexpected};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use subpage::rules::Action;

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
    pub(super) fn serialize<S: Serializer>(
        action: &Action,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        action.word().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Action, D::Error> {
        let word = String::deserialize(deserializer)?;
        Action::from_word(&word)
            .ok_or_else(|| D::Error::invalid_value(Unexpected::Str(&word), &"an action"))
    }
}

#[cfg(test)]
mod tests {
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
}
