//! What came from the guest's process and was not looked at yet: bounded, whatever comes.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use subpage_kvm::control::WatchLine;

use super::model::{KEPT, Link, Look, Model, Tone};

/// Bytes of lines that wait at most.
const MAX_BYTES: usize = 8 << 20;

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) text: String,
    pub(super) tone: Tone,
}

/// What waits for the view.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// The latest.
    look: Option<Look>,
    link: Option<Link>,
    lines: VecDeque<WatchLine>,
    bytes: usize,
    /// Events that made room for later ones.
    missed: u64,
    done: VecDeque<Done>,
}

/// Filled by the threads that read, emptied by the one that draws.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A thread that panicked with it has left it whole: nothing here panics half-way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn look(&self, look: Look) {
        let mut waiting = self.lock();
        waiting.look = Some(look);
        waiting.link = None;
    }

    pub(super) fn link(&self, link: Link) {
        self.lock().link = Some(link);
    }

    pub(super) fn done(&self, done: Done) {
        let mut waiting = self.lock();
        waiting.done.truncate(KEPT);
        waiting.done.push_back(done);
    }

    /// A line of the watched connection. The oldest make room for it.
    pub(super) fn line(&self, line: WatchLine) {
        let mut waiting = self.lock();
        waiting.bytes += line.text.len();
        waiting.lines.push_back(line);
        while waiting.lines.len() > KEPT || waiting.bytes > MAX_BYTES && waiting.lines.len() > 1 {
            let Some(old) = waiting.lines.pop_front() else { break };
            waiting.bytes -= old.text.len();
            waiting.missed += events_of(&old);
        }
    }

    /// What became of requests, and nothing else.
    pub(super) fn take_done(&self) -> Waiting {
        Waiting { done: std::mem::take(&mut self.lock().done), ..Waiting::default() }
    }

    /// All that waits.
    pub(super) fn take(&self) -> Waiting {
        std::mem::take(&mut *self.lock())
    }
}

/// For how many events a line stands.
fn events_of(line: &WatchLine) -> u64 {
    let text = line.object.get("type").and_then(|kind| kind.as_str());
    match text {
        Some("denied" | "logged" | "allowed_once") => 1,
        Some("dropped") => {
            line.object.get("events").and_then(serde_json::Value::as_u64).unwrap_or_default()
        }
        _ => 0,
    }
}

impl Waiting {
    /// Whether there is something to look at.
    pub(super) fn is_empty(&self) -> bool {
        self.look.is_none() && self.link.is_none() && self.lines.is_empty() && self.done.is_empty()
    }

    /// Hands all of it to the model.
    pub(super) fn into_model(self, model: &mut Model, now: std::time::Duration) {
        model.events.missed(self.missed);
        for line in &self.lines {
            model.event(&line.object);
        }
        if let Some(look) = self.look {
            model.look(look);
        }
        if let Some(link) = self.link {
            model.link = link;
        }
        for done in self.done {
            model.say(&done.text, done.tone, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Map, Value, json};

    use super::*;

    fn line(object: Value) -> WatchLine {
        let Value::Object(object) = object else { panic!("an object") };
        WatchLine { text: Value::Object(object.clone()).to_string(), object }
    }

    #[test]
    fn a_flood_takes_bounded_memory_and_nothing_is_forgotten() {
        let inbox = Inbox::default();
        for _ in 0..100_000 {
            inbox.line(line(json!({"type": "denied"})));
        }
        inbox.line(line(json!({"type": "dropped", "events": 500})));
        assert_eq!(inbox.lock().lines.len(), KEPT);
        let mut model = Model::new("socket", Duration::from_secs(1));
        inbox.take().into_model(&mut model, Duration::ZERO);
        assert_eq!(model.events.seen(), 100_500);
        assert_eq!(model.events.lost(), 100_500 - (KEPT as u64 - 1));
        assert!(inbox.take().is_empty());
    }

    #[test]
    fn long_lines_make_room_by_their_length() {
        let inbox = Inbox::default();
        for _ in 0..20 {
            inbox.line(WatchLine { text: "x".repeat(1 << 20), object: Map::new() });
        }
        assert_eq!(inbox.lock().lines.len(), 8);
        let huge = WatchLine { text: "x".repeat(2 * MAX_BYTES), object: Map::new() };
        inbox.line(huge);
        assert_eq!(inbox.lock().lines.len(), 1, "the newest is always there");
    }
}
