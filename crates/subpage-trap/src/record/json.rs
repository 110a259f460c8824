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
mod tests;
