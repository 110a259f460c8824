//! The memory slots of this VMM, some of which may be read-only.

mod layout;
mod slots;

pub use layout::{PlannedSlot, replan};
pub use slots::{RamSlots, Slots};
pub use subpage_guard::trap::{
    PageSet, ReadOnlySlots, SlotError, TrapBy, TrapError, Traps, pages_of,
};
