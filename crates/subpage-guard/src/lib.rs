//! What guards memory of a machine on KVM, whoever runs the machine.
//!
//! `subpage-kvm` is a VMM that uses it. [`embed`] is for VMMs that have a loop of their own.
#![deny(unsafe_code)]
// For 64-bit hosts only: addresses and `usize` have the same width.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

pub mod control;
pub mod embed;
pub mod event;
pub mod failure;
pub mod guard;
pub mod memory;
pub mod metrics;
pub mod store;
pub mod temporary_file;
pub mod trap;
pub mod vcpu;
