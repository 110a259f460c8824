//! From an event to its record, and to who listens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use iced_x86::{Decoder, DecoderOptions, Formatter as _, IntelFormatter};
use subpage_emulate::guest::State;
use subpage_guard::event::Broadcast;
use subpage_trap::{Event, Record, When};

use super::guard::Core;

/// Numbers events and publishes them.
pub(crate) struct Publisher {
    pub(crate) broadcast: Arc<Broadcast>,
    began: Instant,
    events: AtomicU64,
}

impl Default for Publisher {
    fn default() -> Self {
        Self {
            broadcast: Arc::new(Broadcast::new()),
            began: Instant::now(),
            events: AtomicU64::new(0),
        }
    }
}

impl Publisher {
    /// What time it is.
    pub(crate) fn when(&self) -> When {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        When::Clock { unix, since_start: self.began.elapsed() }
    }

    /// Numbers, counts and publishes an event, whose addresses are places. `state`: the registers of the
    /// guest's processor before the write, if it is the guest's.
    pub(crate) fn record(
        &self,
        core: &mut Core,
        state: Option<&State>,
        event: &Event<&[u8]>,
    ) -> Arc<Record> {
        let mut event = event.clone().map_bytes(<[u8]>::to_vec);
        // A rule's name for the byte that it holds; the write's first byte is as far away as it was.
        let before = event.at.as_u64().wrapping_sub(event.gpa.as_u64());
        event.at = core.memory.name(event.at);
        event.gpa = match event.at.as_u64().checked_sub(before).and_then(crate::memory::gpa) {
            Some(gpa) => gpa,
            None => core.memory.name(event.gpa),
        };
        if event.instruction.is_empty() {
            event.origin.rip = None;
        }
        let text = event
            .origin
            .rip
            .zip(state)
            .map(|(rip, state)| disassemble(state.bitness(), rip, &event.instruction));
        let active = event.rule.and_then(|rule| core.domain.rules().get(rule));
        let rule_name = active.map(|active| active.rule.name.to_string());
        if let Some(rule) = event.rule {
            let counts = core.counts.entry(rule).or_default();
            if event.verdict.is_denial() {
                counts.denied += 1;
            } else {
                counts.logged += 1;
            }
        }
        let number = self.events.fetch_add(1, Ordering::SeqCst) + 1;
        let bare = Record::new(number, core.writes, event);
        let record = Arc::new(Record { rule_name, text, ..bare });
        self.broadcast.publish(Arc::clone(&record));
        record
    }
}

/// An instruction in words, Intel syntax.
fn disassemble(bitness: u32, rip: u64, bytes: &[u8]) -> String {
    let mut decoder = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE);
    let mut text = String::new();
    IntelFormatter::new().format(&decoder.decode(), &mut text);
    text
}
