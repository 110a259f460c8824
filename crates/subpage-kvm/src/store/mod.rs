//! Stores that left the guest: this KVM's part of `subpage-trap`'s protocol.
//!
//! KVM reports a store in one of two ways, and each has its module:
//!
//! - [`mmio_store`]: KVM has carried the instruction out and tells the bytes that memory would have got
//!   (`KVM_EXIT_MMIO`), in pieces of at most eight;
//! - [`trapped`]: the instruction has not happened, and is carried out here.

mod backend;
mod context;
mod delivery;
mod find_instruction;
mod inject;
mod mmio_store;
mod report;
mod trapped;
mod walk;

pub(crate) use context::Context;
pub(crate) use mmio_store::{finish, mmio_store};
pub(crate) use trapped::{Cause, trapped};

use crate::ending::Ending;
use crate::trap::PageSet;

/// How a processor goes on after an exit.
#[derive(Debug)]
#[must_use]
pub(crate) enum Next {
    /// Into the guest.
    Enter,
    /// Into the guest, after pages that need not trap any more were opened.
    Settle,
    /// Into the guest, after these pages, which hold page tables, were put into read-only slots.
    HoldTables(PageSet),
    /// From the start: the guest has asked for a reset.
    Reset,
    /// Not at all.
    End(Ending),
}
