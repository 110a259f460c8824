//! What a Linux kernel's image says about itself.
//!
//! Everything is read from the image *file*, never from the memory of a running guest, which its
//! owner may have changed. The file is not trusted either: nothing in it makes a reader panic, wait
//! or take more memory than its documentation says, and what does not fit together is an error or
//! absent, never a guess.
//!
//! [`KernelImage`] opens a kernel as users have it: a bzImage of any usual compression, or a vmlinux,
//! stripped or not, for 64-bit x86. [`Kallsyms`] reads the names of the kernel's functions and data
//! out of the tables that the kernel has for its own use. [`Btf`] knows where the fields of its
//! structures lie.
//!
//! With these, it is told of a guest, whose [`Memory`] its owner may have forged, whether this kernel runs in
//! it ([`Banner`]), and then:
//! which function holds an address ([`Kallsyms::function_at`]), which calls are above it ([`Unwinder`]), and
//! which task a processor runs ([`Tasks`]).
//!
//! [`boot`] is for those who start a kernel: what its setup header asks for, and what it is told.
//! [`names`] has functions and the places of tasks in a form that is read without an image. Both need no
//! operating system and no allocator, and are what is left without the feature `std`.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

mod address;
#[cfg(feature = "std")]
mod banner;
pub mod boot;
#[cfg(feature = "std")]
mod btf;
#[cfg(feature = "std")]
mod first_program;
#[cfg(feature = "std")]
mod image;
#[cfg(feature = "std")]
mod kallsyms;
mod memory;
pub mod names;
mod task;
#[cfg(feature = "std")]
mod unwind;

pub use address::{LinkAddress, RuntimeAddress, START_KERNEL_MAP, Slide};
#[cfg(feature = "std")]
pub use banner::Banner;
#[cfg(feature = "std")]
pub use btf::{Btf, Field};
#[cfg(feature = "std")]
pub use first_program::{FirstProgram, FirstProgramError};
#[cfg(feature = "std")]
pub use image::{
    Compression, ImageError, KernelImage, MAX_FILE_BYTES, MAX_UNPACKED_BYTES, Packaging, Section,
    Segment,
};
#[cfg(feature = "std")]
pub use kallsyms::{Kallsyms, KallsymsError, MAX_NAME_BYTES, MAX_SYMBOLS, Placement, Symbol};
pub use memory::Memory;
pub use task::{RunningTask, TaskName, TaskPlaces};
#[cfg(feature = "std")]
pub use task::{Task, Tasks};
#[cfg(feature = "std")]
pub use unwind::{MAX_CALLS, Registers, Unwinder};
