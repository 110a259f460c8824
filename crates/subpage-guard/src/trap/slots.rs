//! Read-only memory slots, which are the business of whoever has made the slots.

use std::fmt;

use thiserror::Error;

use super::PageSet;

/// Why memory slots could not be changed; they are as they were.
#[derive(Debug, Error)]
pub enum SlotError {
    /// Each run of guarded pages needs one slot, and one more for what lies behind it.
    #[error(
        "{needed} memory slots are needed, KVM has {limit}: guard fewer separate pages, or trap by \
         mprotect (--trap mprotect)"
    )]
    TooMany {
        /// How many the layout needs.
        needed: usize,
        /// How many KVM has.
        limit: usize,
    },
    /// The kernel cannot do what is asked for.
    #[error(
        "this kernel's KVM has no read-only memory slots (KVM_CAP_READONLY_MEM): trap by mprotect \
         (--trap mprotect)"
    )]
    NoReadOnlySlots,
    /// They belong to another program.
    #[error("the memory slots are another program's, which are not changed")]
    NotOurs,
    /// KVM refused a slot.
    #[error("KVM refuses the memory slot of {pages} pages at frame {first:#x}: {error}")]
    Refused {
        /// First frame.
        first: u64,
        /// Pages.
        pages: u64,
        /// What the kernel says.
        error: vmm_sys_util::errno::Error,
    },
}

/// Whoever can make pages of the guest's memory read-only by memory slots.
pub trait ReadOnlySlots: fmt::Debug + Send {
    /// Makes pages read-only, or writable. All or nothing.
    ///
    /// A slot that changes is absent for a moment: no processor may be in the guest.
    fn set_read_only(&mut self, pages: &PageSet, read_only: bool) -> Result<(), SlotError>;

    /// How many memory slots there are.
    fn count(&self) -> usize;
}

/// Slots that belong to somebody else, and stay as they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSlots;

impl ReadOnlySlots for NoSlots {
    fn set_read_only(&mut self, pages: &PageSet, _: bool) -> Result<(), SlotError> {
        if pages.is_empty() { Ok(()) } else { Err(SlotError::NotOurs) }
    }

    fn count(&self) -> usize {
        0
    }
}
