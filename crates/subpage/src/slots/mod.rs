//! Memory slots: which guest frames exist, in which address space, and what the host logs of them.
//!
//! A slot says where memory is; it says nothing about permissions. Rules and access maps belong to
//! guest-physical addresses and hold in both address spaces, so adding, removing, moving or
//! re-flagging a slot can neither weaken a rule nor touch another slot (contract C5; D12, D30 to
//! D32).

mod dirty;
mod set;

pub use dirty::DirtyBitmap;
pub use set::{AddressSpace, Slot, SlotError, SlotFlags, SlotId, SlotSet};
