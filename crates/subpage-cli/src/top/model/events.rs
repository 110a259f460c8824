//! The latest events, few enough to keep, whatever comes.

use std::collections::VecDeque;

use serde_json::{Map, Value};
use subpage_trap::{Address, Armed, Record, When};

use super::{clip, clip_to};
use crate::events::{write_armed, write_line};
use crate::terminal::{grouped, plural};

/// Most events that are kept.
pub(crate) const KEPT: usize = 512;

/// Characters of the whole text of an event that are kept.
const WHOLE_CHARACTERS: usize = 4000;

/// How an event is to be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// A write had no effect, or something was lost.
    Bad,
    /// A write took effect and was reported.
    Noted,
    /// Something works.
    Good,
    /// Anything else.
    Quiet,
}

/// An event as it is shown. All of its texts are printable, and clipped.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EventRow {
    /// Its number among all that came here.
    pub(crate) number: u64,
    pub(crate) tone: Tone,
    /// Seconds since the guest's start.
    pub(crate) since_start: Option<f64>,
    /// What happened, in a word or two.
    pub(crate) word: String,
    /// The rule, or what there is to say.
    pub(crate) rule: String,
    /// Which bytes.
    pub(crate) bytes: String,
    /// The function that wrote, or its address.
    pub(crate) by: String,
    /// The process that wrote.
    pub(crate) process: String,
    /// All that is known, in lines.
    pub(crate) whole: String,
}

/// The latest events.
#[derive(Debug, Clone, Default)]
pub(crate) struct Events {
    /// The newest first.
    rows: VecDeque<EventRow>,
    /// How many came, those that were dropped included.
    seen: u64,
    /// Those that came faster than they were read: neither here nor on the way were they looked at.
    lost: u64,
    /// In a second, over the last interval.
    pub(crate) rate: Option<f64>,
}

impl Events {
    /// The newest first.
    pub(crate) const fn rows(&self) -> &VecDeque<EventRow> {
        &self.rows
    }

    /// Writes that were reported.
    pub(crate) const fn seen(&self) -> u64 {
        self.seen
    }

    /// Of these, those that nobody can tell any more.
    pub(crate) const fn lost(&self) -> u64 {
        self.lost
    }

    /// A line of the watched connection; what is not known is passed over.
    pub(crate) fn line(&mut self, object: &Map<String, Value>) {
        let row = match object.get("type").and_then(Value::as_str) {
            Some("denied" | "logged" | "allowed_once") => {
                self.seen = self.seen.saturating_add(1);
                record(object)
            }
            Some("dropped") => {
                let events = object.get("events").and_then(Value::as_u64).unwrap_or_default();
                self.missed(events);
                Some(note(
                    Tone::Bad,
                    "lost",
                    format!(
                        "{} {} came faster than they were read",
                        grouped(events),
                        plural(events, "event")
                    ),
                ))
            }
            Some(Armed::TYPE) => armed(object),
            _ => None,
        };
        if let Some(row) = row {
            self.push(row);
        }
    }

    /// So many events came and were not looked at.
    pub(crate) fn missed(&mut self, events: u64) {
        self.seen = self.seen.saturating_add(events);
        self.lost = self.lost.saturating_add(events);
    }

    fn push(&mut self, mut row: EventRow) {
        row.number = self.rows.front().map_or(0, |row| row.number).wrapping_add(1);
        self.rows.truncate(KEPT - 1);
        self.rows.push_front(row);
    }
}

fn record(object: &Map<String, Value>) -> Option<EventRow> {
    let record: Record = serde_json::from_value(Value::Object(object.clone())).ok()?;
    let event = &record.event;
    let since_start = match event.when {
        When::Clock { since_start, .. } => Some(since_start.as_secs_f64()),
        _ => None,
    };
    let length = event.length.map_or_else(|| "?".to_owned(), |length| length.to_string());
    let function = record.function.as_ref().map(ToString::to_string);
    let process = record.task.as_ref().map(|task| format!("{} {}", task.pid, task.name));
    let process = process.or_else(|| record.process.as_ref().map(ToString::to_string));
    Some(EventRow {
        number: 0,
        tone: if event.verdict.is_denial() { Tone::Bad } else { Tone::Noted },
        since_start,
        word: event.verdict.word().to_owned(),
        rule: clip(record.rule_or_map()),
        bytes: format!("{length} at {}", Address(event.gpa.as_u64())),
        by: clip(&function.or_else(|| record.pc_text()).unwrap_or_default()),
        process: clip(&process.unwrap_or_default()),
        whole: whole(|out| write_line(out, &record, 0)),
    })
}

fn armed(object: &Map<String, Value>) -> Option<EventRow> {
    let armed: Armed = serde_json::from_value(Value::Object(object.clone())).ok()?;
    let count = armed.rules.len() as u64;
    let rule = match &armed.rules[..] {
        [one] => clip(one),
        _ => format!("{} {}", grouped(count), plural(count, "rule")),
    };
    Some(EventRow {
        since_start: Some(armed.since_start),
        by: clip(&armed.by),
        whole: whole(|out| write_armed(out, &armed)),
        ..note(Tone::Good, "armed", rule)
    })
}

fn note(tone: Tone, word: &str, rule: String) -> EventRow {
    EventRow {
        number: 0,
        tone,
        since_start: None,
        word: word.to_owned(),
        whole: rule.clone(),
        rule,
        bytes: String::new(),
        by: String::new(),
        process: String::new(),
    }
}

/// What is written for people elsewhere, without its colours.
fn whole(write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> String {
    let mut text = Vec::new();
    write(&mut text).expect("memory takes everything");
    let text = String::from_utf8_lossy(&text);
    let lines = anstream::adapter::strip_str(&text).to_string();
    let lines: Vec<_> = lines.lines().map(|line| clip_to(line, WHOLE_CHARACTERS)).collect();
    lines.join("\n")
}
