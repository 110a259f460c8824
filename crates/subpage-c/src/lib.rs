//! The C interface: `include/subpage.h` over the engine and its decision function.
//!
//! For hypervisors and monitors in C. What a function does is said where the engine has it; here
//! stand the types that C can hold and what a wrong argument gives. The header is made from this
//! source (`tests/header.rs` says when it is out of date).
//!
//! With the feature `std`, which is on by default, memory comes from the C library. Without it the
//! program that embeds the library brings three functions: see the module `freestanding`.
//!
//! A pointer is a reference here, or `None` for NULL. What is left of `unsafe` stands in the modules
//! `buffers`, `frames` and `freestanding`, and where a call takes a buffer.
#![cfg_attr(not(feature = "std"), no_std)]
// The symbols have the names of the header.
#![allow(non_upper_case_globals)]

extern crate alloc;

mod access;
mod buffers;
mod change;
mod decide;
mod domain;
mod events;
mod exits;
mod frames;
#[cfg(not(feature = "std"))]
mod freestanding;
mod harvest;
mod memory;
mod rules;
mod state;
mod status;

pub use access::*;
pub use decide::*;
pub use domain::*;
pub use events::*;
pub use exits::*;
pub use frames::Frames;
pub use harvest::*;
pub use memory::*;
pub use rules::*;
pub use state::*;
pub use status::*;
