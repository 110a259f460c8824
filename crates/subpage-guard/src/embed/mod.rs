//! For a VMM that runs its own loop around `KVM_RUN`: `docs/own-vmm.md` shows the lines that it takes.
//!
//! A [`Machine`] knows the memory slots and the rules. A [`Seat`] stands between a processor's
//! `KVM_RUN` and what the VMM does about its exits: stores to guarded pages never get there.

mod change;
mod device;
mod machine;
mod operator;
mod seat;

pub use device::DeviceWrite;
pub use machine::{Machine, MachineError, SlotMemory};
pub use operator::Operator;
pub use seat::{After, Seat};
