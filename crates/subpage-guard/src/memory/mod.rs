//! What the guard asks of the guest's memory, whoever owns it.

mod view;

pub use view::ViewError;

use subpage::address::{ByteRange, GfnRange};
use subpage::domain::WriteParts;
use subpage_emulate::Window;
use subpage_emulate::guest::PhysicalMemory;

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
