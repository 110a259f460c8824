//! What the guard asks of the guest's memory, whoever owns it.

mod alias;
mod host_slots;
mod view;

pub(crate) use host_slots::{HostSlot, HostSlots};
pub use view::ViewError;

use nix::errno::Errno;

use subpage::address::{ByteRange, GfnRange};
use subpage::domain::WriteParts;
use subpage_emulate::Window;
use subpage_emulate::guest::PhysicalMemory;
use thiserror::Error;

/// Why a memory slot was not taken in; nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HostSlotError {
    /// It does not begin and end at pages, or there is nothing.
    #[error("a memory slot begins at a page of the host and of the guest, and has whole pages")]
    Place,
    /// Another slot has some of its guest-physical addresses.
    #[error("memory slot {0} has some of these guest-physical addresses")]
    Overlap(u32),
    /// It shares some of its memory with another slot, but is no part of that.
    #[error(
        "the memory slot has some of the host's memory that slot {0} has, and more: make the larger of the \
         two first, and the other one, a part of it, afterwards"
    )]
    Shares(u32),
    /// It is in an address space of its own, as that of system-management mode.
    #[error(
        "memory slot {0:#x} is not in the guest's one address space: take its memory off the guest"
    )]
    Space(u32),
    /// Its memory is private: it cannot be mapped twice.
    #[error("the slot's memory is not shared: map it with MAP_SHARED, for instance from a memfd")]
    NotShared,
    /// The host refuses the second mapping.
    #[error("the host does not map the slot's memory a second time: {0}")]
    Host(Errno),
}

impl HostSlotError {
    const fn of(error: Errno) -> Self {
        match error {
            Errno::EINVAL => Self::NotShared,
            error => Self::Host(error),
        }
    }
}

/// The bytes are no memory, or the host cannot map them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoWindow;

/// The guest's memory, which the host has mapped twice: once as KVM has it, where pages may be made
/// read-only, and once always writable, for stores that are carried out here.
pub trait GuestMemory: PhysicalMemory {
    /// The pages of memory by all their names, in runs that are each mapped in one piece.
    fn runs(&self) -> impl Iterator<Item = GfnRange>;

    /// Whether all of a range is memory, and mapped in one piece.
    fn holds(&self, range: ByteRange) -> bool;

    /// Lets pages of one run be written where KVM has them, or not. On an error nothing has changed.
    ///
    /// When this returns, no processor of the guest has a translation that says otherwise: the
    /// kernel tells KVM of the change, which invalidates before `mprotect` returns.
    fn set_writable(&self, pages: GfnRange, writable: bool) -> Result<(), ViewError>;

    /// Does `work` on the bytes of a write.
    ///
    /// Runs that are not neighbours are mapped next to each other for as long, as they are for the
    /// guest: an instruction that crosses pages sees one run of bytes.
    fn with_window<T>(
        &self,
        write: &WriteParts,
        work: impl FnOnce(&mut Window<'_>) -> T,
    ) -> Result<T, NoWindow>;

    /// Why a range is not all memory, or what it would take, for people.
    fn remedy(&self, range: ByteRange) -> String;
}
