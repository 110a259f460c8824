//! Events wait in the domain until they are fetched.

use alloc::collections::VecDeque;
use core::mem::MaybeUninit;

use arrayvec::ArrayVec;
use subpage::errno::Errno;
use subpage_trap::{Account, Event as Told, Met, Response, Verdict, When, describe};

use crate::decide::SUBPAGE_UNKNOWN;
use crate::domain::Domain;
use crate::rules::number_of;
use crate::status::{Failed, given, status};

/// Bytes of a write that an event keeps.
pub const SUBPAGE_EVENT_BYTES: usize = 64;

/// A write took effect and was logged.
pub const SUBPAGE_EVENT_LOGGED: u32 = 0;
/// A write took effect; the next one will not.
pub const SUBPAGE_EVENT_ALLOWED_ONCE: u32 = 1;
/// A write had no effect.
pub const SUBPAGE_EVENT_DENIED: u32 = 2;
/// A write had no effect, and the rule wants the guest stopped.
pub const SUBPAGE_EVENT_STOPPED: u32 = 3;

/// A write that met a rule or an access map. SUBPAGE_UNKNOWN stands for a number that is not known.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Event {
    /// Its number, from 1. A gap tells of events that there was no room for.
    pub number: u64,
    /// Which write it was of those that were decided about, from 1.
    pub write: u64,
    /// SUBPAGE_EVENT_LOGGED and so on.
    pub verdict: u32,
    /// The rule's action; SUBPAGE_DENY for an access map.
    pub action: u32,
    /// The rule that decided; SUBPAGE_UNKNOWN for an access map.
    pub rule: u64,
    /// First byte of the write.
    pub gpa: u64,
    /// Length of the write.
    pub length: u64,
    /// First byte that the rule or map holds.
    pub at: u64,
    /// Linear address of the write.
    pub gla: u64,
    /// Address of the instruction.
    pub rip: u64,
    /// The guest's page-table base.
    pub cr3: u64,
    /// See `subpage_origin`.
    pub unix_ns: u64,
    /// See `subpage_origin`.
    pub since_start_ns: u64,
    /// Number of the virtual processor.
    pub vcpu: u32,
    /// Privilege level, 0 to 3; 4 if it is not known.
    pub cpl: u32,
    /// The write was part of delivering an interrupt or exception.
    pub during_delivery: bool,
    /// The write was decided about in software.
    pub in_software: bool,
    /// How many of `bytes` are known.
    pub known_bytes: u8,
    /// The first bytes of what was stored or would have been.
    pub bytes: [u8; SUBPAGE_EVENT_BYTES],
}

type Kept = Told<ArrayVec<u8, SUBPAGE_EVENT_BYTES>>;

/// An event with its number.
#[derive(Debug)]
struct Waiting {
    number: u64,
    /// Which of the writes that were decided about.
    write: u64,
    told: Kept,
}

/// The events that wait; the oldest stay when there is no room.
#[derive(Debug)]
pub(crate) struct Queue {
    waiting: VecDeque<Waiting>,
    limit: usize,
    last: u64,
    /// Writes that were decided about: the numbers of events in JSON.
    writes: u64,
}

impl Queue {
    /// Room for `limit` events, taken now: noting one cannot fail.
    pub(crate) fn new(limit: u32) -> Result<Self, Failed> {
        let limit = usize::try_from(limit).map_err(|_| Failed(Errno::Invalid))?;
        let mut waiting = VecDeque::new();
        waiting.try_reserve_exact(limit).map_err(|_| Failed(Errno::NoMemory))?;
        Ok(Self { waiting, limit, last: 0, writes: 0 })
    }

    fn note(&mut self, event: Told<&[u8]>) {
        self.last += 1;
        if self.waiting.len() < self.limit {
            let told =
                event.map_bytes(|bytes| bytes.iter().copied().take(SUBPAGE_EVENT_BYTES).collect());
            self.waiting.push_back(Waiting { number: self.last, write: self.writes, told });
        }
    }
}

impl Queue {
    /// One more write was decided about.
    pub(crate) fn count_write(&mut self) {
        self.writes += 1;
    }
}

impl Domain {
    /// Keeps the event of a write that met something.
    pub(crate) fn note(&mut self, met: Met, account: &Account<'_>) {
        self.events.note(describe(&self.engine, met, Response::Skip, account));
    }
}

