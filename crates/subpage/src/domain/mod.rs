//! A protection domain: one virtual machine's memory, its tables, its rules, and every call on them.
//!
//! The engine has no lock of its own. Calls that change take `&mut self` and calls that ask take
//! `&self`, so an owner that shares a domain between threads puts it behind one lock (D10, D14, D20: the
//! series decided under one lock and acted under another), and the borrow checker holds them to it.
//! Processors that walk the tables meanwhile take part through the order of stores
//! ([`TableFrames`]) and through [`Invalidation`](crate::invalidate::Invalidation).

mod access;
mod aliases;
mod change;
mod counters;
mod decide;
mod dirty;
mod error;
mod exits;
mod export;
mod memory;
mod names;
mod rules;
mod tables;
mod tracking;
mod write;

pub use counters::{Counters, Observer};
pub use decide::{Decision, Denial};
pub use dirty::Pending;
pub use error::DomainError;
pub use exits::{Answer, AtOnce, EptViolation, HostError, RetryState, SppEvent};
pub use export::{EXPORT_MAGIC, ImportError};
pub use memory::HostPage;
pub use write::{Considered, WriteParts};

use crate::address::{GfnRange, PhysicalWidth};
use crate::frames::TableFrames;
use crate::invalidate::Completed;
use crate::rules::{MaskedDenials, RuleSet};
use crate::slots::{AddressSpace, SlotSet};
use crate::sppt::Sppt;
use crate::track::Tracking;
use names::{Names, RulesByName};
use tables::{Slots, Tables};

/// How the processors that run the guest use the domain's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessorUse {
    /// The control "sub-page write permissions for EPT" is 1. If it is 0, every write to a
    /// restricted page traps, and permitted ones are answered with "emulate" at once.
    pub sub_page_permissions: bool,
    /// EPTP bit 6 is set: reads of guest paging structures count as writes.
    pub ept_accessed_dirty: bool,
}

/// The memory of one virtual machine and who may write it.
///
/// `F` is where table frames come from; `O` hears of the events that the KVM series traced.
pub struct Domain<F, O = ()> {
    tables: Tables<F>,
    slots: Slots,
    rules: RuleSet,
    masked: MaskedDenials,
    tracking: Tracking,
    names: Names,
    next_rule: u64,
    next_track: u64,
    processor: ProcessorUse,
    counters: Counters,
    observer: O,
}

impl<F: TableFrames> Domain<F> {
    /// An empty domain for a processor of the given physical width; takes no frame.
    pub fn new(frames: F, width: PhysicalWidth) -> Self {
        Self::with_observer(frames, width, ())
    }
}

impl<F: TableFrames, O: Observer> Domain<F, O> {
    /// An empty domain whose events `observer` hears.
    pub fn with_observer(frames: F, width: PhysicalWidth, observer: O) -> Self {
        Self {
            tables: Tables::new(frames, width),
            slots: [SlotSet::default(), SlotSet::default()],
            rules: RuleSet::default(),
            masked: MaskedDenials::default(),
            tracking: Tracking::default(),
            names: Names::default(),
            next_rule: 1,
            next_track: 1,
            processor: ProcessorUse { sub_page_permissions: true, ept_accessed_dirty: false },
            counters: Counters::default(),
            observer,
        }
    }

    /// Turns sub-page permissions on: takes one frame, whatever the size of the guest; every page is
    /// unrestricted. Does nothing if they are on.
    ///
    /// The root belongs to the domain and not to a processor, and lives as long as the domain (D1,
    /// D11, D13). There is no call that turns permissions off: drop the domain.
    pub fn enable(&mut self) -> Result<(), DomainError> {
        if self.tables.sppt.is_none() {
            self.tables.sppt = Some(Sppt::new(&mut self.tables.frames)?);
        }
        Ok(())
    }

    /// Tells how the processors are set up; at first, with sub-page permissions and without accessed
    /// and dirty flags for EPT. It changes answers to exits, never permissions.
    pub const fn set_processor_use(&mut self, processor: ProcessorUse) {
        self.processor = processor;
    }

    /// Frees what a change left behind, once no processor can reach it.
    pub fn finish(&mut self, done: &Completed) {
        self.tables.finish(done);
    }

    /// The sub-page permission table, once enabled; its root goes into the SPPTP field.
    pub const fn sppt(&self) -> Option<Sppt> {
        self.tables.sppt
    }

    /// The extended page table of an address space, from its first mapping on.
    pub fn ept(&self, space: AddressSpace) -> Option<crate::ept::Ept> {
        self.tables.epts[space.index()]
    }

    /// The memory that tables live in, to read.
    pub const fn frames(&self) -> &F {
        &self.tables.frames
    }

    /// The memory that tables live in, for a processor (or a model of one) that sets accessed and
    /// dirty flags. Any other change breaks the domain.
    pub const fn frames_mut(&mut self) -> &mut F {
        &mut self.tables.frames
    }

    /// The rules in force.
    pub const fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// The slots of an address space.
    pub fn slots(&self, space: AddressSpace) -> &SlotSet {
        &self.slots[space.index()]
    }

    /// Event counters.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many table frames are unlinked and wait for an invalidation.
    pub fn retired_frames(&self) -> usize {
        self.tables.retired()
    }

    /// The rules as they guard memory under all its names.
    const fn rules_by_name(&self) -> RulesByName<'_> {
        RulesByName { rules: &self.rules, names: &self.names }
    }

    fn enabled(&self) -> Result<Sppt, DomainError> {
        self.tables.sppt.ok_or(DomainError::NotEnabled)
    }

    /// Refuses frames beyond the processor's width.
    fn check_width(&self, range: GfnRange) -> Result<(), DomainError> {
        Ok(self.tables.width.check(range.last())?)
    }
}
