//! The protocol over a guest in this process's memory, against a naive judgement of every byte.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)] // a test says by panicking that something failed

#[path = "../../../subpage-emulate/tests/emulate/flat.rs"]
mod flat;
mod frames;
mod guest;
mod hearing;
mod judge;
mod masked;
mod places;
mod stores;
mod unknown;
mod walks;
