//! Stores that left the guest: deciding about them, carrying them out, telling of them.
//!
//! KVM reports a store in one of two ways, and each has its module:
//!
//! - [`posted`]: KVM has carried the instruction out and tells the bytes that memory would have got
//!   (`KVM_EXIT_MMIO`), in pieces of at most eight;
//! - [`trapped`]: the instruction has not happened, and is carried out here.

mod backwards;
mod delivery;
mod inject;
mod posted;
mod report;
mod trapped;
mod walk;

pub(crate) use posted::{finish, posted};
pub(crate) use trapped::{Cause, trapped};

use std::fmt;

use crate::trap::PageSet;
use crate::vcpu::ProcessorError;
use crate::vm::Ending;

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

/// Why a processor of the guest cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which processor.
    pub vcpu: u32,
    /// Address of the instruction, if it could be found out.
    pub rip: Option<u64>,
    /// Its bytes, as many as could be read; at most 15.
    pub instruction: Vec<u8>,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "processor {} cannot go on: {}", self.vcpu, self.reason)?;
        if let Some(rip) = self.rip {
            write!(f, "; rip {rip:#x}")?;
        }
        if !self.instruction.is_empty() {
            f.write_str(", instruction")?;
            for byte in &self.instruction {
                write!(f, " {byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl From<ProcessorError> for Failure {
    fn from(error: ProcessorError) -> Self {
        Self { vcpu: error.number, rip: None, instruction: Vec::new(), reason: error.to_string() }
    }
}