impl Event {
    fn of(Waiting { number, write, told }: &Waiting) -> Self {
        let verdict = match told.verdict {
            Verdict::Logged => SUBPAGE_EVENT_LOGGED,
            Verdict::AllowedOnce => SUBPAGE_EVENT_ALLOWED_ONCE,
            Verdict::Denied => SUBPAGE_EVENT_DENIED,
            Verdict::Stopped => SUBPAGE_EVENT_STOPPED,
        };
        let mut bytes = [0; SUBPAGE_EVENT_BYTES];
        bytes[..told.bytes.len()].copy_from_slice(&told.bytes);
        let (unix_ns, since_start_ns) = match told.when {
            When::Clock { unix, since_start } => (nanoseconds(unix), nanoseconds(since_start)),
            When::Unknown | When::Counter(_) => (0, 0),
        };
        Self {
            number: *number,
            write: *write,
            verdict,
            action: number_of(told.action),
            rule: told.rule.map_or(SUBPAGE_UNKNOWN, |rule| rule.0),
            gpa: told.gpa.as_u64(),
            length: told.length.unwrap_or(SUBPAGE_UNKNOWN),
            at: told.at.as_u64(),
            gla: told.gla.unwrap_or(SUBPAGE_UNKNOWN),
            rip: told.origin.rip.unwrap_or(SUBPAGE_UNKNOWN),
            cr3: told.origin.cr3.unwrap_or(SUBPAGE_UNKNOWN),
            unix_ns,
            since_start_ns,
            vcpu: told.origin.vcpu,
            cpl: told.origin.cpl.map_or(4, u32::from),
            during_delivery: told.during_delivery,
            in_software: told.in_software,
            known_bytes: u8::try_from(told.bytes.len()).unwrap_or(u8::MAX),
            bytes,
        }
    }
}

/// What was given as nanoseconds, so that it fits.
fn nanoseconds(duration: core::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Puts the oldest event that waits into `*event`, takes it from the domain and returns 1; 0 if none
/// waits.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_next_event(
    domain: Option<&mut Domain>,
    event: Option<&mut MaybeUninit<Event>>,
) -> i64 {
    status((|| {
        let (domain, event) = (given(domain)?, given(event)?);
        let Some(waiting) = domain.events.waiting.pop_front() else { return Ok(0) };
        event.write(Event::of(&waiting));
        Ok(1)
    })())
}

/// How many events happened since the domain was made, those without room included.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_events(domain: Option<&Domain>) -> i64 {
    status((|| i64::try_from(given(domain)?.events.last).map_err(|_| Failed(Errno::NoSpace)))())
}

/// Writes the oldest event that waits as one line of JSON, as `subpage guard --json` has it, without a
/// zero or a newline behind it. Returns its length, and takes the event from the domain if it was not
/// longer than `capacity`; 0 if none waits. `write` counts the writes that were decided about; `response`
/// is always `skip`, since what the caller did with the instruction is not known here. A library without
/// the feature `std` does not have this call.
///
/// # Safety
/// `text` is NULL or has `capacity` bytes, which may be written.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn subpage_next_event_json(
    domain: Option<&mut Domain>,
    text: *mut std::ffi::c_char,
    capacity: usize,
) -> i64 {
    status((|| {
        let domain = given(domain)?;
        let Some(Waiting { number, write, told }) = domain.events.waiting.front() else {
            return Ok(0);
        };
        let event = told.clone().map_bytes(|bytes| bytes.to_vec());
        let mut record = subpage_trap::Record::new(*number, *write, event);
        let rule = told.rule.and_then(|rule| domain.engine.rules().get(rule));
        record.rule_name = rule.map(|active| active.rule.name.as_str().to_owned());
        let line = serde_json::to_string(&record.line()).map_err(|_| Failed(Errno::NoMemory))?;
        // SAFETY: the caller's promise.
        let length = unsafe { crate::buffers::copy_out(line.as_bytes(), text.cast(), capacity) };
        if !text.is_null() && length <= capacity {
            domain.events.waiting.pop_front();
        }
        i64::try_from(length).map_err(|_| Failed(Errno::NoSpace))
    })())
}
