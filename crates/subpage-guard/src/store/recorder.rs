//! From an event to its record.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use iced_x86::{Decoder, DecoderOptions, Formatter as _, IntelFormatter};
use subpage::address::Gpa;
use subpage::domain::WriteParts;
use subpage::rules::RuleId;
use subpage_emulate::guest::State;
use subpage_trap::{Event, Record, Verdict, When};

use super::StoreContext;
use crate::event::{Broadcast, Scene, Testimony, Witness};
use crate::guard::Guard;
use crate::memory::GuestMemory;
use crate::metrics::Metrics;

/// A write that tells that a kernel is about to start its first program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstProgram {
    /// Address of four bytes.
    pub at: Gpa,
    /// What is written there.
    pub running: u32,
}

/// Makes records of events and publishes them.
#[derive(Debug)]
pub struct Recorder {
    /// Who gets them.
    pub broadcast: Arc<Broadcast>,
    metrics: Arc<Metrics>,
    began: Instant,
    witness: OnceLock<Box<dyn Witness>>,
    first_program: OnceLock<Watched>,
}

/// The write that tells that the guest's kernel is about to start its first program.
#[derive(Debug)]
struct Watched {
    /// The rule that reports writes there, and is none of the user's.
    rule: RuleId,
    write: FirstProgram,
    /// The processor that has done it, from 1, until it takes notice; else 0.
    met: AtomicU32,
}

impl Recorder {
    /// Of a guest that is made now.
    pub fn new(broadcast: Arc<Broadcast>, metrics: Arc<Metrics>) -> Self {
        Self {
            broadcast,
            metrics,
            began: Instant::now(),
            witness: OnceLock::new(),
            first_program: OnceLock::new(),
        }
    }

    /// Has this name the writers of events from now on; false if there was another.
    pub fn name_by(&self, witness: Box<dyn Witness>) -> bool {
        self.witness.set(witness).is_ok()
    }

    /// Has the events of a rule be no events, but tell of the first program; false if there was another.
    pub fn watch_first_program(&self, rule: RuleId, write: FirstProgram) -> bool {
        let watched = Watched { rule, write, met: AtomicU32::new(0) };
        self.first_program.set(watched).is_ok()
    }

    /// That rule, and the write.
    pub fn first_program(&self) -> Option<(RuleId, FirstProgram)> {
        self.first_program.get().map(|watched| (watched.rule, watched.write))
    }

    /// Whether this processor has done the write since the last call.
    pub fn take_first_program(&self, vcpu: u32) -> bool {
        let is_ours = |watched: &Watched| {
            let taken =
                watched.met.compare_exchange(vcpu + 1, 0, Ordering::SeqCst, Ordering::SeqCst);
            taken.is_ok()
        };
        self.first_program.get().is_some_and(is_ours)
    }

    /// Whether this processor has done the write, and not yet taken notice.
    pub fn is_first_program(&self, vcpu: u32) -> bool {
        let met = |watched: &Watched| watched.met.load(Ordering::SeqCst) == vcpu + 1;
        self.first_program.get().is_some_and(met)
    }

    /// What time it is.
    pub fn when(&self) -> When {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        When::Clock { unix, since_start: self.began.elapsed() }
    }

    /// Numbers, counts and publishes an event. The guard's lock orders events among processors.
    ///
    /// `state`: the registers before the write.
    pub fn record(
        &self,
        context: StoreContext<'_, impl GuestMemory>,
        guard: &mut Guard,
        state: &State,
        event: &Event<&[u8]>,
        write: &WriteParts,
    ) -> Arc<Record> {
        if let Some(watched) = self.first_program.get() {
            let FirstProgram { at, running } = watched.write;
            // Whichever rule decided about it: a user's may guard the same bytes.
            if event.gpa == at && event.bytes == running.to_le_bytes() {
                watched.met.store(event.origin.vcpu + 1, Ordering::SeqCst);
            }
            if event.rule == Some(watched.rule) {
                return Arc::new(Record::new(0, 0, event.clone().map_bytes(<[u8]>::to_vec)));
            }
        }
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
