//! Stores that left the guest: this KVM's part of `subpage-trap`'s protocol.
//!
//! KVM reports a store in one of two ways, and each has its module:
//!
//! - [`mmio_store`]: KVM has carried the instruction out and tells the bytes that memory would have got
//!   (`KVM_EXIT_MMIO`), in pieces of at most eight;
//! - [`trapped`]: the instruction has not happened, and is carried out here.

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

pub(crate) use clock_page::write_clock;
pub(crate) use context::StoreContext;
pub(crate) use in_traps::in_traps;
pub(crate) use inject::{end_instruction, inject};
pub(crate) use mmio_store::{finish, mmio_store};
pub(crate) use recorder::Recorder;
pub(crate) use report::{Stepped, report_step};
pub(crate) use trapped::{Cause, failure, trapped};
pub(crate) use walk::mark as mark_walks;

use subpage::rules::Moment;
use subpage_emulate::GuestInstruction;

use crate::ending::Ending;
use crate::trap::PageSet;

/// An instruction that trapped and that software does not carry out.
#[derive(Debug)]
pub(crate) struct Unsolved {
    /// The instruction, if it could be fetched.
    pub(crate) code: Option<GuestInstruction>,
    /// Why software does not, as a sentence without its end.
    pub(crate) reason: String,
    /// How often the processor came here in a row.
    pub(crate) visits: u32,
}

/// How a processor continues after an exit.
#[derive(Debug)]
#[must_use]
pub(crate) enum Next {
    /// Into the guest.
    Enter,
    /// Into the guest, after pages that need not trap any more were opened.
    Settle,
    /// Over the instruction at RIP, with the pages open that it needs: software does not carry it out.
    Step(Unsolved),
    /// Into the guest, after these pages, which hold page tables, were put into read-only slots.
    HoldTables(PageSet),
    /// Into the guest, after the rules were put in force that wait for this.
    Arm(Moment),
    /// From the start: the guest has asked for a reset.
    Reset,
    /// Not at all.
    End(Ending),
}
