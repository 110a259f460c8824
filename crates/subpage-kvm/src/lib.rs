//! A VMM on stock KVM that guards any 128 bytes of its guest's memory.
//!
//! No processor with sub-page write permissions and no patched kernel is needed: pages with a
//! restricted sub-page are read-only for KVM, so every write to them leaves the guest, and the engine
//! decides about its exact bytes. `docs/kvm.md` tells how that is made exact for every kind of store.
#![deny(unsafe_code)]
// The VMM is for 64-bit hosts only: addresses and `usize` have the same width.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

pub mod boot;
pub mod devices;
mod ending;
mod exit;
pub mod gdb;
pub mod memory;
pub mod probe;
pub mod snapshot;
mod step;
pub mod trap;
pub mod vm;

pub use ending::{Failure, InTrap, Structure};
use subpage_guard::store;
pub use subpage_guard::{control, event, guard, metrics, vcpu};
