//! From an event to its record.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use iced_x86::{Decoder, DecoderOptions, Formatter as _, IntelFormatter};
use subpage::domain::WriteParts;
use subpage_trap::{Event, Record, Verdict, When};

use crate::event::{Broadcast, Functions};
use crate::guard::Guard;
use crate::metrics::Metrics;

/// Makes records of events and publishes them.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) broadcast: Arc<Broadcast>,
    metrics: Arc<Metrics>,
    began: Instant,
    functions: OnceLock<Functions>,
}

impl Recorder {
    /// Of a guest that is made now.
    pub(crate) fn new(broadcast: Arc<Broadcast>, metrics: Arc<Metrics>) -> Self {
        Self { broadcast, metrics, began: Instant::now(), functions: OnceLock::new() }
    }

    /// Names the instructions of events by these from now on; false if there were others.
    pub(crate) fn name_by(&self, functions: Functions) -> bool {
        self.functions.set(functions).is_ok()
    }

    /// What time it is.
    pub(crate) fn when(&self) -> When {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        When::Clock { unix, since_start: self.began.elapsed() }
    }

    /// Numbers, counts and publishes an event. The guard's lock orders events among processors.
    ///
    /// `bitness`: 16, 32 or 64, of the guest's code.
    pub(crate) fn record(
        &self,
        guard: &mut Guard,
        bitness: u32,
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
        let text = event.origin.rip.map(|rip| disassemble(bitness, rip, &event.instruction));
        let functions = self.functions.get();
        let (function, source) = functions
            .zip(event.origin.rip)
            .map(|(functions, rip)| functions.find(rip, &event.instruction))
            .unwrap_or_default();
        let record = Record { rule_name, function, source, text, ..Record::new(0, 0, event) };
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
