//! A bare-metal VT-x hypervisor in which the processor itself enforces sub-page write permissions.
//!
//! The crate compiles in two ways. As an ordinary crate, for Clippy, documentation and unit tests:
//! everything but the entry points is there. Bare-metal (`--cfg bare_metal`, or a target without an
//! operating system), its programs are images that start from a reset ROM or from Multiboot2.
#![no_std]
#![deny(unsafe_code)]
// The hypervisor is for 64-bit processors only: addresses and `usize` have the same width.
#![cfg(target_pointer_width = "64")]
// A constant that one step needs stands next to that step.
#![allow(clippy::items_after_statements)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod abi;
pub mod boot;
pub mod conformance;
pub mod devices;
pub mod event;
pub mod exits;
pub mod hypercall;
pub mod kit;
pub mod linux;
pub mod machine;
// Addresses are 64 bits wide, and so is `usize` here.
#[allow(clippy::cast_possible_truncation)]
pub mod memory;
pub mod policy;
pub mod processor;
pub mod smp;
pub mod stop;
#[cfg(feature = "test-hooks")]
pub mod test_hooks;
pub mod vcpu;
pub mod vmx;
