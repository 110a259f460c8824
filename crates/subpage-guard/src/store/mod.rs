//! Stores that left the guest: this KVM's part of `subpage-trap`'s protocol.
//!
//! KVM reports a store in one of two ways, and each has its module:
//!
//! - `mmio_store`: KVM has carried the instruction out and tells the bytes that memory would have got
//!   (`KVM_EXIT_MMIO`), in pieces of at most eight;
//! - `trapped`: the instruction has not happened, and is carried out here.

mod backend;
mod clock_page;
mod context;
mod delivery;
mod find_instruction;
mod in_traps;
mod inject;
mod mmio_store;
mod plain;
mod recorder;
mod report;
mod trapped;
mod walk;

pub use clock_page::write_clock;
pub use context::StoreContext;
pub use in_traps::in_traps;
pub use inject::{end_instruction, inject};
pub use mmio_store::{finish, mmio_store};
pub use recorder::{FirstProgram, Recorder};
pub use report::{Stepped, report_step};
pub use trapped::{Cause, failure, trapped};
pub use walk::mark as mark_walks;

use std::sync::Arc;

use subpage_emulate::GuestInstruction;
use subpage_trap::Record;

use crate::trap::PageSet;

/// An instruction that trapped and that software does not carry out.
#[derive(Debug)]
pub struct Unsolved {
    /// The instruction, if it could be fetched.
    pub code: Option<GuestInstruction>,
    /// Why software does not, as a sentence without its end.
    pub reason: String,
    /// How often the processor came here in a row.
    pub visits: u32,
}

/// How a processor continues after a store.
#[derive(Debug)]
#[must_use]
pub enum Next {
    /// Into the guest.
    Enter,
    /// Into the guest, after pages that need not trap any more were opened.
    Settle,
    /// Over the instruction at RIP, with the pages open that it needs: software does not carry it out.
    Step(Unsolved),
    /// Into the guest, after these pages, which hold page tables, were put into read-only slots.
    HoldTables(PageSet),
    /// Not at all: a rule with the action `stop` was met.
    Stopped(Arc<Record>),
    /// Not at all: a triple fault, at this instruction.
    TripleFault {
        /// Its address.
        rip: u64,
    },
}
