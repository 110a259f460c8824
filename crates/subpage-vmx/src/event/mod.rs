//! Events: the writes that met a rule or an access map, as the guest and people hear of them.
//!
//! An [`Event`] is what happened, typed. It becomes an [`EventRecord`](crate::abi::EventRecord) in
//! the bounded [`Ring`] that guests read, and one [`Line`] on the serial port.

mod line;
mod record;
mod ring;

pub use line::Line;
pub use ring::{CAPACITY, Ring};

use arrayvec::ArrayVec;

use subpage::address::{ByteRange, Gpa};
use subpage::domain::Denial;
use subpage::rules::RuleId;

use subpage_emulate::guest::State;

/// Most bytes of a write that an event keeps: 64, the longest ordinary store.
pub const DATA_BYTES: usize = 64;

/// Longest instruction in bytes: 15 (SDM Vol. 2A, "Instruction Format").
pub const INSTRUCTION_BYTES: usize = 15;

/// What became of a write. The numbers are those of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum EventOutcome {
    /// It took effect and is reported because a rule wants that.
    LetThrough = 0,
    /// It had no effect, and the guest went on after the instruction.
    Skipped = 1,
    /// It had no effect, and the guest got a general-protection exception; a double fault, if the
    /// write was part of delivering an event.
    GeneralProtection = 2,
    /// It had no effect, and the guest was stopped.
    Stopped = 3,
}

/// Who wrote, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Virtual processor.
    pub cpu: u32,
    /// Address of the instruction.
    pub rip: u64,
    /// Page-table base of the guest.
    pub cr3: u64,
    /// Privilege level, 0..=3.
    pub cpl: u8,
}

impl Origin {
    /// Virtual processor `cpu`, whose state is `state`.
    pub const fn of(state: &State, cpu: u32) -> Self {
        Self { cpu, rip: state.rip, cr3: state.cr3, cpl: state.cpl }
    }
}

/// One write that met a rule or an access map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What became of it.
    pub outcome: EventOutcome,
    /// The rule that decided; none if an access map did.
    pub rule: Option<RuleId>,
    /// First byte of the write.
    pub gpa: Gpa,
    /// Linear address of that byte, if known.
    pub gla: Option<u64>,
    /// First byte that may not be written, or that the rule wants reported.
    pub at: Gpa,
    /// Length of the write in bytes, if known.
    pub length: Option<u64>,
    /// Who wrote.
    pub origin: Origin,
    /// Exit qualification, if an exit told of the write.
    pub qualification: Option<u64>,
    /// The first bytes that the write stored or would have stored; empty if unknown.
    pub data: ArrayVec<u8, DATA_BYTES>,
    /// The bytes of the instruction; empty if there is none or it is unknown.
    pub instruction: ArrayVec<u8, INSTRUCTION_BYTES>,
    /// The write was part of delivering an interrupt or exception.
    pub during_delivery: bool,
    /// The write was decided in software: emulated, or done by the hypervisor for a hypercall.
    pub software: bool,
}

impl Event {
    /// A denied write; what the exit and the instruction tell besides is left open.
    pub fn denied(denial: &Denial, origin: Origin, outcome: EventOutcome) -> Self {
        Self {
            outcome,
            rule: denial.rule,
            gpa: denial.gpa,
            gla: denial.gla,
            at: denial.at,
            length: denial.length,
            origin,
            qualification: None,
            data: ArrayVec::new(),
            instruction: ArrayVec::new(),
            during_delivery: denial.during_delivery,
            software: false,
        }
    }

    /// A write that took effect and touches a rule at `at`; decided in software, as all such are.
    pub fn reported(rule: RuleId, at: Gpa, write: ByteRange, origin: Origin) -> Self {
        Self {
            outcome: EventOutcome::LetThrough,
            rule: Some(rule),
            gpa: write.first(),
            gla: None,
            at,
            length: Some(write.bytes()),
            origin,
            qualification: None,
            data: ArrayVec::new(),
            instruction: ArrayVec::new(),
            during_delivery: false,
            software: true,
        }
    }

    /// The same with as many of `data` as an event keeps.
    pub fn with_data(mut self, data: &[u8]) -> Self {
        self.data = data.iter().copied().take(DATA_BYTES).collect();
        self
    }

    /// The same with the bytes of the instruction; of more than 15 the first.
    pub fn with_instruction(mut self, instruction: &[u8]) -> Self {
        self.instruction = instruction.iter().copied().take(INSTRUCTION_BYTES).collect();
        self
    }

    /// The same with the qualification of the exit that told of the write.
    pub const fn with_qualification(mut self, qualification: u64) -> Self {
        self.qualification = Some(qualification);
        self
    }
}

#[cfg(test)]
pub(crate) mod samples {
    //! Events for tests.

    use super::*;

    /// A denied write with every field told.
    pub(crate) fn full() -> Event {
        let denial = Denial {
            gpa: Gpa::new(0x80_01FC),
            gla: Some(0xFFFF_8000_0080_01FC),
            length: Some(8),
            at: Gpa::new(0x80_0200),
            rule: Some(RuleId(3)),
            stop: false,
            during_delivery: true,
        };
        let origin = Origin { cpu: 2, rip: 0x20_1234, cr3: 0x30_0000, cpl: 3 };
        Event::denied(&denial, origin, EventOutcome::GeneralProtection)
            .with_qualification(0x5AA)
            .with_data(&[1, 2, 3, 4, 5, 6, 7, 0xF8])
            .with_instruction(&[0x48, 0x89, 0x18])
    }

    /// A write that was let through, of which little is known.
    pub(crate) fn sparse() -> Event {
        let write = ByteRange::new(Gpa::new(0x1000), 1).expect("one byte");
        let origin = Origin { cpu: 0, rip: 0, cr3: 0, cpl: 0 };
        Event { length: None, ..Event::reported(RuleId(7), Gpa::new(0x1000), write, origin) }
    }
}
