//! What a trapped instruction would write, and writing it in software.
//!
//! An EPT violation tells the address of a write, but neither its length nor its bytes. This module
//! finds them out, and completes writes that are permitted:
//!
//! 1. [`GuestInstruction::fetch`] reads and decodes the instruction through the guest's own page tables;
//! 2. [`Store::of`] tells where it writes and how many bytes;
//! 3. [`translate_span`] tells which guest-physical bytes those are, and which entries of the guest's
//!    page tables the processor would mark; the domain is asked about them;
//! 4. [`Executor::complete`] carries the instruction out on a [`Window`]: on the guest's bytes, or on
//!    a [`Scratch`] copy of them. The copy tells what would have been written, and leaves registers
//!    and flags as if memory had taken the write and forgotten it, as a ROM does.
//!
//! An instruction with a memory operand is not interpreted. It is encoded anew with that operand
//! replaced by a register that points into the window, and then the processor executes it: flags,
//! atomicity and rounding are the processor's own. Only forms from an allow list get that far; none
//! of them is privileged, transfers control or touches memory elsewhere. Pushes, calls and string
//! instructions, whose destination is implied, are computed here.
//!
//! [`deliver`](deliver()) does the same for an interrupt or exception: it tells which frame would be
//! pushed, where, and how the processor would be afterwards.
//!
//! The bare-metal hypervisor and the VMM on KVM share it: the exits that they get differ, what a store
//! is does not. `unsafe` is in two modules, `trampoline` and `window`.
#![no_std]
#![deny(unsafe_code)]
// Addresses and `usize` have the same width.
#![cfg(target_pointer_width = "64")]
// A constant that one step needs stands next to that step.
#![allow(clippy::items_after_statements)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod allow_list;
pub mod bits;
mod complete;
mod decode_cache;
mod deliver;
mod descriptor;
mod extended;
mod extent;
mod far_call;
mod fault;
mod fetch;
mod form;
pub mod guest;
mod implied;
mod linear;
mod memory_operands;
mod moved;
mod paging;
mod partial;
mod segment;
mod store;
mod store_template;
mod substitute;
mod tables;
mod trampoline;
mod window;
mod xsave;

use subpage::address::PhysicalWidth;

pub use complete::{Executor, Incomplete, Progress};
pub use decode_cache::{DecodeCache, Decoded};
pub use deliver::{EventKind, PlannedDelivery, VectoringEvent, deliver};
pub use extended::{Extended, FxArea, XsaveArea};
pub use fault::{Escalation, Exception, Fault};
pub use fetch::{GuestInstruction, MAX_INSTRUCTION_BYTES};
pub use form::Unsupported;
pub use linear::{Part, read_linear, translate_span};
pub use moved::Moved;
pub use paging::{
    Access, Mark, Translation, translate, translate_marked, walk_entries, walk_marks,
};
pub use store::{MAX_STORE_BYTES, Refusal, Store};
pub use substitute::Substitute;
pub use tables::table_frames;
pub use trampoline::{CODE_BYTES, Trampoline, TrampolineFault};
pub use window::{Scratch, Window};

use crate::guest::{Segment, State};

/// What the guest's processor offers, as CPUID tells the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagingFeatures {
    /// MAXPHYADDR: address bits at and above it are reserved in page-table entries.
    pub physical_width: PhysicalWidth,
    /// 1 GiB pages.
    pub gigabyte_pages: bool,
}

/// A descriptor-table register: GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableRegister {
    /// Linear address of the table.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// The system registers of a virtual processor that only some instructions and events need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct SystemTables {
    pub gdtr: TableRegister,
    pub idtr: TableRegister,
    pub ldtr: Segment,
    pub tr: Segment,
}

/// Most accesses to memory of one instruction that [`GuestInstruction::accesses`] tells of.
pub const MAX_ACCESSES: usize = 8;

/// Builds the tables of the decoder and the encoder, about 1 MiB of heap, so that no exit has to.
///
/// They are built at their first use otherwise. Afterwards an instruction needs no more than some
/// ten bytes of heap for a moment.
pub fn prepare() {
    // MOV [BX + SI], AX: a default state is in real mode.
    let code = GuestInstruction::decode(&State::default(), &[0x89, 0x00]).expect("an instruction");
    Substitute::for_operand(code.instruction(), false).expect("a form of the allow list");
}

/// Whether an address is canonical with 48 linear-address bits.
const fn is_canonical(linear: u64) -> bool {
    let top = linear >> 47;
    top == 0 || top == 0x1_ffff
}
