//! Calls that only a hypervisor with test hooks has; `HOOKS.md` is the reference.

use super::call;
use crate::memory::Bytes;

/// Ends the machine.
pub fn stop(status: u64) -> ! {
    call(0x8000, [status, 0, 0, 0]);
    // Without test hooks the call is refused: end as a guest of any hypervisor does.
    loop {
        crate::processor::halt();
    }
}

fn expect(what: &str, result: i64) -> u64 {
    u64::try_from(result).unwrap_or_else(|_| panic!("the hook {what} answers {result}"))
}

/// From now on invalidations leave this processor out; none with `None`.
pub fn skip_shootdown(processor: Option<usize>) {
    let number = processor.map_or(u64::MAX, |number| number as u64);
    expect("SKIP_SHOOTDOWN", call(0x8001, [number, 0, 0, 0]));
}

/// How the SPPT is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// The L2 entry becomes invalid: writes are SPP misses.
    Miss,
    /// A reserved bit of the L1 entry is set.
    Misconfiguration,
    /// Undone.
    Repair,
}

/// Breaks or repairs the SPPT on the way to a page.
pub fn break_sppt(page: Bytes, how: Break) {
    expect("BREAK_SPPT", call(0x8002, [page.address(), how as u64, 0, 0]));
}

/// Kind of an injected event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injected {
    /// External interrupt.
    External = 0,
    /// Non-maskable interrupt.
    Nmi = 2,
    /// Exception without an error code.
    Exception = 3,
}

/// Injects an event at the next entry; returns the hypervisor's answer.
pub fn inject(vector: u8, event: Injected) -> i64 {
    call(0x8003, [u64::from(vector), event as u64, 0, 0])
}

/// What the hypervisor counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// Exits of a basic reason.
    Exits(u8),
    /// EPT violations handled by the engine.
    EptViolations,
    /// SPP misses handled by the engine.
    SppMisses,
    /// Writes denied.
    Denied,
    /// Writes let through and reported.
    Reported,
    /// Exits answered with a retry.
    Retries,
    /// Exits answered with "emulate".
    Emulations,
    /// Pages that became dirty.
    Dirtied,
    /// Traps that opened a tracked sub-page.
    Tracked,
    /// Unlinked table frames.
    Retired,
    /// Table frames in use.
    Frames,
    /// Rules in force.
    Rules,
    /// Exits of any reason.
    AllExits,
}

impl Counter {
    const fn item(self) -> u64 {
        match self {
            Self::Exits(reason) => reason as u64,
            Self::EptViolations => 0x101,
            Self::SppMisses => 0x102,
            Self::Denied => 0x104,
            Self::Reported => 0x105,
            Self::Retries => 0x106,
            Self::Emulations => 0x107,
            Self::Dirtied => 0x108,
            Self::Tracked => 0x109,
            Self::Retired => 0x200,
            Self::Frames => 0x201,
            Self::Rules => 0x202,
            Self::AllExits => 0x300,
        }
    }

    /// Its value.
    pub fn get(self) -> u64 {
        expect("COUNTERS", call(0x8004, [self.item(), 0, 0, 0]))
    }
}

/// By how much a counter grows while `body` runs.
pub fn growth(counter: Counter, body: impl FnOnce()) -> u64 {
    let before = counter.get();
    body();
    counter.get() - before
}

/// After `frames` more table frames every allocation of one fails; no limit with `None`.
pub fn limit_frames(frames: Option<u64>) {
    expect("FRAMES_LEFT", call(0x8005, [frames.unwrap_or(u64::MAX), 0, 0, 0]));
}

/// A memory slot besides the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(pub u64);

impl Slot {
    /// Adds it at a frame; returns the hypervisor's answer.
    pub fn add(self, gfn: u64, pages: u64) -> i64 {
        call(0x8006, [0, self.0, gfn, pages])
    }

    /// Removes it; returns the hypervisor's answer.
    pub fn remove(self) -> i64 {
        call(0x8006, [1, self.0, 0, 0])
    }

    /// Moves it to a frame; returns the hypervisor's answer.
    pub fn move_to(self, gfn: u64) -> i64 {
        call(0x8006, [2, self.0, gfn, 0])
    }

    /// Sets its flags; returns the hypervisor's answer.
    pub fn set_flags(self, read_only: bool, log_dirty: bool) -> i64 {
        call(0x8006, [3, self.0, 0, u64::from(read_only) | u64::from(log_dirty) << 1])
    }

    /// Takes its dirty log: a bit for each page.
    pub fn take_dirty(self) -> u64 {
        expect("SLOT", call(0x8006, [4, self.0, 0, 0]))
    }
}

/// The host takes or gives write access to pages.
pub fn protect(pages: Bytes, writable: bool) {
    let arguments = [pages.gfn(), pages.length() / 4096, u64::from(writable), 0];
    expect("PROTECT", call(0x8007, arguments));
}

/// Bytes of the EPT leaf that maps an address; 0 if none does.
pub fn leaf(at: Bytes) -> u64 {
    expect("LEAF", call(0x8008, [at.address(), 0, 0, 0]))
}

/// What becomes of denied writes that no rule has an answer for: skipped, or #GP if `fault`.
pub fn set_response(fault: bool) {
    expect("SET_RESPONSE", call(0x8009, [1 + u64::from(fault), 0, 0, 0]));
}

/// Time-stamp counts that the last denial's decision took.
pub fn last_decision() -> u64 {
    expect("LAST_DECISION", call(0x800a, [0; 4]))
}

/// Adds a rule as the host; returns the hypervisor's answer.
pub(super) fn host_rule(request: Bytes) -> i64 {
    call(0x800b, [request.address(), 0, 0, 0])
}

/// Removes a rule as the host; returns the hypervisor's answer.
pub fn host_remove_rule(rule: u64) -> i64 {
    call(0x800c, [rule, 0, 0, 0])
}

/// A field of the last EPT violation or SPP-related event on this processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitField {
    /// Basic reason.
    Reason,
    /// Exit qualification.
    Qualification,
    /// Guest-physical address.
    Gpa,
    /// IDT-vectoring information.
    Vectoring,
    /// Instruction length.
    InstructionLength,
    /// Address of the instruction.
    Rip,
}

impl ExitField {
    /// Its value.
    pub fn get(self) -> u64 {
        // The qualification's and RIP's upper bits may make the number negative: not an error here.
        call(0x800d, [self as u64, 0, 0, 0]) as u64
    }
}
