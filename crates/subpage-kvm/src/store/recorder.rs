//! From an event to its record.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use iced_x86::{Decoder, DecoderOptions, Formatter as _, IntelFormatter};
use subpage::domain::WriteParts;
use subpage_emulate::guest::State;
use subpage_trap::{Event, Record, Verdict, When};

use super::StoreContext;
use crate::event::{Broadcast, Scene, Testimony, Witness};
use crate::guard::Guard;
use crate::metrics::Metrics;

/// Makes records of events and publishes them.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) broadcast: Arc<Broadcast>,
    metrics: Arc<Metrics>,
    began: Instant,
    witness: OnceLock<Box<dyn Witness>>,
}

impl Recorder {
    /// Of a guest that is made now.
    pub(crate) fn new(broadcast: Arc<Broadcast>, metrics: Arc<Metrics>) -> Self {
        Self { broadcast, metrics, began: Instant::now(), witness: OnceLock::new() }
    }

    /// Has this name the writers of events from now on; false if there was another.
    pub(crate) fn name_by(&self, witness: Box<dyn Witness>) -> bool {
        self.witness.set(witness).is_ok()
    }

    /// What time it is.
    pub(crate) fn when(&self) -> When {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        When::Clock { unix, since_start: self.began.elapsed() }
    }

    /// Numbers, counts and publishes an event. The guard's lock orders events among processors.
    ///
    /// `state`: the registers before the write.
    pub(crate) fn record(
        &self,
        context: StoreContext<'_>,
        guard: &mut Guard,
        state: &State,
        event: &Event<&[u8]>,
        write: &WriteParts,
    ) -> Arc<Record> {
        let active = event.rule.and_then(|rule| guard.domain().rules().get(rule));
        let rule_name = active.map(|active| active.rule.name.to_string());
        let mut event = event.clone().map_bytes(<[u8]>::to_vec);
        if event.instruction.is_empty() {
            // Of an event's frame, the place that was interrupted is no instruction that wrote.
            event.origin.rip = None;
        }
        let rip = event.origin.rip;
        let text = rip.map(|rip| disassemble(state.bitness(), rip, &event.instruction));
        let scene = Scene::new(rip, &event.instruction, state, context.ram, context.paging);
        let told = self.witness.get().map(|witness| witness.testify(&scene)).unwrap_or_default();
        let Testimony { function, source, call_trace, task } = told;
        let bare = Record::new(0, 0, event);
        let record = Record { rule_name, function, source, call_trace, task, text, ..bare };
        let record = guard.record(record, write);
        let name = record.rule_name.as_deref();
        match record.event.verdict {
            Verdict::Denied | Verdict::Stopped => self.metrics.denied(name),
            Verdict::Logged | Verdict::AllowedOnce => self.metrics.logged(name),
        }
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
