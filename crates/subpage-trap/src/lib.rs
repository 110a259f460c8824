//! The protocol of a write that trapped, whoever enforces the permissions.
//!
//! A virtual machine monitor, a hypervisor and a library inside another monitor's process get their
//! exits in different ways. What follows is the same for all of them, and stands here once:
//!
//! 1. [`locate`]: which guest-physical bytes the write goes to, all of them before any is touched;
//! 2. [`complete`]: one decision about all bytes; what meets a rule is first carried out on a copy, so
//!    that the event has the bytes and a denied instruction leaves its registers as a ROM would; then
//!    the decision is committed, and a permitted write is carried out on the guest's bytes;
//! 3. the [`Event`] is recorded.
//!
//! [`store`] does all of that for an instruction. [`Frame`] does the same for the frame that an
//! interrupt or exception pushes, which no instruction stores. [`deny`] and [`deny_unknown`] are for
//! backends whose engine has decided already.
//!
//! A [`Backend`] brings memory, page walks, registers and a place for events. Everything here happens
//! with the lock on its domain held (contract C1): the backend is borrowed exclusively throughout.
//!
//! Nothing here allocates or blocks by itself, so a signal handler may use it if its backend does not
//! either.
//!
//! With the feature `record`, which programs with a standard library turn on, an event has the form in
//! which it is kept, shown and sent: see [`Record`].
#![no_std]
#![forbid(unsafe_code)]
// A constant that one step needs stands beside that step.
#![allow(clippy::items_after_statements)]

#[cfg(feature = "record")]
extern crate std;

mod backend;
mod delivery;
mod event;
mod hex;
mod locate;
mod obstacle;
#[cfg(feature = "record")]
mod record;
mod report;
mod store;

pub use backend::{Backend, Response};
pub use delivery::{Delivered, Frame, deny_unplanned, software_interrupt};
pub use event::{Event, INSTRUCTION_BYTES, Origin, Verdict, When};
pub use hex::{Address, Digits, Dump};
pub use locate::{Located, Wanted, locate, locate_marked, mark};
pub use obstacle::Obstacle;
#[cfg(feature = "record")]
pub use record::{Armed, Function, Process, Record, SourceLine, Task, Timestamp, VERSION};
pub use report::{Account, Met, authorize, describe, report};
pub use store::{
    StoreOutcome, Trapped, carry_out, complete, deny, deny_unknown, drop_store, locate_store,
    settle, skip, store,
};
