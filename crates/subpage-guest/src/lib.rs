//! A guest that tests and measures the hypervisor from inside.
//!
//! It starts as [`subpage_vmx::abi::BootInformation`] says, and does what its command line says:
//!
//! | word | what it does |
//! |---|---|
//! | `list` | prints `test: NAME [spp|any|nospp] [cpus=N] [limit=SECONDS] [stop=WORD]` for each test |
//! | `run=NAME` | runs a test, prints `PASS NAME` or `FAIL NAME: reason` |
//! | `bench` | prints `bench: KEY VALUE UNIT` for each measurement |
//!
//! and ends the machine. A test with `stop=WORD` ends in the hypervisor stopping the guest with a
//! line that has this word; it prints `PASS` just before, and `FAIL` if it is still there after.
//!
//! Tests register themselves ([`registry`]); what they do to memory goes through
//! [`memory::Bytes`], which no Rust object shares.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]
// Registers are bit patterns of 64 bits, of which an instruction takes the part that it wants and
// whose sign depends on the reader; addresses and indices fit where this image runs.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

pub mod bench;
pub mod command_line;
pub mod console;
// The entry point, the panic handler and the memory functions of C: what an image without an
// operating system has to define itself.
#[cfg(bare_metal)]
#[allow(unsafe_code)]
mod entry;
pub mod hypervisor;
pub mod memory;
pub mod processor;
pub mod registry;
pub mod store;
mod tests;
